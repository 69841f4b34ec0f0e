"""What the tests of whole, stopped, killed, harmed and released runs share."""

import json
import re
import signal
import sys

import jax
import numpy as np
import pytest
import yaml

from bridge import config as configs
from bridge import weights
from student_jax.checkpoints import Checkpoints
from student_jax.development import Development
from student_jax.export import describe, torch_tensors
from student_jax.log import TrainLog
from student_jax.proofs import Draw

# Orbax leaves what a failed save or restore did not wait for to the collector: it is let pass.
HARMED = [
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    ),
    pytest.mark.usefixtures("collect"),
]
SCORES = [0.5, 0.1, 0.3, 0.2]  # of the held-out questions, at each checkpoint
TRIED = {"checkpoint_steps": 1, "dev_questions": 64}  # of a run with these
LONG = {"optim.total_steps": 40, "checkpoint_steps": 10}
FEW_DRAWS = (  # of an export's proofs: every size that is free takes several values
    Draw(2, 3, 8, 4, random=24, real=24),
    Draw(2, 3, 12, 6, random=16, real=8),
    Draw(3, 1, 12, 6, random=16),
    Draw(1, 10, 8, 10, random=12),
    Draw(1, 2, 16, 4, random=4),
)
FIRST, FAILED = 20, 30  # the last step that is saved before a disk is full, and the next


class Stopped(TrainLog):
    """Stops a run after step 22; steps 10 and 20 are saved by then."""

    def see(self, step, *rest, **more):
        super().see(step, *rest, **more)
        if step == FIRST + 2:
            raise KeyboardInterrupt


def drawn(model, batch):
    """Variables of a student: random ones, norms and biases, too, without compiling their draws."""
    rng = np.random.default_rng(0)

    def draw(path, like):
        values = rng.normal(0, 0.3, like.shape) + (path[-1].key == "scale")
        return values.astype(np.float32)

    like = jax.eval_shape(model.init, jax.random.key(0), batch)
    return jax.tree_util.tree_map_with_path(draw, like)


def command_line(value, path):
    """Writes a config and returns the command that trains with it."""
    path.write_text(yaml.safe_dump(value))
    return [sys.executable, "-m", "student_jax.train", "--config", str(path)]


def complete_steps(out):
    """The steps that are there under their final names."""
    return sorted(int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit())


def contents(out):
    """Returns all that a run's newest checkpoint holds, and which steps are kept."""
    with Checkpoints(out) as checkpoints:
        about = checkpoints.about()
    return about["digests"], about["dev"], complete_steps(out)


def end_of(monkeypatch, main, config_type, *arguments):
    """Runs a command in this process, where JAX is imported already; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as ended:
            configs.command(main, config_type)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended.value.code


def release(solver, folder):
    """Exports without the proofs, which take most of the time and have tests of their own."""
    weights.save(folder / weights.MODEL, torch_tensors(solver), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(describe(solver, "a digest")))


def without_bar(errors):
    lines = [line.strip() for line in errors.splitlines()]
    return [
        line for line in lines if line and not re.fullmatch(r"train: .*(s/step|step/s).*]", line)
    ]


def scripted(monkeypatch, exact):
    """Held-out questions are answered just so well, trial after trial."""
    script = iter(exact)

    def try_on(self, state):
        return {"exact": next(script), "shape": 0.0, "cells": 0.0}, {}

    monkeypatch.setattr(Development, "try_on", try_on)
