"""Tensors of a checkpoint folder or hub id. Only safetensors are read: nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from bridge.arc_files import read_json
from bridge.errors import InputError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.safetensors", "*.json", "*.txt"]


def checkpoint_folder(checkpoint: str) -> Path:
    """Returns the local folder of a path or hub id, fetching the latter's safetensors.

    Raises:
        InputError: if it is neither, or cannot be fetched.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if folder.is_file() or not HUB_ID.fullmatch(checkpoint):
        raise InputError(
            f"checkpoint: expected a folder, a hub id such as nvidia/GR00T-N1.5-3B, or 'random', "
            f"got '{checkpoint}'"
        )
    from huggingface_hub import snapshot_download

    try:
        # No folders: a finetune's repository may hold a checkpoint of every thousand steps.
        return Path(
            snapshot_download(checkpoint, allow_patterns=HUB_FILES, ignore_patterns=["*/*"])
        )
    except Exception as error:  # the hub client raises a dozen kinds; all mean the same here
        text = " ".join(str(error).split())[:160]
        raise InputError(
            f"checkpoint: {checkpoint} is no local folder and could not be fetched: {text}"
        ) from None


def tensor_files(folder: Path) -> dict[str, Path]:
    """Returns tensor name -> file, from an index with its shards or from single files.

    Raises:
        InputError: if there is none, a shard is missing, or a file is damaged.
    """
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        index = read_json(index_path)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            raise InputError(f"{index_path}: expected an object with 'weight_map'")
        shards = sorted(set(map(str, weight_map.values())))
        for shard in shards:
            # A shard is a plain file name: an index must not reach outside its folder.
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise InputError(f"{index_path}: expected the shard {shard} beside it, got none")
        paths = [folder / shard for shard in shards]
    else:
        # lerobot keeps its processors' statistics in files of their own beside the model's.
        paths = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not paths:
        pickled = sorted(
            p.name for ending in ("*.bin", "*.pt", "*.pth") for p in folder.glob(ending)
        )
        hint = f" ({pickled[0]} is pickled and never read: convert it)" if pickled else ""
        raise InputError(f"{folder}: expected *.safetensors, got none{hint}")
    files: dict[str, Path] = {}
    for path in paths:
        with open_safetensors(path) as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """Opens a file, saying in one line if it is no safetensors file or cut short."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: expected a whole safetensors file, got: {' '.join(str(error).split())[:120]}"
        ) from None


def read_tensors(
    module: nn.Module, files: dict[str, Path], names: dict[str, str], dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], str]:
    """Reads tensors file by file, in the module's own names.

    Args:
        module: on the meta device; its shapes are what is expected.
        files: the checkpoint's tensor name -> file.
        names: the module's tensor name -> the checkpoint's.
        dtype: of the result; tensors that have it already are not copied.

    Returns:
        The tensors, and a sha256 over them as they are stored: it names the weights, whatever the
        dtype they are used in.

    Raises:
        InputError: if a shape differs or a tensor holds no floats.
    """
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    digests: dict[str, str] = {}
    for path in sorted({files[name] for name in names.values()}):
        with open_safetensors(path) as file:
            for key, name in names.items():
                if files[name] != path:
                    continue
                got = list(file.get_slice(name).get_shape())
                if got != shapes[key]:
                    raise InputError(f"{path}: {name}: expected shape {shapes[key]}, got {got}")
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise InputError(
                        f"{path}: {name}: expected a float tensor, got {tensor.dtype}; "
                        "quantised checkpoints are not read"
                    )
                digests[key] = _digest(tensor)
                state[key] = tensor.to(dtype)
    return state, _total(digests)


def weights_digest(module: nn.Module) -> str:
    """Returns the sha256 over all of a module's named tensors, names included."""
    return _total({name: _digest(tensor) for name, tensor in module.state_dict().items()})


def _digest(tensor: torch.Tensor) -> str:
    data = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.sha256(data).hexdigest()


def _total(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
