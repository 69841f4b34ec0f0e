"""The grid student's PyTorch mirror; see `bridge/torch_student.py` for the others.

In the shape descriptions: `B` batch, `P` demonstrations, `N` canvas side, `T` tokens, `C` colors,
`V` = 12 cell classes, `D` width, `S` invariant width, `M` MLP width, `H` heads, `F` teacher feature
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bridge.arc import NUM_COLORS
from bridge.canvas import BACKGROUND, BORDER
from bridge.transforms import NUM_DIHEDRAL

FLAX_EPSILON = 1e-6  # of flax.linen.LayerNorm
# As student_jax/color_block.py and student_jax/grid_student.py.
ROPE_BASE, LINE_ROPE_BASE = 100.0, 10_000.0
NUM_TRAITS, NEVER, TABLE_RATE = 6, -10.0, 3.0


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


class ColorTrunk(nn.Module):
    """`depth` blocks, run `loops` times with the same weights, then a norm."""

    def __init__(self, config: Mapping[str, Any], depth: int, loops: int) -> None:
        """Makes the blocks."""
        super().__init__()
        width, invariant = config["width"], config.get("invariant_width", 0)
        self.blocks = nn.ModuleList([ColorBlock(config) for _ in range(depth)])
        self.rounds = nn.Parameter(torch.zeros(loops, width))
        self.norm = nn.LayerNorm(width, FLAX_EPSILON)
        self.invariant_norm = nn.Identity()
        if invariant:
            self.invariant_rounds = nn.Parameter(torch.zeros(loops, invariant))
            self.invariant_norm = nn.LayerNorm(invariant, FLAX_EPSILON)
        else:
            self.register_buffer("invariant_rounds", torch.zeros(loops, 0), persistent=False)

    def forward(
        self,
        x: torch.Tensor,
        own: torch.Tensor,
        shown: torch.Tensor,
        mask: torch.Tensor,
        turns: torch.Tensor,
        side: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [B, T, C, D] and [B, T, S] to the same; the rest goes to every block."""
        for i in range(len(self.rounds)):
            x, own = x + self.rounds[i], own + self.invariant_rounds[i]
            for block in self.blocks:
                x, own = block((x, own), shown, mask, turns, side)
        return self.norm(x), self.invariant_norm(own)


class ColorBlock(nn.Module):
    """Pre-norm attention and gated MLP, for every color the same; see its JAX twin."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Makes the layers."""
        super().__init__()
        width, mlp_width = config["width"], config["mlp_width"]
        self.heads, self.convolves = config["heads"], config["convolution"]
        self.invariant = config.get("invariant_width", 0)
        mean, keys = self.invariant or width, self.invariant or mlp_width
        self.norm1 = nn.LayerNorm(width, FLAX_EPSILON)
        self.query = nn.Linear(mean, keys)
        self.key = nn.Linear(mean, keys)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, FLAX_EPSILON)
        self.gate = nn.Linear(width, mlp_width)
        self.mean_gate = nn.Linear(mean, mlp_width)
        self.up = nn.Linear(width, mlp_width)
        self.mean_up = nn.Linear(mean, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.conv = self._depthwise(mlp_width)
        if self.invariant:
            hidden = self.invariant * mlp_width // width
            self.invariant_norm1 = nn.LayerNorm(mean, FLAX_EPSILON)
            self.read = nn.Linear(width, mean)
            self.invariant_value = nn.Linear(mean, mean)
            self.invariant_out = nn.Linear(mean, mean)
            self.invariant_norm2 = nn.LayerNorm(mean, FLAX_EPSILON)
            self.mix = nn.Linear(width, mean)
            self.invariant_gate = nn.Linear(mean, hidden)
            self.invariant_up = nn.Linear(mean, hidden)
            self.invariant_down = nn.Linear(hidden, mean)
            self.invariant_conv = self._depthwise(hidden)

    def forward(
        self,
        states: tuple[torch.Tensor, torch.Tensor],
        shown: torch.Tensor,
        mask: torch.Tensor,
        turns: torch.Tensor,
        side: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [B, T, C, D] and [B, T, S] to the same; shown bool[B, C], mask bool[B, T]."""
        x, own = states
        normed = self.norm1(x)
        mean = mean_color(normed, shown)
        if self.invariant:
            mean = self.invariant_norm1(own) + self.read(mean)
        weights = self._patterns(mean, mask, turns)
        x = x + self._attend(weights, normed)
        if self.invariant:
            own = own + self._attend_invariant(weights, mean)
        normed = self.norm2(x)
        mean = mean_color(normed, shown)
        if self.invariant:
            mean = self.invariant_norm2(own) + self.mix(mean)
            gate, up = self.invariant_gate(mean), self.invariant_up(mean)
            hidden = (functional.silu(gate) * up)[:, :, None]
            own = own + self.invariant_down(self._mix(self.invariant_conv, hidden, side)[:, :, 0])
        gate = self.gate(normed) + self.mean_gate(mean)[:, :, None]
        up = self.up(normed) + self.mean_up(mean)[:, :, None]
        return x + self.down(self._mix(self.conv, functional.silu(gate) * up, side)), own

    def _depthwise(self, width: int) -> nn.Module:
        if not self.convolves:
            return nn.Identity()
        return nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)

    def _patterns(
        self, mean: torch.Tensor, mask: torch.Tensor, turns: torch.Tensor
    ) -> torch.Tensor:
        """Who attends whom, [B, H, T, T]."""
        batch, tokens, _ = mean.shape
        query, key = (
            _rotate(layer(mean).reshape(batch, tokens, self.heads, -1), turns).transpose(1, 2)
            for layer in (self.query, self.key)
        )
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    def _attend(self, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, colors, width = x.shape
        value = self.value(x).reshape(batch, tokens, colors, self.heads, -1)
        value = value.permute(0, 3, 1, 2, 4).reshape(batch, self.heads, tokens, -1)
        read = (weights @ value).reshape(batch, self.heads, tokens, colors, -1)
        return self.out(read.permute(0, 2, 3, 1, 4).reshape(batch, tokens, colors, width))

    def _attend_invariant(self, weights: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = mean.shape
        value = self.invariant_value(mean).reshape(batch, tokens, self.heads, -1).transpose(1, 2)
        read = (weights @ value).transpose(1, 2).reshape(batch, tokens, width)
        return self.invariant_out(read)

    def _mix(self, conv: nn.Module, hidden: torch.Tensor, side: int) -> torch.Tensor:
        """Lets the cells among the tokens [B, T, C, M] read their neighbours."""
        if not self.convolves:
            return hidden
        batch, tokens, colors, width = hidden.shape
        prefix = tokens - side * side
        cells = hidden[:, prefix:].permute(0, 2, 3, 1).reshape(batch * colors, width, side, side)
        mixed = conv(cells).reshape(batch, colors, width, side * side).permute(0, 3, 1, 2)
        return torch.cat([hidden[:, :prefix], mixed], 1)


class GridMirror(nn.Module):
    """The product: raw grids in, a grid out.

    Only the palette's colors have a state. Whatever else a palette has room for costs time and
    changes no answer.
    """

    def __init__(self, config: Mapping[str, Any], feature_width: int) -> None:
        """Takes the sizes of a `ModelConfig` as a dict."""
        super().__init__()
        width, mlp_width = config["width"], config["mlp_width"]
        self.invariant = config.get("invariant_width", 0)
        self.key_width = (self.invariant or mlp_width) // config["heads"]
        self.tokens_per_pair, self.positions = config["tokens_per_pair"], config["positions"]
        self.encoder = ColorTrunk(config, config["encoder_depth"], 1)
        self.core = ColorTrunk(config, config["depth"], config["loops"])
        if self.invariant:
            self.encoder_lift = nn.Linear(width, self.invariant)
            self.core_lift = nn.Linear(width, self.invariant)
        self.color = nn.Embedding(NUM_TRAITS, width)
        self.output_color = nn.Embedding(NUM_TRAITS, width)
        self.pair_tokens = nn.Parameter(torch.zeros(self.tokens_per_pair, width))
        table = config.get("table", 0)  # not there in what was exported before there were any
        self.has_table = table > 0
        if self.has_table:  # only the row that tasks share which have none of their own answers
            each = (self.tokens_per_pair, width)
            rows = (table, self.tokens_per_pair, NUM_COLORS, width)
            self.table = nn.Parameter(torch.zeros(rows))
            self.no_row = nn.Parameter(torch.zeros(each))
            self.symmetries = nn.Parameter(torch.zeros(NUM_DIHEDRAL, *each))
        self.color_head = nn.Linear(width, 1)
        self.edge_head = nn.Linear(self.invariant or width, 2)
        # Used by the loss alone; here so that no weight is lost on the way back.
        self.paint = nn.Parameter(torch.zeros(NUM_COLORS, width, mlp_width))
        cell_width = mlp_width + self.invariant
        self.input_projector = Projector(cell_width, feature_width, config["projector"])
        self.output_projector = Projector(cell_width, feature_width, config["projector"])
        self.query_projector = Projector(cell_width, feature_width, config["projector"])

    def forward(
        self,
        demonstrations: torch.Tensor,
        mask: torch.Tensor,
        palette: torch.Tensor,
        query: torch.Tensor,
    ) -> torch.Tensor:
        """Answers one query per task.

        Args:
            demonstrations: u8[B, P, 2, N, N].
            mask: bool[B, P].
            palette: u8[B, C], the colors that a task shows, each once; 255 fills up.
            query: u8[B, N, N].

        Returns:
            f32[B, N, N, V].
        """
        tokens, colors = self.encode_task(demonstrations, palette)
        return self.answer(tokens, colors, mask, palette, query)

    def encode_task(
        self, demonstrations: torch.Tensor, palette: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads demonstrations u8[B, P, 2, N, N] of tasks with the colors u8[B, C].

        Returns:
            Task tokens f32[B, P * K, C, D], and the colors that each shows, bool[B, P, C]; with a
            table, P + 1 of each.
        """
        batch, pairs, _, side, _ = demonstrations.shape
        count = palette.shape[1]
        # repeat_interleave fails as ONNX with a free number of pairs; expand forbids a single one.
        each = palette.long()[:, None].repeat(1, pairs, 1).flatten(0, 1)
        drawn = demonstrations.long().reshape(batch * pairs, 2, side * side)
        shown = is_color(drawn.reshape(batch * pairs, -1), each).any(1)
        cells = embed(self.color, drawn[:, 0], each) + embed(self.output_color, drawn[:, 1], each)
        prefix = self.pair_tokens[None, :, None].expand(batch * pairs, -1, count, -1)
        x = torch.cat([prefix, cells], 1)
        everywhere = torch.ones(x.shape[0], x.shape[1], dtype=torch.bool, device=x.device)
        turns = self._turns(side, self.tokens_per_pair).to(x.device)
        own = self._lift("encoder", x, shown)
        x = self.encoder(x, own, shown, everywhere, turns, side)[0][:, : self.tokens_per_pair]
        tokens = x.reshape(batch, pairs * self.tokens_per_pair, count, -1)
        shown = shown.reshape(batch, pairs, -1)
        if self.has_table:
            own = TABLE_RATE * self.no_row[None, :, None].expand(batch, -1, count, -1)
            tokens = torch.cat([tokens, own], 1)
            shown = functional.pad(shown, (0, 0, 0, 1))
        return tokens, shown

    def answer(
        self,
        tokens: torch.Tensor,
        colors: torch.Tensor,
        mask: torch.Tensor,
        palette: torch.Tensor,
        query: torch.Tensor,
    ) -> torch.Tensor:
        """Answers u8[B, N, N] from what `encode_task` returned and which pairs are there."""
        batch, side, palette = query.shape[0], query.shape[1], palette.long()
        cells = query.long().reshape(batch, side * side)
        if self.has_table:
            mask = functional.pad(mask, (0, 1), value=True)
        shown = is_color(cells, palette).any(1) | (colors & mask[..., None]).any(1)
        x = torch.cat([tokens, embed(self.color, cells, palette)], 1)
        known = mask.repeat_interleave(self.tokens_per_pair, 1)
        everywhere = torch.ones(batch, side * side, dtype=torch.bool, device=x.device)
        turns = self._turns(side, tokens.shape[1]).to(x.device)
        mask, own = torch.cat([known, everywhere], 1), self._lift("core", x, shown)
        x, own = (y[:, tokens.shape[1] :] for y in self.core(x, own, shown, mask, turns, side))
        colors = (self.color_head(x)[..., 0] - NEVER).masked_fill(~shown[:, None], 0.0)
        colors = colors @ one_hot(palette).to(colors.dtype) + NEVER
        mean = own if self.invariant else mean_color(x, shown)
        logits = torch.cat([colors, self.edge_head(mean)], -1)
        return logits.reshape(batch, side, side, -1)

    def _lift(self, trunk: str, x: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """The state of no color that tokens [B, T, C, D] start with, [B, T, S]; S may be 0."""
        if not self.invariant:
            return x.new_zeros(x.shape[0], x.shape[1], 0)
        lift = self.encoder_lift if trunk == "encoder" else self.core_lift
        return lift(mean_color(x, shown))

    def _turns(self, side: int, prefix: int) -> torch.Tensor:
        return _rotary_turns(side, prefix, self.key_width, self.positions)


def mean_color(x: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Averages [B, T, C, D] over the colors that are shown, bool[B, C]."""
    weights = shown.to(x.dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return (x * weights[:, None, :, None]).sum(2)


def is_color(cells: torch.Tensor, palette: torch.Tensor) -> torch.Tensor:
    """Whether cells i64[B, T] have the colors i64[B, C], bool[B, T, C]."""
    return cells[..., None] == palette[:, None]


def one_hot(palette: torch.Tensor) -> torch.Tensor:
    """Maps colors i64[B, C] to bool[B, C, 10]; all False for none."""
    return palette[..., None] == torch.arange(NUM_COLORS, device=palette.device)


def embed(traits: nn.Embedding, cells: torch.Tensor, palette: torch.Tensor) -> torch.Tensor:
    """Maps classes i64[B, T] to the states that they start from, f32[B, T, C, D]."""
    here = is_color(cells, palette)
    black = (palette[:, None] == 0).expand_as(here)
    border, background = (
        (cells[..., None] == each).expand_as(here) for each in (BORDER, BACKGROUND)
    )
    true = [torch.ones_like(here), here, black, black & here, border, background]
    return torch.stack(true, -1).to(traits.weight.dtype) @ traits.weight


def _rotary_turns(side: int, prefix: int, key_width: int, positions: str) -> torch.Tensor:
    """As `student_jax.color_block.rotary_turns`: f32[2, prefix + N * N, key_width / 2]."""
    angles = _rotary_angles(side, prefix, key_width, positions)
    return torch.stack([angles.sin(), angles.cos()])


def _rotary_angles(side: int, prefix: int, key_width: int, positions: str) -> torch.Tensor:
    if positions == "1-d":
        half = key_width // 2
        frequencies = LINE_ROPE_BASE ** (-torch.arange(half) / half)
        line = torch.arange(side * side)[:, None] * frequencies[None]
        return torch.cat([torch.zeros(prefix, half), line])
    quarter = key_width // 4
    frequencies = ROPE_BASE ** (-torch.arange(quarter) / quarter)
    position = torch.arange(side)[:, None] * frequencies[None]
    rows = position[:, None].expand(side, side, quarter)
    cols = position[None, :].expand(side, side, quarter)
    cells = torch.cat([rows, cols], -1).reshape(side * side, 2 * quarter)
    return torch.cat([torch.zeros(prefix, 2 * quarter), cells])


def _rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns channels of [B, T, H, K] in pairs by sines and cosines f32[2, T, K / 2]."""
    sin, cos = turns[:, None, :, None]
    even, odd = x.chunk(2, -1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)
