"""From a student's folder to PyTorch deployments, and from the original's checkpoints to a folder.

python -m bridge.torch_export --folder runs/quickstart/grid_export
python -m bridge.torch_export --original best_model.pt --folder runs/from_torch
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bridge import config as configs
from bridge import weights
from bridge.arc_files import load_tasks
from bridge.errors import InputError
from bridge.files import write_text
from bridge.torch_student import make_mirror

TOLERANCE = 1e-4  # of log-probabilities in f32; the largest gap is printed
# All that the original's checkpoints hold; anything else in a file is refused.
ORIGINAL_KEYS = {
    "epoch",
    "history",
    "model_state_dict",
    "optimizer_state_dict",
    "val_accuracy",
    "val_loss",
}
NEEDED = ("projection.0.weight", "pos_embedding.weight", "transformer.layers.0.linear1.weight")
OUTPUTS = ("model.torchscript.pt", "model.pt2")
MIN_PROOFS = 16
# All leaves of the original's student.
LEAF = re.compile(
    r"(projection\.[01]|decoder\.[036]|pos_embedding"
    r"|transformer\.layers\.\d{1,2}\.(self_attn\.out_proj|linear[12]|norm[12]))\.(weight|bias)"
    r"|transformer\.layers\.\d{1,2}\.self_attn\.in_proj_(weight|bias)"
)


@dataclass(frozen=True)
class Proof:
    """Inputs with what the JAX student says to them."""

    inputs: tuple[torch.Tensor, ...]
    log_probs: np.ndarray
    projected: np.ndarray | None  # a student's that reads features


@dataclass(frozen=True, kw_only=True)
class TorchExportConfig:
    """Which folder, and whether it is to be made of an original checkpoint."""

    folder: Path
    """an export of student_jax.export; with --original, the folder to write"""
    original: Path | None = None
    """a checkpoint of the original's training script"""


def main(config: TorchExportConfig) -> None:
    """Check an exported student in PyTorch and write model.torchscript.pt and model.pt2.

    Fails if the mirror, the TorchScript or the torch.export program gives another answer than the
    JAX student to any proof input. With --original, turn a checkpoint of the original into a folder
    that `python -m student_jax.import_weights` reads.
    """
    if config.original:
        from_original(config.original, config.folder)
        print(f"wrote {config.folder}: the original's weights; its projector was never saved")
        return
    for name in OUTPUTS:
        (config.folder / name).unlink(missing_ok=True)  # of weights that may have changed
    student = load(config.folder)
    proofs = read_proofs(config.folder)
    print(f"mirror: largest gap {check(student, proofs, 'mirror'):.2e} over {len(proofs)} inputs")
    # torch.export takes a size of 1 for a constant.
    sample = max((proof.inputs for proof in proofs), key=lambda inputs: inputs[0].shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of sizes, and torch of TorchScript's age
        script = torch.jit.trace(student, sample, check_trace=False)
        print(f"TorchScript: largest gap {check(script, proofs, 'TorchScript'):.2e}")
        program = torch.export.export(student, sample, dynamic_shapes=dynamic_shapes(proofs))
        print(f"torch.export: largest gap {check(program.module(), proofs, 'torch.export'):.2e}")
        torch.jit.save(script, str(config.folder / OUTPUTS[0]))
        torch.export.save(program, config.folder / OUTPUTS[1])
    print(f"wrote {' and '.join(OUTPUTS)} in {config.folder}")


def load(folder: Path) -> torch.nn.Module:
    """Builds the mirror that a folder describes, with its weights.

    Raises:
        InputError: if they do not fit each other.
    """
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text())
        student = make_mirror(about["model"], about["feature_width"], about["scaling"]).eval()
    except (AssertionError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: expected an export's config.json, got: {error!r}") from None
    file = folder / "model.safetensors"
    tensors, _ = weights.load(file)
    for name, value in student.state_dict().items():
        weights.check_leaf(name, tensors.get(name), tuple(value.shape), str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if about.get("weights_sha256") != digest:
        raise InputError(f"{file}: expected the weights that config.json tells, got others")
    try:
        student.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    except RuntimeError as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:200]}") from None
    return student


def read_proofs(folder: Path) -> list[Proof]:
    """Returns the proof inputs with the JAX student's outputs.

    Raises:
        InputError: if they are damaged, or too few to prove anything.
    """
    path = folder / "proof.safetensors"
    tensors, about = weights.load(path)
    grid = about.get("kind") == "grid"
    names = ("demonstrations", "mask", "query") if grid else ("features", "mask")
    try:
        proofs = [
            Proof(
                tuple(torch.tensor(tensors[f"{i}.{name}"]) for name in names),
                tensors[f"{i}.log_probs"],
                None if grid else tensors[f"{i}.projected"],
            )
            for i in range(int(about["proofs"]))
        ]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: expected the proofs of an export, got: {error!r}") from None
    if len(proofs) < MIN_PROOFS:
        raise InputError(f"{path}: expected at least {MIN_PROOFS} proofs, got {len(proofs)}")
    return proofs


def check(student: Any, proofs: list[Proof], what: str) -> float:
    """Returns the largest gap between a PyTorch student's outputs and the proofs'.

    Log-probabilities are compared as they are, projected features relative to their largest.

    Raises:
        InputError: if a gap is above the tolerance: within it, only a tie can turn an answer.
    """
    largest = 0.0
    for i, proof in enumerate(proofs):
        try:
            with torch.no_grad():
                output = student(*proof.inputs)
            logits = output if torch.is_tensor(output) else output[0]
            gap = np.abs(torch.log_softmax(logits, -1).numpy() - proof.log_probs).max()
            if proof.projected is not None:
                valid = proof.inputs[1].numpy()
                apart = np.abs(output[1].numpy() - proof.projected)[valid].max()
                gap = max(gap, apart / max(np.abs(proof.projected).max(), 1.0))
        except (RuntimeError, ValueError, IndexError) as error:
            fault = " ".join(str(error).split())[:160]
            raise InputError(f"{what}: proof {i}: cannot be answered: {fault}") from None
        if not gap <= TOLERANCE:
            raise InputError(
                f"{what}: proof {i}: expected the JAX student's answer, got one {gap:.2e} away "
                f"(at most {TOLERANCE:.0e}); no file was written"
            )
        largest = max(largest, float(gap))
    return largest


def dynamic_shapes(proofs: list[Proof]) -> tuple[dict[int, Any], ...]:
    """Marks the sizes that differ between proofs, and nothing else, as free."""
    shapes = [[tensor.shape for tensor in proof.inputs] for proof in proofs]
    free: list[dict[int, Any]] = []
    for place in range(len(shapes[0])):
        axes = range(len(shapes[0][place]))
        free.append(
            {
                axis: torch.export.Dim.AUTO
                for axis in axes
                if len({shape[place][axis] for shape in shapes}) > 1
            }
        )
    return tuple(free)


def from_original(path: Path, folder: Path) -> None:
    """Writes a folder of a checkpoint that the original's training script saved.

    Raises:
        InputError: if the file holds anything but tensors, numbers and text under known keys.
    """
    state = read_original(path)
    feature_width = int(state["projection.0.weight"].shape[1])
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer."))
    max_tokens, width = map(int, state["pos_embedding.weight"].shape)
    model = {
        "kind": "original",
        "width": width,
        "heads": 8,  # not in the file: the original's factory only ever made 8
        "mlp_width": int(state["transformer.layers.0.linear1.weight"].shape[0]),
        "depth": depth,
        "max_tokens": max_tokens,
        "dropout": 0.1,
    }
    torch.manual_seed(0)
    projector = torch.nn.Linear(width, feature_width)  # as it was drawn there, with another seed
    state |= {"projector.weight": projector.weight.data, "projector.bias": projector.bias.data}
    try:
        make_mirror(model, feature_width).load_state_dict(state)
    except (
        AssertionError,
        RuntimeError,
    ) as error:  # AssertionError: a width that 8 does not divide
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    tensors = {name: value.contiguous().numpy() for name, value in state.items()}
    weights.save(folder / "model.safetensors", tensors, {"format": "pt", "kind": "original"})
    about = {
        "model": model,
        "feature_width": feature_width,
        "scaling": "none",
        "step": 0,
        "teacher": None,
        "model_type": "sage-distill-original",
        "architectures": ["OriginalMirror"],
        "trained_on": sorted(load_tasks("arcagi/training")),  # it split pairs, so: every task
    }
    write_text(folder / "config.json", json.dumps(about, indent=1) + "\n")


def read_original(path: Path) -> dict[str, torch.Tensor]:
    """Returns the state dict in one of the original's checkpoints; runs no code that is in it.

    Raises:
        InputError: if it is something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write: refused below
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds on what it does not know
        fault = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: expected a checkpoint of tensors alone, got: {fault}") from None
    state = value.get("model_state_dict") if isinstance(value, dict) else None
    if not isinstance(state, dict) or not set(value) <= ORIGINAL_KEYS:
        found = sorted(map(str, value))[:6] if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{path}: expected model_state_dict and its kin, got {found}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not LEAF.fullmatch(name):
            raise InputError(f"{path}: {str(name)[:80]}: expected no such leaf in an original")
        if not torch.is_tensor(tensor) or tensor.dtype != torch.float32:
            raise InputError(f"{path}: {name}: expected a float32 tensor")
    for name in NEEDED:
        if name not in state or state[name].ndim != 2:
            raise InputError(f"{path}: {name}: expected a matrix, got none")
    return {name: tensor.detach() for name, tensor in state.items()}


if __name__ == "__main__":
    configs.command(main, TorchExportConfig)
