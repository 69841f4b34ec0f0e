"""The plugin under stand-ins of both orchestrators, written from what their interfaces ask."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bridge import config as configs
from bridge.arc import Question, Task, open_questions
from bridge.errors import InputError
from bridge.predictions import parse_attempts
from bridge.scaling import no_scaling
from student_jax import refinement, sage
from student_jax.batch import smallest_batch
from student_jax.config import TrainConfig
from student_jax.engine import Engine
from student_jax.refinement import SageConfig, Work, as_task
from student_jax.sage import State, StudentPlugin, load_plugin
from student_jax.solver import make_solver
from student_jax.students import make_student
from tests.conftest import ROOT, task_json, train_dict
from tests.student_jax.runs import drawn

BASE = ("init_state", "step", "energy", "project", "halt", "refine", "get_halt_reason")
BASE += ("compute_trust_metrics", "emit_telemetry")


@pytest.fixture(scope="module")
def solver():
    """A tiny student that learnt nothing: it is never sure."""
    settings = configs.from_dict(TrainConfig, train_dict("none", None, "none"))
    batch = smallest_batch(settings.model, 1)
    params = drawn(make_student(settings.model, 1), batch)["params"]
    about = {"teacher": None, "trained_on": ["0a0a0a0a"], "feature_width": 1}
    return make_solver(settings, 0, about, params, no_scaling(1))


@pytest.fixture(scope="module")
def engine(solver):
    return Engine(solver)


@pytest.fixture
def plugin_of(solver, engine, monkeypatch):
    """Makes plugins that share what was compiled."""
    monkeypatch.setattr(sage, "Engine", lambda _: engine)
    return lambda **config: StudentPlugin(config, solver)


class A:
    """Puts a budget into the plugin's config, and refines with a context."""

    def __init__(self, total):
        self.total, self.plugins, self.trust_weights = total, {}, {}

    def process(self, inputs):
        with ThreadPoolExecutor(4) as pool:
            jobs = {name: pool.submit(self.run, name, data) for name, data in inputs.items()}
        return {name: job.result() for name, job in jobs.items()}

    def run(self, name, data):
        plugin = self.plugins[name]
        budget = self.total * self.trust_weights[name] / sum(self.trust_weights.values())
        plugin.config["max_ATP"] = budget
        plugin.config["max_iterations"] = int(budget * 10)
        context = {}
        if isinstance(data, dict) and "task_ctx" in data:
            context, data = data["task_ctx"], data["data"]
        state, history = plugin.refine(data, context)
        telemetry = plugin.emit_telemetry(state, history)
        assert telemetry["trust"]["monotonicity_ratio"] >= 0
        return SimpleNamespace(
            output={"final_state": state.x},
            history=history,
            telemetry=telemetry,
            budget_used=telemetry["budget"]["ATP_spent"],
        )


class B:
    """Awaits refinements in threads, and charges for iterations."""

    def __init__(self):
        self.plugins, self.trust, self.states, self.atp = {}, {}, {}, 1000.0

    def register_plugin(self, name, plugin, initial_trust=1.0):
        self.plugins[name], self.trust[name] = plugin, initial_trust

    async def execute_parallel(self, inputs, early_stop=True):
        runs = [self.execute_plugin(name, data, early_stop) for name, data in inputs.items()]
        return dict(zip(inputs, await asyncio.gather(*runs), strict=True))

    async def execute_plugin(self, name, data, early_stop=True):
        output, told = await asyncio.to_thread(self.plugins[name].refine, data, early_stop)
        self.atp -= 10 * told["iterations"]
        self.trust[name] = 0.9 * self.trust[name] + 0.1 * told["trust"]
        self.states[name] = "halted_early" if told["early_stopped"] else "completed"
        return output, told


def test_it_has_all_that_a_plugin_has(plugin_of):
    assert all(callable(getattr(plugin_of(), name)) for name in BASE)


def test_orchestrator_a_gets_a_state_for_each_step_within_its_budget(plugin_of, task):
    a = A(total=10.0)
    a.plugins["sage_student"], a.trust_weights["sage_student"] = plugin_of(), 1.0
    plain = a.process({"sage_student": task_json(task)})["sage_student"]
    named = {"data": task_json(task), "task_ctx": {"task_id": "0a0a0a0a", "budget": 0.4}}
    told = a.process({"sage_student": named})["sage_student"]
    assert [each.meta["views"] for each in plain.history] == [0, 1, 2, 4, 8]
    assert plain.telemetry["halt_reason"] == "max_steps"
    assert plain.budget_used == pytest.approx(0.8)
    assert plain.telemetry["task_id"] == "task"
    assert not plain.telemetry["trained_on"]
    assert [each.meta["views"] for each in told.history] == [0, 1, 2, 4]
    assert told.telemetry["halt_reason"] == "budget"
    assert told.budget_used == pytest.approx(0.4)
    assert told.telemetry["trained_on"]
    json.dumps([plain.telemetry, plain.output])
    assert len(parse_attempts(plain.output["final_state"], "here")) == 1


def test_orchestrator_a_without_a_budget_gets_no_answer_and_no_fault(plugin_of, task):
    a = A(total=0.05)
    a.plugins["s"], a.trust_weights["s"] = plugin_of(), 1.0
    told = a.process({"s": task})["s"]
    assert told.output == {"final_state": []}
    assert (told.telemetry["E"], told.telemetry["halt_reason"]) == (1.0, "max_steps")
    assert told.telemetry["trust"]["monotonicity_ratio"] == 0  # nothing was shown


def test_orchestrator_b_gets_attempts_and_flat_telemetry(plugin_of, task):
    b = B()
    b.register_plugin("whole", plugin_of())
    b.register_plugin("sure", plugin_of(confidence_threshold=1e-6))
    answers = asyncio.run(b.execute_parallel({"whole": task, "sure": task}, early_stop=True))
    output, told = answers["whole"]
    assert len(parse_attempts(output, "here")) == 1
    assert (told["iterations"], told["early_stopped"], told["compute_saved"]) == (4, False, 0)
    assert told["energy_delta"] == pytest.approx(told["final_energy"] - 1)
    assert told["trust"] == pytest.approx(1 - told["final_energy"])
    _, told = answers["sure"]
    assert (told["iterations"], told["early_stopped"]) == (1, True)
    assert told["compute_saved"] == pytest.approx(7 / 8)
    assert b.states == {"whole": "completed", "sure": "halted_early"}
    assert b.atp == 1000 - 50
    json.dumps(told)
    _, told = plugin_of(confidence_threshold=1e-6).refine(task, early_stop=False)
    assert (told["iterations"], told["halt_reason"]) == (4, "max_steps")


def test_driven_by_hand_it_does_the_same(plugin_of, task):
    plugin = plugin_of()
    history = [plugin.init_state(task, {})]
    while not plugin.halt(history):
        history.append(plugin.project(plugin.step(history[-1], None)))
    _, refined = plugin.refine(task)
    assert [each.x for each in history] == [each.x for each in refined]
    assert [each.step_idx for each in history] == [0, 1, 2, 3, 4]
    after = plugin.step(history[-1])  # a driver that does not listen
    assert after.x == history[-1].x
    assert plugin.get_halt_reason([]) == "no_history"


def test_the_last_step_answers_as_the_engines_vote_and_no_view_is_asked_twice(
    plugin_of, engine, task
):
    state, history = plugin_of().refine(task)
    expected = engine.answer(open_questions(task.blind())[0], views=8)
    assert state.x[0]["attempt_1"] == expected.first.tolist()
    assert state.x[0]["attempt_2"] == expected.second.tolist()
    views = [view for view, _ in state.meta["work"].votes[0]]
    assert len(set(views)) == len(views) == 8
    assert 1 - plugin_of().energy(state) == pytest.approx(float(expected.certainty.min()))
    assert history[0].x == []
    state, history = plugin_of().refine(task, None, 2)
    assert [each.meta["views"] for each in history] == [0, 1, 2]


def test_an_answer_cannot_leak_in(plugin_of, task):
    grid = np.full((3, 3), 7, np.uint8)
    other = replace(task, test_outputs=(grid,))
    for given in (task, other, task_json(task), task_json(other)):
        work = plugin_of().init_state(given).meta["work"]
        assert work.task.test_outputs is None
    assert plugin_of().refine(task)[0].x == plugin_of().refine(other)[0].x


def test_it_takes_what_a_task_may_be(plugin_of, task):
    question = Question("0a0a0a0a_test_0", "0a0a0a0a", task.demonstrations, task.test_inputs[0])
    wanted = plugin_of().refine(task)[0].x
    assert plugin_of().refine(question)[0].x == wanted
    assert plugin_of().refine({"data": task_json(task)})[0].x == wanted
    two = Task("two", task.demonstrations, task.test_inputs * 2)
    assert plugin_of().refine(two)[0].x == wanted * 2
    with pytest.raises(InputError, match=r"sage: task task: expected an object"):
        plugin_of().refine([[0]], True)


def test_energy_of_exactly_nothing_is_kept(plugin_of, task):
    plugin = plugin_of()
    assert plugin.energy(State([], energy_val=0.0, meta={"confidence": 0.3})) == 0.0
    assert plugin.energy(SimpleNamespace(energy_val=None, meta={"confidence": 0.25})) == 0.75
    work = replace(plugin.init_state(task).meta["work"], confidence=1.0)
    sure = State([], energy_val=0.0, meta={"work": work})
    assert plugin.get_halt_reason([sure, sure]) == "confident"
    assert plugin.compute_trust_metrics([sure])["monotonicity_ratio"] == 0
    assert plugin.compute_trust_metrics([sure, sure])["monotonicity_ratio"] == 1


def test_it_halts_where_the_energy_stays_unless_learning_is_left(plugin_of, task):
    flat = plugin_of(halt_eps=2.0, halt_K=2)
    state, history = flat.refine(task)
    assert (len(history), flat.get_halt_reason(history)) == (3, "slope<eps")
    assert state.meta["views"] == 2
    work = replace(
        state.meta["work"],
        config=configs.from_dict(SageConfig, {**flat.config, "learning": {"steps": 20}}),
    )
    last = replace(state, meta={**state.meta, "work": work})
    assert flat.get_halt_reason([*history[:-1], last]) == "unknown"


def test_learning_comes_last_and_within_the_budget(plugin_of, task):
    learning = {"tier": "tokens", "steps": 1000, "seconds": 60.0}
    plugin = plugin_of(learning=learning, max_ATP=3.3)
    state, history = plugin.refine(task)
    told = plugin.emit_telemetry(state, history)
    assert [each.meta["tier"] for each in history[:-1]] == ["zero-shot"] * 5
    assert told["tier"] == "adapted task tokens"
    assert state.meta["work"].learnt == 25  # 3.3 / 0.1 - 8 views
    assert told["budget"]["ATP_spent"] == pytest.approx(3.3)
    assert told["halt_reason"] == "max_steps"
    json.dumps(told)
    # What would not outlast the warm-up of the learning rate is not begun.
    poor = plugin_of(learning=learning, max_ATP=2.0, max_seconds=1e9)
    state, history = poor.refine(task)
    assert (state.meta["tier"], poor.get_halt_reason(history)) == ("zero-shot", "budget")


def test_seconds_are_a_budget(task):
    config = configs.from_dict(SageConfig, {"max_seconds": 1.0, "learning": {"seconds": 60.0}})
    work = Work(task, config)
    assert work.next() == "views"
    assert replace(work, seconds=1.0).next() == "too dear"
    assert replace(work, seconds=0.25).seconds_left() == 0.75


def test_threads_take_turns_at_the_engine(plugin_of, task):
    plugin, found = plugin_of(), []
    threads = [
        threading.Thread(target=lambda: found.append(plugin.refine(task)[0].x)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"confidence_treshold": 0.9}, "did you mean 'confidence_threshold'"),
        ({"views": 9}, "views: expected 1 to 8"),
        ({"device": "tpu:0"}, "device: expected cpu, which JAX runs on, got tpu:0"),
        ({"learning": {"tier": "all"}}, r"learning\.tier: expected one of"),
        ({"confidence_threshold": 0}, "confidence_threshold: expected"),
        ({"learning": {"tier": "joint"}}, r"learning\.tier: expected"),
    ],
)
def test_a_bad_config_is_said_in_one_line(plugin_of, config, message):
    with pytest.raises(InputError, match=message):
        plugin_of(**config)


def test_the_example_config_makes_a_plugin(plugin_of, monkeypatch, solver, tmp_path):
    monkeypatch.setattr(sage, "load_solver", lambda *_: solver)
    plugin = load_plugin(ROOT / "configs/sage_flow.json")
    assert plugin.settings().learning.tier == "weights"
    assert plugin.settings().checkpoint == refinement.NANO
    flow = tmp_path / "flow.json"
    flow.write_text('{"agents": {"sage-student": {"config": {"view": 1}}}}')
    with pytest.raises(InputError, match=r"agents\.sage-student\.config: unknown key 'view'"):
        load_plugin(flow)
    with pytest.raises(InputError, match=r"expected agents\.other\.config"):
        load_plugin(flow, "other")


def test_as_task_names_a_dict(task):
    assert as_task(task_json(task), "mine").task_id == "mine"
