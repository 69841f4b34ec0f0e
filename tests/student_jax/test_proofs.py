"""What an export is shown: every bucket with its colors, all places, all lengths."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from bridge.canvas import SIDES
from bridge.proofs import MIN_PROOFS, Proof
from student_jax.batch import ROOMS, room_for
from student_jax.config import DataConfig, ModelConfig, TrainConfig
from student_jax.proofs import feature_inputs, grid_inputs
from student_jax.stablehlo import Program, fitting, inputs_like, programs_of


def grids(most):
    solver = SimpleNamespace(config=TrainConfig(data=DataConfig(max_demonstrations=most)))
    return solver, list(grid_inputs(solver))


def features(max_tokens):
    model = ModelConfig(kind="feature", max_tokens=max_tokens)
    config = TrainConfig(model=model, data=DataConfig(store="features"))
    solver = SimpleNamespace(config=config, feature_width=8)
    return solver, list(feature_inputs(solver))


def colors_shown(inputs, i):
    """How many colors of its palette a question shows, in places that are filled."""
    shown = inputs["demonstrations"][i][inputs["mask"][i]], inputs["query"][i]
    return np.isin(inputs["palette"][i], np.concatenate([np.ravel(each) for each in shown])).sum()


@pytest.mark.parametrize("most", [1, 3, 4, 10])
def test_every_bucket_is_shown_as_many_colors_as_it_is_for(most):
    _, drawn = grids(most)
    assert MIN_PROOFS <= len(drawn) <= 130
    most_shown, filled = defaultdict(int), defaultdict(set)
    for inputs in drawn:
        bucket = inputs["query"].shape[1], inputs["palette"].shape[1]
        for i in range(len(inputs["query"])):
            most_shown[bucket] = max(most_shown[bucket], colors_shown(inputs, i))
        filled[bucket] |= set(inputs["mask"].sum(1).tolist())
    assert most_shown.keys() == {(side, room) for side in SIDES for room in ROOMS}
    assert all(room_for(range(shown)) == room for (_, room), shown in most_shown.items())
    assert set.union(*filled.values()) >= {0, 1, most}
    assert {len(inputs["query"]) for inputs in drawn} == {1, 2, 3}
    assert {inputs["mask"].shape[1] for inputs in drawn} >= {1, min(2, most), most}


def test_a_program_of_grids_is_shown_its_bucket_as_it_takes_it():
    solver, drawn = grids(4)
    proofs = [Proof(inputs, np.zeros(0, np.float32)) for inputs in drawn]
    programs = programs_of(solver)
    assert len({program.file for program in programs}) == 18
    shown = [fitting(solver, proofs, program) for program in programs]
    assert all(shown)
    assert sum(map(len, shown)) == len(proofs)
    for program, own in zip(programs, shown, strict=True):
        for proof in own:
            like = inputs_like(solver, program, *proof.inputs["mask"].shape)
            assert {name: x.shape for name, x in proof.inputs.items()} == {
                name: x.shape for name, x in like.items()
            }


def test_long_and_short_features_are_shown_whole():
    _, drawn = features(6144)
    assert MIN_PROOFS <= len(drawn) <= 130
    assert {len(inputs["mask"]) for inputs in drawn} == {1, 2, 3}
    longest = max(drawn, key=lambda inputs: inputs["mask"].shape[1])
    assert longest["features"].shape == (1, 5164, 8)
    assert longest["mask"].all()
    assert any(not inputs["mask"].all() for inputs in drawn)
    assert {inputs["mask"].shape[1] for inputs in features(16)[1]} == {2, 4, 5, 16}


def test_a_program_of_features_is_shown_what_is_padded_to_its_length():
    solver, drawn = features(6144)
    proofs = [Proof(inputs, np.zeros(0, np.float32)) for inputs in drawn]
    assert programs_of(solver) == (Program(2048), Program(4096), Program(6144))
    shown = {program.size: fitting(solver, proofs, program) for program in programs_of(solver)}
    assert {size: len(each) for size, each in shown.items()} == {
        2048: len(drawn) - 1,
        4096: 4,  # none has that length: the longest below, of 96 tokens
        6144: 1,
    }
    for size, each in shown.items():
        assert {proof.inputs["features"].shape[1:] for proof in each} == {(size, 8)}
    assert shown[6144][0].inputs["mask"].sum() == 5164
