"""How alike student and teacher are, against formulas written out and known cases."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bridge.arc import NUM_COLORS
from bridge.errors import InputError
from bridge.scaling import Scaling, apply, unscale
from student_jax.alignment import Sums, cosines
from student_jax.batch import smallest_batch
from student_jax.color_block import States
from student_jax.grid_student import GridStudent
from student_jax.sight import lay_out, make_see
from student_jax.similarity import SimilarityConfig, main
from student_jax.solver import load_solver
from tests.student_jax.runs import drawn, release


def kernel_cka(x, y):
    """Eq. 3 as the paper writes it: with Gram matrices and a centring matrix."""
    centre = np.eye(len(x)) - 1 / len(x)
    hsic = lambda k, l: np.trace(k @ centre @ l @ centre)  # noqa: E731, E741
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def measured(x, y, parts=1):
    sums = Sums()
    for own, theirs in zip(np.array_split(x, parts), np.array_split(y, parts), strict=True):
        sums.add({"": own, "encoder 1": 2 * own}, theirs, theirs, (theirs, theirs))
    return sums.result()


def test_alignment_is_the_papers_and_adds_up_in_parts():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)) + 3, rng.normal(size=(40, 7)) - 1
    found = measured(x, y, parts=6)
    assert found.cka == found.layers["encoder 1"] == pytest.approx(kernel_cka(x, y))
    turned = x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * 4 + 9
    assert measured(x, turned).cka == pytest.approx(1)
    assert measured(x, np.ones((40, 3))).cka == 0  # says nothing


def test_cosines_by_hand():
    got = cosines(np.array([[1.0, 0], [1, 1], [0, 0]]), np.array([[0.0, 2], [3, 3], [1, 1]]))
    np.testing.assert_allclose(got, [0, 1, 0], atol=1e-12)


def test_unscaling_undoes_scaling():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    scaling = Scaling(*(rng.normal(size=6).astype(np.float32) for _ in range(2)), turn)
    values = rng.normal(size=(3, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(unscale(scaling, apply(scaling, values)), values, atol=1e-4)


def test_students_without_projectors_have_no_cosine():
    sums, x = Sums(), np.eye(4)
    sums.add({"": x}, x, x, None)
    assert (sums.result().cosine_scaled, sums.result().cka) == (None, pytest.approx(1))


def test_states_of_colors_lie_in_their_own_places():
    """Two colors, 7 and 3, on a canvas of 2 cells a side behind one token: one patch."""
    colors = np.arange(5 * 2 * 1, dtype=np.float32).reshape(1, 5, 2, 1)
    real = np.zeros((1, 2, NUM_COLORS), np.float32)
    real[0, [0, 1], [7, 3]] = 1
    patch = lay_out(States(colors, np.ones((1, 5, 2), np.float32)), real, 2)[0, 0]
    expected = np.zeros(NUM_COLORS)
    expected[[7, 3]] = colors[0, 1:].mean((0, 2))
    np.testing.assert_allclose(patch, [*expected, 1, 1])


def test_blocks_are_told_in_the_order_they_run(train_config):
    config = train_config(**{"model.loops": 2, "model.depth": 2}).model
    model, batch = GridStudent(config, 1), smallest_batch(config, 1)
    params = drawn(model, batch)["params"]
    see = make_see(SimpleNamespace(config=SimpleNamespace(model=config), feature_width=1))
    _, states = see(params, batch)
    core = states["query"]
    assert list(core) == ["", "core 1", "core 2", "core 3", "core 4"]
    assert list(states["input"])[1:] == [f"encoder {i + 1}" for i in range(config.encoder_depth)]
    zero = jax.tree.map(np.zeros_like, params["core"]["block_1"])  # adds nothing to its input
    idle = {**params, "core": {**params["core"], "block_1": zero}}
    core = see(idle, batch)[1]["query"]
    np.testing.assert_array_equal(core["core 1"], core["core 2"])
    np.testing.assert_array_equal(core["core 3"], core["core 4"])
    assert not np.array_equal(core["core 1"], core["core 3"])


def test_command_tells_every_frame_beside_its_controls(
    train_config, store_path, tmp_path, capsys, write_run
):

    config = train_config(**{"optim.total_steps": 2, "data.tasks.dev_fraction": 0.5})
    write_run(config)
    main(SimilarityConfig(checkpoint=config.out, control=config.out))
    found = json.loads((config.out / "similarity.json").read_text())["similarity"]
    assert found.keys() == {"trained", "untrained", "control"}
    for name, frames in found.items():
        assert frames.keys() == {"input", "output", "query"}
        assert frames["input"]["patches"] > frames["query"]["patches"] > 0
        for values in frames.values():
            assert all(0 <= cka <= 1 for cka in (values["cka"], *values["layers"].values()))
            assert (values["cosine_scaled"] is None) == (name == "control")
    assert found["trained"] != found["untrained"]
    cka = {name: frames["query"]["layers"] for name, frames in found.items()}
    assert cka["trained"] == cka["control"]  # the same weights
    text = capsys.readouterr().out
    assert "untrained" in text
    assert "core 1" in text
    release(load_solver(config.out), tmp_path / "released")
    with pytest.raises(InputError, match="exports of grid students leave out how"):
        main(SimilarityConfig(checkpoint=tmp_path / "released", store=str(store_path)))
