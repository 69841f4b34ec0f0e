"""The two students.

In the shape descriptions: `B` batch, `S` teacher tokens, `T` tokens with a teacher target, `F`
teacher feature width, `P` demonstrations, `N` canvas side, `V` = 12 cell classes, `D` width,
`K` task tokens a demonstration.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bridge.canvas import NUM_CLASSES
from student_jax.batch import Array, Batch, StudentOutput, check_features
from student_jax.config import ModelConfig
from student_jax.original import OriginalStudent
from student_jax.trunk import Projector, Trunk, keep_bias, rotary_angles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TaskTokens:
    """What a student keeps of a task's demonstrations; computed once per task."""

    tokens: jax.Array  # [B, P * K, D]
    mask: jax.Array  # bool[B, P * K]


class FeatureStudent(nn.Module):
    """Reads the teacher's frozen features. As a trained readout it defines the teacher's accuracy.

    It needs the teacher to run: it is no replacement for it.
    """

    config: ModelConfig
    feature_width: int

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> StudentOutput:
        """Maps scaled features to logits; see `Batch`."""
        config, side = self.config, self.config.canvas
        check_features(batch.teacher, batch.teacher_mask, self.feature_width, config.max_tokens)
        num_tokens = batch.teacher.shape[1]
        dtype = jnp.dtype(config.compute)
        stem = nn.Dense(config.width, dtype=dtype, promote_dtype=keep_bias, name="stem")
        x = nn.LayerNorm(dtype=dtype, name="stem_norm")(stem(batch.teacher))
        x = nn.gelu(x, approximate=False)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (config.max_tokens, config.width)
        )
        x = x + positions[None, :num_tokens]  # [B, S, D]
        trunk = Trunk(
            config.depth,
            config.heads,
            config.mlp_width,
            config.loops,
            dropout=config.dropout,
            dtype=dtype,
            remat=config.remat,
            name="trunk",
        )
        x = trunk(x, batch.teacher_mask, train=train)

        valid = batch.teacher_mask[..., None]
        pooled = (x * valid).sum(1, dtype=jnp.float32) / jnp.maximum(valid.sum(1), 1)  # [B, D]
        hidden = nn.gelu(nn.Dense(2 * config.width, name="hidden")(pooled), approximate=False)
        logits = nn.Dense(side * side * NUM_CLASSES, name="head")(hidden)
        logits = logits.reshape(-1, side, side, NUM_CLASSES)
        features = Projector(self.feature_width, config.projector, name="projector")(x)
        return StudentOutput(logits=logits, features=features)


class GridStudent(nn.Module):
    """Reads raw grids and answers in one pass, without the teacher.

    `encode_task` reads each demonstration, input and output laid over each other cell by cell,
    into K task tokens; `answer` reads the query beside them. At least one token a cell.
    """

    config: ModelConfig
    feature_width: int

    def setup(self) -> None:
        """Declares the parts that `encode_task` and `answer` share."""
        config = self.config
        sizes = {
            "heads": config.heads,
            "mlp_width": config.mlp_width,
            "convolution": config.convolution,
            "dropout": config.dropout,
            "dtype": jnp.dtype(config.compute),
            "remat": config.remat,
        }
        self.encoder = Trunk(depth=config.encoder_depth, **sizes)
        self.core = Trunk(depth=config.depth, loops=config.loops, **sizes)
        self.color = nn.Embed(NUM_CLASSES, config.width)
        self.output_color = nn.Embed(NUM_CLASSES, config.width)
        self.pair_tokens = self.param(
            "pair_tokens", nn.initializers.normal(0.02), (config.tokens_per_pair, config.width)
        )
        self.head = nn.Dense(NUM_CLASSES)
        # One map per kind of frame: a demonstration's input and output, and the query.
        self.input_projector = Projector(self.feature_width, config.projector)
        self.output_projector = Projector(self.feature_width, config.projector)
        self.query_projector = Projector(self.feature_width, config.projector)

    def encode_task(
        self, demonstrations: Array, mask: Array, *, train: bool = False
    ) -> tuple[TaskTokens, jax.Array]:
        """Reads the demonstrations.

        Args:
            demonstrations: u8[B, P, 2, N, N], input and output canvases.
            mask: bool[B, P], True where there is a demonstration.
            train: whether dropout is on.

        Returns:
            The task tokens, and the cell states f32[B, P, N, N, D].
        """
        batch, pairs, _, side, _ = demonstrations.shape
        shown = demonstrations.reshape(batch * pairs, 2, side * side)
        cells = self.color(shown[:, 0]) + self.output_color(shown[:, 1])  # [B*P, N*N, D]
        x, angles = self._with_prefix(
            jnp.broadcast_to(self.pair_tokens, (batch * pairs, *self.pair_tokens.shape)),
            cells,
            side,
        )
        x = self.encoder(x, None, angles, side, train=train)
        count = self.config.tokens_per_pair
        tokens = x[:, :count].reshape(batch, pairs * count, -1)
        states = x[:, count:].reshape(batch, pairs, side, side, -1)
        return TaskTokens(tokens=tokens, mask=jnp.repeat(mask, count, axis=1)), states

    def answer(
        self, task: TaskTokens, query: Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Answers one query per task.

        Args:
            task: from `encode_task`.
            query: u8[B, N, N].
            train: whether dropout is on.

        Returns:
            Logits f32[B, N, N, V] and the cell states f32[B, N, N, D].
        """
        batch, side, _ = query.shape
        x, angles = self._with_prefix(task.tokens, self.color(query.reshape(batch, -1)), side)
        mask = jnp.concatenate([task.mask, jnp.ones((batch, side * side), bool)], 1)
        x = self.core(x, mask, angles, side, train=train)
        states = x[:, task.tokens.shape[1] :].reshape(batch, side, side, -1)
        return self.head(states), states

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
        others = ~np.eye(pairs, dtype=bool).repeat(self.config.tokens_per_pair, 1)  # [P, P * K]
        mask = task.mask[:, None] & others[None]
        left_out = TaskTokens(
            tokens=jnp.repeat(task.tokens, pairs, axis=0), mask=mask.reshape(batch * pairs, -1)
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
        task, pair_states = self.encode_task(
            batch.demonstrations, batch.demonstration_mask, train=train
        )
        logits, query_states = self.answer(task, batch.query, train=train)
        each = None
        if left_out:
            each = self.answer_each(task, batch.demonstrations[:, :, 0], train=train)
        pair_patches, query_patches = to_patches(pair_states), to_patches(query_states)
        frames = jnp.stack(
            [self.input_projector(pair_patches), self.output_projector(pair_patches)], 2
        )  # [B, P, 2, N/2 * N/2, F]
        size, width = logits.shape[0], self.feature_width
        features = jnp.concatenate(
            [frames.reshape(size, -1, width), self.query_projector(query_patches)], 1
        )
        return StudentOutput(logits=logits, features=features, left_out=each)

    def _with_prefix(
        self, prefix: jax.Array, cells: jax.Array, side: int
    ) -> tuple[jax.Array, jax.Array]:
        head_width = self.config.width // self.config.heads
        angles = rotary_angles(side, prefix.shape[1], head_width, self.config.positions)
        return jnp.concatenate([prefix, cells], 1), angles


def to_patches(states: jax.Array) -> jax.Array:
    """Averages 2 x 2 cells, the part of a grid that one 14 px patch of the teacher shows.

    Args:
        states: [*B, N, N, D].

    Returns:
        [*B, N/2 * N/2, D].
    """
    *lead, side, _, width = states.shape
    half = side // 2
    return (
        states.reshape(*lead, half, 2, half, 2, width)
        .mean((-4, -2))
        .reshape(*lead, half * half, width)
    )


Student = FeatureStudent | GridStudent | OriginalStudent
STUDENTS = {"feature": FeatureStudent, "grid": GridStudent, "original": OriginalStudent}


def make_student(config: ModelConfig, feature_width: int) -> Student:
    """Returns the student that the config names."""
    return STUDENTS[config.kind](config, feature_width)
