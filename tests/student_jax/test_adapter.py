"""Learning a task's demonstrations: alone, blind, within its budget."""

import itertools
import json
import os
import signal
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from bridge.arc import Pair, Task
from bridge.canvas import to_canvas
from bridge.errors import InputError
from bridge.stop import Stop
from bridge.transforms import Transform
from student_jax import learner as module
from student_jax.adapter import Adapter
from student_jax.config import AdaptConfig
from student_jax.course import FITTED, Course, Seen
from student_jax.lesson import (
    make_lesson,
    show_plainly,
    stack,
)
from student_jax.pace import WARM_UP
from student_jax.solve import SolveConfig
from student_jax.solve import main as solve_main
from student_jax.solver import begin_again, load_solver
from student_jax.train import train
from tests.conftest import black_task, make_grid, train_dict

FAST = {"steps": 20, "lr": 0.02, "copies": 2, "tasks_at_once": 2}


@pytest.fixture(scope="module")
def run(task_folder, tmp_path_factory):
    from bridge import config as configs
    from student_jax.config import TrainConfig

    out = tmp_path_factory.mktemp("adapt") / "run"
    value = train_dict(
        task_folder, None, out, **{"optim.total_steps": 100, "checkpoint_steps": 100}
    )
    train(configs.from_dict(TrainConfig, value))
    return out


@pytest.fixture(scope="module")
def solver(run):
    return load_solver(run)


@pytest.fixture(scope="module")
def tasks():
    """Everything turns black: simple enough for 5,000 weights."""
    rng = np.random.default_rng(4)
    return [black_task(rng, f"black{side}", side) for side in (3, 4, 5)]


@pytest.fixture(scope="module")
def learnt(solver, tasks):
    return dict(Adapter(solver, AdaptConfig(**FAST)).adapt(tasks))


def grids(adapted):
    return [a.first.tolist() for a in adapted.attempts]


def test_demonstrations_are_learnt(solver, tasks, learnt):
    before = dict(Adapter(solver, AdaptConfig(**{**FAST, "steps": 1})).adapt(tasks))
    assert np.mean([a.fit for a in learnt.values()]) > np.mean([a.fit for a in before.values()])
    assert {a.steps for a in learnt.values()} <= set(range(1, 21))
    for adapted in learnt.values():
        assert [a.confidence for a in adapted.attempts] == [adapted.fit]


def test_task_learns_alone(solver, tasks, learnt):
    """Neither its company nor its place changes what becomes of a task."""
    for order in (tasks[::-1], tasks[1:2]):
        again = dict(Adapter(solver, AdaptConfig(**FAST)).adapt(order))
        for task in order:
            assert grids(again[task.task_id]) == grids(learnt[task.task_id])
            assert again[task.task_id].fit == pytest.approx(learnt[task.task_id].fit, abs=0.02)


def test_programs_compile_once_a_form_and_never_a_task(solver, tasks, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    adapter = Adapter(solver, AdaptConfig(**{**FAST, "steps": 2, "tasks_at_once": 1}))
    programs = adapter.learner.update, adapter.learner.say
    before = [each._cache_size() for each in programs]
    many = [replace(task, task_id=f"{task.task_id}_{i}") for i in range(2) for task in tasks]
    assert len(dict(adapter.adapt(many))) == 6
    for program, count in zip(programs, before, strict=True):
        assert program._cache_size() <= count + 1


def test_memory_that_allows_few_answers_at_once_changes_none(solver, tasks, learnt, monkeypatch):
    """As for the largest canvases: one after the other, activations computed again."""
    monkeypatch.setattr(module, "STATES", 1)
    monkeypatch.setattr(module, "_learner", module.Learner)  # the programs of others stay
    again = dict(Adapter(solver, AdaptConfig(**FAST)).adapt(tasks[:1]))["black3"]
    assert grids(again) == grids(learnt["black3"])
    assert again.fit == pytest.approx(learnt["black3"].fit, abs=0.02)


def test_memory_that_allows_few_readings_at_once_changes_no_token(solver, tasks, monkeypatch):
    """As for the largest canvases: one view after the other."""
    plain = stack([show_plainly(make_lesson(task, views=5)) for task in tasks[:2]])
    model = solver.config.model
    begun = []
    for states in (module.STATES, 1, 3000):  # all at once, one by one, and two by two with one left
        monkeypatch.setattr(module, "STATES", states)
        learner = module.Learner(model, solver.feature_width, "weights", 0.01)
        begun.append(learner.begin(solver.params, plain))
    chex.assert_shape(begun[0][2].colors, (2, 5, 2, 10))
    for each in begun[1:]:
        chex.assert_trees_all_close(each, begun[0], rtol=1e-5, atol=1e-5)


def test_students_own_weights_stay_as_they_are(run, solver, learnt):
    chex.assert_trees_all_equal(solver.params, load_solver(run).params)


def test_test_outputs_are_not_looked_at(solver, tasks, learnt):
    rng = np.random.default_rng(1)
    scrambled = [replace(task, test_outputs=(make_grid(rng, 5, 5),)) for task in tasks]
    again = dict(Adapter(solver, AdaptConfig(**FAST)).adapt(scrambled))
    assert {i: grids(a) for i, a in again.items()} == {i: grids(a) for i, a in learnt.items()}


def test_tokens_learn_too_and_leave_the_weights(solver, tasks):
    config = AdaptConfig(**{**FAST, "tier": "tokens", "lr": 0.1})
    after = dict(Adapter(solver, config).adapt(tasks))
    before = dict(Adapter(solver, replace(config, steps=1)).adapt(tasks))
    assert np.mean([a.fit for a in after.values()]) > np.mean([a.fit for a in before.values()])
    voted = dict(Adapter(solver, config).adapt(tasks[:1], views=2))
    assert voted[tasks[0].task_id].attempts[0].candidates


def test_tasks_learn_jointly_with_one_copy_of_the_weights(solver, tasks):
    """Four of one shape, a device each, and one of another take turns; the watched loss falls."""
    told = []
    config = AdaptConfig(**{**FAST, "tier": "joint", "tasks_at_once": None})
    watch = lambda task_id, seen: told.append((task_id, seen))  # noqa: E731
    more = [black_task(np.random.default_rng(side), f"black{side}", side) for side in (6, 9)]
    adapter = Adapter(solver, config)
    compiled = adapter.learner.update_jointly._cache_size()
    after = dict(adapter.adapt([*tasks, *more], views=2, watch=watch))
    assert adapter.learner.update_jointly._cache_size() == compiled + 2  # once a shape
    assert list(after) == ["black3", "black4", "black5", "black6", "black9"]
    assert [a.steps for a in after.values()] == [20] * 5
    assert {a.rounds for a in after.values()} == {1}
    assert all(a.attempts[0].candidates for a in after.values())
    for task_id in after:
        losses = [seen.loss for name, seen in told if name == task_id]
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    short = replace(config, steps=10_000, seconds=1e-6)
    assert {a.steps for _, a in Adapter(solver, short).adapt(tasks)} == {0}


def test_joint_weights_follow_the_mean_of_the_tasks_gradients(solver, tasks):
    """One task alone in the joint tier learns what it learns in the tier of its own weights."""
    alone = AdaptConfig(**{**FAST, "steps": 3, "rounds": 1})
    learnt = {}
    for tier in ("weights", "joint"):
        losses = learnt[tier] = []
        watch = lambda _, seen, losses=losses: losses.append(seen.loss)  # noqa: E731
        list(Adapter(solver, replace(alone, tier=tier)).adapt(tasks[:1], watch=watch))
    # Gradients are clipped together in one and apart in the other: Adam's first steps agree.
    np.testing.assert_allclose(learnt["joint"], learnt["weights"], rtol=2e-2)


def test_time_that_is_up_still_answers(solver, tasks):
    config = AdaptConfig(**{**FAST, "steps": 10_000, "seconds": 1e-6})
    adapted = dict(Adapter(solver, config).adapt(tasks))
    assert {a.steps for a in adapted.values()} == {0}
    assert all(len(a.attempts) == 1 for a in adapted.values())


def test_task_that_is_fitted_stops_early(solver):
    """One cell, always the same: learnt in no time."""
    grid = np.zeros((1, 1), np.uint8)
    task = Task("one", (Pair(grid, grid), Pair(grid, grid)), (grid,))
    config = AdaptConfig(**{**FAST, "steps": 400, "rounds": 1})
    adapted = dict(Adapter(solver, config).adapt([task]))["one"]
    assert adapted.steps < 400
    assert (adapted.fit, adapted.rounds) == (1, 1)
    assert grids(adapted) == [[[0]]]
    again = dict(Adapter(solver, replace(config, rounds=2)).adapt([task]))["one"]
    assert adapted.steps < again.steps < 400
    assert (again.fit, again.rounds) == (1, 2)
    late = replace(config, rounds=2, steps=int(1.5 * adapted.steps))
    once = dict(Adapter(solver, late).adapt([task]))["one"]  # too little is left for another round
    assert (once.fit, once.rounds) == (1, 1)
    assert once.steps < late.steps


def test_each_round_goes_through_all_rates_and_only_what_is_fitted_votes(tasks):
    course = Course(make_lesson(tasks[0]), rounds=2)
    assert course.rate(0, 0.0) == 1 / WARM_UP
    assert course.rate(WARM_UP, 0.0) == 1
    assert course.rate(WARM_UP, 0.5) == pytest.approx(0.5)
    for _ in range(FITTED):
        assert not course.is_fitted
        course.see(0.1, 1.0, exact=True)
    assert course.is_fitted
    black, white = (
        np.log(np.where(np.eye(12)[to_canvas(np.full((1, 1), color, np.uint8), 8)] > 0, 0.89, 0.01))
        for color in (0, 1)
    )
    as_it_is = Transform()
    course.close([[(as_it_is, black)] * 2])
    assert (course.fit, course.is_over, course.is_fitted, course.recent) == (1, False, False, 0)
    assert course.rate(100, 0.5) == 1 / WARM_UP
    assert course.rate(100 + WARM_UP, 0.75) == pytest.approx(0.5)
    course.see(0.7, 0.5, exact=False)
    course.close([[(as_it_is, white)]])
    assert course.is_over
    assert course.rate(200, 0.9) == 0
    course.see(0.9, 0.1, exact=False)  # a neighbour goes on
    (voted,) = course.vote()
    assert (voted.first.item(), voted.second.item()) == (0, 1)
    assert voted.confidence == pytest.approx(2 / 3)  # two of three views
    assert (course.steps, course.fit) == (FITTED + 1, 0.5)
    assert course.seen(0.9) == Seen(FITTED + 1, 0.9, 0.7, 0.5)


def test_round_that_is_cut_short_does_not_vote(solver, monkeypatch):
    grid = np.zeros((1, 1), np.uint8)
    task = Task("one", (Pair(grid, grid), Pair(grid, grid)), (grid,))
    adapter = Adapter(solver, AdaptConfig(**{**FAST, "steps": 400}))
    begin_anew, begun = adapter.learner.begin_anew, []

    def begin_and_stop(*args):
        begun.append(adapter.config)
        object.__setattr__(adapter.config, "lr", 0.0)  # from here on nothing is learnt
        return begin_anew(*args)

    monkeypatch.setattr(adapter.learner, "begin_anew", begin_and_stop)
    adapted = dict(adapter.adapt([task]))["one"]
    assert len(begun) == 1
    assert (adapted.rounds, adapted.fit) == (1, 1)


def test_contradictory_and_single_and_large_demonstrations_get_an_answer(solver, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])  # each compiles anew
    rng = np.random.default_rng(0)
    grid = np.arange(9, dtype=np.uint8).reshape(3, 3)
    odd = [
        Task("contradictory", tuple(Pair(grid, make_grid(rng, 3, 3)) for _ in range(2)), (grid,)),
        Task("single", (Pair(grid, grid),), (grid, grid)),
        Task("eleven", tuple(Pair(grid, grid) for _ in range(11)), (grid,)),
        Task("ten_colors", (Pair(grid[:1], grid[:1]),), (np.arange(10, dtype=np.uint8)[None],)),
    ]
    assert show_plainly(make_lesson(odd[2])).mask.sum() == 11  # none is left out
    adapted = dict(Adapter(solver, AdaptConfig(**{**FAST, "steps": 1})).adapt(odd))
    assert {i: len(a.attempts) for i, a in adapted.items()} == {
        "contradictory": 1,
        "single": 2,
        "eleven": 1,
        "ten_colors": 1,
    }


@pytest.mark.slow
def test_largest_task_gets_an_answer(solver):
    """Ten demonstrations of 30 x 30, in one program on the largest canvas."""
    rng = np.random.default_rng(0)
    grid = lambda: make_grid(rng, 30, 30)  # noqa: E731
    task = Task("largest", tuple(Pair(grid(), grid()) for _ in range(10)), (grid(),))
    config = AdaptConfig(steps=1, copies=1, tasks_at_once=1)
    (adapted,) = dict(Adapter(solver, config).adapt([task])).values()
    assert 1 <= max(adapted.attempts[0].first.shape) <= 30


def test_signal_ends_the_learning_and_what_is_learnt_answers(solver, tasks, monkeypatch):
    """As Ctrl-C does, while the first group of tasks is on its way."""
    adapter = Adapter(solver, AdaptConfig(**{**FAST, "steps": 10_000}))
    update, made = adapter.learner.update, []

    def interrupted(*args):
        made.append(1)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return update(*args)

    monkeypatch.setattr(adapter.learner, "update", interrupted)
    with Stop() as stop:
        ((_, adapted),) = list(adapter.adapt(tasks[:1], stop=stop))
    assert 3 <= adapted.steps < 10_000
    assert len(adapted.attempts) == 1


def test_tasks_that_have_not_begun_when_it_is_stopped_are_left_out(solver, tasks):
    """One a device is begun all the same, so that who asks for one task has an answer."""
    stop = Stop()
    stop.requested = True
    config = AdaptConfig(**{**FAST, "tasks_at_once": 1})
    many = [replace(tasks[0], task_id=f"black{i}") for i in range(30)]
    found = dict(Adapter(solver, config).adapt(many, stop=stop))
    assert 1 <= len(found) <= len(jax.local_devices())
    assert {(each.steps, len(each.attempts)) for each in found.values()} == {(0, 1)}


def test_an_orchestrators_signals_stay_its_own(solver, tasks):
    """Only a command takes them: `with Stop() as stop`."""
    before = signal.getsignal(signal.SIGTERM)
    for _ in Adapter(solver, AdaptConfig(**{**FAST, "steps": 1})).adapt(tasks[:1]):
        assert signal.getsignal(signal.SIGTERM) is before


def test_who_watches_is_told_of_every_step_and_may_end_it(solver, tasks):
    stop, told = Stop(), []

    def watch(task_id, seen):
        told.append((task_id, seen))
        stop.requested = len(told) == 5

    config = AdaptConfig(**{**FAST, "steps": 10_000})
    ((_, adapted),) = list(Adapter(solver, config).adapt(tasks[:1], watch=watch, stop=stop))
    assert [(name, seen.step) for name, seen in told] == [("black3", i) for i in range(1, 6)]
    assert adapted.steps == 5
    assert len(adapted.attempts) == 1
    assert all(seen.loss > 0 and 0 <= seen.fit <= 1 for _, seen in told)
    assert [seen.progress for _, seen in told] == sorted(seen.progress for _, seen in told)


def test_rounds_and_the_untrained_student_begin_with_weights_of_their_own(solver, tasks):
    """Also where the run's seed is the same as a round's number."""
    learner = Adapter(solver, AdaptConfig(**FAST)).learner
    plain = stack([show_plainly(make_lesson(tasks[0]))] * 3)
    begun = learner.begin_anew(0, np.array([1, 2, 3]), plain)[0].weights
    kernels = [*np.asarray(begun["core"]["block_0"]["query"]["kernel"])]
    for seed in (0, 1):
        again = replace(solver, config=replace(solver.config, seed=seed))
        params = begin_again(again).params
        kernels.append(np.asarray(params["core"]["block_0"]["query"]["kernel"]))
    assert all(np.abs(a - b).max() > 0.01 for a, b in itertools.combinations(kernels, 2))


def test_on_a_gpu_groups_have_one_size_and_what_fills_them_up_is_not_told(
    solver, tasks, learnt, monkeypatch
):
    """Layers scanned, activations computed again: what is learnt is the same, but for rounding."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    told = []
    found = list(
        Adapter(solver, AdaptConfig(**FAST)).adapt(tasks, watch=lambda name, _: told.append(name))
    )
    assert sorted(name for name, _ in found) == sorted(learnt)
    assert set(told) == set(learnt)
    for name, adapted in found:
        assert adapted.steps == learnt[name].steps
        assert adapted.fit == pytest.approx(learnt[name].fit, abs=0.05)


def test_no_demonstration_is_one_line(solver):
    task = Task("none", (), (np.zeros((1, 1), np.uint8),))
    with pytest.raises(InputError, match="task none: expected demonstrations to adapt to"):
        next(Adapter(solver, AdaptConfig()).adapt([task]))


def test_solve_adapts_and_says_its_tier(run, task_folder, tmp_path, capsys):
    folder = tmp_path / "tasks"
    folder.mkdir()
    value = json.loads((task_folder / "1a.json").read_text())
    (folder / "1a.json").write_text(json.dumps(value))
    out = tmp_path / "p.json"
    asked = {"checkpoint": run, "source": str(folder), "out": out}
    solve_main(SolveConfig(**asked, adapt="weights", steps=2))
    assert "1a: " in capsys.readouterr().out
    assert json.loads(out.read_text())["about"]["tier"] == "adapted weights"
