"""Going on with a run: what must be as it was, and what a warm start takes over."""

from __future__ import annotations

import ast
import functools
import importlib.util
import pkgutil
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bridge
import student_jax
from bridge import config as configs
from bridge.errors import InputError
from bridge.rearc import digest_of
from bridge.store import FeatureStore, check_provenance
from bridge.store.provenance import code_digest
from bridge.tree import flatten, unflatten
from student_jax.checkpoints import Checkpoints
from student_jax.config import TrainConfig
from student_jax.data import Examples
from student_jax.processes import is_first
from student_jax.solver import Solver
from student_jax.state import TrainState

# A moved store is known by its provenance, see `check_same_data`.
MAY_DIFFER = ("out", "log_steps", "data.store", "data.cache", "may_differ", "dry_run")
# They shape what a checkpoint holds, so nothing else can be restored into.
NEVER_DIFFER = ("model", "loss.scaling", "loss.form", "optim.ema_decay")
BUT_FOR = ("model.dropout", "model.compute", "model.remat", "model.scan_layers")
OWN = ("projector", "table")  # weights of one teacher or of one set of tasks
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def check_may_differ(config: TrainConfig) -> None:
    """Refuses keys that no config has.

    Raises:
        InputError: naming the first.
    """
    known = flatten(configs.to_dict(config))
    for key in config.may_differ:
        if not any(is_under(name, (key,)) for name in known):
            raise InputError(f"may_differ: expected keys of the config, got {key}")


def check_same_config(there: dict[str, Any], config: TrainConfig) -> None:
    """Refuses to go on with a run under another config, but for `may_differ`.

    Args:
        there: the config of the run's newest whole step.
        config: the one to go on with.

    Raises:
        InputError: naming the first key that differs.
    """
    # What a run's config does not name yet has its default.
    full = configs.to_dict(configs.from_dict(TrainConfig, there))
    before, now = flatten(full), flatten(configs.to_dict(config))
    for key in sorted(now.keys() | before.keys()):
        if before.get(key) == now.get(key) or is_under(key, MAY_DIFFER):
            continue
        fixed = is_under(key, NEVER_DIFFER) and not is_under(key, BUT_FOR)
        if fixed or not is_under(key, config.may_differ):
            other = f"--may_differ {key} to go on all the same"
            other = "with --init to start from its weights where they fit" if fixed else other
            raise InputError(
                f"{config.out} holds a run with {key} = {before.get(key)}, got {now.get(key)}; "
                f"give another --out, {'or ' * (not fixed)}{other}"
            )


def is_under(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of some names, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


Notes = dict[str, Any]  # what a checkpoint says of itself beside its config and digests


def notes_on(examples: Examples, store: FeatureStore | None) -> Notes:
    """Returns the notes of a run that starts: its teacher, its tasks, its code, no scores yet."""
    return {
        "feature_width": examples.feature_width,
        "teacher": store.provenance if store else None,
        "trained_on": sorted({example.question.task_id for example in examples.examples}),
        "rearc": examples.data.rearc and digest_of(examples.data.rearc),
        "doubles": examples.doubles,
        "leaked": examples.leaked,
        "devices": jax.device_count(),
        "init": None,
        "code": {
            "version": version("sage-distill"),
            "digest": code_digest(_modules()),
            "libraries": {name: version(name) for name in LIBRARIES},
        },
        "dev": [],
    }


def restore_own(
    checkpoints: Checkpoints,
    sharding: jax.sharding.Sharding,
    notes: Notes,
    config: TrainConfig,
) -> tuple[int, Notes, TrainState] | None:
    """Returns the newest whole step, its notes and its state; None if there is no step yet.

    Raises:
        InputError: if it had another config, store or tasks, or no step is whole.
    """
    newest = checkpoints.restore_newest(sharding)
    if newest is None:
        return None
    step, there, state = newest
    check_same_config(there["config"], config)
    check_same_data(there, notes, config)
    if there.get("code") != notes["code"] and is_first():
        before = there.get("code") or {"version": "older", "digest": "unknown"}
        sys.stderr.write(
            f"warning: the checkpoint was made by other code or libraries ({before['version']}, "
            f"{before['digest']}): the result may not be that of an unbroken run\n"
        )
    if there.get("devices") != notes["devices"] and is_first():
        sys.stderr.write(
            f"warning: the checkpoint was made on {there.get('devices', 'other')} devices, not "
            f"{notes['devices']}: the result will be that of an unbroken run but for rounding\n"
        )
    for damaged in [other for other in checkpoints.steps() if other > step]:
        checkpoints.set_aside(damaged)  # to be made again
    kept = {name: there[name] for name in ("trained_on", "init", "dev") if name in there}
    return step, {**notes, **kept}, state


def check_same_data(there: Notes, now: Notes, config: TrainConfig) -> None:
    """Refuses to resume on another teacher's features or on other tasks.

    Raises:
        InputError: naming what differs.
    """
    hint = f"{config.out} was trained on another store; give another --out"
    if (there["teacher"] is None) != (now["teacher"] is None):
        with_or_not = ["none", "one"][there["teacher"] is not None]
        raise InputError(f"data.store: expected {with_or_not}, as before; {hint}")
    if there["teacher"] is not None:
        check_provenance(now["teacher"], there["teacher"], str(config.data.store), hint)
    if there.get("rearc") != now["rearc"]:
        raise InputError(
            f"{config.out} was trained on other pairs than {config.data.rearc} holds; give another "
            "--out"
        )
    before = (there.get("init") or {}).get("trained_on", [])  # by the run it started from
    different = set(there["trained_on"]) ^ {*now["trained_on"], *before}
    if different:
        task = min(different)
        raise InputError(
            f"{config.out} was trained on other tasks: {config.data.tasks.source} changed in "
            f"{task}; give another --out"
        )


def warm_start(notes: Notes, state: TrainState, warm: Solver) -> tuple[Notes, TrainState]:
    """Returns a first state with another run's weights, and notes that say so.

    Projectors stay as drawn where the teachers' widths differ, and the table's rows unless they
    are of the same tasks; everything else has to fit. What the weights were trained on before
    counts as trained on.

    Raises:
        InputError: naming the first leaf that does not fit.
    """
    own, others = flatten(state.params), flatten(warm.params)
    for name in sorted(own.keys() | others.keys()):
        shapes = [tree[name].shape if name in tree else "nothing" for tree in (own, others)]
        is_own = any(part in name for part in OWN)
        if shapes[0] != shapes[1] and (not is_own or "nothing" in shapes):
            raise InputError(
                f"init: {warm.config.out}: {name}: expected {shapes[0]}, got {shapes[1]}"
            )
    same_tasks = {*notes["trained_on"], *notes["leaked"]} == warm.trained_on
    taken = {
        name: jax.device_put(np.asarray(others[name]), value.sharding)
        if others[name].shape == value.shape and (same_tasks or name != "table")
        else value
        for name, value in own.items()
    }
    params = unflatten(taken)
    # A copy: a buffer can only be donated once.
    state = replace(state, params=params, ema=state.ema and jax.tree.map(jnp.copy, params))
    trained_on = sorted(warm.trained_on)
    init = {
        "run": str(warm.config.out),
        "step": warm.step,
        "trained_on": trained_on,
        "teachers": warm.teachers,
    }
    everything = sorted({*notes["trained_on"], *trained_on})
    return {**notes, "init": init, "trained_on": everything}, state


@functools.cache
def _modules() -> tuple[str, ...]:
    """The modules whose code decides what a student becomes: all of ours that training imports."""
    ours = {
        module.name
        for package in (bridge, student_jax)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
    found, left = set(), {"student_jax.train"}
    while left:
        found.add(name := left.pop())
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                named = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                left |= (named & ours) - found
    return tuple(sorted(found))
