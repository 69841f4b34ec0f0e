"""Measures latency: GR00T N1.5 and the students, on one task, on one machine, in one run.

    python tools/bench_latency.py --out tools/measurements/latency_cpu.json
    python tools/bench_latency.py --cases 12x4x3 32x10x10 --runs 500 --out latency.json  # a GPU

A case is SIDE x COLORS x DEMONSTRATIONS: of the canvas, of its palette, of the task. The student is
`--preset` with random weights, unless `--checkpoint` names a trained one: times follow sizes alone.
The second case is looked at more closely, and there the teacher is timed: it sees pictures, all of
one size. Everybody takes turns, so ratios hold on a busy machine where milliseconds do not; there
set OMP_WAIT_POLICY=passive, or PyTorch's threads wait a hundred times as long as they compute. Each
runtime must first give JAX's answer, both in float32, or it is left out and that is said; then
PyTorch computes as JAX does, ONNX Runtime in float32. The teacher draws no grid: its time is that
of an action.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import torch
from conditions import conditions
from latency_growth import cold_starts, curves
from latency_sides import (
    engine_sides,
    exactly,
    feature_sides,
    make_task,
    onnx_sides,
    question_of,
    teacher_sides,
    torch_sides,
    vote_sides,
)
from latency_tables import plot, show
from timing import race

from bridge import config as configs
from bridge import weights
from bridge.errors import InputError
from bridge.files import write_text
from bridge.manifest import read_manifest
from bridge.scaling import no_scaling
from student_jax.answerer import Shape
from student_jax.batch import ROOMS
from student_jax.config import ModelConfig, TrainConfig
from student_jax.engine import Engine
from student_jax.export import describe, export, torch_tensors
from student_jax.flops import matmul_ceiling
from student_jax.keep import keep_programs
from student_jax.memory import begin_with_mimalloc, keep_memory
from student_jax.solver import Solver, begin_again, load_solver, make_solver
from teacher_torch.policy import UNUSED, Gr00tPolicy, load_policy

TEACHER_WIDTH = 2048
FEATURE = ModelConfig(
    kind="feature", width=512, heads=8, mlp_width=2048, depth=9, compute="bfloat16"
)


@dataclass(frozen=True, kw_only=True)
class BenchLatencyConfig:
    """What to time."""

    preset: Path = Path("configs/full.yaml")
    """training config of the student, which then has random weights"""
    checkpoint: Path | None = None
    """a run or a released student instead"""
    cases: tuple[str, ...] = ("8x4x3", "12x4x3", "16x6x3", "32x10x3")
    """SIDExCOLORSxDEMONSTRATIONS"""
    runs: int = 200
    """of each contender and case"""
    seconds: float = 20.0
    """at most, of each contender and case, but for two runs; what was not reached is told"""
    rounds: int = 20
    """in which everybody has a turn: a machine may be slow for seconds at a time"""
    views: tuple[int, ...] = (8, 64, 300)
    """in one call, on the second case"""
    teacher: Literal["full", "tiny", "none"] = "full"
    """GR00T N1.5's size, random weights"""
    teacher_compute: Literal["float32", "bfloat16"] | None = None
    """by default float32 on a CPU, which the goal is about, and bfloat16 on a GPU"""
    feature_tokens: int = 5164
    """the original's length; 0 leaves the feature student out"""
    compiled: bool = True
    """torch.compile beside eager PyTorch, of the students and of GR00T: minutes of compiling"""
    onnx: bool = True
    """needs the export extra; on a GPU, onnxruntime-gpu"""
    folder: Path = Path("runs/bench_latency")
    """the student is exported to it; ONNX of `full` takes minutes to write, and is used again"""
    curves: bool = True
    """how times grow with the canvas, demonstrations, views and loops"""
    cold: bool = True
    """how long a new process takes to its first answer"""
    add: bool = False
    """to what --out holds, of the same student on the same machine: one part after the other"""
    out: Path | None = None
    """JSON file; a plot is put beside it"""

    def __post_init__(self) -> None:
        """Checks the cases."""
        for case in self.cases:
            if not re.fullmatch(r"\d+x\d+x\d+", case) or int(case.split("x")[1]) not in ROOMS:
                raise ValueError(
                    f"cases: expected SIDExCOLORSxDEMONSTRATIONS, COLORS of {ROOMS}, "
                    f"such as 12x4x3; got {case}"
                )


def main(config: BenchLatencyConfig) -> None:
    """Time the teacher and the students side by side."""
    keep_memory()  # of this process: everybody's
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some, too
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if jax.default_backend() != "cpu":
        keep_programs()  # minutes of compiling, which a bench that is stopped need not repeat
    solver = load_solver(config.checkpoint) if config.checkpoint else random_student(config.preset)
    engine = Engine(solver)
    exact = Engine(solver, "float32")  # not the one that is timed: its programs are more exact
    under = conditions("jax", "flax", "torch", "transformers", "onnxruntime")
    under["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY")
    about = {
        "device": jax.devices()[0].device_kind,
        "weights": str(config.checkpoint) if config.checkpoint else "random",
        "parameters": solver.num_parameters,
        "compute": engine.compute,
    }
    result = begin(config, under, about)
    this_run = len(result["runs"]) - 1
    tell("student is ready")
    write_student(config, solver)
    policy = None
    if config.teacher != "none":
        compute = config.teacher_compute or ("bfloat16" if device == "cuda" else "float32")
        dtype = getattr(torch, compute)
        policy = load_policy("random", config.teacher, 0, device, dtype, draw_on=device)
        result["teacher"] = describe_teacher(config, policy)
        tell("teacher is ready")
    for case in config.cases:
        found = measure_case(config, solver, engine, exact, policy, case, device)
        result["cases"][case] = {**found, "run": this_run}
        keep(config, result)
    del policy
    if config.cold:
        result["cold"] = cold_starts(config.folder, make_task(*sizes_of(middle_case(config))))
        result["run_of"]["cold"] = this_run
        keep(config, result)
    if config.feature_tokens:
        reader = random_student(FEATURE)
        sides = feature_sides(reader, config.feature_tokens, device, config.compiled)
        result["feature"] = race(sides, config.runs, config.seconds, config.rounds)
        result["feature_parameters"] = reader.num_parameters
        result["run_of"]["feature"] = this_run
        keep(config, result)
    if config.curves:
        result["curves"] = curves(solver, min(config.runs, 30), config.seconds / 4)
        result["run_of"]["curves"] = this_run
    show(result)
    keep(config, result)
    if config.out:
        plot(result, config.out.with_suffix(".png"))


def tell(done: str) -> None:
    """Prints how far the bench has come, and when: compiling may take minutes."""
    print(f"{datetime.datetime.now():%H:%M:%S} {done}", flush=True)


def begin(
    config: BenchLatencyConfig, under: dict[str, Any], about: dict[str, Any]
) -> dict[str, Any]:
    """Returns what nothing is measured in yet, or, to be added to, what `out` holds.

    Args:
        config: of the bench.
        under: the run's conditions, taken before its work.
        about: the student.

    Raises:
        InputError: if that is of another student or machine.
    """
    ceilings = {each: matmul_ceiling(each) for each in {"float32", about["compute"]}}
    if config.add and config.out and config.out.exists():
        result = json.loads(config.out.read_text())
        for name, value in about.items():
            if result.get(name) != value:
                raise InputError(
                    f"{config.out}: {name}: expected {value}, got {result.get(name)}; "
                    "leave --add out to write it anew"
                )
        result["runs"].append(under)
        # A ceiling is what was reached at best: others may have had their share of the cores.
        best = {name: max(new, result["ceilings"][name]) for name, new in ceilings.items()}
        return {**result, "ceilings": best}
    return {
        **under,
        **about,
        "runs": [under],
        "config": configs.to_dict(config),
        "ceilings": ceilings,  # FLOP/s of square products
        "cases": {},
        "run_of": {},  # which of `runs` measured what is no case
    }


def describe_teacher(config: BenchLatencyConfig, policy: Gr00tPolicy) -> dict[str, Any]:
    """Tells its size."""
    count = policy.parameter_counts()["taking part"]
    return {
        "size": config.teacher,
        "weights": policy.teacher.weights,
        "parameters": count,
        "released_parameters": count + sum(UNUSED.values()) * (config.teacher == "full"),
    }


def keep(config: BenchLatencyConfig, result: dict[str, Any]) -> None:
    """Writes what is measured so far: a bench that is stopped loses no case."""
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


def random_student(source: Path | ModelConfig) -> Solver:
    """Returns a student of a config with the weights that training begins from."""
    if isinstance(source, ModelConfig):
        store = {"store": "none"}  # it needs one to be trained, not to be timed
        settings = configs.from_dict(TrainConfig, {"out": "none", "data": store})
        settings = replace(settings, model=source)
    else:
        settings = configs.load(TrainConfig, source)
    width = 1 if settings.model.kind == "grid" and not settings.data.store else TEACHER_WIDTH
    about = {"teacher": None, "trained_on": [], "feature_width": width}
    return begin_again(make_solver(settings, 0, about, None, no_scaling(width)))


def write_student(config: BenchLatencyConfig, solver: Solver) -> None:
    """Exports the student, as others load it, unless that was done before.

    Where no ONNX is wanted, without the proofs: they compile for every shape, minutes on a GPU.
    """
    if not (config.cold or has_onnx(config)):
        return
    tensors = torch_tensors(solver)
    about = {"format": "pt", "kind": solver.config.model.kind, "step": str(solver.step)}
    digest = hashlib.sha256(weights.pack(tensors, about)).hexdigest()
    if not has_onnx(config):
        weights.save(config.folder / weights.MODEL, tensors, about)
        write_text(config.folder / "config.json", json.dumps(describe(solver, digest)))
        return
    told = read_manifest(config.folder)
    same = told.get("student", {}).get("weights_sha256") == digest
    if not same or "onnx" not in told["formats"]:
        export(solver, config.folder, ("onnx",))


def has_onnx(config: BenchLatencyConfig) -> bool:
    """Whether ONNX Runtime takes part: not on its own on a CPU, where the others have a GPU."""
    if not config.onnx:
        return False
    import onnxruntime

    on_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return on_gpu or jax.default_backend() == "cpu"


def sizes_of(case: str) -> tuple[int, int, int]:
    """Returns side, colors and demonstrations."""
    side, colors, demonstrations = (int(x) for x in case.split("x"))
    return side, colors, demonstrations


def middle_case(config: BenchLatencyConfig) -> str:
    """Returns the case that is looked at more closely; one of the usual where none is asked."""
    return (config.cases or ("12x4x3",))[:2][-1]


def measure_case(
    config: BenchLatencyConfig,
    solver: Solver,
    engine: Engine,
    exact: Engine,
    policy: Gr00tPolicy | None,
    case: str,
    device: str,
) -> dict[str, Any]:
    """Times everybody on one task."""
    text = make_task(*sizes_of(case))
    shape = engine.shape(question_of(text))
    compile_at_once(engine, exact, shape)
    tell(f"{case}: JAX has compiled")
    sides = engine_sides("JAX", engine, solver.config.model, text, engine.compute)
    if case == middle_case(config):
        for views in config.views:
            vote = vote_sides(engine, solver.config.model, text, views)
            sides[f"JAX: network, {views} views"] = vote
    sides |= torch_sides(solver, engine, exact, text, device, config.compiled)
    if has_onnx(config):
        sides |= onnx_sides(config.folder, exact, solver.config.model, text)
    if policy is not None and case == middle_case(config):  # grids' sizes are nothing to it
        tell(f"{case}: the students answer alike")
        sides |= teacher_sides(policy, question_of(text), device, config.compiled)
        tell(f"{case}: the race begins")
    programs = engine.reader(shape), engine.answerer(shape)
    return {
        "timings": race(sides, config.runs, config.seconds, config.rounds),
        "device_bytes": size_of((engine.reading, engine.answering))
        + max(bytes_beside(each) for each in programs),
        "peak_device_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def compile_at_once(engine: Engine, exact: Engine, shape: Shape) -> None:
    """Compiles all four programs: a compiler uses one core for each, and on a GPU takes long."""
    with ThreadPoolExecutor() as pool:
        compiled = [pool.submit(make, shape) for make in (engine.reader, engine.answerer)]
        compiled += [
            pool.submit(exactly, partial(make, shape)) for make in (exact.reader, exact.answerer)
        ]
        for each in compiled:
            each.result()


def bytes_beside(program: Any) -> int:
    """Returns the device memory that a program needs beside weights, by XLA's own plan."""
    plan = program.memory_analysis()
    _weights, *inputs = program.in_avals[0]
    return size_of(inputs) + plan.output_size_in_bytes + plan.temp_size_in_bytes


def size_of(arrays: Any) -> int:
    """Returns the bytes of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, BenchLatencyConfig)
