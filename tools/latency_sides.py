"""Who answers in `bench_latency.py`: the teacher, and a student on each of its runtimes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import torch
from timing import Contender
from torch.utils.flop_counter import FlopCounterMode
from torch_step import allow_tf32

from bridge.arc import Question, open_questions, parse_task
from bridge.canvas import decode
from bridge.errors import InputError
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

T = TypeVar("T")
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
    who: str, engine: Answerer, model: ModelConfig, text: str, compute: str
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
            lambda: jax.block_until_ready(prepared.run()), answering, compute=compute
        ),
        f"{who}: JSON to grid": Contender(
            from_json, answering, compute=compute, notes="task read before"
        ),
        f"{who}: JSON to grid, new task": Contender(anew, reading + answering, compute=compute),
        f"{who}: read + network": Contender(
            both_of(engine, drawn), reading + answering, compute=compute
        ),
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


def vote_sides(engine: Engine, model: ModelConfig, text: str, views: int) -> Contender:
    """Many views in one call; there are 8 different ones, more are repeated for the measure."""
    shown = [Augmentation(view) for view in views_of(8)]
    question = question_of(text)
    prepared = engine.ready([engine.draw(question, (shown * -(-views // 8))[:views])])
    flops = views * flops_of(model, engine.draw(question))[1]
    return Contender(lambda: jax.block_until_ready(prepared.run()), flops, views, engine.compute)


def torch_sides(
    solver: Solver, engine: Engine, exact: Engine, text: str, device: str, compiled: bool
) -> dict[str, Contender]:
    """The same weights in PyTorch, which reads the task in every call, computed as JAX does.

    Args:
        solver: the student.
        engine: that in JAX.
        exact: the same in float32, which others' float32 is held against.
        text: the task's JSON.
        device: cpu or cuda.
        compiled: whether torch.compile takes part.
    """
    drawn = engine.draw(question_of(text))
    said = np.asarray(exactly(both_of(exact, drawn)))
    inputs = tuple(torch.tensor(x, device=device) for x in drawn)
    flops = sum(flops_of(solver.config.model, drawn))
    mirror = mirror_of(solver).to(device)
    runners = torch_runners(mirror, inputs, said, engine.compute, compiled)
    return {
        f"{name}: read + network": Contender(run, flops, compute=engine.compute)
        for name, run in runners.items()
    }


def torch_runners(
    mirror: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    said: np.ndarray,
    compute: str,
    compiled: bool = True,
) -> dict[str, Callable[[], torch.Tensor]]:
    """Returns what answers in PyTorch, as it is and compiled, in float32 or bfloat16.

    Both must first say in float32 what JAX said in float32; one that does not is left out.
    """
    mirror.eval()
    allow_tf32(False)
    modules: dict[str, Any] = {"PyTorch eager": mirror}
    if compiled:
        modules["torch.compile"] = torch.compile(mirror)

    def run(module: Any, *, half: bool) -> torch.Tensor:
        device = inputs[0].device.type
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            told = module(*inputs)
            logits = told[0] if isinstance(told, tuple) else told
            return torch.log_softmax(logits.float(), -1).cpu()

    runners = {}
    half = compute == "bfloat16"
    for name, module in modules.items():
        with left_out_if_wrong(name):
            check_same(said, run(module, half=False).numpy(), name)
            runners[name] = partial(run, module, half=half)
    if half:
        cast_matrices(mirror)
    allow_tf32(jax.default_backend() != "cpu")  # as JAX computes in float32 on a GPU
    return runners


def exactly(run: Callable[[], T]) -> T:
    """Runs or compiles in true float32, which JAX does not take on a GPU by itself (TF32)."""
    with jax.default_matmul_precision("highest"):
        return run()


@contextlib.contextmanager
def left_out_if_wrong(name: str) -> Generator[None]:
    """Leaves a contender out that fails or answers otherwise: the others' time is dear."""
    try:
        yield
    except (InputError, RuntimeError) as error:  # torch.compile's own are RuntimeErrors
        print(f"not timed: {name}: {' '.join(str(error).split())[:300]}", flush=True)


def cast_matrices(mirror: torch.nn.Module) -> None:
    """Casts once what autocast would cast in every call, as `student_jax.engine` does."""
    for module in mirror.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(torch.bfloat16)


def onnx_sides(folder: Path, exact: Engine, model: ModelConfig, text: str) -> dict[str, Contender]:
    """The same weights in ONNX Runtime, in float32: its threads spin for work.

    Of threads that give way a new task is enough.
    """
    question, sides = question_of(text), {}
    said = np.asarray(exactly(lambda: exact.prepare(question).run()))
    for name, patient in (("ONNX Runtime", False), ("ONNX Runtime, patient", True)):
        with left_out_if_wrong(name):
            other = OnnxEngine(folder, patient=patient)
            check_same(said, np.asarray(other.prepare(question).run()), name)
            sides |= engine_sides(name, other, model, text, "float32")
    return {k: v for k, v in sides.items() if "patient" not in k or k.endswith("new task")}


def feature_sides(solver: Solver, tokens: int, device: str, compiled: bool) -> dict[str, Contender]:
    """The student that reads the teacher's features, without the teacher; PyTorch pads nothing."""
    engine, exact = (FeatureEngine(solver, compute) for compute in (None, "float32"))
    shape = (tokens, solver.feature_width)
    values = np.random.default_rng(0).normal(size=shape).astype("bfloat16")
    given = tuple(jax.device_put(x) for x in engine.pad(values))
    inputs = (
        torch.tensor(values.astype(np.float32), device=device)[None],
        torch.ones(1, tokens, dtype=torch.bool, device=device),
    )
    said = np.asarray(exactly(lambda: exact.run(*given)))
    compute = engine.config.compute
    runners = torch_runners(mirror_of(solver).to(device), inputs, said, compute, compiled)
    ours = {"JAX": lambda: engine.run(*given).block_until_ready()}
    return {
        f"feature student, {name}": Contender(run, compute=compute)
        for name, run in (ours | runners).items()
    }


def teacher_sides(
    policy: Any, question: Question, device: str, compiled: bool
) -> dict[str, Contender]:
    """GR00T N1.5 on the task's frames: its pre-processing, backbone, whole model, and all of it."""
    inputs = policy.prepare([task_view(question)])
    width = next(policy.action_head.parameters()).dtype
    state, noise = torch.zeros(1, 1, 64, dtype=width), torch.randn(1, 16, 32, dtype=width)
    compute = str(width).removeprefix("torch.")
    tokens = f"{policy.teacher.num_tokens(inputs)} tokens, random weights, {compute}"
    head = policy.action_head
    for part in (policy.teacher.backbone, head.vl_self_attention, head) if compiled else ():
        part.compile()

    def backbone() -> torch.Tensor:
        with torch.inference_mode():
            arrays = (inputs.pixel_values, inputs.input_ids, inputs.attention_mask)
            return policy.teacher.backbone(*(x.to(device) for x in arrays)).cpu()

    def act(prepared: Any = inputs) -> torch.Tensor:
        return policy.get_action(prepared, state, torch.tensor([0]), noise).cpu()

    def prepare() -> Any:
        return policy.prepare([task_view(question)])

    def eagerly(run: Callable[[], Any]) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return run()

    reading, all_of_it = (counted(partial(eagerly, run)) for run in (backbone, act))
    sides = {"GR00T: pre-processing": Contender(prepare)}
    for name, run, flops in (("backbone", backbone, reading), ("whole", act, all_of_it)):
        sides[f"GR00T: {name}"] = Contender(partial(eagerly, run), flops, 1, compute, tokens)
        if compiled:
            sides[f"GR00T: {name}, torch.compile"] = Contender(run, flops, 1, compute, tokens)
    from_grids = partial(eagerly, lambda: act(prepare()))
    sides["GR00T: whole, from grids"] = Contender(from_grids, all_of_it, 1, compute, tokens)
    return sides


def counted(run: Callable[[], Any]) -> float:
    """Returns the FLOPs of a run in PyTorch, by its own count."""
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    except AssertionError:  # on a GPU it knows no attention whose queries share keys
        return 0.0
    return float(counter.get_total_flops())


def mirror_of(solver: Solver) -> torch.nn.Module:
    """Returns the PyTorch mirror with the student's weights."""
    mirror: torch.nn.Module = make_mirror(
        asdict(solver.config.model), solver.feature_width, solver.config.loss.scaling
    )
    mirror.load_state_dict({k: torch.tensor(v) for k, v in torch_tensors(solver).items()})
    return mirror


def check_same(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """Refuses to time a runtime that computes something else in float32."""
    gap = float(np.abs(ours - theirs).max())
    same = all(
        np.array_equal(decode(a).first, decode(b).first) for a, b in zip(ours, theirs, strict=True)
    )
    if not (gap < CLOSE and same):
        raise InputError(f"{name}: expected JAX's answer, got one {gap:.2e} away")
