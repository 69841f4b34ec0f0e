"""What a student is worth, from its training to its scores: every command shown, every control run.

    python tools/proof.py --train configs/nano.yaml --out runs/proof
    python tools/proof.py --train configs/small.yaml --out runs/proof --evaluation True

Trains it, freezes it as an export, and has it answer the tasks held out from its training: in one
pass, and after learning each task; beside it the same student never trained. Then the scores are
told, and compared task by task. With `--evaluation` the frozen student then answers ARC-AGI-1's
evaluation set, once: tasks no larger than those it learnt from; answers that are there are never
made again. What was stopped goes on where it stood when the same command is given; `proof.json`
keeps every command with its seconds, the digest of the weights, and those of all answers.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditions import conditions

from bridge import config as configs
from bridge.errors import InputError
from bridge.files import write_text
from bridge.manifest import digest_of
from student_jax.config import Tier, TrainConfig

STOPPED = 130  # what a command that was stopped exits with
KINDS = ((), ("--untrained", "True"))  # of a student's weights; the second are the control's


@dataclass(frozen=True, kw_only=True)
class ProofConfig:
    """Which student, and how it answers."""

    train: Path = Path("configs/nano.yaml")
    """config of its training"""
    out: Path = Path("runs/proof")
    """folder for all of it; the training run is in `run`, the frozen student in `student`"""
    minutes: float | None = None
    """of training in this call, at most; the same command later goes on"""
    tiers: tuple[Tier, ...] = ("weights",)
    """in which tasks are learnt first, beside zero-shot"""
    seconds: float = 60.0
    """to learn a task"""
    views: int = 8
    """to vote on"""
    evaluation: bool = False
    """answer ARC-AGI-1's evaluation set, too: once, when nothing will be changed any more"""


def main(config: ProofConfig) -> None:
    """Train, freeze, answer, score and compare."""
    settings = configs.load(TrainConfig, config.train)
    if settings.model.reads_features:
        raise InputError(f"{config.train}: expected a grid student, which answers alone")
    diary = Diary(config)
    student = config.out / "student"
    if not (student / "manifest.json").exists():
        train(config, diary)
        run = ("--checkpoint", config.out / "run", "--out", student)
        diary.run(
            "student_jax.export", *run, "--which", "best" if settings.dev_questions else "latest"
        )
    diary.freeze(json.loads((student / "config.json").read_text())["weights_sha256"])
    answer(config, diary, "dev", "--split", "dev", source=settings.data.tasks.source)
    if config.evaluation:
        source = "arcagi/evaluation"
        sides = ("--max_side", str(settings.data.tasks.max_side))
        answer(config, diary, "evaluation", "--source", source, *sides, source=source)
    print(f"\n{diary.path}: {diary.seconds():.0f} s of all commands on {diary.found['device']}")


def train(config: ProofConfig, diary: Diary) -> None:
    """Trains, or goes on; ends the command when its minutes are spent."""
    limit = None if config.minutes is None else 60 * config.minutes
    run = ("--config", config.train, "--out", config.out / "run")
    if diary.run("student_jax.train", *run, limit=limit) == STOPPED:
        print("training was stopped; the same command goes on")
        raise SystemExit(STOPPED)


def answer(config: ProofConfig, diary: Diary, name: str, *tasks: str, source: str) -> None:
    """Answers tasks in every tier, beside the control; scores, and compares with the control."""
    files: list[Path] = []
    pairs: list[tuple[Path, Path]] = []  # the control's, the student's
    for tier in (None, *config.tiers):
        made = []
        for kind in KINDS:
            out = config.out / f"{name}_{tier or 'zero_shot'}{'_untrained' * bool(kind)}.json"
            made.append(out)
            if out.exists() and not json.loads(out.read_text())["about"]["stopped"]:
                continue
            how = ("--adapt", tier, "--seconds", str(config.seconds)) if tier else ()
            how = (*how, "--views", str(config.views), *kind)
            student = ("--checkpoint", config.out / "student")
            diary.run("student_jax.solve", *student, *tasks, *how, "--out", out)
        files += made
        pairs.append((made[1], made[0]))
    diary.keep(digests={file.name: digest_of(file) for file in files})
    scores = config.out / f"{name}_scores.json"
    diary.run("student_jax.evaluate", "--predictions", *files, "--source", source, "--out", scores)
    for control, own in pairs:
        out = config.out / f"{own.stem}_beside_untrained.json"
        words = ("--compare", control, own, "--source", source, "--out", out)
        diary.run("student_jax.evaluate", *words)
        diary.keep(comparisons={own.stem: json.loads(out.read_text())["comparison"]})
    diary.keep(scores={name: json.loads(scores.read_text())["scores"]})


class Diary:
    """`proof.json`: what was run, how long that took, and what was found."""

    def __init__(self, config: ProofConfig) -> None:
        """Begins one, or goes on with the one that is there.

        Raises:
            InputError: if that was asked otherwise: its answers would be mixed with others.
        """
        self.path = config.out / "proof.json"
        self.found: dict[str, Any] = {"commands": []}
        now = configs.to_dict(config)
        if self.path.exists():
            self.found = json.loads(self.path.read_text())
            for key in ("train", "seconds", "views"):
                before = self.found["config"][key]
                if before != now[key]:
                    raise InputError(
                        f"{key}: expected {before}, as in {self.path}, got {now[key]}; "
                        "give another --out"
                    )
        # In a process of its own, or this one would keep the GPU's memory from those that need it.
        ask = "import jax; print(jax.device_count(), 'x', jax.devices()[0].device_kind)"
        said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
        under = conditions("jax", "flax", "optax", "orbax-checkpoint")
        self.keep(**under, device=said.stdout.strip(), config=now)

    def keep(self, **found: Any) -> None:
        """Writes down what was found; what is a dict is added to the one that is there."""
        for name, value in found.items():
            before = self.found.get(name)
            if isinstance(before, dict) and isinstance(value, dict):
                value = before | value
            self.found[name] = value
        write_text(self.path, json.dumps(self.found, indent=1) + "\n")

    def freeze(self, digest: str) -> None:
        """Takes down the weights that answer.

        Raises:
            InputError: if others answered before.
        """
        before = self.found.setdefault("weights_sha256", digest)
        if before != digest:
            raise InputError(f"{self.path}: expected weights {before}, got {digest}; another --out")
        self.keep()

    def seconds(self) -> float:
        """Of all commands."""
        return sum(each["seconds"] for each in self.found["commands"])

    def run(self, module: str, *arguments: Any, limit: float | None = None) -> int:
        """Runs `python -m module`, after showing it; ends this command where that one fails.

        Args:
            module: of ours.
            arguments: of its command line.
            limit: seconds, after which it is told to stop.

        Returns:
            Its exit code: 0, or `STOPPED` where the limit was reached.
        """
        words = [str(each) for each in arguments]
        command = f"python -m {module} {' '.join(words)}"
        print(f"\n$ {command}", flush=True)
        started = time.perf_counter()
        code, reached = call(module, words, limit)
        seconds = round(time.perf_counter() - started, 1)
        self.found["commands"].append({"command": command, "seconds": seconds, "exit": code})
        self.keep()
        if code and not (reached and code == STOPPED):
            raise SystemExit(code)
        return code


def call(module: str, words: list[str], limit: float | None) -> tuple[int, bool]:
    """Runs a module's command; returns its exit code, and whether the limit was reached."""
    # A session of its own: so Ctrl-C, which a terminal tells to all, comes to it once, from here.
    process = subprocess.Popen([sys.executable, "-m", module, *words], start_new_session=True)
    reached = False
    try:
        process.wait(limit)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        reached = isinstance(error, subprocess.TimeoutExpired)
        process.send_signal(signal.SIGTERM)
    return process.wait(), reached


if __name__ == "__main__":
    configs.command(main, ProofConfig)
