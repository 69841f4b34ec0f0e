"""Writes a student for use elsewhere: a folder with weights, config, a card, and proof inputs.

python -m student_jax.export --checkpoint runs/quickstart/grid --out runs/quickstart/grid_export
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridge import config as configs
from bridge import weights
from bridge.canvas import NUM_CLASSES
from bridge.files import write_text
from bridge.tree import flatten
from student_jax.batch import Batch, all_colors, scale_teacher
from student_jax.solver import Solver, Which, load_solver, make_predict
from student_jax.students import make_student

PROOFS = 16  # batches that an export is held against, wherever it is loaded
# Examples, demonstrations, canvas side, teacher tokens.
PROOF_SHAPES = ((1, 2, 8, 96), (2, 3, 12, 48), (1, 3, 12, 48), (2, 2, 8, 96))


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which student, to where."""

    checkpoint: Path = Path("runs/quickstart/grid")
    """a training run's folder"""
    which: Which = "latest"
    """its latest checkpoint, or the one that answered the most held-out questions"""
    out: Path = Path("runs/export")
    """folder to write"""


def main(config: ExportConfig) -> None:
    """Write a trained student as safetensors with PyTorch's names.

    The folder holds model.safetensors, config.json, README.md (the model card) and
    proof.safetensors: inputs with this student's answers, against which
    `python -m bridge.torch_export` checks what it loads before it makes TorchScript of it.
    """
    solver = load_solver(config.checkpoint, config.which)
    export(solver, config.out)
    print(f"wrote {config.out}: {solver.num_parameters:,} parameters at step {solver.step}")


def export(solver: Solver, out: Path) -> None:
    """Writes the folder."""
    kind = solver.config.model.kind
    tensors = weights.to_torch(flatten(jax.device_get(solver.params)), kind)
    if kind == "feature":
        scaling = solver.scaling
        for name in ("mean", "std", "rotation"):
            if getattr(scaling, name) is not None:
                tensors[f"scaling.{name}"] = np.asarray(getattr(scaling, name))
    about = {"format": "pt", "kind": kind, "step": str(solver.step)}
    weights.save(out / "model.safetensors", tensors, about)
    about = {"kind": kind, "proofs": str(PROOFS)}
    weights.save(out / "proof.safetensors", make_proof(solver), about)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    text = json.dumps(describe(solver, digest), indent=1)
    write_text(out / "config.json", text + "\n")
    write_text(out / "README.md", model_card(solver))


def describe(solver: Solver, digest: str) -> dict[str, Any]:
    """Returns config.json: all that is needed to build the student around its weights."""
    config = configs.to_dict(solver.config)
    return {
        "model_type": f"sage-distill-{solver.config.model.kind}",
        "architectures": [f"{solver.config.model.kind.capitalize()}Mirror"],
        "torch_dtype": "float32",
        "model": config["model"],
        "feature_width": solver.feature_width,
        "scaling": solver.config.loss.scaling,
        "num_parameters": solver.num_parameters,
        "step": solver.step,
        "weights_sha256": digest,
        "teacher": solver.teacher,
        "trained_on": sorted(solver.trained_on),
        "data": {
            name: config["data"][name] for name in ("tasks", "max_demonstrations")
        },  # which tasks were held out
    }


def make_proof(solver: Solver) -> dict[str, np.ndarray]:
    """Returns random inputs of several shapes, and what the student says to each in float32."""
    rng = np.random.default_rng(0)
    exact = replace(solver.config.model, compute="float32")
    model = make_student(exact, solver.feature_width)
    predict = make_predict(exact, solver.feature_width)
    proof: dict[str, np.ndarray] = {}
    for i in range(PROOFS):
        batch = random_batch(solver, rng, i)
        if solver.config.model.reads_features:
            inputs = {"features": batch.teacher, "mask": batch.teacher_mask}
        else:
            inputs = {
                "demonstrations": batch.demonstrations,
                "mask": batch.demonstration_mask,
                "query": batch.query,
            }
        with jax.default_matmul_precision("highest"):  # a GPU's default would miss the tolerance
            values = {**inputs, "log_probs": predict(solver.params, solver.scaling, batch)}
            if solver.config.model.reads_features:
                scaled = scale_teacher(batch, solver.scaling)
                output = model.apply({"params": solver.params}, scaled)
                values["projected"] = output.features  # pyright: ignore[reportAttributeAccessIssue]
        proof |= {f"{i}.{name}": np.ascontiguousarray(value) for name, value in values.items()}
    return proof


def random_batch(solver: Solver, rng: np.random.Generator, i: int) -> Batch:
    """Returns examples of random content; every size that may differ does, in four ways."""
    size, pairs, side, tokens = PROOF_SHAPES[i % len(PROOF_SHAPES)]
    return Batch(
        demonstrations=rng.integers(0, NUM_CLASSES, (size, pairs, 2, side, side)).astype(np.uint8),
        demonstration_mask=np.broadcast_to(np.arange(pairs) < pairs - i % 2, (size, pairs)),
        palette=all_colors(size),
        query=rng.integers(0, NUM_CLASSES, (size, side, side)).astype(np.uint8),
        answer=np.zeros((size, side, side), np.uint8),
        teacher=rng.normal(0, 2, (size, tokens, solver.feature_width)).astype(np.float32),
        teacher_mask=np.broadcast_to(np.arange(tokens) < tokens - 5 * (i % 3), (size, tokens)),
    )


def model_card(solver: Solver) -> str:
    """Returns README.md."""
    teacher = solver.teacher or {}
    reads = (
        "It reads the teacher's features: it cannot answer without the teacher."
        if solver.config.model.reads_features
        else "It reads raw grids and answers in one pass, without a teacher."
    )
    generated = " and generated pairs of them (RE-ARC)" if solver.config.data.rearc else ""
    taught = f"Teacher: none. It learnt from ARC's own training tasks{generated} alone."
    if teacher:
        taught = (
            f"Teacher: {teacher['teacher']}, {teacher['weights']}. Its licence: "
            f"{teacher.get('licence', 'none')}.\n  A student distilled from weights under a "
            "non-commercial licence is best taken to be under the same."
        )
    return f"""---
tags: [arc-agi, distillation, sage-distill]
library_name: pytorch
---
# SAGE-distill {solver.config.model.kind} student

{solver.num_parameters:,} parameters, step {solver.step}. {reads}

- {taught}
- Trained on {len(solver.trained_on)} ARC-AGI-1 tasks, named in config.json. Scores on those say
  nothing of new tasks.

`model.safetensors` has PyTorch's names and layouts. With `pip install sage-distill[teacher]`:

    import json, torch
    from safetensors.torch import load_file
    from bridge.torch_student import make_mirror
    about = json.load(open("config.json"))
    student = make_mirror(about["model"], about["feature_width"], about["scaling"]).eval()
    student.load_state_dict(load_file("model.safetensors"))

`python -m bridge.torch_export --folder .` checks the weights against `proof.safetensors` and writes
TorchScript and a `torch.export` program.
"""


if __name__ == "__main__":
    configs.command(main, ExportConfig)
