"""Student weights between Flax and PyTorch, both ways, bit for bit, through safetensors.

Flax keeps a linear layer's matrix as [in, out] and splits attention heads; PyTorch keeps
[out, in] and does not. Names follow each side's customs. Arrays are numpy: no framework is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from bridge.errors import InputError

Array = npt.NDArray[Any]
MODEL = "model.safetensors"  # in an export's folder
Flat = dict[str, Array]  # dotted name -> array
Shapes = Mapping[str, tuple[int, ...]]  # dotted Flax name -> shape

# The original's own names, as its checkpoints have them.
_ORIGINAL = (
    (r"^projection\.", "projection.0."),
    (r"^projection_norm\.", "projection.1."),
    (r"^positions$", "pos_embedding.weight"),
    (r"^block_(\d+)\.in_proj\.(weight|bias)$", r"transformer.layers.\1.self_attn.in_proj_\2"),
    (r"^block_(\d+)\.out_proj\.", r"transformer.layers.\1.self_attn.out_proj."),
    (r"^block_(\d+)\.", r"transformer.layers.\1."),
    (r"^decoder_0\.", "decoder.0."),
    (r"^decoder_1\.", "decoder.3."),
    (r"^decoder_2\.", "decoder.6."),
)
_OWN = ((r"\bblock_(\d+)\.", r"blocks.\1."),)
_LEAVES = (
    (r"\.(kernel|scale|embedding)$", ".weight"),
    (r"\.((?:invariant_)?conv)$", r".\1.weight"),
)


def torch_name(name: str, kind: str) -> str:
    """Returns PyTorch's name of a Flax leaf.

    Args:
        name: dotted, such as `trunk.block_0.query.kernel`.
        kind: of student: feature, grid or original.
    """
    for pattern, replacement in (*_LEAVES, *(_ORIGINAL if kind == "original" else _OWN)):
        changed = re.sub(pattern, replacement, name)
        if changed != name and (pattern, replacement) in _ORIGINAL:
            return changed
        name = changed
    return name


def to_torch(params: Mapping[str, Array], kind: str) -> Flat:
    """Returns Flax parameters as a PyTorch state dict.

    Args:
        params: dotted Flax name -> array.
        kind: of student.
    """
    return {
        torch_name(name, kind): np.ascontiguousarray(_turn(name, np.asarray(value)))
        for name, value in params.items()
    }


def to_flax(state: Mapping[str, Array], shapes: Shapes, kind: str, where: str = "weights") -> Flat:
    """Returns a PyTorch state dict as Flax parameters.

    Args:
        state: name -> array.
        shapes: of every Flax leaf that is wanted, by dotted name.
        kind: of student.
        where: the file, for messages.

    Raises:
        InputError: naming the first leaf that is missing, too many, or not f32 of the same shape.
    """
    wanted = {torch_name(name, kind): name for name in shapes}
    for name in state:
        if name not in wanted:
            raise InputError(f"{where}: {name}: expected no such leaf for a {kind} student")
    params: Flat = {}
    for name, flax_name in wanted.items():
        shape = shapes[flax_name]
        like = _turn(flax_name, np.empty(shape, np.int8)).shape
        check_leaf(name, state.get(name), like, where)
        params[flax_name] = np.ascontiguousarray(_turn_back(flax_name, state[name], shape))
    return params


def check_leaf(name: str, value: Array | None, shape: tuple[int, ...], where: str) -> None:
    """Refuses a leaf that is missing or is not f32 of this shape: a cast would not be bit exact.

    Raises:
        InputError: naming the leaf, what was expected and what was got.
    """
    wanted = f"{where}: {name}: expected float32 {list(shape)}"
    if value is None:
        raise InputError(f"{wanted}, got no such leaf")
    if value.dtype != np.float32 or value.shape != shape:
        raise InputError(f"{wanted}, got {value.dtype} {list(value.shape)}")


def is_release(folder: Path) -> bool:
    """Whether it is a released student's folder, and not a training run's."""
    return (folder / MODEL).is_file()


def save(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # Not save_file: it gives nobody else the right to read.
    partial.write_bytes(pack(tensors, metadata))
    partial.replace(path)


def pack(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Returns a safetensors file's content, the same for the same tensors and metadata.

    The library puts metadata in another order each time, and a digest would change with it.
    """
    content = serialize(dict(tensors), metadata=dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + ordered.ljust(end - 8) + content[end:]


def load(path: Path) -> tuple[Flat, dict[str, str]]:
    """Reads a safetensors file: its arrays and its metadata.

    Raises:
        InputError: if it is missing or damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: bf16, which numpy lacks
        raise InputError(
            f"weights {path}: expected a safetensors file of float32, got: {error}"
        ) from None


def _turn(name: str, value: Array) -> Array:
    """Flax's layout to PyTorch's."""
    if name.endswith(".kernel"):
        ins = value.shape[:-1] if name.endswith("out.kernel") else value.shape[:1]
        return value.reshape(int(np.prod(ins)), -1).T
    if name.endswith("conv"):  # [3, 3, M] -> [M, 1, 3, 3]
        return value.transpose(2, 0, 1)[:, None]
    return value.reshape(-1) if name.endswith(".bias") else value


def _turn_back(name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """PyTorch's layout to Flax's."""
    if name.endswith(".kernel"):
        return value.T.reshape(shape)
    if name.endswith("conv"):
        return value[:, 0].transpose(1, 2, 0)
    return value.reshape(shape)
