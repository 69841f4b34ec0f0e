"""Who answers in `bench_latency.py`: the teacher, and a student on each of its runtimes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from timing import Contender

from bridge.arc import Question, open_questions, parse_task
from bridge.canvas import decode
from bridge.torch_student import make_mirror
from bridge.views import task_view
from student_jax.answerer import Answerer, Drawn
from student_jax.batch import Augmentation
from student_jax.config import ModelConfig
from student_jax.engine import Engine, FeatureEngine
from student_jax.export import torch_tensors
from student_jax.flops import answer_flops
from student_jax.onnx_engine import OnnxEngine
from student_jax.solver import Solver
from student_jax.vote import views_of

CLOSE = 1e-3  # of log-probabilities, between runtimes in float32


def make_task(side: int, colors: int, demonstrations: int) -> str:
    """Returns the JSON of a task of random grids that takes a canvas of this side.

    Times follow the sizes and not what the grids show.
    """
    rng = np.random.default_rng(0)
    longest = side - 1 if side < 32 else 30  # the border takes a row; ARC's grids end at 30
    draw = lambda: rng.integers(0, colors, (longest, longest)).tolist()  # noqa: E731
    pairs = [{"input": draw(), "output": draw()} for _ in range(demonstrations)]
    return json.dumps({"train": pairs, "test": [{"input": draw()}]})


def question_of(text: str) -> Question:
    """Reads a task's JSON: its first question."""
    return open_questions(parse_task("bench", json.loads(text), "bench"))[0]


def engine_sides(
    who: str, engine: Answerer, model: ModelConfig, text: str, notes: str
) -> dict[str, Contender]:
    """A student on a runtime: from JSON to the grid, task known or new, and the network alone."""
    question = question_of(text)
    prepared, drawn = engine.prepare(question), engine.draw(question)
    reading, answering = flops_of(model, drawn)

    def from_json() -> str:
        return json.dumps(engine.answer(question_of(text)).first.tolist())

    def anew() -> str:
        engine.forget()
        return from_json()

    return {
        f"{who}: network": Contender(
            lambda: jax.block_until_ready(prepared.run()), answering, notes=notes
        ),
        f"{who}: JSON to grid": Contender(from_json, answering, notes="task read before"),
        f"{who}: JSON to grid, new task": Contender(anew, reading + answering),
        f"{who}: read + network": Contender(both_of(engine, drawn), reading + answering),
    }


def flops_of(model: ModelConfig, drawn: Drawn) -> tuple[float, float]:
    """Returns the FLOPs of reading a task that was drawn so, and of answering one view."""
    (side, colors), places, *_ = drawn.shape
    return answer_flops(model, side, places, colors)


def both_of(engine: Answerer, drawn: Drawn) -> Callable[[], Any]:
    """Returns what reads a task and answers: the work of a runtime that keeps no task."""

    def run() -> Any:
        return jax.block_until_ready(engine.ask(engine.read([drawn]), [drawn])())

    return run


def vote_sides(engine: Answerer, model: ModelConfig, text: str, views: int) -> Contender:
    """Many views in one call; there are 8 different ones, more are repeated for the measure."""
    shown = [Augmentation(view) for view in views_of(8)]
    question = question_of(text)
    prepared = engine.ready([engine.draw(question, (shown * -(-views // 8))[:views])])
    flops = views * flops_of(model, engine.draw(question))[1]
    return Contender(lambda: jax.block_until_ready(prepared.run()), flops, views)


def torch_sides(solver: Solver, engine: Engine, text: str, device: str) -> dict[str, Contender]:
    """The same weights in PyTorch, which reads the task in every call."""
    model, question = solver.config.model, question_of(text)
    mirror = mirror_of(solver).to(device).eval()
    drawn = engine.draw(question)
    inputs = tuple(torch.tensor(x, device=device) for x in drawn)
    compiled = torch.compile(mirror)
    flops = sum(flops_of(model, drawn))
    half = torch.autocast(device, torch.bfloat16, enabled=engine.compute == "bfloat16")

    def runner(module: Any) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.inference_mode(), half:
                return torch.log_softmax(module(*inputs).float(), -1).cpu()

        return run

    both = both_of(engine, drawn)

    check_same(np.asarray(both()), runner(mirror)().numpy(), "PyTorch", engine.compute)
    return {
        "JAX: read + network": Contender(both, flops, notes=engine.compute),
        "PyTorch eager: read + network": Contender(runner(mirror), flops),
        "torch.compile: read + network": Contender(runner(compiled), flops),
    }


def onnx_sides(
    folder: Path, engine: Engine, model: ModelConfig, text: str, *, patient: bool
) -> dict[str, Contender]:
    """The same weights in ONNX Runtime."""
    other = OnnxEngine(folder, patient=patient)
    question = question_of(text)
    said, theirs = (np.asarray(each.prepare(question).run()) for each in (engine, other))
    check_same(said, theirs, "ONNX Runtime", engine.compute)
    return engine_sides("ONNX Runtime", other, model, text, "float32")


def feature_sides(solver: Solver, tokens: int, device: str) -> dict[str, Contender]:
    """The student that reads the teacher's features, without the teacher."""
    rng = np.random.default_rng(0)
    engine = FeatureEngine(solver)
    values = rng.normal(size=(tokens, solver.feature_width)).astype("bfloat16")
    features, mask = (jax.device_put(x) for x in engine.pad(values))
    mirror = mirror_of(solver).to(device).eval()
    inputs = (
        torch.tensor(values.astype(np.float32), device=device)[None],
        torch.ones(1, tokens, dtype=torch.bool, device=device),
    )

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            return mirror(*inputs)[0].cpu()

    return {
        "feature student, JAX": Contender(lambda: engine.run(features, mask).block_until_ready()),
        "feature student, PyTorch eager": Contender(eager, notes="float32, unpadded"),
    }


def teacher_sides(policy: Any, question: Question, device: str) -> dict[str, Contender]:
    """GR00T N1.5 on the task's frames: backbone, whole model, and with its pre-processing."""
    inputs = policy.prepare([task_view(question)])
    width = next(policy.action_head.parameters()).dtype
    state, noise = torch.zeros(1, 1, 64, dtype=width), torch.randn(1, 16, 32, dtype=width)
    tokens = f"{policy.teacher.num_tokens(inputs)} tokens, random weights"

    def act(prepared: Any) -> torch.Tensor:
        return policy.get_action(prepared, state, torch.tensor([0]), noise).cpu()

    sides = {
        "GR00T: backbone": Contender(lambda: policy.teacher.forward(inputs), notes=tokens),
        "GR00T: whole": Contender(lambda: act(inputs), notes=tokens),
        "GR00T: whole, from grids": Contender(
            lambda: act(policy.prepare([task_view(question)])), notes=tokens
        ),
    }
    if device == "cuda":
        compiled = torch.compile(policy.teacher.backbone)

        def backbone() -> torch.Tensor:
            with torch.inference_mode():
                arrays = (inputs.pixel_values, inputs.input_ids, inputs.attention_mask)
                return compiled(*(x.to(device) for x in arrays)).cpu()

        sides["GR00T: backbone, torch.compile"] = Contender(backbone, notes=tokens)
    return sides


def mirror_of(solver: Solver) -> torch.nn.Module:
    """Returns the PyTorch mirror with the student's weights."""
    mirror: torch.nn.Module = make_mirror(
        asdict(solver.config.model), solver.feature_width, solver.config.loss.scaling
    )
    mirror.load_state_dict({k: torch.tensor(v) for k, v in torch_tensors(solver).items()})
    return mirror


def check_same(ours: np.ndarray, theirs: np.ndarray, name: str, compute: str) -> None:
    """Refuses to time a runtime that computes something else."""
    gap = float(np.abs(ours - theirs).max())
    same = all(
        np.array_equal(decode(a).first, decode(b).first) for a, b in zip(ours, theirs, strict=True)
    )
    assert compute == "bfloat16" or (gap < CLOSE and same), f"{name}: {gap:.2e} away from JAX"
