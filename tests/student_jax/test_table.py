"""The table of task tokens: a row for each training task, and one that all others share."""

from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest

from bridge.errors import InputError
from student_jax.config import ModelConfig
from student_jax.plan import Plan
from student_jax.students import make_student
from tests.conftest import examples_of
from tests.student_jax.runs import drawn
from tests.student_jax.test_students import SMALL, grid_batch

PLAN = Plan(seed=3, batch_size=4)


@pytest.fixture(scope="module")
def student():
    """A student with random weights, its parameters, and how to ask it."""
    model = make_student(ModelConfig(kind="grid", table=3, **SMALL), 4)
    params = drawn(model, grid_batch())["params"]
    ask = jax.jit(lambda params, batch: model.apply({"params": params}, batch).logits)
    return params, ask


def rows(*pairs):
    return np.array(pairs, np.int32)


def test_rows_and_symmetries_change_the_answer_and_no_row_is_one_of_its_own(student):
    params, ask = student
    batch = grid_batch()
    said = [
        np.asarray(ask(params, replace(batch, row=rows((row, turn), (row, turn)))))
        for row, turn in ((0, 0), (1, 0), (2, 0), (0, 1), (-1, 0))
    ]
    for i, one in enumerate(said):
        for other in said[:i]:
            assert np.abs(one - other).max() > 1e-5
    np.testing.assert_array_equal(said[-1], ask(params, batch))
    without = ask(params, replace(batch, row=rows((-1, 0), (-1, 5))))
    np.testing.assert_array_equal(said[-1], without)  # the encoder sees how it is turned


def test_only_the_rows_that_are_looked_up_learn(student):
    params, ask = student
    batch = replace(grid_batch(), row=rows((1, 2), (-1, 4)))
    grads = jax.grad(lambda params: (ask(params, batch) ** 2).sum())(params)
    moved = [bool(np.abs(grads["table"][i]).max() > 0) for i in range(3)]
    assert moved == [False, True, False]
    turned = [bool(np.abs(grads["symmetries"][i]).max() > 0) for i in range(8)]
    assert turned == [i == 2 for i in range(8)]
    assert np.abs(grads["no_row"]).max() > 0


def test_training_looks_up_each_tasks_own_row_half_of_the_time(train_config):
    examples = examples_of(train_config(**{"data.augmented_fraction": 0.5, "model.table": 6}))
    tasks = sorted({example.question.task_id for example in examples.examples})
    seen = Counter()
    for step in range(40):
        row = examples.train_batch(PLAN, step).row
        chosen = examples.indices(PLAN, step)
        shown = examples._augment(PLAN, step)
        for (place, turn), i, how in zip(row, chosen, shown, strict=True):
            assert turn == (how.transform.dihedral if how else 0)
            assert place in (-1, tasks.index(examples.examples[i].question.task_id))
            seen[bool(place >= 0)] += 1
    assert 0.35 < seen[True] / seen.total() < 0.65


def test_processes_draw_the_rows_of_the_whole_batch(train_config):
    examples = examples_of(train_config(**{"model.table": 6}))
    whole = examples.train_batch(PLAN, 5).row
    parts = [examples.train_batch(replace(PLAN, rows=slice(i, i + 2)), 5).row for i in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_questions_to_be_solved_have_no_row(train_config):
    examples = examples_of(train_config(**{"model.table": 6}))
    assert examples.batch([0]).row is None


def test_table_that_is_too_small_is_one_line(train_config):
    with pytest.raises(InputError, match="expected 0 or a row for each of the 6 training tasks"):
        examples_of(train_config(**{"model.table": 1, "data.tasks.dev_fraction": 0.0}))


def test_table_is_for_a_grid_student_alone():
    with pytest.raises(ValueError, match="table: expected 0, or more with kind grid"):
        ModelConfig(kind="feature", table=1)
