"""The students' PyTorch mirrors: the same numbers from `torch.nn` layers.

They are the oracle that the JAX students are held against, what PyTorch users load, and what
TorchScript is made from. Parameter names follow PyTorch's customs; the original's are those of its
own checkpoints, so that these load as they are.

In the shape descriptions: `B` batch, `S` teacher tokens, `F` teacher feature width, `P`
demonstrations, `N` canvas side, `V` = 12 cell classes, `D` width, `H` heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bridge.arc import MAX_SIDE, NUM_COLORS
from bridge.canvas import NUM_CLASSES

FLAX_EPSILON = 1e-6  # of flax.linen.LayerNorm
LAYER_NORM_EPSILON = 1e-5  # as bridge/scaling.py
ROPE_BASE, LINE_ROPE_BASE = 100.0, 10_000.0  # as student_jax/trunk.py


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
    """Pre-norm attention and MLP, gated and with a 3 x 3 depthwise convolution on a canvas."""

    def __init__(self, config: Mapping[str, Any], *, on_canvas: bool) -> None:
        """Makes the layers."""
        super().__init__()
        width, mlp_width = config["width"], config["mlp_width"]
        self.heads, self.on_canvas = config["heads"], on_canvas
        self.convolves = on_canvas and config["convolution"]
        self.norm1 = nn.LayerNorm(width, FLAX_EPSILON)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, FLAX_EPSILON)
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.gate = nn.Linear(width, mlp_width) if on_canvas else nn.Identity()
        self.conv = (
            nn.Conv2d(mlp_width, mlp_width, 3, padding=1, groups=mlp_width, bias=False)
            if self.convolves
            else nn.Identity()
        )

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, angles: torch.Tensor, side: int
    ) -> torch.Tensor:
        """Maps [B, T, D] to [B, T, D]; `angles` f32[T, D / H / 2], all 0 for no rotation."""
        normed = self.norm1(x)
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        query = _rotate(self.query(normed).reshape(shape), angles).transpose(1, 2)
        key = _rotate(self.key(normed).reshape(shape), angles).transpose(1, 2)
        value = self.value(normed).reshape(shape).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None, :]
        )
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        normed = self.norm2(x)
        if not self.on_canvas:
            return x + self.down(functional.gelu(self.up(normed)))
        hidden = functional.silu(self.gate(normed)) * self.up(normed)
        if not self.convolves:
            return x + self.down(hidden)
        prefix = x.shape[1] - side * side
        cells = hidden[:, prefix:].transpose(1, 2).reshape(x.shape[0], -1, side, side)
        mixed = self.conv(cells).flatten(2).transpose(1, 2)
        return x + self.down(torch.cat([hidden[:, :prefix], mixed], 1))


class Projector(nn.Module):
    """From a student's width to its teacher's; see `student_jax.trunk.Projector`."""

    def __init__(self, width: int, feature_width: int, kind: str) -> None:
        """Makes the layer."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(feature_width, width).normal_(std=width**-0.5))
        self.bias = nn.Parameter(torch.zeros(feature_width))
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [*B, D] to [*B, F]."""
        if self.kind == "linear":
            return functional.linear(x, self.weight, self.bias)
        tall = self.weight.shape[0] > self.weight.shape[1]
        q, r = torch.linalg.qr(self.weight if tall else self.weight.T)
        q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)[None]
        return functional.linear(x, q if tall else q.T, self.bias)


class Trunk(nn.Module):
    """`depth` blocks, run `loops` times with the same weights, then a norm."""

    def __init__(
        self, config: Mapping[str, Any], depth: int, loops: int, *, on_canvas: bool
    ) -> None:
        """Makes the blocks."""
        super().__init__()
        width = config["width"]
        self.blocks = nn.ModuleList([Block(config, on_canvas=on_canvas) for _ in range(depth)])
        self.rounds = nn.Parameter(torch.zeros(loops, width))
        self.norm = nn.LayerNorm(width, FLAX_EPSILON)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, angles: torch.Tensor, side: int
    ) -> torch.Tensor:
        """Maps [B, T, D] to [B, T, D]."""
        for rounds in self.rounds:
            x = x + rounds
            for block in self.blocks:
                x = block(x, mask, angles, side)
        return self.norm(x)


class FeatureMirror(nn.Module):
    """The corrected reader of teacher features."""

    def __init__(self, config: Mapping[str, Any], feature_width: int, scaling: str) -> None:
        """Takes the sizes of a `ModelConfig` as a dict."""
        super().__init__()
        self.scaling = Scale(feature_width, scaling)
        width, self.side = config["width"], config["canvas"]
        self.feature_width, self.max_tokens = feature_width, config["max_tokens"]
        self.head_width = width // config["heads"]
        self.stem = nn.Linear(feature_width, width)
        self.stem_norm = nn.LayerNorm(width, FLAX_EPSILON)
        self.positions = nn.Parameter(torch.zeros(config["max_tokens"], width))
        self.trunk = Trunk(config, config["depth"], config["loops"], on_canvas=False)
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
        still = torch.zeros(x.shape[1], self.head_width // 2, device=x.device)
        x = self.trunk(x, mask, still, 0)
        hidden = functional.gelu(self.hidden(_masked_mean(x, mask)))
        logits = self.head(hidden).reshape(-1, self.side, self.side, NUM_CLASSES)
        return logits, self.projector(x)


class GridMirror(nn.Module):
    """The product: raw grids in, a grid out."""

    def __init__(self, config: Mapping[str, Any], feature_width: int) -> None:
        """Takes the sizes of a `ModelConfig` as a dict."""
        super().__init__()
        width = config["width"]
        self.head_width = width // config["heads"]
        self.tokens_per_pair, self.positions = config["tokens_per_pair"], config["positions"]
        self.encoder = Trunk(config, config["encoder_depth"], 1, on_canvas=True)
        self.core = Trunk(config, config["depth"], config["loops"], on_canvas=True)
        self.color = nn.Embedding(NUM_CLASSES, width)
        self.output_color = nn.Embedding(NUM_CLASSES, width)
        self.pair_tokens = nn.Parameter(torch.zeros(self.tokens_per_pair, width))
        self.head = nn.Linear(width, NUM_CLASSES)
        # Used by the loss alone; here so that no weight is lost on the way back.
        self.input_projector = Projector(width, feature_width, config["projector"])
        self.output_projector = Projector(width, feature_width, config["projector"])
        self.query_projector = Projector(width, feature_width, config["projector"])

    def forward(
        self, demonstrations: torch.Tensor, mask: torch.Tensor, query: torch.Tensor
    ) -> torch.Tensor:
        """Answers one query per task.

        Args:
            demonstrations: u8[B, P, 2, N, N].
            mask: bool[B, P].
            query: u8[B, N, N].

        Returns:
            f32[B, N, N, V].
        """
        return self.answer(self.encode_task(demonstrations), mask, query)

    def encode_task(self, demonstrations: torch.Tensor) -> torch.Tensor:
        """Maps demonstrations u8[B, P, 2, N, N] to task tokens f32[B, P * K, D]."""
        batch, pairs, _, side, _ = demonstrations.shape
        shown = demonstrations.long().reshape(batch * pairs, 2, side * side)
        cells = self.color(shown[:, 0]) + self.output_color(shown[:, 1])
        prefix = self.pair_tokens[None].expand(batch * pairs, -1, -1)
        x = torch.cat([prefix, cells], 1)
        everywhere = torch.ones(x.shape[0], x.shape[1], dtype=torch.bool, device=x.device)
        angles = self._angles(side, self.tokens_per_pair).to(x.device)
        x = self.encoder(x, everywhere, angles, side)
        return x[:, : self.tokens_per_pair].reshape(batch, pairs * self.tokens_per_pair, -1)

    def answer(self, tokens: torch.Tensor, mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Answers u8[B, N, N] from task tokens and the mask bool[B, P] of their demonstrations."""
        batch, side = query.shape[0], query.shape[1]
        x = torch.cat([tokens, self.color(query.long().reshape(batch, side * side))], 1)
        known = mask.repeat_interleave(self.tokens_per_pair, 1)
        everywhere = torch.ones(batch, side * side, dtype=torch.bool, device=x.device)
        angles = self._angles(side, tokens.shape[1]).to(x.device)
        x = self.core(x, torch.cat([known, everywhere], 1), angles, side)
        return self.head(x[:, tokens.shape[1] :]).reshape(batch, side, side, NUM_CLASSES)

    def _angles(self, side: int, prefix: int) -> torch.Tensor:
        return _rotary_angles(side, prefix, self.head_width, self.positions)


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


def _rotary_angles(side: int, prefix: int, head_width: int, positions: str) -> torch.Tensor:
    """As `student_jax.trunk.rotary_angles`: f32[prefix + N * N, head_width / 2]."""
    if positions == "1-d":
        half = head_width // 2
        frequencies = LINE_ROPE_BASE ** (-torch.arange(half) / half)
        line = torch.arange(side * side)[:, None] * frequencies[None]
        return torch.cat([torch.zeros(prefix, half), line])
    quarter = head_width // 4
    frequencies = ROPE_BASE ** (-torch.arange(quarter) / quarter)
    position = torch.arange(side)[:, None] * frequencies[None]
    rows = position[:, None].expand(side, side, quarter)
    cols = position[None, :].expand(side, side, quarter)
    cells = torch.cat([rows, cols], -1).reshape(side * side, 2 * quarter)
    return torch.cat([torch.zeros(prefix, 2 * quarter), cells])


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turns channels of [B, T, H, K] in pairs by angles f32[T, K / 2]."""
    sin, cos = angles.sin()[None, :, None], angles.cos()[None, :, None]
    even, odd = x.chunk(2, -1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)
