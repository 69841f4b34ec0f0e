"""The student that reads the teacher's features, and how to make any of the students.

In the shape descriptions: `B` batch, `S` teacher tokens, `F` teacher feature width, `N` canvas
side, `V` = 12 cell classes, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bridge.canvas import NUM_CLASSES
from student_jax.batch import Batch, StudentOutput, check_features
from student_jax.config import ModelConfig
from student_jax.grid_student import GridStudent
from student_jax.linear import keep_bias
from student_jax.normalize import LayerNorm
from student_jax.original import OriginalStudent
from student_jax.trunk import Block, Projector, Trunk


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
        x = LayerNorm(dtype, name="stem_norm")(stem(batch.teacher))
        x = nn.gelu(x, approximate=False)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (config.max_tokens, config.width)
        )
        x = x + positions[None, :num_tokens]  # [B, S, D]
        trunk = Trunk(config, Block, config.depth, config.loops, name="trunk")
        x = trunk(x, jnp.asarray(batch.teacher_mask), train=train)

        valid = batch.teacher_mask[..., None]
        pooled = (x * valid).sum(1, dtype=jnp.float32) / jnp.maximum(valid.sum(1), 1)  # [B, D]
        hidden = nn.gelu(nn.Dense(2 * config.width, name="hidden")(pooled), approximate=False)
        logits = nn.Dense(side * side * NUM_CLASSES, name="head")(hidden)
        logits = logits.reshape(-1, side, side, NUM_CLASSES)
        features = Projector(self.feature_width, config.projector, name="projector")(x)
        return StudentOutput(logits=logits, features=features)


# Of no use to an answer: the projectors to the teacher's features and what feeds them; and the
# table's rows, of which what is to be solved has none.
UNUSED = (
    *("paint", "input_projector", "output_projector", "query_projector", "projector"),
    *("table", "symmetries"),
)

# Of a grid student: of no use once a task is read, and of no use before; `color` is of use to both.
OF_READING = ("encoder", "encoder_lift", "output_color", "pair_tokens", "no_row")
OF_ANSWERING = ("core", "core_lift", "color_head", "edge_head")

Student = FeatureStudent | GridStudent | OriginalStudent
STUDENTS = {"feature": FeatureStudent, "grid": GridStudent, "original": OriginalStudent}


def make_student(config: ModelConfig, feature_width: int) -> Student:
    """Returns the student that the config names."""
    return STUDENTS[config.kind](config, feature_width)


def needed_to_answer(params: Any, besides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the weights without those that no answer needs, and without further ones."""
    return {name: part for name, part in params.items() if name not in (*UNUSED, *besides)}


def with_unused(needed: Any, like: Any) -> dict[str, Any]:
    """Returns all weights that Flax wants: 0 for those left out, which XLA drops.

    Args:
        needed: from `needed_to_answer`.
        like: all of them, for their shapes.
    """
    left_out = {name: part for name, part in like.items() if name not in needed}
    return {**needed, **jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), left_out)}
