"""The grid student's block: it treats all colors but black alike.

A cell has a state for each color, and every layer does the same to each color's state. A question
in other colors is therefore answered in those colors, exactly, and never has to be learnt as a
question of its own. Colors meet in the mean over those that a task shows. The idea of states per
color is CompressARC's (arXiv 2512.06104).

A large student has one more state a cell, which is of no color: it reads the colors' mean, and
they read it. What is done to it is done once, not once a color.

In the shape descriptions: `B` batch, `T` tokens, `C` colors, `D` width, `S` invariant width, `H`
heads, `K` key width of a head, `M` MLP width, `N` canvas side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from student_jax.attention import attend
from student_jax.depthwise import depthwise_3x3
from student_jax.trunk import PreNorm

ROPE_BASE = 100.0  # canvases are at most 32 cells a side; VARC uses the same order of magnitude
LINE_ROPE_BASE = 10_000.0  # arXiv 2104.09864, section 3.2.2: a line has up to 1024 cells

Turns = npt.NDArray[np.float32] | jax.Array


def rotary_turns(side: int, prefix: int, key_width: int, positions: str) -> Turns:
    """Returns the turns of rotary position embedding for `prefix` tokens and then a canvas.

    2-d: the first half of a head turns with the row, the second with the column. 1-d: all of it
    turns with the place in reading order. Prefix tokens do not turn at all. Constants of a program,
    or a CPU would take sines anew for every head of every block.

    Source: RoPE, arXiv 2104.09864; axial 2-D form, arXiv 2403.13298.

    Returns:
        Sines and cosines, f32[2, prefix + N * N, K / 2].
    """
    if positions == "1-d":
        half = key_width // 2
        frequencies = LINE_ROPE_BASE ** (-np.arange(half) / half)
        angles = np.arange(side**2)[:, None] * frequencies
    else:
        quarter = key_width // 4
        frequencies = ROPE_BASE ** (-np.arange(quarter) / quarter)
        places = np.indices((side, side)).reshape(2, -1).T  # [N * N, 2], row and column
        angles = (places[:, :, None] * frequencies).reshape(side**2, -1)
    cells = np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)
    still = np.array([0, 1], np.float32)[:, None, None]
    lib: Any = np if isinstance(prefix, int) else jnp  # an export leaves open how many there are
    still = lib.broadcast_to(still, (2, prefix, key_width // 2))
    return lib.concatenate([still, cells], 1)


def rotate(x: jax.Array, turns: Turns) -> jax.Array:
    """Turns each pair of channels.

    Args:
        x: [B, T, H, K].
        turns: f32[2, T, K / 2], sines and cosines.
    """
    sin, cos = (each[None, :, None] for each in turns)
    even, odd = jnp.split(x, 2, -1)
    return jnp.concatenate([even * cos - odd * sin, even * sin + odd * cos], -1)


def mean_color(x: jax.Array, shown: jax.Array) -> jax.Array:
    """Averages [B, T, C, D] over the colors that are shown, bool[B, C]: [B, T, D]."""
    weights = shown / jnp.maximum(shown.sum(-1, keepdims=True), 1)
    return jnp.einsum("btcd,bc->btd", x, weights.astype(x.dtype))


class States(NamedTuple):
    """What tokens are."""

    colors: jax.Array  # [B, T, C, D]
    invariant: jax.Array | None = None  # [B, T, S], of no color; a small student has none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """What the blocks know of a question beside its states."""

    shown: jax.Array  # bool[B, C], the colors that the task shows
    mask: jax.Array | None  # bool[B, T], True where a token may be attended; None for everywhere
    turns: Turns  # f32[2, T, K / 2] of the rotary embedding
    side: int = field(metadata={"static": True})  # N; the last N * N tokens are a canvas' cells


class ColorBlock(PreNorm):
    """Attention and gated MLP, for every color the same.

    Who attends whom is decided once for all colors; what is then read is each color's own. The MLP
    mixes neighbouring cells: a 3 x 3 depthwise convolution inside the gate (LoopViT, arXiv
    2602.02156).
    """

    def attention(self, x: States, where: Scene) -> States:
        """Lets tokens read each other."""
        config, (batch, tokens, colors, width) = self.config, x.colors.shape
        heads, mean = config.heads, self._mean("read", x, where)
        key_width = config.key_width // heads
        both = self.dense_each((heads, key_width), ("query", "key"), mean)
        query, key = (rotate(each, where.turns).astype(config.compute) for each in both)
        value = self.dense((heads, width // heads), "value", x.colors)  # [B, T, C, H, D / H]
        values = [value.transpose(0, 3, 1, 2, 4).reshape(batch, heads, tokens, -1)]
        if x.invariant is not None:
            invariant = self.dense((heads, key_width), "invariant_value", mean)
            values.append(invariant.transpose(0, 2, 1, 3))
        query, key = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1)
        read, *invariant = attend(query, key, tuple(values), where.mask)
        read = read.reshape(batch, heads, tokens, colors, -1).transpose(0, 2, 3, 1, 4)
        out = self.dense(width, "out", read, axes=2)
        if x.invariant is None:
            return States(out)
        read = invariant[0].transpose(0, 2, 1, 3)
        return States(out, self.dense(mean.shape[-1], "invariant_out", read, axes=2))

    def mlp(self, x: States, where: Scene) -> States:
        """Changes each token's states."""
        config, mean = self.config, self._mean("mix", x, where)
        own = self.dense_each(config.mlp_width, ("gate", "up"), x.colors)
        shared = self.dense_each(config.mlp_width, ("mean_gate", "mean_up"), mean)
        gate, up = (y + z[:, :, None] for y, z in zip(own, shared, strict=True))
        hidden = self._mix("conv", nn.silu(gate) * up, where.side)  # [B, T, C, M]
        down = self.dense(x.colors.shape[-1], "down", hidden)
        if x.invariant is None:
            return States(down)
        names = ("invariant_gate", "invariant_up")
        gate, up = self.dense_each(config.invariant_mlp_width, names, mean)
        hidden = self._mix("invariant_conv", (nn.silu(gate) * up)[:, :, None], where.side)[:, :, 0]
        return States(down, self.dense(mean.shape[-1], "invariant_down", hidden))

    def _mean(self, name: str, x: States, where: Scene) -> jax.Array:
        """What a token is whichever colors it has, [B, T, S]: without such a state, their mean."""
        mean = mean_color(x.colors, where.shown)
        if x.invariant is None:
            return mean
        return x.invariant + self.dense(x.invariant.shape[-1], name, mean)

    def _mix(self, name: str, hidden: jax.Array, side: int) -> jax.Array:
        """Lets the cells among the tokens [B, T, C, M] read their neighbours."""
        if not self.config.convolution:
            return hidden
        prefix = hidden.shape[1] - side**2
        kernel = self.param(name, _identity_3x3, (3, 3, hidden.shape[-1]))
        cells = hidden[:, prefix:]
        mixed = depthwise_3x3(cells.reshape(len(hidden), side, side, *cells.shape[2:]), kernel)
        mixed = mixed.astype(hidden.dtype).reshape(cells.shape)
        return jnp.concatenate([hidden[:, :prefix], mixed], 1)


def _identity_3x3(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Starts the convolution as the identity with a little noise, so that it can only help."""
    noise = 0.1 * jax.random.normal(key, shape)
    return noise.at[1, 1].add(1.0)
