"""Weights for the backbone: from a checkpoint folder or hub id, or drawn from a seed.

Only safetensors are read: nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from bridge.arc_files import read_json
from bridge.errors import InputError
from teacher_torch.action_head import ActionHead, ActionHeadConfig
from teacher_torch.backbone import Gr00tBackbone, empty_backbone, restore_buffers
from teacher_torch.gr00t_config import Gr00tConfig
from teacher_torch.tensors import read_tensors, tensor_files, weights_digest

PREFIX = "backbone.eagle_model."
HEAD_PREFIX = "action_head."
FINETUNE_PREFIX = "_groot_model."  # lerobot's finetunes wrap the whole model once more
EMBEDDING = "language_model.model.embed_tokens.weight"
LM_HEAD = "language_model.lm_head.weight"
M = TypeVar("M", bound=nn.Module)


def random_backbone(
    config: Gr00tConfig, seed: int, dtype: torch.dtype, device: str = "cpu"
) -> Gr00tBackbone:
    """Returns a frozen backbone whose weights are a pure function of `(config, seed)`.

    Drawn on a GPU they are others, in seconds and not in a minute: to be timed, so no digest.
    """
    backbone = empty_backbone(config).to(dtype).to_empty(device=device)
    restore_buffers(backbone, torch.device(device))
    draw_weights(backbone, seed)
    if device == "cpu":
        backbone.weights_digest = weights_digest(backbone)
    return backbone


def random_action_head(
    config: ActionHeadConfig, seed: int, dtype: torch.dtype, device: str = "cpu"
) -> ActionHead:
    """Returns a frozen action head whose weights are a pure function of `(config, seed)`."""
    with torch.device("meta"):
        head = ActionHead(config).to(dtype)
    return draw_weights(head.to_empty(device=device), seed)


def draw_weights(module: M, seed: int) -> M:
    """Fills a module from a seed and freezes it.

    Matrices are N(0, 1 / fan_in), so that the input's information survives any depth, embeddings
    N(0, 1), norms and biases neutral. Drawn in f32 where the module is, one tensor at a time.
    """
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            if weight.ndim == 1 or name.endswith(".b"):
                weight.fill_(0 if name.endswith(("bias", ".b")) else 1)
                continue
            # An embodiment's matrix [E, in, out] is stored input first.
            fan_in = weight.shape[1] if name.endswith(".W") else weight[0].numel()
            is_table = "embed_tokens" in name or "position_embedding" in name
            scale = 1.0 if is_table else fan_in**-0.5
            drawn = torch.empty(weight.shape, device=device)
            weight.copy_(drawn.normal_(0, scale, generator=generator))
    return module.eval().requires_grad_(False)


def load_backbone(folder: Path, dtype: torch.dtype) -> Gr00tBackbone:
    """Reads a checkpoint folder into a frozen backbone on the CPU.

    The network is built on the meta device and takes the file's tensors as they are: seconds, and
    a peak of about the weights' size.

    Args:
        folder: with config.json, safetensors (one file or shards with an index) and, for sizes
            other than N1.5's, eagle_config.json.
        dtype: of the weights.

    Raises:
        InputError: one line saying what is missing, unexpected, misshapen or damaged.
    """
    config = Gr00tConfig.of_checkpoint(folder)
    with one_line(folder):
        backbone = empty_backbone(config)
    files = tensor_files(folder)
    names = match_names(backbone, set(files), str(folder))
    state, backbone.weights_digest = read_tensors(backbone, files, names, dtype)
    backbone.load_state_dict(state, assign=True)
    restore_buffers(backbone, torch.device("cpu"))
    return backbone.eval().requires_grad_(False)


def load_action_head(folder: Path, dtype: torch.dtype) -> ActionHead:
    """Reads a checkpoint's action head, as `load_backbone` reads the backbone.

    Raises:
        InputError: likewise.
    """
    outer = read_json(folder / "config.json")
    with one_line(folder), torch.device("meta"):
        head = ActionHead(ActionHeadConfig.of_checkpoint(outer.get("action_head_cfg") or {}))
    files = tensor_files(folder)
    prefix = next((p for p in (FINETUNE_PREFIX + HEAD_PREFIX, HEAD_PREFIX) if has(files, p)), "")
    present = {name.removeprefix(prefix) for name in files if prefix and name.startswith(prefix)}
    wanted = set(head.state_dict())
    if present != wanted:
        faults = _some("missing", wanted - present) + _some("unexpected", present - wanted)
        raise InputError(f"{folder}: action head: {faults}N1.5's was expected")
    names = {key: prefix + key for key in wanted}
    state, _ = read_tensors(head, files, names, dtype)
    head.load_state_dict(state, assign=True)
    return head.eval().requires_grad_(False)


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Says in one line that a checkpoint's config builds no network."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers checks its configs with errors of many kinds
        text = " ".join(str(error).split())[:160]
        raise InputError(f"{folder}: its config builds no network: {text}") from None


def has(names: Iterable[str], prefix: str) -> bool:
    """Whether any name starts with the prefix."""
    return any(name.startswith(prefix) for name in names)


def match_names(backbone: Gr00tBackbone, there: set[str], where: str) -> dict[str, str]:
    """Returns our parameter name -> the checkpoint's, checking that nothing is left over.

    Takes the traps of real files: the finetunes' extra prefix; SigLIP with and without its inner
    `vision_model.` (transformers changed it in 5.6), on either side; an embedding stored only as
    the tied `lm_head`; the unused pooling head and action head beside the backbone.

    Raises:
        InputError: naming what is missing and what is unexpected.
    """
    prefix = FINETUNE_PREFIX + PREFIX if has(there, FINETUNE_PREFIX) else PREFIX
    present = {n.removeprefix(prefix) for n in there if n.startswith(prefix)}
    if not present:
        raise InputError(
            f"{where}: expected tensors named {PREFIX}*, got {sorted(there)[:3]}; "
            "is this a GR00T N1.5 checkpoint?"
        )
    names: dict[str, str] = {}
    missing: list[str] = []
    for key in backbone.state_dict():
        found = next((n for n in spellings(key) if n in present), None)
        if found is None:
            missing.append(spellings(key)[0])
        else:
            names[key] = prefix + found
    ignored = re.compile(r"(vision_model\.)+head\.|language_model\.lm_head\.")
    used = {name.removeprefix(prefix) for name in names.values()}
    unexpected = {n for n in present - used if not ignored.match(n) and n != EMBEDDING}
    # A tensor beside both parts (`backbone.eagle_linear`, say) would change the features.
    head = prefix.removesuffix(PREFIX) + HEAD_PREFIX
    unexpected |= {n for n in there if not n.startswith((prefix, head))}
    if missing or unexpected:
        raise InputError(
            f"{where}: {_some('missing', missing)}{_some('unexpected', unexpected)}"
            f"a backbone of {backbone.config.num_layers} language and "
            f"{backbone.config.vision['num_hidden_layers']} vision layers was expected"
        )
    return names


def spellings(key: str) -> list[str]:
    """Returns the names that a parameter may have in a checkpoint, the released one first."""
    if key.startswith("vision_model."):
        inner = key.removeprefix("vision_model.").removeprefix("vision_model.")
        return [f"vision_model.vision_model.{inner}", f"vision_model.{inner}"]
    if key.startswith("language_model."):
        name = f"language_model.model.{key.removeprefix('language_model.')}"
        return [name, LM_HEAD] if name == EMBEDDING else [name]
    return [key]


def _some(word: str, names: Iterable[str]) -> str:
    names = sorted(names)
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} tensors {word}: {', '.join(names[:3])}{more}; "
