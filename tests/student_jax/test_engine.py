from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge import config as configs
from bridge.arc import open_questions
from bridge.arc_files import load_tasks
from bridge.canvas import decode
from bridge.errors import InputError
from bridge.scaling import no_scaling
from bridge.tree import flatten
from student_jax import engine as engines
from student_jax.answerer import Drawn, calls
from student_jax.batch import feature_batch, smallest_batch
from student_jax.config import ModelConfig, TrainConfig
from student_jax.engine import (
    Engine,
    FeatureEngine,
    default_compute,
    place_weights,
)
from student_jax.keep import keep_programs
from student_jax.packing import SHORT, pack, unpack
from student_jax.solve import NANO
from student_jax.solver import load_solver, make_predict, make_solver
from student_jax.students import UNUSED, make_student
from tests.student_jax.runs import drawn

IDS = ("007bbfb7", "3c9b0459", "67a3c6ac")  # one bucket after another


@pytest.fixture(scope="module")
def solver():
    """Nano's settings in a third of its blocks: every bucket compiles."""
    nano = load_solver(NANO)
    smaller = {"width": 16, "heads": 2, "mlp_width": 16, "depth": 1, "encoder_depth": 1, "table": 2}
    model = replace(nano.config.model, **smaller)
    params = drawn(make_student(model, 1), smallest_batch(model, 1))["params"]
    config = replace(nano.config, model=model)
    return replace(nano, config=config, params=params, predict=make_predict(model, 1))


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
    task_of = lambda question: engine.prepare(question).tasks[0]  # noqa: E731
    first = task_of(questions[0])
    assert task_of(questions[0]) is first
    assert task_of(turned(questions[0])) is not first
    fewer = replace(questions[0], demonstrations=questions[0].demonstrations[:1])
    assert task_of(fewer) is not first


def turned(question):
    """A question of another task, of the same shape."""
    return replace(question, demonstrations=question.demonstrations[::-1])


def test_several_questions_are_answered_in_few_calls_as_one_by_one(engine, questions, monkeypatch):
    asked = [*questions, turned(questions[1]), replace(questions[1], query=questions[1].query.T)]
    expected = [engine.answer(question) for question in asked]
    engine.forget()
    counts = []
    reader = engine.reader
    monkeypatch.setattr(engine, "reader", lambda s: counts.append(s.questions) or reader(s))
    got = engine.answer_all(asked)
    assert sorted(counts) == [1, 1, 2]  # two of the three alike are of one task
    engine.answer_all(asked)
    assert len(counts) == 3
    for one, other in zip(got, expected, strict=True):
        same(one, other)
        np.testing.assert_allclose(one.certainty, other.certainty, atol=1e-5)
    assert engine.answer_all([]) == []


def test_calls_hold_questions_of_one_shape_and_no_more_than_fit(engine, questions):
    drawn = [engine.draw(question) for question in questions]
    small, large = drawn[1], Drawn(*(np.repeat(x, 8, 0) for x in drawn[1]))
    assert calls([small, drawn[0], small]) == [[0, 2], [1]]
    assert [len(each) for each in calls([large] * 20)] == [16, 4]  # 16 x 8 views x 64 cells


def test_empty_places_change_no_answer(engine, questions):
    """A task is read in the smallest number of places that holds its demonstrations."""
    two = replace(questions[1], demonstrations=questions[1].demonstrations[:2])
    assert engine.draw(two)[0].shape[1] == 2
    assert engine.draw(questions[1])[0].shape[1] == 3
    *read, palette, query = engine.draw(two)
    wide = [np.pad(x, [(0, 0), (0, 2), *[(0, 0)] * (x.ndim - 2)]) for x in read]
    expected = engine.prepare(two).run()
    got = engine.ready([Drawn(*wide, palette, query)]).run()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_shape_compiles_once(engine, questions, monkeypatch):
    engine.answer(questions[0])
    monkeypatch.setattr(jax, "jit", None)  # would raise
    engine.answer(questions[0])


def test_weights_of_the_loss_alone_stay_off_the_device(solver, engine):
    reading, answering = (set(unpack(part)) for part in (engine.reading, engine.answering))
    assert reading & answering == {"color"}
    assert not (reading | answering) & set(UNUSED)
    cast = unpack(place_weights(solver.params, "bfloat16"))
    kinds = {str(x.dtype) for x in jax.tree.leaves(cast["core"]["block_0"]["query"])}
    assert kinds == {"bfloat16", "float32"}  # a matrix and its bias


def test_packed_weights_are_what_they_were(solver):
    rng = np.random.default_rng(0)
    long = rng.normal(size=(SHORT + 1,)).astype(np.float32)
    half = jnp.asarray(rng.normal(size=3), jnp.bfloat16)
    given = {**solver.params, "long": long, "half": {"kernel": half}}
    packed = pack(flatten(given))
    assert {"long", "half.kernel"} <= set(packed.long)
    assert "core.block_0.query.bias" not in packed.long
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), given)


def test_bfloat16_answers_nearly_alike(solver, engine, questions):
    half = Engine(solver, "bfloat16")
    exact, near = (np.asarray(each.prepare(questions[0]).run()) for each in (engine, half))
    assert 0 < np.abs(np.exp(exact) - np.exp(near)).max() < 0.1


def test_it_refuses_a_student_that_needs_its_teacher(solver):
    model = replace(solver.config.model, kind="feature", table=0)
    data = replace(solver.config.data, store="x", rearc=None)
    reads = replace(solver, config=replace(solver.config, model=model, data=data))
    with pytest.raises(InputError, match="expected a grid student"):
        Engine(reads)


def test_default_compute_follows_the_device_and_the_student(monkeypatch, tmp_path):
    flags = tmp_path / "cpuinfo"
    monkeypatch.setattr(engines, "CPU_INFO", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert default_compute("bfloat16") == "float32"
    flags.write_text("flags : avx512f avx512_bf16 amx_tile")
    assert default_compute("bfloat16") == "bfloat16"
    assert default_compute("float32") == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [default_compute(each) for each in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_feature_engine_answers_as_the_student_does():
    config = ModelConfig(kind="feature", width=16, heads=2, mlp_width=16, depth=1, canvas=8)
    settings = configs.from_dict(TrainConfig, {"out": "none", "data": {"store": "none"}})
    batch = smallest_batch(config, 4)
    params = drawn(make_student(config, 4), batch)["params"]
    about = {"teacher": None, "trained_on": [], "feature_width": 4}
    solver = make_solver(replace(settings, model=config), 0, about, params, no_scaling(4))
    features = np.random.default_rng(0).normal(size=(130, 4)).astype("bfloat16")
    engine = FeatureEngine(solver)
    padded, mask = engine.pad(features)
    assert padded.shape == (1, 256, 4)
    assert mask.sum() == 130
    exact = feature_batch(features[None], np.ones((1, 130), bool), np.zeros((1, 8, 8), np.uint8))
    expected = np.asarray(solver.predict(solver.params, solver.scaling, exact))
    np.testing.assert_allclose(engine.run(padded, mask), expected, atol=1e-5)
    same(engine.answer(features), decode(expected[0]))
    with pytest.raises(InputError, match="expected width 4, got 5"):
        engine.answer(np.ones((3, 5), features.dtype))


def test_compiled_programs_are_kept_where_the_environment_says(monkeypatch, tmp_path):
    told = jax.config.jax_compilation_cache_dir
    assert str(keep_programs()) == told
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert keep_programs() == tmp_path / "sage-distill" / "programs"
    finally:
        jax.config.update("jax_compilation_cache_dir", told)
