"""Pairs that are the same but for symmetries and colors."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bridge.arc import Pair
from bridge.arc_files import load_tasks
from bridge.duplicates import content_key, keys_of
from bridge.transforms import Transform


def random_pair(rng):
    shapes = rng.integers(1, 6, (2, 2))
    return Pair(*(rng.integers(0, 10, tuple(shape)).astype(np.uint8) for shape in shapes))


@given(st.integers(0, 10_000), st.integers(0, 7), st.permutations(range(10)))
def test_every_symmetry_and_coloring_of_a_pair_has_its_key(seed, dihedral, colors):
    pair = random_pair(np.random.default_rng(seed))
    transform = Transform(dihedral, tuple(colors))
    other = Pair(transform.grid(pair.input), transform.grid(pair.output))
    assert content_key(other) == content_key(pair)


def test_another_cell_another_side_and_another_shape_have_another_key():
    pair = Pair(np.array([[0, 1], [2, 0]], np.uint8), np.array([[1, 1, 2]], np.uint8))
    changed = pair.input.copy()
    changed[0, 0] = 3
    others = [
        Pair(changed, pair.output),
        Pair(pair.output, pair.input),
        Pair(pair.input, pair.output.reshape(3, 1)),  # turned alone
        Pair(pair.input, np.array([[1, 1, 3]], np.uint8)),  # recolored alone
    ]
    assert len({content_key(other) for other in [pair, *others]}) == 5


def test_the_two_leaks_of_arc_agi_1_are_found():
    """Train 40853293 is evaluation 070dd51e; a pair of caa06a1f is 50a16a69's test pair."""
    training, evaluation = (load_tasks(f"arcagi/{name}") for name in ("training", "evaluation"))
    held = keys_of(evaluation.values())
    found = {}
    for task_id, task in training.items():
        shared = held.keys() & keys_of([task]).keys()
        if shared:
            found[task_id] = {name.split("_")[0] for key in shared for name in held[key]}
    assert found["40853293"] == {"070dd51e"}
    assert found["caa06a1f"] == {"50a16a69"}
    assert any(name == "50a16a69_test_0" for names in held.values() for name in names)
