"""Builds the wheel and the source distribution, installs them alone, and uses what was installed.

python tools/check_package.py

Each extra gets an environment of its own: what pip resolved for it must not hold the other side's
framework, and its commands must work from an empty folder, far from the repository. It needs a
package index, and takes minutes: torch and jax are installed anew.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridge import config as configs
from bridge.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
TASK = "3c9b0459"  # of 3 x 3 cells


@dataclass(frozen=True)
class Room:
    """What an extra must bring, must not bring, and must be able to do."""

    wants: str
    never: tuple[str, ...]
    commands: tuple[str, ...]  # modules with their arguments


ROOMS = {
    "student": Room(
        "jax",
        ("torch", "transformers"),
        (f"student_jax.solve {TASK}", f"student_jax.solve {TASK} --views 8"),
    ),
    "teacher": Room(
        "torch",
        ("jax", "jaxlib", "flax"),
        ("teacher_torch.extract --out features --tasks.limit 2 --tasks.max_side 4",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class PackageConfig:
    """Where to work."""

    out: Path | None = None
    """folder for distributions and environments; by default a temporary one, removed at the end"""
    extras: tuple[Literal["student", "teacher"], ...] = ("student", "teacher")


def main(config: PackageConfig) -> None:
    """Build, install and use the package in clean environments."""
    out = (config.out or Path(tempfile.mkdtemp(prefix="sage_distill_"))).resolve()
    try:
        wheel = build(out / "dist")
        for extra in config.extras:
            check(extra, wheel, out / extra)
    finally:
        if config.out is None:
            shutil.rmtree(out)
    print(f"package: {wheel.name} stands alone with {', '.join(config.extras)}")


def build(folder: Path) -> Path:
    """Builds both distributions, the wheel from the source distribution; returns the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


def check(extra: str, wheel: Path, folder: Path) -> None:
    """Installs the wheel with an extra and uses it."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder / "venv", with_pip=True)
    python, empty = folder / "venv/bin/python", folder / "empty"
    empty.mkdir()
    pip = (python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt")
    if extra == "teacher":  # as the Makefile: the CPU build where it can be had
        pin = re.search("^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        if pin:
            run(*pip, f"torch=={pin[1]}+cpu", check=False)
    run(*pip, f"{wheel}[{extra}]")
    listed = run(python, "-m", "pip", "list", "--format", "json", capture=True)
    installed = {each["name"].lower() for each in json.loads(listed)}
    room = ROOMS[extra]
    found = installed & set(room.never)
    if found or room.wants not in installed:
        raise InputError(f"{extra}: expected {room.wants} and none of {room.never}, got {found}")
    print(f"{extra}: {len(installed)} packages, none of {', '.join(room.never)}")
    for command in room.commands:
        run(python, "-m", *command.split(), cwd=empty)


def run(*words: str | Path, cwd: Path = ROOT, check: bool = True, capture: bool = False) -> str:
    """Runs a command, after showing it; returns what it printed, if that is captured.

    Raises:
        InputError: if it fails.
    """
    line = [str(word) for word in words]
    print(f"$ {' '.join(line)}", flush=True)
    done = subprocess.run(line, cwd=cwd, text=True, stdout=subprocess.PIPE if capture else None)
    if check and done.returncode:
        raise InputError(f"{line[0]}: expected exit code 0, got {done.returncode}")
    return done.stdout or ""


if __name__ == "__main__":
    configs.command(main, PackageConfig)
