"""From the checkpoints of the original's training script to a folder of a student.

They are tensors alone, or refused: nothing in them is run.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import torch

from bridge import weights
from bridge.arc_files import load_tasks
from bridge.errors import InputError
from bridge.files import write_text
from bridge.torch_student import make_mirror

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
# All leaves of the original's student.
LEAF = re.compile(
    r"(projection\.[01]|decoder\.[036]|pos_embedding"
    r"|transformer\.layers\.\d{1,2}\.(self_attn\.out_proj|linear[12]|norm[12]))\.(weight|bias)"
    r"|transformer\.layers\.\d{1,2}\.self_attn\.in_proj_(weight|bias)"
)


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
