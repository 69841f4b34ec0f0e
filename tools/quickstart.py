"""The whole product on 20 small real tasks, one command after the other, each of them shown.

make quickstart
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HELD_OUT_TASK = "8be77c9e"  # one of the four held-out tasks, to show an answer in the terminal

BANNER = """
Everything below runs on real ARC-AGI-1 tasks with a teacher of GR00T N1.5's architecture.
The teacher's weights are RANDOM: its features hold no knowledge, so no number here says what the
released weights would bring. What this shows is that every part works, end to end.
"""


def main() -> None:
    """Runs extract, train, solve, evaluate and report; stops at the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    out = parser.parse_args().out
    features, feature, grid = out / "features", out / "feature", out / "grid"
    predictions = [feature / "predictions.json", grid / "predictions.json"]
    page = out / "index.html"

    print(BANNER)
    started = time.perf_counter()
    run("teacher_torch.extract", "--config", "configs/quickstart_extract.yaml", "--out", features)
    for name, folder in (("feature", feature), ("grid", grid)):
        config = f"configs/quickstart_{name}.yaml"
        run("student_jax.train", "--config", config, "--out", folder, "--data.store", features)
    for folder in (feature, grid):
        run("student_jax.solve", "--checkpoint", folder, "--split", "all")
    run("student_jax.evaluate", "--predictions", *predictions, "--out", out / "scores.json")
    run("student_jax.report", "--predictions", *predictions, "--out", page)
    run("student_jax.solve", HELD_OUT_TASK, "--checkpoint", grid)
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Open {page} in a browser.")


def run(module: str, *arguments: str | Path) -> None:
    """Runs `python -m module` with the arguments, after showing the command."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python -m {module} {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
