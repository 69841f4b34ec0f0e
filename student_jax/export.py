"""Writes a student for use elsewhere: weights, StableHLO, TorchScript, ONNX, each proved first.

python -m student_jax.export --checkpoint runs/quickstart/grid --out runs/quickstart/grid_export
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from bridge import config as configs
from bridge import manifest, weights
from bridge.errors import InputError
from bridge.files import write_text
from bridge.proofs import PROOFS, Proof, hold, save_proofs
from bridge.tree import flatten
from student_jax.card import model_card
from student_jax.proofs import Exact, make_proofs
from student_jax.release import read_release
from student_jax.solver import Solver, Which, load_solver
from student_jax.stablehlo import Program, write_stablehlo

Format = Literal["safetensors", "stablehlo", "torchscript", "onnx"]
TORCH_NEEDS = {"torchscript": ("torch",), "onnx": ("torch", "onnx", "onnxscript", "onnxruntime")}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which student, to where, as what."""

    checkpoint: Path = Path("runs/quickstart/grid")
    """a training run's folder, or a released student's"""
    which: Which = "latest"
    """its latest checkpoint, or the one that answered the most held-out questions"""
    out: Path = Path("runs/export")
    """folder to write"""
    format: tuple[Format, ...] = ("safetensors",)
    """several may be given; safetensors is written always, the others are made from the same"""


def main(config: ExportConfig) -> None:
    """Write a trained student as safetensors, StableHLO, TorchScript or ONNX.

    The folder holds model.safetensors (PyTorch's names), config.json, README.md (the model card),
    proof.safetensors (inputs with this student's answers in f32) and manifest.json, which tells the
    digest of each file and how far each format is from JAX. What answers a proof otherwise is not
    written, and the command fails. torchscript and onnx are made by bridge.torch_export, which
    needs torch.
    """
    check_needs(config.format)
    if (config.out / "checkpoints").exists():
        raise InputError(f"out: {config.out} is a training run's folder; give another --out")
    if "JAX_PLATFORMS" not in os.environ:
        # Proofs are in true float32 and compile for every shape: a GPU would only be later done.
        jax.config.update("jax_platforms", "cpu")
    solver = load_solver(config.checkpoint, config.which)
    export(solver, config.out, config.format)
    print(f"wrote {config.out}: {solver.num_parameters:,} parameters at step {solver.step}")


def check_needs(formats: Sequence[Format]) -> None:
    """Refuses a format whose libraries are not there, before anything is written.

    Raises:
        InputError: naming them.
    """
    for name in formats:
        lacking = [
            library
            for library in TORCH_NEEDS.get(name, ())
            if importlib.util.find_spec(library) is None
        ]
        if lacking:
            extras = "teacher" if name == "torchscript" else "teacher,export"
            raise InputError(
                f"format {name}: needs {', '.join(lacking)}; pip install 'sage-distill[{extras}]'"
            )


def export(
    solver: Solver,
    out: Path,
    formats: Sequence[Format] = ("safetensors",),
    programs: Sequence[Program] | None = None,
) -> None:
    """Writes the folder; a format that fails its proofs leaves no file.

    Args:
        solver: the student.
        out: the folder; what is in it of other weights is removed.
        formats: what to write beside the weights.
        programs: of StableHLO; by default all buckets.

    Raises:
        InputError: if a format's answers are not the student's.
    """
    exact = Exact.of(solver)
    proofs = make_proofs(exact)
    write_weights(exact, out, proofs)
    if "stablehlo" in formats:
        manifest.remove(out, ["stablehlo"])
        verdict = write_stablehlo(solver, out, proofs, programs)
        manifest.record(out, "stablehlo", verdict)
        print(f"StableHLO: {verdict}\nwrote {out / 'stablehlo'}")
    wanted = [name for name in TORCH_NEEDS if name in formats]
    if wanted:
        export_in_torch(out, wanted)


def write_weights(exact: Exact, out: Path, proofs: Sequence[Proof]) -> None:
    """Writes weights, config, card and proofs, reads them back and holds them to the proofs.

    Raises:
        InputError: if what was read answers otherwise; it is removed then.
    """
    solver, kind = exact.solver, exact.solver.config.model.kind
    tensors = torch_tensors(solver)
    about = {"format": "pt", "kind": kind, "step": str(solver.step)}
    digest = hashlib.sha256(weights.pack(tensors, about)).hexdigest()
    told = manifest.read_manifest(out).get("student", {})
    same = told.get("weights_sha256") == digest
    manifest.remove(out, ["safetensors"] if same else list(manifest.FORMATS))
    weights.save(out / weights.MODEL, tensors, about)
    save_proofs(out / PROOFS, kind, proofs)
    write_text(out / "config.json", json.dumps(describe(solver, digest), indent=1) + "\n")
    write_text(out / "README.md", model_card(solver))
    try:
        # The features' place has no part in the weights, but a config wants it told.
        store = "unknown" if solver.config.model.reads_features else None
        release = read_release(out, store=store)
        answer = exact.answer_with(release.params, release.scaling)
        verdict = hold(answer, proofs, "safetensors")
    except InputError:
        manifest.remove(out, ["safetensors"])
        raise
    manifest.begin(out, kind, solver.step, digest, proofs)
    manifest.record(out, "safetensors", verdict)
    print(f"safetensors: {verdict}")


def export_in_torch(out: Path, formats: Sequence[str]) -> None:
    """Has PyTorch's side write its formats, in a process of its own: this room knows no torch.

    Raises:
        InputError: if it fails.
    """
    sys.stdout.flush()
    command = [sys.executable, "-m", "bridge.torch_export", "--folder", str(out)]
    done = subprocess.run([*command, "--format", *formats], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise InputError(f"format {' '.join(formats)}: {lines[-1].removeprefix('error: ')}")


def torch_tensors(solver: Solver) -> weights.Flat:
    """Returns the weights under PyTorch's names, and the scaling of features where there is one."""
    kind = solver.config.model.kind
    tensors = weights.to_torch(flatten(jax.device_get(solver.params)), kind)
    if kind == "feature":
        for name in ("mean", "std", "rotation"):
            value = getattr(solver.scaling, name)
            if value is not None:
                tensors[f"scaling.{name}"] = np.asarray(value)
    return tensors


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
        "seed": solver.config.seed,
        "teacher": solver.teacher,
        "init": solver.init,
        "trained_on": sorted(solver.trained_on),
        # Which tasks were held out, and whether further pairs of the others were trained on.
        "data": {name: config["data"][name] for name in ("tasks", "max_demonstrations", "rearc")},
    }


if __name__ == "__main__":
    configs.command(main, ExportConfig)
