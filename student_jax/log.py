"""What people look at while a student trains, and what they are warned of."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator
from statistics import median

import jax
import numpy as np
import numpy.typing as npt
import optax
from tqdm import tqdm

from bridge.errors import InputError
from bridge.files import write_text
from student_jax.board import Board
from student_jax.config import TrainConfig
from student_jax.data import SPOILT, Examples
from student_jax.plan import Plan
from student_jax.state import TrainState
from student_jax.step import Metrics

SHOWN = {
    "loss": "loss",
    "task": "task",
    "mse": "mse",
    "cosine": "cosine",
    "learning_rate": "lr",
    "grad_norm": "grad",
}
SPIKE = 3.0  # times the median loss of the last RECENT steps
SLOW = 0.5  # of the median FLOP/s of the last RECENT log steps
RECENT = 50
NOTICEABLE = 1.0  # seconds between log steps: the clock says little of less
ENOUGH = 5  # values, before anything is called unusual


class TrainLog:
    """A progress bar, TensorBoard, and one JSON line a log step.

    A step's numbers are read when the next step is already on its way, so reading them never keeps
    the device waiting. After a resume, lines that the checkpoint does not know are dropped: the
    file reads like that of an unbroken run, but for `speed`.
    """

    def __init__(
        self,
        config: TrainConfig,
        first_step: int,
        *,
        peak_flops: float,
        name_batch: Callable[[int], str],
        last_good: Callable[[], int | None],
        quiet: bool,
    ) -> None:
        """Opens the files and cuts them back to `first_step`.

        Args:
            config: of the run.
            first_step: how many steps were done before.
            peak_flops: FLOP/s that all devices reach on matrix products.
            name_batch: step, from 0 -> the examples in its batch.
            last_good: -> the latest checkpoint's step.
            quiet: check the numbers only; of several processes one writes.
        """
        self._log_steps, self._peak, self._quiet = config.log_steps, peak_flops, quiet
        self._name_batch, self._last_good = name_batch, last_good
        out = config.out
        self._path = out / "metrics.jsonl"
        self._board = None
        if not quiet:
            lines = self._path.read_text().splitlines() if self._path.is_file() else []
            # A killed run can leave half a line.
            kept = [line for line in lines if _step_of(line) <= first_step]
            with self._told():
                write_text(self._path, "".join(f"{line}\n" for line in kept))
                self._board = Board(out / "tensorboard", first_step + 1)
        self._bar = tqdm(
            total=config.optim.total_steps,
            initial=first_step,
            desc="train",
            unit="step",
            disable=quiet,
        )
        self._pending: tuple[int, Metrics] | None = None
        self.metrics: dict[str, float] = {}  # of the last step that was read
        self._losses: deque[float] = deque(maxlen=RECENT)
        self._rates: deque[float] = deque(maxlen=RECENT)
        self._spiked_at = -RECENT
        self._shapes: set[float] = set()  # of batches, told apart by their FLOPs
        self._window = _Window()

    def say(self, text: str) -> None:
        """Prints above the bar."""
        if not self._quiet:
            self._bar.write(text)

    def see(
        self, step: int, metrics: Metrics, *, examples: int, flops: float, waited: float
    ) -> None:
        """Takes in a step that was started, and reads the one before.

        Args:
            step: its number, from 1.
            metrics: still on the device.
            examples: in its batch, over all devices.
            flops: model FLOPs of the step.
            waited: seconds that it waited for its batch.
        """
        self._window.wait(waited)  # while the step before was on its way
        self.settle()
        if flops not in self._shapes:  # it was compiled just now
            self._shapes.add(flops)
            self.restart_clock()
        self._pending = (step, metrics)
        self._window.add(examples, flops)

    def settle(self) -> None:
        """Waits for the step that was started and reads it.

        Raises:
            InputError: if one of its numbers is not finite.
        """
        if self._pending is None:
            return
        step, values = self._pending
        self._pending = None
        metrics = {name: value.item() for name, value in jax.device_get(values).items()}
        # The update is checked too, so that no checkpoint ever holds a broken state.
        broken = [name for name, value in metrics.items() if not np.isfinite(value)]
        if broken:
            good = self._last_good()
            examples = self._name_batch(step - 1)
            cure = "extract those again" if SPOILT in examples else "lower --optim.peak_lr"
            raise InputError(
                f"step {step}: {', '.join(broken)} not finite; its examples: {examples}; last good "
                f"checkpoint: {'none yet' if good is None else f'step {good}'}; {cure}"
            )
        self.metrics = metrics
        self._warn_of_spike(step, metrics["loss"])
        self._bar.update()
        if step % self._log_steps == 0:
            speed = self._window.speed(self._peak)
            self.restart_clock()
            self._warn_of_slowness(step, speed)
            self._keep(step, metrics, speed)

    def dev(
        self, step: int, scores: dict[str, float], pictures: dict[str, npt.NDArray], text: str
    ) -> None:
        """Says and keeps what became of held-out questions: scores, and pictures u8[H, W, 3]."""
        self.say(f"step {step}: {text}")
        if self._board is None:
            return
        with self._told():
            self._board.add_scalars(step, {f"dev/{name}": value for name, value in scores.items()})
            self._board.add_pictures(step, {f"dev/{name}": x for name, x in pictures.items()})

    def restart_clock(self) -> None:
        """Forgets the time since the last line: it was not spent on steps alone."""
        self._window = _Window()

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Flushes the files; what is printed next starts on a line of its own."""
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _keep(self, step: int, metrics: dict[str, float], speed: dict[str, float]) -> None:
        shown = [f"{label} {metrics[name]:.3g}" for name, label in SHOWN.items()]
        shown.append(f"{speed['examples_per_second']:.3g} examples/s")
        shown += [f"{name} {speed[name]:.1%}" for name in ("mfu", "waiting")]
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        if self._board is None:
            return
        with self._told():
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics, "speed": speed}) + "\n")
            named = {f"speed/{name}": value for name, value in speed.items()}
            self._board.add_scalars(step, metrics | named)

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        """Says in one line that a file could not be written."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._path} or tensorboard/: cannot be written: {error.strerror}; free space, "
                "then start again"
            ) from None

    def _warn_of_spike(self, step: int, loss: float) -> None:
        usual = median(self._losses) if len(self._losses) >= ENOUGH else float("inf")
        if loss > SPIKE * usual and step - self._spiked_at >= RECENT:
            self._spiked_at = step
            self.say(
                f"warning: step {step}: loss {loss:.3g}, {loss / usual:.1f} times the median of "
                f"the last {len(self._losses)} steps; its examples: {self._name_batch(step - 1)}"
            )
        self._losses.append(loss)

    def _warn_of_slowness(self, step: int, speed: dict[str, float]) -> None:
        rate = speed["model_flops_per_second"]
        usual = median(self._rates) if len(self._rates) >= ENOUGH else 0.0
        if rate < SLOW * usual and speed["seconds"] > NOTICEABLE:
            self.say(
                f"warning: step {step}: {rate / usual:.0%} of the usual speed over the last "
                f"{self._log_steps} steps, {speed['waiting']:.0%} of it waiting for data"
            )
        self._rates.append(rate)


def describe(config: TrainConfig, examples: Examples, plan: Plan, state: TrainState) -> str:
    """Returns what a user should know before the first step."""
    teacher = "none"
    if examples.store:
        share = examples.taught_share(plan)
        teacher = f"{examples.store.provenance['weights']}, seen in {share:.0%} of them"
    left_out = f", {examples.left_out} left out (answer off the canvas)" * bool(examples.left_out)
    doubles = "".join(
        f"\nleft out: task {task_id} has what held-out {', '.join(names)} has, but for symmetries"
        for task_id, names in examples.doubles.items()
    )
    doubles += "".join(
        f"\nleft out: {count} generated pairs {why}" for why, count in examples.dropped.items()
    )
    leaked = ""
    if names := sorted(examples.leaked):
        first = examples.leaked[names[0]][0]
        leaked = (
            f"\nwarning: the training data holds the answers of {len(names)} tasks of "
            f"arcagi/evaluation, {names[0]} as {first}: the checkpoint says so, and they never "
            "count as held out"
        )
    return (
        f"student: {config.model.kind}, {optax.tree.size(state.params):,} parameters, "
        f"{len(jax.devices())} device(s), {jax.process_count()} process(es)\n"
        f"data: {len(examples.examples)} examples{left_out}; teacher: {teacher}{doubles}{leaked}"
    )


def _step_of(line: str) -> float:
    """The step of a line; infinity where a killed run left less than a line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class _Window:
    """The steps between two log steps."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._examples = self._flops = self._waited = 0.0

    def wait(self, seconds: float) -> None:
        self._waited += seconds

    def add(self, examples: int, flops: float) -> None:
        self._examples += examples
        self._flops += flops

    def speed(self, peak_flops: float) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {
            "seconds": seconds,
            "examples_per_second": self._examples / seconds,
            "model_flops_per_second": self._flops / seconds,
            "mfu": self._flops / seconds / peak_flops,
            "waiting": self._waited / seconds,
        }
