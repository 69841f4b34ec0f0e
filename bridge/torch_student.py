"""The students' PyTorch mirrors: the same numbers from `torch.nn` layers.

They are the oracle that the JAX students are held against, what PyTorch users load, and what
TorchScript is made from. Parameter names follow PyTorch's customs; the original's are those of its
own checkpoints, so that these load as they are.

In the shape descriptions: `B` batch, `S` teacher tokens, `F` teacher feature width, `N`
canvas side, `V` = 12 cell classes, `D` width, `H` heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bridge.arc import MAX_SIDE, NUM_COLORS
from bridge.canvas import NUM_CLASSES
from bridge.torch_grid_student import FLAX_EPSILON, GridMirror, Projector

LAYER_NORM_EPSILON = 1e-5  # as bridge/scaling.py


class OriginalMirror(nn.Module):
    """The original's student; see `student_jax/original.py`."""

    def __init__(self, config: Mapping[str, Any], feature_width: int) -> None:
        """Takes the sizes of a `ModelConfig` as a dict."""
        super().__init__()
        width, drop = config["width"], config["dropout"]
        self.feature_width, self.max_tokens = feature_width, config["max_tokens"]
        self.projection = nn.Sequential(
            nn.Linear(feature_width, width), nn.LayerNorm(width), nn.GELU()
        )
        self.pos_embedding = nn.Embedding(config["max_tokens"], width)
        layer = nn.TransformerEncoderLayer(
            width, config["heads"], config["mlp_width"], drop, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config["depth"], enable_nested_tensor=False)
        self.decoder = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(drop),
            nn.Linear(2 * width, 4 * width),
            nn.GELU(),
            nn.Dropout(drop),
            nn.Linear(4 * width, MAX_SIDE * MAX_SIDE * NUM_COLORS),
        )
        self.projector = nn.Linear(width, feature_width)

    def forward(
        self, features: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps features f32[B, S, F] and mask bool[B, S] to logits and projected features.

        Returns:
            f32[B, 30, 30, 10] and f32[B, S, F].
        """
        _check(features, mask, self.feature_width, self.max_tokens)
        features = features.masked_fill(~mask[..., None], 0.0)
        x = self.projection(features) + self.pos_embedding.weight[None, : features.shape[1]]
        x = self.transformer(x, src_key_padding_mask=~mask)
        logits = self.decoder(_masked_mean(x, mask))
        return logits.reshape(-1, MAX_SIDE, MAX_SIDE, NUM_COLORS), self.projector(x)


class Scale(nn.Module):
    """Scales raw teacher features as `bridge.scaling.apply` does."""

    def __init__(self, width: int, kind: str) -> None:
        """Makes room for a `LossConfig.scaling` of this kind."""
        super().__init__()
        self.per_token = kind == "layer_norm"
        self.mean = nn.Buffer(torch.zeros(width))
        self.std = nn.Buffer(torch.ones(width))
        self.rotation = nn.Buffer(torch.eye(width)) if kind == "phi_s" else None

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps f32[B, S, F] to f32[B, S, F], 0 where the mask bool[B, S] is False."""
        x = features - self.mean
        if self.rotation is not None:
            x = x @ self.rotation
        x = x / self.std
        if self.per_token:
            x = functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON)
        return x.masked_fill(~mask[..., None], 0.0)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Makes the layers."""
        super().__init__()
        width, mlp_width = config["width"], config["mlp_width"]
        self.heads = config["heads"]
        self.norm1 = nn.LayerNorm(width, FLAX_EPSILON)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, FLAX_EPSILON)
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps [B, T, D] to [B, T, D]; the mask bool[B, T] says who may be attended."""
        normed = self.norm1(x)
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        query, key, value = (
            layer(normed).reshape(shape).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None, :]
        )
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Trunk(nn.Module):
    """`depth` blocks, run `loops` times with the same weights, then a norm."""

    def __init__(self, config: Mapping[str, Any], depth: int, loops: int) -> None:
        """Makes the blocks."""
        super().__init__()
        width = config["width"]
        self.blocks = nn.ModuleList([Block(config) for _ in range(depth)])
        self.rounds = nn.Parameter(torch.zeros(loops, width))
        self.norm = nn.LayerNorm(width, FLAX_EPSILON)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps [B, T, D] to [B, T, D]; the mask bool[B, T] says who may be attended."""
        for rounds in self.rounds:
            x = x + rounds
            for block in self.blocks:
                x = block(x, mask)
        return self.norm(x)


class FeatureMirror(nn.Module):
    """The corrected reader of teacher features."""

    def __init__(self, config: Mapping[str, Any], feature_width: int, scaling: str) -> None:
        """Takes the sizes of a `ModelConfig` as a dict."""
        super().__init__()
        self.scaling = Scale(feature_width, scaling)
        width, self.side = config["width"], config["canvas"]
        self.feature_width, self.max_tokens = feature_width, config["max_tokens"]
        self.stem = nn.Linear(feature_width, width)
        self.stem_norm = nn.LayerNorm(width, FLAX_EPSILON)
        self.positions = nn.Parameter(torch.zeros(config["max_tokens"], width))
        self.trunk = Trunk(config, config["depth"], config["loops"])
        self.hidden = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, self.side**2 * NUM_CLASSES)
        self.projector = Projector(width, feature_width, config["projector"])

    def forward(
        self, features: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps raw features f32[B, S, F] and mask bool[B, S] to logits and projected features.

        Returns:
            f32[B, N, N, V] and f32[B, S, F].
        """
        _check(features, mask, self.feature_width, self.max_tokens)
        x = functional.gelu(self.stem_norm(self.stem(self.scaling(features, mask))))
        x = x + self.positions[None, : x.shape[1]]
        x = self.trunk(x, mask)
        hidden = functional.gelu(self.hidden(_masked_mean(x, mask)))
        logits = self.head(hidden).reshape(-1, self.side, self.side, NUM_CLASSES)
        return logits, self.projector(x)


def make_mirror(
    config: Mapping[str, Any], feature_width: int, scaling: str = "none"
) -> OriginalMirror | FeatureMirror | GridMirror:
    """Returns the mirror of the student that a `ModelConfig`, as a dict, names.

    Args:
        config: the model's.
        feature_width: `F`.
        scaling: the `LossConfig.scaling` it was trained with; a grid student needs none.
    """
    if config["kind"] == "feature":
        return FeatureMirror(config, feature_width, scaling)
    kind = OriginalMirror if config["kind"] == "original" else GridMirror
    return kind(config, feature_width)


def _check(features: torch.Tensor, mask: torch.Tensor, width: int, max_tokens: int) -> None:
    if torch.compiler.is_compiling() or isinstance(features.shape[1], torch.Tensor):
        return  # being exported: sizes are symbols, and there is nobody to tell
    if features.shape[2] != width:
        raise ValueError(f"features: expected width {width}, got {features.shape[2]}")
    if features.shape[1] > max_tokens:
        raise ValueError(f"features: expected at most {max_tokens} tokens, got {features.shape[1]}")
    if not bool(mask.any(1).all()):
        raise ValueError("mask: expected a valid token in every example, got one without")


def _masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    valid = mask[..., None].to(x.dtype)
    return (x * valid).sum(1) / valid.sum(1).clamp(min=1)
