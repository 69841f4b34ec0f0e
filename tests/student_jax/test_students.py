from dataclasses import replace

import jax
import numpy as np
import pytest

from bridge.store import FrameTokens, Record
from student_jax.batch import NO_COLOR, Batch, all_colors, frame_maps
from student_jax.config import ModelConfig
from student_jax.grid_student import to_patches
from student_jax.students import make_student
from tests.student_jax.runs import drawn

SMALL = {"width": 16, "heads": 2, "mlp_width": 16, "depth": 1, "encoder_depth": 1}


def grid_batch(size=2, pairs=2, side=8, width=4):
    rng = np.random.default_rng(0)
    tokens = (2 * pairs + 1) * (side // 2) ** 2
    return Batch(
        demonstrations=rng.integers(0, 12, (size, pairs, 2, side, side)).astype(np.uint8),
        demonstration_mask=np.ones((size, pairs), bool),
        palette=all_colors(size),
        query=rng.integers(0, 12, (size, side, side)).astype(np.uint8),
        answer=np.zeros((size, side, side), np.uint8),
        teacher=np.zeros((size, tokens, width), np.float32),
        teacher_mask=np.ones((size, tokens), bool),
    )


def feature_batch(tokens, side=8, width=4):
    rng = np.random.default_rng(0)
    return replace(
        grid_batch(pairs=0, side=side, width=width),
        teacher=rng.normal(size=(2, tokens, width)).astype(np.float32),
        teacher_mask=np.ones((2, tokens), bool),
    )


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("side", [8, 32])
def test_grid_student_shapes_follow_the_canvas_and_parameters_do_not(side):
    model = make_student(ModelConfig(kind="grid", **SMALL), 4)
    batch = grid_batch(side=side)
    output, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch))
    assert output.logits.shape == (2, side, side, 12)
    assert output.features.shape == batch.teacher.shape
    assert count(variables) == count(
        jax.eval_shape(lambda: model.init(jax.random.key(0), grid_batch(side=12)))
    )


def test_feature_student_shapes():
    model = make_student(ModelConfig(kind="feature", canvas=32, **SMALL), 2048)
    batch = feature_batch(5164, side=32, width=2048)
    output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch)[0])
    assert output.logits.shape == (2, 32, 32, 12)
    assert output.features.shape == (2, 5164, 2048)


def test_the_largest_feature_student_stays_inside_the_budget():
    large = {"width": 512, "heads": 8, "mlp_width": 2048, "depth": 6}
    model = make_student(ModelConfig(kind="feature", **large), 2048)
    batch = feature_batch(8, 32, 2048)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
    assert count(variables) <= 48_500_000


def test_feature_student_refuses_a_sequence_beyond_its_positions():
    model = make_student(ModelConfig(kind="feature", canvas=8, max_tokens=16, **SMALL), 4)
    with pytest.raises(ValueError, match="expected at most 16 tokens, got 17"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), feature_batch(17)))


@pytest.fixture(scope="module")
def grid_student():
    model = make_student(ModelConfig(kind="grid", **SMALL), 4)
    params = drawn(model, grid_batch(pairs=3))
    return jax.jit(lambda batch: model.apply(params, batch).logits)


def test_empty_demonstration_places_do_not_change_the_answer(grid_student):
    batch = grid_batch(pairs=3)
    mask = np.array([[True, True, False]] * 2)
    noise = batch.demonstrations.copy()
    noise[:, 2] = 11 - noise[:, 2]
    first = grid_student(replace(batch, demonstration_mask=mask))
    second = grid_student(replace(batch, demonstration_mask=mask, demonstrations=noise))
    np.testing.assert_array_equal(first, second)


def test_demonstrations_and_query_change_the_answer(grid_student):
    batch = grid_batch(pairs=3)
    base = np.asarray(grid_student(batch))
    other_task = replace(batch, demonstrations=11 - batch.demonstrations)
    assert np.abs(grid_student(other_task) - base).max() > 1e-4
    assert np.abs(grid_student(replace(batch, query=11 - batch.query)) - base).max() > 1e-4


def test_what_shares_the_batch_does_not_change_the_answer(grid_student):
    batch = grid_batch(pairs=3)
    swapped = jax.tree.map(lambda x: x[::-1], batch)
    np.testing.assert_allclose(grid_student(swapped)[::-1], grid_student(batch), atol=1e-5)


def in_few_colors(batch, count):
    """The batch with its colors taken modulo `count`; border and background stay."""
    few = lambda cells: np.where(cells < 10, cells % count, cells).astype(np.uint8)  # noqa: E731
    return replace(batch, demonstrations=few(batch.demonstrations), query=few(batch.query))


@pytest.fixture(scope="module", params=[0, 24], ids=["colors alone", "invariant state"])
def said(request):
    """What a student says of a batch in three colors, and how to ask it."""
    config = ModelConfig(kind="grid", table=2, invariant_width=request.param, **SMALL)
    model = make_student(config, 4)
    batch = in_few_colors(grid_batch(pairs=3), 3)
    params = drawn(model, batch)
    ask = jax.jit(lambda batch: model.apply(params, batch, left_out=True))
    return ask, batch, ask(batch)


def test_recolored_question_is_answered_in_the_new_colors(said):
    """Black stays; 1 and 2 become 7 and 1."""
    ask, batch, output = said
    new = np.array([0, 7, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11], np.uint8)
    recolored = replace(batch, demonstrations=new[batch.demonstrations], query=new[batch.query])
    answer = ask(recolored)
    np.testing.assert_allclose(answer.logits[..., new], output.logits, atol=1e-5)
    np.testing.assert_allclose(answer.left_out[..., new], output.left_out, atol=1e-5)
    assert np.abs(answer.logits - output.logits).max() > 1  # the colors did change


def test_palette_changes_the_cost_and_no_answer(said):
    ask, batch, output = said
    few = replace(batch, palette=np.array([[2, 0, 1, NO_COLOR]] * 2, np.uint8))
    for name in ("logits", "left_out", "features"):
        np.testing.assert_allclose(
            getattr(ask(few), name), getattr(output, name), atol=1e-5, err_msg=name
        )


def test_black_is_not_like_the_other_colors(said):
    ask, batch, output = said
    new = np.array([1, 0, *range(2, 12)], np.uint8)
    swapped = replace(batch, demonstrations=new[batch.demonstrations], query=new[batch.query])
    assert np.abs(ask(swapped).logits[..., new] - output.logits).max() > 1e-4


def test_each_demonstration_is_answered_as_if_its_own_pair_were_not_there():
    model = make_student(ModelConfig(kind="grid", table=2, **SMALL), 4)
    batch = replace(
        grid_batch(pairs=3), demonstration_mask=np.array([[True] * 3, [True, True, False]])
    )
    params = drawn(model, batch)
    each = jax.jit(lambda batch: model.apply(params, batch, left_out=True).left_out)(batch)
    assert each.shape == (2, 3, 8, 8, 12)
    alone = jax.jit(lambda batch: model.apply(params, batch).logits)
    for i in range(3):
        rest = [j for j in range(3) if j != i]
        others = replace(
            batch,
            demonstrations=batch.demonstrations[:, rest],
            demonstration_mask=batch.demonstration_mask[:, rest],
            query=batch.demonstrations[:, i, 0],
            teacher=batch.teacher[:, :80],
            teacher_mask=batch.teacher_mask[:, :80],
        )
        np.testing.assert_allclose(each[:, i], alone(others), atol=1e-5)


def test_padding_does_not_change_a_feature_student():
    model = make_student(ModelConfig(kind="feature", canvas=8, max_tokens=32, **SMALL), 4)
    batch = feature_batch(12)
    params = drawn(model, batch)
    padded = replace(
        batch,
        teacher=np.pad(batch.teacher, ((0, 0), (0, 5), (0, 0)), constant_values=9.0),
        teacher_mask=np.pad(batch.teacher_mask, ((0, 0), (0, 5))),
    )
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, padded).logits, apply(params, batch).logits, atol=1e-5)


def test_to_patches_averages_the_cells_that_a_patch_shows():
    states = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(to_patches(states)[0, :, 0], [2.5, 4.5, 10.5, 12.5])


def test_frame_maps_put_each_patch_beside_its_cells():
    features = np.zeros((600, 2), np.float32)
    features[5 + 16 * 1 + 2, 0] = 7  # an output frame from token 5: patch row 1, column 2
    features[300 + 0, 1] = 9  # the query frame from token 300: patch row 0, column 0
    frames = (FrameTokens("output", 0, 3, 6, 5), FrameTokens("query", -1, 1, 1, 300))
    maps, mask = frame_maps(features, Record("a", 600, "", "", frames), 8, 1)
    maps, mask = maps.reshape(3, 4, 4, 2), mask.reshape(3, 4, 4)
    assert maps[1, 1, 2, 0] == 7
    assert maps[2, 0, 0, 1] == 9
    assert mask[0].sum() == 0  # no input frame was given
    assert mask[1].sum() == 2 * 3  # 3 x 6 cells lie on 2 x 3 patches
    assert mask[2].sum() == 1
