import json

import numpy as np
import pytest

from bridge.canvas import NUM_CLASSES, decode, to_canvas
from bridge.errors import InputError
from bridge.transforms import Transform
from student_jax.vote import tally, views_of
from tests.conftest import make_grid

RNG = np.random.default_rng(0)
A, B, C = (make_grid(RNG, 2, 3) for _ in range(3))
SIDE = 8


def says(view, grid, sure=0.75, doubted=None):
    """What a student answers to a view, each class of its canvas with probability `sure`.

    In the doubted cell, another color is as good as its own.
    """
    right = np.eye(NUM_CLASSES, dtype=bool)[to_canvas(view.grid(grid), SIDE)]
    probabilities = np.where(right, sure, (1 - sure) / (NUM_CLASSES - 1))
    if doubted:
        mark = np.zeros(grid.shape, bool)
        mark[doubted] = True
        ((row, col),) = np.argwhere(view.turn(mark))
        probabilities[row, col, (grid[doubted] + 1) % 10] = sure * 0.99
    return view, np.log(probabilities).astype(np.float32)


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


def test_the_grid_that_all_views_together_find_likeliest_is_the_first():
    """Independent oracle: the product of probabilities over whole canvases, counted by hand."""
    views, sure = views_of(5), (0.9, 0.9, 0.5, 0.5, 0.5)
    said = [says(*each) for each in zip(views, (A, A, B, B, B), sure, strict=True)]
    got = tally(said)
    # B has more votes, but the two views that say A are surer than the three that say B.
    np.testing.assert_array_equal(got.first, A)
    np.testing.assert_array_equal(got.second, B)
    assert (got.confidence, len(got.candidates)) == (2 / 5, 2)
    cells, differ = SIDE**2, int((A != B).sum())
    right, wrong = np.log(0.5), np.log(0.5 / 11)
    of_a = 2 * cells * np.log(0.9) + 3 * ((cells - differ) * right + differ * wrong)
    assert got.log_prob == pytest.approx(of_a / (5 * cells), rel=1e-5)


def test_views_that_err_in_different_cells_agree_cell_by_cell():
    truth, said = np.zeros((2, 3), np.uint8), []
    for view, cell in zip(views_of(6), np.ndindex(2, 3), strict=True):
        wrong = truth.copy()
        wrong[cell] = 9
        said.append(says(view, wrong))
    got = tally(said)
    np.testing.assert_array_equal(got.first, truth)  # which no view answered
    assert (got.confidence, len(got.candidates)) == (0, 7)


def test_one_sure_view_is_enough_for_the_second_attempt():
    views = views_of(6)
    grids, sure = (A, A, A, B, B, C), (0.8, 0.8, 0.8, 0.5, 0.5, 0.99)
    got = tally([says(*each) for each in zip(views, grids, sure, strict=True)])
    np.testing.assert_array_equal(got.first, A)
    np.testing.assert_array_equal(got.second, C)  # two views say B, less surely


def test_models_are_averaged_so_that_a_sure_one_cannot_overrule_two():
    views = views_of(2)
    two = [[says(view, A, sure) for view in views] for sure in (0.6, 0.7)]
    sure = [says(view, B, 1 - 1e-9) for view in views]
    np.testing.assert_array_equal(tally(*two, sure).first, A)
    np.testing.assert_array_equal(tally(*two, sure).second, B)
    together = [each for model in (*two, sure) for each in model]
    np.testing.assert_array_equal(tally(together).first, B)  # the views of one model multiply


def test_unanimous_views_leave_the_second_attempt_to_the_runner_up_of_the_surest():
    sure, doubted = (0.6, 0.9, 0.7), ((0, 0), (1, 1), (1, 2))
    said = [says(view, A, *each) for view, *each in zip(views_of(3), sure, doubted, strict=True)]
    got = tally(said)
    np.testing.assert_array_equal(got.first, A)
    assert np.argwhere(got.second != A).tolist() == [[1, 1]]
    assert (got.confidence, len(got.candidates)) == (1, 1)


@pytest.mark.parametrize("view", views_of(8))
def test_one_view_is_what_the_student_said(view):
    seen = says(view, A, 0.9)
    got, plain = tally([seen]), decode(seen[1])
    np.testing.assert_array_equal(got.first, A)
    np.testing.assert_array_equal(view.grid(got.second), plain.second)
    np.testing.assert_array_equal(view.turn(got.certainty), plain.certainty)
    assert (got.confidence, got.candidates) == (plain.confidence, ())


def test_a_cell_is_as_certain_as_the_views_are_in_the_mean():
    got = tally([says(*each) for each in zip(views_of(4), (A, A, A, B), strict=True)])
    np.testing.assert_array_equal(got.first, A)
    expected = (3 * 0.75 + np.where(A == B, 0.75, 0.25 / 11)) / 4
    np.testing.assert_allclose(got.certainty, expected, rtol=1e-5)


def test_views_of_the_original_vote_on_whole_canvases():
    said = RNG.dirichlet(np.ones(10), (2, 4, 4))
    views = views_of(2)
    got = tally([(view, np.log(view.turn(each))) for view, each in zip(views, said, strict=True)])
    candidates = [each.argmax(-1) for each in (*said, said.mean(0))]
    products = [np.take_along_axis(np.log(said).sum(0), c[..., None], -1).sum() for c in candidates]
    np.testing.assert_array_equal(got.first, candidates[int(np.argmax(products))])


def test_solve_with_views_writes_candidates_and_scores_the_oracle(
    train_config, task_folder, tmp_path
):
    from student_jax.evaluate import EvaluateConfig
    from student_jax.evaluate import main as evaluate
    from student_jax.solve import SolveConfig
    from student_jax.solve import main as solve
    from student_jax.train import train

    config = train_config(store=None)
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
