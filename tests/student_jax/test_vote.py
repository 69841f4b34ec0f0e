import json

import numpy as np
import pytest

from bridge.canvas import NUM_CLASSES, Attempts, decode, to_canvas
from bridge.errors import InputError
from bridge.transforms import Transform
from student_jax.vote import tally, views_of
from tests.conftest import make_grid

RNG = np.random.default_rng(0)
A, B, C = (make_grid(RNG, 2, 3) for _ in range(3))


def seen(view, first, log_prob, second=C):
    """What a student answers to a view whose right answer is `first`, before mapping back."""
    return view, Attempts(view.grid(first), view.grid(second), 0.5, log_prob)


@pytest.mark.parametrize("count", range(1, 9))
def test_views_are_different_and_the_question_itself_is_the_first(count):
    views = views_of(count)
    assert views[0] == Transform()
    assert len(set(views)) == len(views) == count
    assert views_of(8)[:count] == views


@pytest.mark.parametrize("count", [0, 9])
def test_there_are_no_more_views_than_symmetries(count):
    with pytest.raises(InputError, match=f"views: expected 1 to 8, the symmetries, got {count}"):
        views_of(count)


def test_most_votes_win_then_the_higher_mean_log_probability():
    views = views_of(8)
    answers = [(A, -0.9), (A, -0.9), (B, -0.5), (B, -0.6), (C, -0.01)]
    got = tally([seen(v, *a) for v, a in zip(views[3:], answers, strict=True)])
    np.testing.assert_array_equal(got.first, B)
    np.testing.assert_array_equal(got.second, A)
    assert got.confidence == 2 / 5
    assert got.log_prob == pytest.approx(-0.55)
    assert len(got.candidates) == 3
    np.testing.assert_array_equal(got.candidates[2], C)


def test_unanimous_views_leave_the_second_attempt_to_the_surest_runner_up():
    views = views_of(3)
    got = tally(
        [
            seen(views[0], A, -0.9, second=B),
            seen(views[1], A, -0.1, second=C),
            seen(views[2], A, -0.5, second=B),
        ]
    )
    np.testing.assert_array_equal(got.first, A)
    np.testing.assert_array_equal(got.second, C)
    assert got.confidence == 1


def test_one_view_is_what_the_student_said():
    got = tally([(Transform(), Attempts(A, B, 0.25, -0.5))])
    np.testing.assert_array_equal(got.first, A)
    np.testing.assert_array_equal(got.second, B)
    assert (got.confidence, got.log_prob, got.candidates) == (0.25, -0.5, ())


def test_student_that_sees_through_transforms_votes_unanimously():
    """The same answer in every view, as an equivariant student would give it."""
    views = views_of(8)
    got = tally([seen(view, A, -0.1 * i) for i, view in enumerate(views)])
    np.testing.assert_array_equal(got.first, A)
    assert (got.confidence, len(got.candidates)) == (1, 1)


def says(view, grid, wrong=(), sure=0.75, side=8):
    """What a student answers to a view: `grid`, but for cells where it is sure of color 9."""
    said = grid.copy()
    for cell in wrong:
        said[cell] = 9
    canvas = to_canvas(view.grid(said), side)
    rest = (1 - sure) / (NUM_CLASSES - 1)
    return view, decode(np.log(np.where(np.eye(NUM_CLASSES)[canvas] > 0, sure, rest)))


def test_views_that_err_in_different_cells_agree_cell_by_cell():
    cells = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    truth = np.zeros((2, 3), np.uint8)
    apart = [says(view, truth, [cell]) for view, cell in zip(views_of(6), cells, strict=True)]
    got = tally(apart)
    np.testing.assert_array_equal(got.first, truth)  # which no view answered
    assert len(got.candidates) == 7
    assert got.confidence == 1 / 6
    rest = 0.25 / (NUM_CLASSES - 1)
    np.testing.assert_allclose(got.certainty, np.full((2, 3), (5 * 0.75 + rest) / 6), rtol=1e-5)


def test_what_two_views_answered_alike_comes_before_what_the_cells_say():
    truth = np.zeros((2, 3), np.uint8)
    wrong = [[(0, 0)], [(0, 0)], [(0, 1)], [(0, 2)], [(1, 1)]]
    got = tally([says(view, truth, each) for view, each in zip(views_of(5), wrong, strict=True)])
    assert got.first[0, 0] == 9
    assert got.confidence == 2 / 5
    np.testing.assert_array_equal(got.second, truth)


def test_winner_that_the_cells_say_too_leaves_the_second_attempt_to_the_runner_up():
    truth = np.zeros((2, 3), np.uint8)
    wrong = [[], [], [(0, 1)]]
    got = tally([says(view, truth, each) for view, each in zip(views_of(3), wrong, strict=True)])
    np.testing.assert_array_equal(got.first, truth)
    assert got.second[0, 1] == 9
    assert len(got.candidates) == 2


def test_views_of_another_shape_have_no_say_in_the_cells():
    truth, other = np.zeros((2, 3), np.uint8), np.ones((1, 4), np.uint8)
    views = views_of(3)
    got = tally([says(views[0], truth), says(views[1], truth), says(views[2], other)])
    np.testing.assert_array_equal(got.first, truth)
    np.testing.assert_allclose(got.certainty, np.full((2, 3), 0.5), rtol=1e-5)


def test_without_probabilities_no_cell_is_certain():
    views = views_of(2)
    assert tally([says(views[0], A), seen(views[1], A, -1.0)]).certainty is None


def test_solve_with_views_writes_candidates_and_scores_the_oracle(
    train_config, task_folder, tmp_path
):
    from student_jax.evaluate import EvaluateConfig
    from student_jax.evaluate import main as evaluate
    from student_jax.solve import SolveConfig
    from student_jax.solve import main as solve
    from student_jax.train import train

    config = train_config(store=None, **{"optim.total_steps": 1})
    train(config)
    out = tmp_path / "voted.json"
    solve(SolveConfig(checkpoint=config.out, source=str(task_folder), views=8, out=out))
    value = json.loads(out.read_text())
    assert value["about"]["views"] == 8
    assert all(1 <= len(c) <= 8 for items in value["candidates"].values() for c in items)
    for task_id, items in value["submission"].items():
        assert items[0]["attempt_1"] == value["candidates"][task_id][0][0]
    truth = json.loads((task_folder / "1a.json").read_text())["test"][0]["output"]
    value["candidates"]["1a"][0].append(truth)  # right, but never attempted
    out.write_text(json.dumps(value))
    evaluate(EvaluateConfig(predictions=(out,), source=str(task_folder)))
    told = json.loads((tmp_path / "scores.json").read_text())
    rows = [group["grid student, 8 views"] for group in told["scores"].values()]
    assert set(told["pass_2"]) == set(value["submission"])
    assert max(row["oracle"] for row in rows) > 0 == max(row["pass_2"] for row in rows)


def test_student_that_reads_features_has_one_view(train_config, store_path):
    from student_jax.solver import load_solver
    from student_jax.train import train

    config = train_config(
        **{"model.kind": "feature", "model.max_tokens": 2048, "optim.total_steps": 1}
    )
    train(config)
    with pytest.raises(InputError, match="one view; pass --views 1"):
        load_solver(config.out).solve([], views=2)
