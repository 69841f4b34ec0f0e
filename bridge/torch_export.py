"""From a student's folder to PyTorch deployments, and from the original's checkpoints to a folder.

python -m bridge.torch_export --folder runs/quickstart/grid_export
python -m bridge.torch_export --original best_model.pt --folder runs/from_torch
"""

from __future__ import annotations

import json
import pickle
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
Inputs = tuple[torch.Tensor, ...]


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
    student = load(config.folder)
    proofs = read_proofs(config.folder)
    print(f"mirror: largest gap {check(student, proofs, 'mirror'):.2e} over {len(proofs)} inputs")
    # torch.export takes a size of 1 for a constant.
    sample = max((inputs for inputs, _ in proofs), key=lambda inputs: inputs[0].shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of sizes, and torch of TorchScript's age
        script = torch.jit.trace(student, sample, check_trace=False)
        print(f"TorchScript: largest gap {check(script, proofs, 'TorchScript'):.2e}")
        program = torch.export.export(student, sample, dynamic_shapes=dynamic_shapes(proofs))
        print(f"torch.export: largest gap {check(program.module(), proofs, 'torch.export'):.2e}")
        torch.jit.save(script, str(config.folder / "model.torchscript.pt"))
        torch.export.save(program, config.folder / "model.pt2")
    print(f"wrote {config.folder}/model.torchscript.pt and model.pt2")


def load(folder: Path) -> torch.nn.Module:
    """Builds the mirror that a folder describes, with its weights.

    Raises:
        InputError: if they do not fit each other.
    """
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text())
        student = make_mirror(about["model"], about["feature_width"], about["scaling"]).eval()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected an export's config.json, got: {error!r}") from None
    tensors, _ = weights.load(folder / "model.safetensors")
    try:
        student.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}/model.safetensors: {fault}") from None
    return student


def read_proofs(folder: Path) -> list[tuple[Inputs, np.ndarray]]:
    """Returns the proof inputs with the JAX student's log-probabilities."""
    tensors, about = weights.load(folder / "proof.safetensors")
    grid = about.get("kind") == "grid"
    names = ("demonstrations", "mask", "query") if grid else ("features", "mask")
    count = 1 + max(int(name.split(".")[0]) for name in tensors)
    return [
        (
            tuple(torch.tensor(tensors[f"{i}.{name}"]) for name in names),
            tensors[f"{i}.log_probs"],
        )
        for i in range(count)
    ]


def check(student: Any, proofs: list[tuple[Inputs, np.ndarray]], what: str) -> float:
    """Returns the largest gap between a PyTorch student's log-probabilities and the proofs'.

    Raises:
        InputError: if one is above the tolerance, or an answer differs.
    """
    largest = 0.0
    for i, (inputs, expected) in enumerate(proofs):
        with torch.no_grad():
            output = student(*inputs)
        logits = output if torch.is_tensor(output) else output[0]
        got = torch.log_softmax(logits, -1).numpy()
        gap = float(np.abs(got - expected).max())
        if not gap <= TOLERANCE or (sure(expected) & (got.argmax(-1) != expected.argmax(-1))).any():
            raise InputError(
                f"{what}: proof {i}: expected the JAX student's answer, got one {gap:.2e} away "
                f"(at most {TOLERANCE:.0e}); no file was written"
            )
        largest = max(largest, gap)
    return largest


def sure(log_probs: np.ndarray) -> np.ndarray:
    """Where the best class leads by more than rounding can turn."""
    top = np.sort(log_probs, -1)
    return top[..., -1] - top[..., -2] > 2 * TOLERANCE


def dynamic_shapes(proofs: list[tuple[Inputs, np.ndarray]]) -> tuple[dict[int, Any], ...]:
    """Marks the sizes that differ between proofs, and nothing else, as free."""
    shapes = [[tensor.shape for tensor in inputs] for inputs, _ in proofs]
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
    mirror = make_mirror(model, feature_width)
    try:
        mirror.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    tensors = {name: value.contiguous().numpy() for name, value in state.items()}
    weights.save(folder / "model.safetensors", tensors, {"format": "pt", "kind": "original"})
    about = {
        "model": model,
        "feature_width": feature_width,
        "scaling": "none",
        "step": 0,
        "teacher": None,
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
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        fault = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: expected a checkpoint of tensors alone, got: {fault}") from None
    state = value.get("model_state_dict") if isinstance(value, dict) else None
    if not isinstance(state, dict) or not set(value) <= ORIGINAL_KEYS:
        found = sorted(map(str, value))[:6] if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{path}: expected model_state_dict and its kin, got {found}")
    for name, tensor in state.items():
        if not torch.is_tensor(tensor) or tensor.dtype != torch.float32:
            raise InputError(f"{path}: {name}: expected a float32 tensor")
    for name in NEEDED:
        if name not in state or state[name].ndim != 2:
            raise InputError(f"{path}: {name}: expected a matrix, got none")
    return state


if __name__ == "__main__":
    configs.command(main, TorchExportConfig)
