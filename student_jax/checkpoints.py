"""Checkpoints: Orbax, with the config, the teacher's provenance and a digest of every leaf inside.

Orbax restores an array whose bytes changed on disk without a word, so each leaf's sha256 is kept
beside it and compared. A damaged step is skipped for the newest whole one, and said to be. The
latest steps are kept, and the one that answered the most held-out questions.

python -m student_jax.checkpoints verify runs/quickstart/grid
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

from bridge import config as configs
from bridge.errors import InputError
from bridge.store.storage import is_outage
from student_jax import processes
from student_jax.config import TrainConfig
from student_jax.state import state_like

# What Orbax' threads log of a failed save or restore is told in one line instead.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def _unraisable(event: Any) -> None:
    """Drops what the reads and writes say that a failed save or restore did not wait for."""
    if not (event.exc_type is RuntimeError and "Event loop is closed" in str(event.exc_value)):
        sys.__unraisablehook__(event)


sys.unraisablehook = _unraisable


class DamagedError(InputError):
    """A step's bytes are not those that were saved; an outage is another matter."""


class Checkpoints:
    """The checkpoints of one run, in `{out}/checkpoints`. Use it as a context manager."""

    KEEP = 2  # latest ones: if the newest is damaged, the one before takes over

    def __init__(self, out: Path, *, create: bool = False) -> None:
        """Opens the folder.

        Args:
            out: a training run's folder.
            create: make it if it is not there.

        Raises:
            InputError: if there is none and `create` is off.
        """
        folder = out.resolve() / "checkpoints"
        if not create and not folder.is_dir():
            raise InputError(
                f"checkpoint: expected a training run with checkpoints, got {out}; "
                "make one with python -m student_jax.train"
            )
        self.out = out
        self._keep = _Keep(self.KEEP)
        self._saving: int | None = None  # the last step that was to be saved
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep,
                create=create,
                cleanup_tmp_directories=create,  # what a killed save left
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        first = contextlib.suppress(InputError) if error else contextlib.nullcontext()
        with first, self._disk_faults():
            self._manager.close()

    def steps(self) -> list[int]:
        """The complete steps, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def latest_step(self) -> int | None:
        """The newest complete step, or None; it may be damaged."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, config: TrainConfig, about: dict[str, Any]) -> None:
        """Saves a state in the background; returns when its arrays are copied."""
        about = {"config": configs.to_dict(config), "digests": digests_of(state), **about}
        about = {**about, "check": _check(about)}
        self._keep.best = best_of(about.get("dev", []))
        self.wait()  # a fault of the save before is not this one's
        self._saving = step
        with self._disk_faults():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    about=ocp.args.JsonSave(about),  # pyright: ignore[reportCallIssue]
                ),
            )
        if not saved:
            raise InputError(
                f"checkpoint {self.out}: step {step} was not saved: step {self.latest_step()} is "
                "there already; give another --out"
            )

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        with self._disk_faults():
            self._manager.wait_until_finished()

    def set_aside(self, step: int) -> None:
        """Moves a step to `{out}/damaged_checkpoints`, so that it can be saved again."""
        processes.wait_for_all(f"found {step} damaged")
        if processes.is_first():
            aside = self.out / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            place = aside / str(step)
            while place.exists():
                place = place.with_name(f"{place.name}_")
            (self.out / "checkpoints" / str(step)).rename(place)
        processes.wait_for_all(f"set {step} aside")
        self._manager.reload()

    def about(self, step: int | None = None) -> dict[str, Any]:
        """Returns what is known of a checkpoint: its config and its teacher's provenance.

        Raises:
            InputError: if there is no checkpoint, or it is damaged.
        """
        step = self._existing(step)
        arguments = ocp.args.Composite(about=ocp.args.JsonRestore())  # pyright: ignore[reportCallIssue]
        about = self._restore(step, arguments)["about"]
        if not isinstance(about, dict):
            raise self._damage(step, "about: not readable")
        if about.get("check") != _check(about):
            raise self._damage(step, "about: not as it was saved")
        return about

    def restore(self, step: int, sharding: jax.sharding.Sharding) -> tuple[dict[str, Any], Any]:
        """Returns what a step says of itself and its state, every leaf compared with its digest.

        Args:
            step: which.
            sharding: where every array is placed.

        Raises:
            DamagedError: naming the first leaf that is not as it was saved.
        """
        about = self.about(step)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state_like(about)
        )
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like))  # pyright: ignore[reportCallIssue]
        state = self._restore(step, arguments)["state"]
        found, expected = digests_of(state), about["digests"]
        for name in sorted(found.keys() | expected.keys()):
            if expected.get(name) != found.get(name):
                raise self._damage(step, f"leaf {name} is not as it was saved")
        return about, state

    def restore_newest(
        self, sharding: jax.sharding.Sharding
    ) -> tuple[int, dict[str, Any], Any] | None:
        """Returns the newest step that is as it was saved, as `restore`; None without steps.

        Raises:
            DamagedError: if there are steps and all of them are damaged.
        """
        return self._restore_first(self.steps(), sharding)

    def restore_best(self, sharding: jax.sharding.Sharding) -> tuple[int, dict[str, Any], Any]:
        """Returns the step that answered the most held-out questions, of those that are whole.

        Raises:
            InputError: if none was ever tried on held-out questions.
            DamagedError: if all of those are damaged.
        """
        dev: list[dict[str, Any]] = []
        for step in self.steps():
            with contextlib.suppress(DamagedError):
                dev = self.about(step).get("dev", [])
                break
        there = self.steps()
        found = self._restore_first([step for step in ranked(dev) if step in there], sharding)
        if found is None:
            raise InputError(
                f"checkpoint: {self.out} was never tried on held-out questions, so none is the "
                "best; take the latest, or train with --dev_questions above 0"
            )
        return found

    def _restore_first(
        self, steps: list[int], sharding: jax.sharding.Sharding
    ) -> tuple[int, dict[str, Any], Any] | None:
        """Restores the first of some steps that is whole; None if there are no steps."""
        error: DamagedError | None = None
        for step in steps:
            try:
                return step, *self.restore(step, sharding)
            except DamagedError as damage:
                print(f"warning: {damage}; looking at another step", file=sys.stderr)
                error = damage
        if error is not None:
            raise DamagedError(f"{self.out}: no step is whole; the last: {error}")
        return None

    @contextlib.contextmanager
    def _disk_faults(self) -> Generator[None]:
        """Says in one line that the last checkpoint could not be written."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            fault = " ".join(str(error).split())[:200]
            whole = [step for step in self.steps() if step != self._saving]
            raise InputError(
                f"checkpoint {self.out}: step {self._saving} could not be written: {fault}; the "
                f"latest complete one is step {max(whole, default='none')}: free space, then start "
                "again"
            ) from None

    def _restore(self, step: int, arguments: Any) -> Any:
        try:
            return self._manager.restore(step, args=arguments)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            fault = " ".join(str(error).split())[:160]
            if _is_outage(error):
                raise InputError(
                    f"checkpoint {self.out}: step {step} cannot be read: {fault}; nothing was "
                    "changed: try again"
                ) from None
            raise self._damage(step, fault) from None

    def _damage(self, step: int, fault: str) -> DamagedError:
        return DamagedError(f"checkpoint {self.out}: step {step} is damaged: {fault}")

    def _existing(self, step: int | None) -> int:
        step = self.latest_step() if step is None else step
        if step is None:
            raise InputError(f"checkpoint: {self.out} holds no complete checkpoint yet")
        return step


class _Keep:
    """Orbax' preservation policy: the latest steps, and the best one."""

    def __init__(self, latest: int) -> None:
        self.latest = latest
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        late = len(checkpoints) - self.latest
        return [i >= late or item.step == self.best for i, item in enumerate(checkpoints)]


def ranked(dev: list[dict[str, Any]]) -> list[int]:
    """Returns the steps by their held-out answers: most exact, then most cells, then the first.

    Args:
        dev: a run's scores on held-out tasks so far, see `Development.try_on`.
    """
    rows = sorted(dev, key=lambda row: (row["exact"], row["cells"]), reverse=True)
    return [row["step"] for row in rows]


def best_of(dev: list[dict[str, Any]]) -> int | None:
    """Returns the best of the steps, or None before the first trial; see `ranked`."""
    return next(iter(ranked(dev)), None)


def digests_of(state: Any) -> dict[str, str]:
    """Returns the sha256 of every leaf by its path: dtype, shape and bytes. Waits for the state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    with ThreadPoolExecutor() as pool:  # training stands still meanwhile
        digests = pool.map(lambda item: _digest(item[1]), leaves)
        return {jax.tree_util.keystr(path): d for (path, _), d in zip(leaves, digests, strict=True)}


def _check(about: dict[str, Any]) -> str:
    """Returns the sha256 of what a checkpoint says of itself, as JSON will have it."""
    rest = {name: value for name, value in about.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _is_outage(error: Exception) -> bool:
    """Whether a step could not be read, as against read and found to be wrong."""
    if isinstance(error, ValueError):
        return is_outage(error)
    return isinstance(error, MemoryError | OSError) and not isinstance(error, FileNotFoundError)


def _digest(leaf: Any) -> str:
    # Every device holds the whole of it.
    value = np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)
    total = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
    total.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """What to do with which run's checkpoints."""

    action: Annotated[Literal["verify"], tyro.conf.Positional]
    """verify: hold every leaf of every step against its digest"""
    path: Annotated[Path, tyro.conf.Positional]
    """a training run's folder"""


def main(config: CheckpointsConfig) -> None:
    """Verify a training run's checkpoints; ends with exit code 1 if a step is damaged."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    damaged = 0
    with Checkpoints(config.path) as checkpoints:
        if not checkpoints.steps():
            raise InputError(f"checkpoint: {config.path} holds no complete checkpoint yet")
        for step in checkpoints.steps():
            try:
                _, state = checkpoints.restore(step, one)
            except DamagedError as error:
                damaged += 1
                print(f"damaged: {error}")
            else:
                print(f"whole: step {step}, {len(jax.tree.leaves(state))} leaves")
    if damaged:
        raise SystemExit(1)


if __name__ == "__main__":
    configs.command(main, CheckpointsConfig)
