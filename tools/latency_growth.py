"""How a student's latency grows with the question, and how long its first answer takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latency_sides import engine_sides, make_task, vote_sides
from timing import fitted_exponent, race

from student_jax.engine import Engine
from student_jax.solver import Solver, begin_again

ROWS = "views or questions in one call"
COLD = """
import sys, time
started = time.perf_counter()
import json
from pathlib import Path
from bridge.arc import open_questions, parse_task
from student_jax.engine import Engine
from student_jax.keep import keep_memory_and_programs
from student_jax.solver import load_solver
keep_memory_and_programs()
engine = Engine(load_solver(Path(sys.argv[1])))
task = parse_task("bench", json.loads(Path(sys.argv[2]).read_text()), "bench")
engine.answer(open_questions(task)[0])
# Not getrusage: its peak is inherited from the process that started this one.
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
host = int(peak[0].split()[1]) / 1024 if peak else 0
import jax
on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
print(time.perf_counter() - started, host, on_device / 2**20)
"""


def cold_starts(folder: Path, text: str) -> dict[str, dict[str, float]]:
    """Times a new process until its first answer, with nothing kept and with programs kept.

    Args:
        folder: an exported student.
        text: JSON of the task.
    """
    (folder / "task.json").write_text(text)
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("nothing kept", "programs kept"):
            command = [sys.executable, "-c", COLD, str(folder), str(folder / "task.json")]
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
            started = time.perf_counter()
            said = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            ).stdout.split()
            found[name] = {
                "seconds": time.perf_counter() - started,
                "of_them_after_python_started": float(said[-3]),
                "peak_host_mib": float(said[-2]),
                "peak_device_mib": float(said[-1]),  # 0 on a CPU
            }
    return found


def curves(solver: Solver, runs: int, seconds: float) -> dict[str, Any]:
    """Times the network while one size grows, and fits the exponent of its growth.

    Args:
        solver: a grid student.
        runs: of each point.
        seconds: at most, of each point.
    """

    def network(engine: Engine, side: int, demonstrations: int, views: int = 1) -> float:
        text = make_task(side, 4, demonstrations)
        vote = vote_sides(engine, solver.config.model, text, views)
        return race({"": vote}, runs, seconds, rounds=1)[""]["p50"]

    def reading(demonstrations: int) -> float:
        engine = engine_for(solver, demonstrations)
        text = make_task(12, 4, demonstrations)
        sides = engine_sides("JAX", engine, solver.config.model, text, engine.compute)
        return race({"": sides["JAX: JSON to grid, new task"]}, runs, seconds, 1)[""]["p50"]

    def looped(loops: int) -> float:
        model = replace(solver.config.model, loops=loops)
        other = begin_again(replace(solver, config=replace(solver.config, model=model)))
        return network(Engine(other), 12, 3)

    def views(most: int) -> Iterator[tuple[int, float]]:
        for exponent in range(most.bit_length()):
            taken = network(engine, 12, 3, 1 << exponent)
            yield 1 << exponent, taken
            if 1e-3 * taken > seconds:
                return

    engine = engine_for(solver, 3)
    points = {
        "cells of the canvas": [(n * n, network(engine, n, 3)) for n in (8, 12, 16, 20, 24, 32)],
        "demonstrations, read anew": [(n, reading(n)) for n in (1, 2, 4, 8)],
        ROWS: list(views(512)),
        "loops": [(n, looped(n)) for n in (1, 2, 4)],
    }
    found: dict[str, Any] = {
        name: {"points": line, "exponent": round(fitted_exponent(line), 2)}
        for name, line in points.items()
    }
    found[ROWS]["largest_useful"] = largest_useful(points[ROWS])
    return found


def largest_useful(points: list[tuple[int, float]]) -> int:
    """Returns after how many rows in one call a row gets cheaper by less than a twentieth."""
    best = min(taken / rows for rows, taken in points)
    return next(rows for rows, taken in points if taken / rows <= 1.05 * best)


def engine_for(solver: Solver, demonstrations: int) -> Engine:
    """Returns an engine that reads so many demonstrations."""
    data = replace(solver.config.data, max_demonstrations=demonstrations)
    return Engine(replace(solver, config=replace(solver.config, data=data)))
