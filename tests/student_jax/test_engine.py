from dataclasses import replace

import jax
import numpy as np
import pytest

from bridge.arc import open_questions
from bridge.arc_files import load_tasks
from bridge.errors import InputError
from student_jax.engine import LOSS_ALONE, Engine, default_compute, place_weights
from student_jax.solve import NANO
from student_jax.solver import load_solver

IDS = ("007bbfb7", "3c9b0459", "67a3c6ac")  # one bucket after another


@pytest.fixture(scope="module")
def solver():
    return load_solver(NANO)


@pytest.fixture(scope="module")
def engine(solver):
    return Engine(solver)


@pytest.fixture(scope="module")
def questions():
    tasks = load_tasks("arcagi/training")
    return [question for i in IDS for question in open_questions(tasks[i].blind())]


def same(a, b):
    assert np.array_equal(a.first, b.first)
    assert np.array_equal(a.second, b.second)
    assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


def test_it_answers_as_the_solver_does(solver, engine, questions):
    expected = solver.solve(questions)
    for question in questions:
        same(engine.answer(question), expected[question.example_id])


def test_a_vote_is_one_call_and_the_solvers_vote(solver, engine, questions):
    expected = solver.solve(questions[:1], views=8)
    prepared = engine.prepare(questions[0], views=8)
    assert prepared.run().shape[0] == 8
    same(engine.answer(questions[0], views=8), expected[questions[0].example_id])


def test_a_task_is_read_once_and_another_one_is_not_taken_for_it(engine, questions):
    engine.forget()
    first = engine.prepare(questions[0])
    assert engine.prepare(questions[0]).task is first.task
    turned = replace(questions[0], demonstrations=questions[0].demonstrations[::-1])
    assert engine.prepare(turned).task is not first.task
    fewer = replace(questions[0], demonstrations=questions[0].demonstrations[:1])
    assert engine.prepare(fewer).task is not first.task


def test_a_shape_compiles_once(engine, questions, monkeypatch):
    engine.answer(questions[0])
    monkeypatch.setattr(jax, "jit", None)  # would raise
    engine.answer(questions[0])


def test_weights_of_the_loss_alone_stay_off_the_device(solver, engine):
    assert not set(engine.weights) & set(LOSS_ALONE)
    cast = place_weights(solver.params, "bfloat16")
    kinds = {str(x.dtype) for x in jax.tree.leaves(cast["core"]["block_0"]["query"])}
    assert kinds == {"bfloat16", "float32"}  # a matrix and its bias


def test_bfloat16_answers_nearly_alike(solver, engine, questions):
    half = Engine(solver, "bfloat16")
    exact, near = (np.asarray(each.prepare(questions[0]).run()) for each in (engine, half))
    assert 0 < np.abs(np.exp(exact) - np.exp(near)).max() < 0.1


def test_it_refuses_a_student_that_needs_its_teacher(solver):
    model = replace(solver.config.model, kind="feature", table=0)
    reads = replace(
        solver,
        config=replace(solver.config, model=model, data=replace(solver.config.data, store="x")),
    )
    with pytest.raises(InputError, match="expected a grid student"):
        Engine(reads)


def test_default_compute_follows_the_device():
    assert default_compute() == ("float32" if jax.default_backend() == "cpu" else "bfloat16")
