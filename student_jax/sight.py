"""What a student sees: its states, patch by patch, at the end and after each of its blocks.

In the shape descriptions: `B` batch, `P` demonstrations, `N` canvas side, `T` tokens, `C` colors,
`D` width, `M` cell width, `F` teacher feature width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from student_jax.batch import Batch
from student_jax.color_block import ColorBlock, States
from student_jax.grid_student import GridStudent, one_hot, to_patches
from student_jax.solver import Solver

# layer -> patches' states f32[B, T, M]; "" for those that the projectors read
Layers = dict[str, jax.Array]
# (params, batch) -> projected features f32[B, T, F], and states by kind of frame
See = Callable[[Any, Batch], tuple[jax.Array, dict[str, Layers]]]


def make_see(solver: Solver) -> See:
    """Returns what gives a batch's projected features and its patches' own states."""
    config = solver.config.model.to_answer(solver.config.model.compute)
    model = GridStudent(config, solver.feature_width)

    def see(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Layers]]:
        variables = {"params": params}
        read, kept = model.apply(
            variables,
            batch,
            method="read",
            capture_intermediates=lambda module, _: isinstance(module, ColorBlock),
            mutable=["intermediates"],
        )
        task, pair_states, _, query_states = cast(Any, read)
        pairs, query = to_patches(pair_states), to_patches(query_states)
        said: Any = model.apply(variables, pairs, query, method="project")
        blocks = kept["intermediates"]
        count, side = batch.demonstrations.shape[1], batch.query.shape[-1]
        palette = jnp.asarray(batch.palette)
        shown = task.colors[:, :count].reshape(-1, palette.shape[1])
        each = one_hot(jnp.repeat(palette, count, axis=0)) * shown[..., None]
        encoder = {
            name: merge_pairs(lay_out(x, each, side), count)
            for name, x in in_order("encoder", blocks["encoder"]).items()
        }
        core = {
            name: lay_out(x, one_hot(palette), side)
            for name, x in in_order("core", blocks["core"]).items()
        }
        demonstrated = {"": pairs.reshape(len(pairs), -1, pairs.shape[-1]), **encoder}
        return said, {"input": demonstrated, "output": demonstrated, "query": {"": query, **core}}

    return jax.jit(see)


def merge_pairs(patches: jax.Array, count: int) -> jax.Array:
    """Lays a question's demonstrations side by side: [B * P, T, M] to [B, P * T, M]."""
    return patches.reshape(-1, count * patches.shape[1], patches.shape[2])


def in_order(trunk: str, blocks: Any) -> dict[str, States]:
    """Returns what a trunk's blocks leave behind, as they run, round after round."""
    rounds = zip(*(blocks[f"block_{i}"]["__call__"] for i in range(len(blocks))), strict=True)
    return {f"{trunk} {i}": x for i, x in enumerate(itertools.chain(*rounds), 1)}


def lay_out(x: States, real: jax.Array, side: int) -> jax.Array:
    """Puts each color's state in its own place, then that of no color; averages to patches.

    Args:
        x: of the tokens, cells last.
        real: f32[B, C, 10], which color each state is of; 0 for those not shown.
        side: N.

    Returns:
        f32[B, N/2 * N/2, M].
    """
    cells = jnp.einsum("btcd,bcv->btvd", x.colors[:, -(side**2) :], real)
    cells = cells.reshape(*cells.shape[:2], -1)
    if x.invariant is not None:
        cells = jnp.concatenate([cells, x.invariant[:, -(side**2) :]], -1)
    return to_patches(cells.reshape(len(cells), side, side, -1))
