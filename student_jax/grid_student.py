"""The product: reads raw grids and answers in one pass, without the teacher.

In the shape descriptions: `B` batch, `R` those of it that come with a teacher's features, `P`
demonstrations, `N` canvas side, `C` colors, `V` = 12 cell classes, `D` width, `M` cell width, `K`
task tokens a demonstration, `F` teacher feature width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bridge.arc import NUM_COLORS
from bridge.canvas import BACKGROUND, BORDER
from bridge.transforms import NUM_DIHEDRAL
from student_jax.batch import Array, Batch, StudentOutput
from student_jax.color_block import ColorBlock, Scene, States, Turns, mean_color, rotary_turns
from student_jax.config import ModelConfig
from student_jax.trunk import Projector, Trunk

# What a cell's state of a color starts from: the sum of those that are true.
TRAITS = ("any", "here", "black", "black here", "border", "background")
NEVER = -10.0  # logit of a color that the task shows nowhere
TABLE_RATE = 3.0  # Adam's steps have one length for all: rows times 3 learn 3 times as fast


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TaskTokens:
    """What a student keeps of a task's demonstrations; computed once per task."""

    tokens: jax.Array  # [B, P * K, C, D]; with a table P + 1, and its tokens are the last K
    mask: jax.Array  # bool[B, P], True where there is a demonstration, and for the table's
    colors: jax.Array  # bool[B, P, C], those it shows
    palette: jax.Array  # u8[B, C], which color each of the C states is of; NO_COLOR for none


class GridStudent(nn.Module):
    """Encodes demonstrations into task tokens, and answers the query beside them.

    `encode_task` reads each demonstration, input and output laid over each other cell by cell,
    into K task tokens; `answer` reads the query beside them. At least one token a cell. States are
    per color, see `ColorBlock`; which colors have any is up to the palette, and changes no answer.
    """

    config: ModelConfig
    feature_width: int

    def setup(self) -> None:
        """Declares the parts that `encode_task` and `answer` share."""
        config = self.config
        self.encoder = Trunk(config, ColorBlock, config.encoder_depth)
        self.core = Trunk(config, ColorBlock, config.depth, config.loops)
        if config.invariant_width:
            self.encoder_lift = nn.Dense(config.invariant_width)
            self.core_lift = nn.Dense(config.invariant_width)
        self.color = nn.Embed(len(TRAITS), config.width)
        self.output_color = nn.Embed(len(TRAITS), config.width)
        self.pair_tokens = self.param(
            "pair_tokens", nn.initializers.normal(0.02), (config.tokens_per_pair, config.width)
        )
        if config.table:
            small = nn.initializers.normal(0.02)
            each = (config.tokens_per_pair, config.width)
            rows = (config.table, config.tokens_per_pair, NUM_COLORS, config.width)
            self.table = self.param("table", small, rows)
            self.no_row = self.param("no_row", small, each)
            self.symmetries = self.param("symmetries", small, (NUM_DIHEDRAL, *each))
        self.color_head = nn.Dense(1)
        self.edge_head = nn.Dense(2)  # border and background
        # The teacher saw real colors: here alone each has weights of its own.
        self.paint = self.param(
            "paint",
            nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,)),
            (NUM_COLORS, config.width, config.mlp_width),
        )
        # One map per kind of frame: a demonstration's input and output, and the query.
        self.input_projector = Projector(self.feature_width, config.projector)
        self.output_projector = Projector(self.feature_width, config.projector)
        self.query_projector = Projector(self.feature_width, config.projector)

    def encode_task(
        self,
        demonstrations: Array,
        mask: Array,
        palette: Array,
        row: Array | None = None,
        *,
        train: bool = False,
    ) -> tuple[TaskTokens, jax.Array]:
        """Reads the demonstrations, and looks the task up in the table where there is one.

        Args:
            demonstrations: u8[B, P, 2, N, N], input and output canvases.
            mask: bool[B, P], True where there is a demonstration.
            palette: u8[B, C], the task's colors, each once.
            row: see `Batch`.
            train: whether dropout is on.

        Returns:
            The task tokens, and the cell states f32[B, P, N, N, M].
        """
        batch, pairs, _, side, _ = demonstrations.shape
        palette = jnp.asarray(palette)
        each = jnp.repeat(palette, pairs, axis=0)  # [B * P, C]
        drawn = jnp.asarray(demonstrations).reshape(batch * pairs, 2, side * side)
        colors = is_color(drawn.reshape(len(drawn), -1), each).any(1)  # [B * P, C]
        cells = self._embed(self.color, drawn[:, 0], each)
        cells = cells + self._embed(self.output_color, drawn[:, 1], each)
        prefix = jnp.broadcast_to(
            self.pair_tokens[None, :, None],
            (len(drawn), len(self.pair_tokens), each.shape[1], self.config.width),
        )
        x = jnp.concatenate([prefix, cells], 1)
        scene = Scene(colors, None, self._turns(side, prefix.shape[1]), side)
        x = self.encoder(self._lift("encoder", x, colors), scene, train=train)
        count = self.config.tokens_per_pair
        task = TaskTokens(
            tokens=x.colors[:, :count].reshape(batch, pairs * count, *x.colors.shape[2:]),
            mask=jnp.asarray(mask),
            colors=colors.reshape(batch, pairs, -1),
            palette=palette,
        )
        if self.config.table:
            task = self._look_up(task, row)
        states = self._paint(jax.tree.map(lambda y: y[:, count:], x), colors, each)
        return task, states.reshape(batch, pairs, side, side, -1)

    def answer(
        self, task: TaskTokens, query: Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Answers one query per task.

        Args:
            task: from `encode_task`.
            query: u8[B, N, N].
            train: whether dropout is on.

        Returns:
            Logits f32[B, N, N, V] and the cell states f32[B, N, N, M].
        """
        batch, side, _ = query.shape
        cells = jnp.asarray(query).reshape(batch, -1)
        shown = is_color(cells, task.palette).any(1)
        shown = shown | (task.colors & task.mask[..., None]).any(1)  # [B, C]
        x = jnp.concatenate([task.tokens, self._embed(self.color, cells, task.palette)], 1)
        prefix = task.tokens.shape[1]
        known = jnp.repeat(task.mask, self.config.tokens_per_pair, axis=1)
        mask = jnp.concatenate([known, jnp.ones((batch, side * side), bool)], 1)
        scene = Scene(shown, mask, self._turns(side, prefix), side)
        x = self.core(self._lift("core", x, shown), scene, train=train)
        x = jax.tree.map(lambda y: y[:, prefix:], x)
        logits = self._classes(x, shown, task.palette).reshape(batch, side, side, -1)
        return logits, self._paint(x, shown, task.palette).reshape(batch, side, side, -1)

    def answer_each(self, task: TaskTokens, inputs: Array, *, train: bool = False) -> jax.Array:
        """Answers every demonstration's input from the other demonstrations.

        Each is read once and serves P - 1 times: what its own pair left behind is masked.

        Args:
            task: from `encode_task`.
            inputs: u8[B, P, N, N].
            train: whether dropout is on.

        Returns:
            Logits f32[B, P, N, N, V].
        """
        batch, pairs, side, _ = inputs.shape
        others = np.ones((pairs, task.mask.shape[1]), bool)
        others[:, :pairs] = ~np.eye(pairs, dtype=bool)
        left_out = TaskTokens(
            tokens=jnp.repeat(task.tokens, pairs, axis=0),
            mask=(task.mask[:, None] & others[None]).reshape(batch * pairs, -1),
            colors=jnp.repeat(task.colors, pairs, axis=0),
            palette=jnp.repeat(task.palette, pairs, axis=0),
        )
        logits, _ = self.answer(left_out, inputs.reshape(-1, side, side), train=train)
        return logits.reshape(batch, pairs, *logits.shape[1:])

    def __call__(
        self, batch: Batch, *, train: bool = False, left_out: bool = False
    ) -> StudentOutput:
        """Answers a batch and projects its cell states to the teacher's patch maps.

        Args:
            batch: see `Batch`.
            train: whether dropout is on.
            left_out: answer the demonstrations too, see `answer_each`.
        """
        task, pair_states, logits, query_states = self.read(batch, train=train)
        each = None
        if left_out:
            each = self.answer_each(task, batch.demonstrations[:, :, 0], train=train)
        taught = batch.taught
        features = self.project(to_patches(pair_states[taught]), to_patches(query_states[taught]))
        return StudentOutput(logits=logits, features=features, left_out=each)

    def read(
        self, batch: Batch, *, train: bool = False
    ) -> tuple[TaskTokens, jax.Array, jax.Array, jax.Array]:
        """Reads a batch's demonstrations and answers its queries.

        Returns:
            What `encode_task` and `answer` return: tokens and states, logits and states.
        """
        task, pair_states = self.encode_task(
            batch.demonstrations, batch.demonstration_mask, batch.palette, batch.row, train=train
        )
        return task, pair_states, *self.answer(task, batch.query, train=train)

    def project(self, pairs: jax.Array, query: jax.Array) -> jax.Array:
        """Projects patches to the teacher's, in the order in1 out1 in2 out2 ... query.

        Args:
            pairs: of the demonstrations, [R, P, N/2 * N/2, M].
            query: [R, N/2 * N/2, M].

        Returns:
            [R, (2 * P + 1) * N/2 * N/2, F].
        """
        frames = jnp.stack([self.input_projector(pairs), self.output_projector(pairs)], 2)
        frames = frames.reshape(len(frames), math.prod(frames.shape[1:-1]), self.feature_width)
        return jnp.concatenate([frames, self.query_projector(query)], 1)

    def _look_up(self, task: TaskTokens, row: Array | None) -> TaskTokens:
        """Adds a row's tokens to the demonstrations', as if they came from one more."""
        batch = len(task.palette)
        own = jnp.broadcast_to(self.no_row[None, :, None], (batch, *self.table.shape[1:]))
        if row is not None:
            place, symmetry = jnp.asarray(row).T
            known = self.table[place] + self.symmetries[symmetry][:, :, None]
            own = jnp.where((place >= 0)[:, None, None, None], known, own)
        # A color's own: a slot that is left over takes whichever, and is never looked at.
        slots = jnp.minimum(task.palette, NUM_COLORS - 1).astype(jnp.int32)
        own = TABLE_RATE * jnp.take_along_axis(own, slots[:, None, :, None], axis=2)
        there = jnp.ones((batch, 1), bool)
        return TaskTokens(
            tokens=jnp.concatenate([task.tokens, own.astype(task.tokens.dtype)], 1),
            mask=jnp.concatenate([task.mask, there], 1),
            colors=jnp.pad(task.colors, ((0, 0), (0, 1), (0, 0))),
            palette=task.palette,
        )

    def _embed(self, traits: nn.Embed, cells: jax.Array, palette: jax.Array) -> jax.Array:
        """Maps classes u8[B, T] to the states that they start from, f32[B, T, C, D]."""
        here = is_color(cells, palette)
        black = jnp.broadcast_to(palette[:, None] == 0, here.shape)
        border, background = (
            jnp.broadcast_to(cells[..., None] == each, here.shape) for each in (BORDER, BACKGROUND)
        )
        true = [jnp.ones_like(here), here, black, black & here, border, background]
        dtype = jnp.dtype(self.config.compute)
        return jnp.stack(true, -1).astype(dtype) @ traits.embedding.astype(dtype)

    def _lift(self, trunk: str, x: jax.Array, shown: jax.Array) -> States:
        """Gives tokens [B, T, C, D] the state of no color that they start with, if any has one."""
        if not self.config.invariant_width:
            return States(x)
        return States(x, getattr(self, f"{trunk}_lift")(mean_color(x, shown)))

    def _classes(self, x: States, shown: jax.Array, palette: jax.Array) -> jax.Array:
        """Maps T tokens to logits f32[B, T, V], in the order of the classes."""
        colors = jnp.where(shown[:, None], self.color_head(x.colors)[..., 0] - NEVER, 0.0)
        colors = jnp.einsum("btc,bcv->btv", colors, one_hot(palette)) + NEVER
        mean = mean_color(x.colors, shown) if x.invariant is None else x.invariant
        return jnp.concatenate([colors, self.edge_head(mean)], -1)

    def _paint(self, x: States, shown: jax.Array, palette: jax.Array) -> jax.Array:
        """Gathers a token's state of no color and those of all colors shown, f32[B, T, M]."""
        real = (one_hot(palette) * shown[..., None]).astype(x.colors.dtype)
        weights = jnp.einsum("bcv,vdm->bcdm", real, self.paint.astype(x.colors.dtype))
        painted = jnp.einsum("btcd,bcdm->btm", x.colors, weights)
        return painted if x.invariant is None else jnp.concatenate([painted, x.invariant], -1)

    def _turns(self, side: int, prefix: int) -> Turns:
        key_width = self.config.key_width // self.config.heads
        return rotary_turns(side, prefix, key_width, self.config.positions)


def is_color(cells: jax.Array, palette: jax.Array) -> jax.Array:
    """Whether cells u8[B, T] have the colors u8[B, C], bool[B, T, C]."""
    return cells[..., None] == palette[:, None]


def one_hot(palette: jax.Array) -> jax.Array:
    """Maps colors u8[B, C] to f32[B, C, 10]; all 0 for none."""
    return jax.nn.one_hot(palette, NUM_COLORS)


def to_patches(states: jax.Array) -> jax.Array:
    """Averages 2 x 2 cells, the part of a grid that one 14 px patch of the teacher shows.

    Args:
        states: [*B, N, N, M].

    Returns:
        [*B, N/2 * N/2, M].
    """
    *lead, side, _, width = states.shape
    half = side // 2
    return (
        states.reshape(*lead, half, 2, half, 2, width)
        .mean((-4, -2))
        .reshape(*lead, half * half, width)
    )
