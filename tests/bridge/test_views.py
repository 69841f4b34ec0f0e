import inspect
from dataclasses import replace

import numpy as np

from bridge.arc import Pair, Question, all_questions, open_questions
from bridge.render import PALETTE, render
from bridge.views import TASK_PROMPT, pair_view, task_view


def test_render_draws_each_cell_in_its_color():
    grid = np.arange(10, dtype=np.uint8).reshape(2, 5)
    image = render(grid, 3)
    assert image.shape == (6, 15, 3)
    np.testing.assert_array_equal(image[1::3, 1::3], PALETTE[grid])


def test_render_lines_leave_the_cells_readable():
    image = render(np.full((2, 2), 2, np.uint8), 4, line_px=1)
    np.testing.assert_array_equal(image[0, 0], PALETTE[2])
    assert not np.array_equal(image[3, 0], PALETTE[2])


def test_task_view_shows_demonstrations_then_the_query(task):
    (question,) = open_questions(task)
    view = task_view(question)
    assert view.video.shape == (1, 7, 1, 224, 224, 3)
    assert [(f.role, f.demonstration) for f in view.frames][-2:] == [("output", 2), ("query", -1)]
    # 7 px a cell: one 14 px patch shows exactly 2 x 2 cells.
    np.testing.assert_array_equal(view.video[0, -1, 0, 3:21:7, 3:21:7], PALETTE[question.query])
    assert (view.video[0, -1, 0, 21:] == 255).all()


def test_task_view_never_shows_the_answer(task):
    """The canary: scrambling what must not be seen changes no byte of any view."""
    scrambled = replace(task, test_outputs=tuple(9 - g for g in task.test_outputs))
    for before, after in zip(all_questions(task), all_questions(scrambled), strict=True):
        np.testing.assert_array_equal(task_view(before).video, task_view(after).video)
    # A left-out demonstration's output is an answer too.
    first = replace(task.demonstrations[0], output=9 - task.demonstrations[0].output)
    changed = replace(task, demonstrations=(first, *task.demonstrations[1:]))
    before, after = all_questions(task)[0], all_questions(changed)[0]
    np.testing.assert_array_equal(task_view(before).video, task_view(after).video)


def test_view_builders_take_types_without_a_query_answer():
    annotations = inspect.get_annotations(task_view, eval_str=True)
    assert annotations["question"] is Question
    assert inspect.get_annotations(pair_view, eval_str=True)["demonstration"] is Pair


def test_task_view_caps_at_the_seeds_limit(task):
    (question,) = open_questions(replace(task, demonstrations=task.demonstrations * 4))
    assert task_view(question).video.shape[1] == 21


def test_task_prompt_holds_no_task_id(task):
    assert "{" not in TASK_PROMPT
    assert all(task.task_id not in task_view(q).prompt for q in all_questions(task))


def test_pair_view_is_the_originals_picture(task):
    view = pair_view("x_train_0", task.demonstrations[0])
    assert view.video.shape == (1, 2, 1, 900, 900, 3)
    assert view.dynamic_tiling
    np.testing.assert_array_equal(
        view.video[0, 1, 0, 15:90:30, 15:90:30], PALETTE[task.demonstrations[0].output]
    )
    assert (view.video[0, 0, 0, 90:] == 0).all()
