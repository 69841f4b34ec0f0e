"""The student as a plugin of SAGE's iterative refinement, for both of its orchestrators.

Energy is one minus confidence; `student_jax/refinement.py` says what a step is. Nothing of SAGE is
imported: its orchestrators know plugins and states by what they can do.
"""

from __future__ import annotations

import math
import resource
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import jax
import numpy as np

from bridge import config as configs
from bridge.arc import open_questions
from bridge.arc_files import read_json
from bridge.errors import InputError
from bridge.predictions import to_submission
from student_jax.adapter import Adapter
from student_jax.batch import Augmentation
from student_jax.config import AdaptConfig
from student_jax.engine import Engine
from student_jax.keep import keep_memory_and_programs
from student_jax.refinement import SageConfig, Work, as_task, surety
from student_jax.solve import TIERS
from student_jax.solver import Solver, load_solver
from student_jax.vote import tally, views_of


@dataclass
class State:
    """What SAGE looks at between two steps."""

    x: list[dict[str, list[list[int]]]]  # attempt_1 and attempt_2 of each test input; JSON-able
    step_idx: int = 0
    energy_val: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)  # what is told, and under `work` the work
    timestamp: float = field(default_factory=time.time)


class StudentPlugin:
    """A grid student that refines its answer to one ARC task."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, solver: Solver | None = None
    ) -> None:
        """Loads the student.

        Args:
            config: a `SageConfig` as plain values, and LRC_context, which telemetry passes on.
            solver: a student that was loaded already.

        Raises:
            InputError: naming an unknown key, a wrong device, or what is wrong with the student.
        """
        self.config = dict(config or {})  # its keys may be written to between two refinements
        settings = self.settings()
        if settings.device is not None and not _is_here(settings.device):
            raise InputError(
                f"device: expected {jax.default_backend()}, which JAX runs on, got "
                f"{settings.device}; JAX_PLATFORMS chooses it"
            )
        self.entity_id, self.trust_weight = settings.entity_id, settings.trust_weight
        keep_memory_and_programs()
        self._solver = solver or load_solver(settings.checkpoint, settings.which)
        self._engine = Engine(self._solver)
        self._turn = threading.Lock()  # the engine answers one thread at a time

    def settings(self) -> SageConfig:
        """Returns the config as it is now, checked."""
        plain = {
            key: v.item() if isinstance(v, np.generic) else v for key, v in self.config.items()
        }
        plain.pop("LRC_context", None)
        return configs.from_dict(SageConfig, plain)

    def init_state(self, x0: Any, task_ctx: Mapping[str, Any] | None = None) -> State:
        """Takes a task on: no answer yet, energy 1.

        Args:
            x0: an ARC task as its file has it, a `Task` or a `Question`; or all that wrapped as
                {"data": ..., "task_ctx": ...}. Test outputs are dropped first.
            task_ctx: `task_id` names a task that is a dict; a `budget` in ATP lowers max_ATP.

        Raises:
            InputError: naming the first fault of the task.
        """
        if isinstance(x0, Mapping) and "data" in x0:
            x0, task_ctx = x0["data"], {**x0.get("task_ctx", {}), **(task_ctx or {})}
        context = task_ctx or {}
        config, budget = self.settings(), context.get("budget")
        if isinstance(budget, int | float):
            limit = math.inf if config.max_ATP is None else config.max_ATP
            config = replace(config, max_ATP=min(limit, float(budget)))
        return _state(Work(as_task(x0, str(context.get("task_id", "task"))), config), 0)

    def step(self, state: Any, noise_schedule: Any = None) -> State:  # noqa: ARG002
        """Does what comes next; where nothing is left or affordable, the answer stays."""
        work: Work = state.meta["work"]
        started = time.perf_counter()
        action = work.next()
        if action == "views":
            work = self._ask(work)
        elif action == "learning":
            work = self._learn(work)
        work = replace(work, seconds=work.seconds + time.perf_counter() - started)
        return _state(work, state.step_idx + 1)

    def energy(self, state: Any) -> float:
        """Returns 1 - confidence, in [0, 1]; 1 before there is an answer."""
        # Not `or`: an energy of exactly 0 is one.
        return state.energy_val if state.energy_val is not None else 1 - state.meta["confidence"]

    def project(self, state: Any) -> Any:
        """Returns the state as it is: every answer is a grid that ARC allows."""
        return state

    def halt(self, history: Sequence[Any]) -> bool:
        """Whether the last state is the answer."""
        return self.get_halt_reason(history) not in ("no_history", "unknown")

    def get_halt_reason(self, history: Sequence[Any]) -> str:
        """Returns why it ends here.

        Returns:
            confident, max_steps (nothing is left to do, or no steps are), budget (of ATP or
            seconds), slope<eps, no_history; unknown where it does not end.
        """
        if not history:
            return "no_history"
        work: Work = history[-1].meta["work"]
        config, energies = work.config, [self.energy(state) for state in history]
        if work.early_stop and work.confidence >= config.confidence_threshold:
            return "confident"
        action = work.next()
        if action == "nothing" or len(history) > config.max_iterations:
            return "max_steps"
        if action == "too dear":
            return "budget"
        changes = np.abs(np.diff(energies))[-config.halt_K :]
        # Learning may bring what more views do not.
        if (
            work.early_stop
            and action == "views"
            and config.learning is None
            and len(changes) == config.halt_K
            and changes.max() < config.halt_eps
        ):
            return "slope<eps"
        return "unknown"

    def compute_trust_metrics(self, history: Sequence[Any]) -> dict[str, float]:
        """Returns how the energy fell; all 0 where there are not two states to compare.

        Returns:
            monotonicity_ratio: share of steps in which it did not rise; dE_variance: of its
            changes; convergence_rate: its mean fall a step.
        """
        changes = np.diff([self.energy(state) for state in history]).tolist()
        if not changes:
            return dict.fromkeys(("monotonicity_ratio", "dE_variance", "convergence_rate"), 0.0)
        return {
            "monotonicity_ratio": fmean(change <= 0 for change in changes),
            "dE_variance": pvariance(changes),
            "convergence_rate": -fmean(changes),
        }

    def emit_telemetry(self, state: Any, history: Sequence[Any]) -> dict[str, Any]:
        """Returns what a refinement came to, JSON-able."""
        work: Work = state.meta["work"]
        energies = [self.energy(each) for each in history]
        return {
            "entity_id": work.config.entity_id,
            "plugin": type(self).__name__,
            "step_idx": state.step_idx,
            "E": self.energy(state),
            "dE": energies[-1] - energies[-2] if len(energies) > 1 else 0.0,
            "steps": max(len(history) - 1, 0),
            "halt_reason": self.get_halt_reason(history),
            "trust": self.compute_trust_metrics(history),
            "budget": {
                "ATP_spent": work.units * work.config.ATP_per_step,
                "time_ms": 1e3 * work.seconds,
                # The process' peak; kB on Linux.
                "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
            },
            "LRC_context": self.config.get("LRC_context"),
            **{key: state.meta[key] for key in ("task_id", "tier", "views", "confidence")},
            "trained_on": work.task.task_id in self._solver.trained_on,
        }

    def refine(
        self,
        x0: Any,
        task_ctx: Mapping[str, Any] | bool | None = None,
        max_steps: int | None = None,
        *,
        early_stop: bool | None = None,
    ) -> tuple[Any, Any]:
        """Answers a task, as either orchestrator asks.

        Args:
            x0: see `init_state`.
            task_ctx: of orchestrator A; orchestrator B has `early_stop` in this place.
            max_steps: of orchestrator A; by default the config's max_iterations.
            early_stop: of orchestrator B: whether confidence and slope may end it.

        Returns:
            To A the last state and all states, the first included. To B the attempts and
            telemetry; its `trust` is the confidence.
        """
        if isinstance(task_ctx, bool):
            task_ctx, early_stop = None, task_ctx
        state = self.init_state(x0, task_ctx)
        work: Work = state.meta["work"]
        steps = work.config.max_iterations if max_steps is None else max_steps
        work = replace(
            work,
            config=replace(work.config, max_iterations=steps),
            early_stop=early_stop is not False,
        )
        history = [_state(work, 0)]
        while not self.halt(history):
            history.append(self.project(self.step(history[-1])))
        if early_stop is None:
            return history[-1], history
        return history[-1].x, self._telemetry_for_b(history)

    def _telemetry_for_b(self, history: Sequence[State]) -> dict[str, Any]:
        told = self.emit_telemetry(history[-1], history)
        work: Work = history[-1].meta["work"]
        return {
            **told,
            "trust_metrics": told["trust"],
            "trust": work.confidence,
            "iterations": told["steps"],
            "early_stopped": told["halt_reason"] in ("confident", "slope<eps"),
            "compute_saved": 1 - work.units / work.planned,
            "final_energy": told["E"],
            "energy_delta": told["E"] - self.energy(history[0]),
        }

    def _ask(self, work: Work) -> Work:
        """Asks as many views more as were asked before; none is asked twice."""
        shown = [Augmentation(view) for view in views_of(work.views + work.more_views())]
        new, votes = shown[work.views :], []
        with self._turn:
            for question in open_questions(work.task):
                said = np.asarray(self._engine.ready([self._engine.draw(question, new)]).run())
                votes.append([(how.transform, v) for how, v in zip(new, said, strict=True)])
        before = work.votes or ((),) * len(votes)
        all_votes = tuple((*old, *more) for old, more in zip(before, votes, strict=True))
        attempts = tuple(tally(each) for each in all_votes)
        return replace(
            work, votes=all_votes, attempts=attempts, confidence=min(map(surety, attempts))
        )

    def _learn(self, work: Work) -> Work:
        """Learns the task, within what is left of the budget; what was learnt answers."""
        learning = work.config.learning or AdaptConfig()
        budget = replace(
            learning,
            steps=int(min(learning.steps, work.affordable())),
            seconds=min(learning.seconds, work.seconds_left()),
        )
        adapter, views = Adapter(self._solver, budget), work.config.views
        # Watched by nobody: so no bar is drawn on the orchestrator's terminal.
        (_, adapted), *_ = adapter.adapt([work.task], views, watch=lambda *_: None)
        return replace(
            work,
            tier=learning.tier,
            learnt=adapted.steps,
            attempts=adapted.attempts,
            # No surer than it is right about the demonstrations.
            confidence=min(adapted.fit, *map(surety, adapted.attempts)),
        )


def load_plugin(path: Path, agent: str = "sage-student") -> StudentPlugin:
    """Makes the plugin that a flow config describes: agents.NAME.config.

    Raises:
        InputError: if there is no such agent, or its config is not one.
    """
    flow = read_json(path)
    try:
        config = flow["agents"][agent]["config"]
    except (TypeError, KeyError):
        raise InputError(f"{path}: expected agents.{agent}.config, got none") from None
    try:
        return StudentPlugin(config)
    except InputError as error:
        raise InputError(f"{path}: agents.{agent}.config: {error}") from None


def _state(work: Work, step_idx: int) -> State:
    task_id = work.task.task_id
    meta = {
        "task_id": task_id,
        "tier": TIERS[work.tier],
        "views": work.views,
        "confidence": work.confidence,
        "work": work,
    }
    x = to_submission({task_id: work.attempts})[task_id]
    return State(x, step_idx, 1 - work.confidence, meta)


def _is_here(device: str) -> bool:
    kind = device.split(":")[0]
    return jax.default_backend() == {"cuda": "gpu"}.get(kind, kind)
