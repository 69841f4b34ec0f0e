"""What a task is learnt from, and how it is drawn."""

from dataclasses import replace

import chex
import numpy as np
import pytest

from student_jax.batch import NO_COLOR
from student_jax.lesson import Form, make_lesson, queries, share_forms, show_augmented, show_plainly
from student_jax.vote import views_of
from tests.conftest import black_task


@pytest.fixture(scope="module")
def task():
    return black_task(np.random.default_rng(4), "black3", 3)


def test_demonstrations_are_shown_in_the_views_that_vote_and_the_test_output_is_gone(task):
    lesson = make_lesson(replace(task, test_outputs=task.test_inputs), views=5)
    assert lesson.task.test_outputs is None
    assert list(lesson.views) == views_of(5)
    plain = show_plainly(lesson)
    first = task.demonstrations[0].output
    rows, cols = first.shape
    assert plain.view.tolist() == [0, 1, 2, 3, 4]
    assert plain.mask.tolist() == [[True, True]] * 5
    np.testing.assert_array_equal(plain.demonstrations[0, 0, 1, :rows, :cols], first)
    np.testing.assert_array_equal(plain.demonstrations[4, 0, 1, :rows, :cols], first[:, ::-1])
    np.testing.assert_array_equal(queries(lesson)[4, 0, :rows, :cols], task.test_inputs[0][:, ::-1])


def test_steps_draw_other_copies_and_each_step_the_same_again(task):
    lesson = make_lesson(task, views=8)
    first, second = (show_augmented(lesson, 4, 0, step) for step in (0, 1))
    assert not np.array_equal(first.demonstrations, second.demonstrations)
    chex.assert_trees_all_equal(first, show_augmented(lesson, 4, 0, 0))
    for i, view in enumerate(first.view):  # every copy is the view it says, somewhere
        drawn = first.demonstrations[i, 0, 0]
        grid = lesson.views[view].grid(lesson.task.demonstrations[0].input)
        inside = drawn[drawn < 10].reshape(-1)
        scale = int((len(inside) / grid.size) ** 0.5)
        np.testing.assert_array_equal(inside, grid.repeat(scale, 0).repeat(scale, 1).reshape(-1))


def test_lessons_share_forms_until_few_are_left(task):
    """Those first that cost the least: a form's programs take a GPU's compiler a minute."""
    plain = make_lesson(task)
    forms = [Form(8, 2, 4), Form(8, 2, 6), Form(8, 3, 6), Form(32, 2, 4)]
    lessons = [replace(plain, form=form) for form in forms for _ in range(2)]

    def left(most):
        return [lesson.form for lesson in share_forms(lessons, most)]

    assert left(4) == left(9) == [lesson.form for lesson in lessons]
    assert left(3) == [Form(8, 2, 6)] * 4 + [Form(8, 3, 6)] * 2 + [Form(32, 2, 4)] * 2
    # Never of two canvases: a task's answer would hang on what else is asked.
    assert left(2) == left(1) == [Form(8, 3, 6)] * 6 + [Form(32, 2, 4)] * 2


def test_a_lesson_of_a_larger_form_is_drawn_in_it(task):
    lesson = make_lesson(task)
    shown = show_plainly(replace(lesson, form=Form(12, 4, 10)))
    own = show_plainly(lesson)
    assert shown.demonstrations.shape == (1, 4, 2, 12, 12)
    assert shown.mask.tolist() == [[True, True, False, False]]
    np.testing.assert_array_equal(
        shown.demonstrations[:, :2, :, :4, :4], own.demonstrations[..., :4, :4]
    )
    count = len(lesson.colors)
    assert shown.palette[0, :count].tolist() == own.palette[0, :count].tolist()
    assert set(shown.palette[0, count:].tolist()) <= {NO_COLOR}
