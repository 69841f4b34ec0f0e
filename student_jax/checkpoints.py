"""Checkpoints: Orbax, with the config and the teacher's provenance inside."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from bridge import config as configs
from bridge.errors import InputError
from student_jax.config import TrainConfig


class Checkpoints:
    """The checkpoints of one run, in `{out}/checkpoints`. Use it as a context manager."""

    KEEP = 2

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
        self._manager = ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(max_to_keep=self.KEEP, create=create)
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, config: TrainConfig, about: dict[str, Any]) -> None:
        """Saves a state in the background; returns when its arrays are copied."""
        about = {"config": configs.to_dict(config), **about}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                about=ocp.args.JsonSave(about),  # pyright: ignore[reportCallIssue]
            ),
        )

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        self._manager.wait_until_finished()

    def about(self, step: int | None = None) -> dict[str, Any]:
        """Returns what is known of a checkpoint: its config and its teacher's provenance.

        Raises:
            InputError: if there is no checkpoint.
        """
        restored = self._manager.restore(
            self._existing(step),
            args=ocp.args.Composite(about=ocp.args.JsonRestore()),  # pyright: ignore[reportCallIssue]
        )
        return restored["about"]

    def restore(self, like: Any, sharding: jax.sharding.Sharding, step: int | None = None) -> Any:
        """Returns a saved state.

        Args:
            like: its shapes and dtypes, from `jax.eval_shape`.
            sharding: where every array is placed.
            step: which; the latest by default.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        restored = self._manager.restore(
            self._existing(step),
            args=ocp.args.Composite(state=ocp.args.StandardRestore(like)),  # pyright: ignore[reportCallIssue]
        )
        return restored["state"]

    def _existing(self, step: int | None) -> int:
        step = self.latest_step() if step is None else step
        if step is None:
            raise InputError(f"checkpoint: {self.out} holds no complete checkpoint yet")
        return step
