"""The transformer: what both students share, and the feature student's block.

In the shape descriptions: `B` batch, `T` tokens, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from student_jax.attention import attend, attend_fused, has_fused_attention
from student_jax.config import ModelConfig
from student_jax.linear import Weights, linear_each
from student_jax.normalize import LayerNorm
from student_jax.terms import orthogonal

# A state is an array, or several: these begin the names of the weights that belong to each alone.
PARTS = ("", "invariant_")
DType = Any  # jnp.float32 or jnp.bfloat16, of activations; weights are f32


class Projector(nn.Module):
    """From a student's width to its teacher's, `W x + b`; see `ModelConfig.projector`."""

    width: int
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [*B, D] to [*B, F]."""
        shape = (x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = orthogonal(kernel) if self.kind == "orthogonal" else kernel
        return x @ kernel.astype(x.dtype) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def each_part(x: Any, change: Callable[[str, jax.Array], jax.Array]) -> Any:
    """Changes every array of a state; `change` is told how its weights' names begin."""
    parts, structure = jax.tree.flatten(x)
    changed = [change(prefix, part) for prefix, part in zip(PARTS, parts, strict=False)]
    return structure.unflatten(changed)


class PreNorm(nn.Module):
    """A block: attention, then an MLP, each normed before and added after; kinds fill in the two.

    `where` is whatever a kind needs to know beside the states: the same for every block of a trunk.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Any, where: Any, train: bool) -> Any:
        """Maps states [*B, D] to [*B, D]."""
        x = self._add(x, self.attention(self._norm("norm1", x), where), train)
        return self._add(x, self.mlp(self._norm("norm2", x), where), train)

    def attention(self, x: Any, where: Any) -> Any:
        """Lets tokens read each other."""
        raise NotImplementedError

    def mlp(self, x: Any, where: Any) -> Any:
        """Changes each token's state."""
        raise NotImplementedError

    def dense(
        self, shape: int | tuple[int, ...], name: str, x: jax.Array, axes: int = 1
    ) -> jax.Array:
        """Makes a linear layer and applies it in the compute dtype; see `dense_each`."""
        return self.dense_each(shape, (name,), x, axes)[0]

    def dense_each(
        self, shape: int | tuple[int, ...], names: Sequence[str], x: jax.Array, axes: int = 1
    ) -> list[jax.Array]:
        """Makes several linear layers of the same input and applies them in the compute dtype.

        Args:
            shape: of what each of them returns.
            names: of the layers.
            x: [*B, *D].
            axes: how many of the last ones a layer reads.

        Returns:
            [*B, *shape] of each.
        """
        leaving = shape if isinstance(shape, tuple) else (shape,)
        weights = [Weights(x.shape[-axes:], leaving, name=name)() for name in names]
        rows = x.reshape(-1, math.prod(x.shape[-axes:]))
        products = linear_each(rows, weights, jnp.dtype(self.config.compute))
        return [y.reshape(*x.shape[:-axes], *leaving) for y in products]

    def _norm(self, name: str, x: Any) -> Any:
        dtype = jnp.dtype(self.config.compute)
        return each_part(x, lambda prefix, y: LayerNorm(dtype, name=prefix + name)(y))

    def _add(self, x: Any, change: Any, train: bool) -> Any:
        drop = nn.Dropout(self.config.dropout, deterministic=not train)
        return jax.tree.map(lambda old, new: (old + drop(new)).astype(old.dtype), x, change)


class Block(PreNorm):
    """The feature student's; `where` is bool[B, T], True for the tokens there are, all first."""

    def attention(self, x: jax.Array, where: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        heads, width = self.config.heads, x.shape[-1]
        shape = (heads, width // heads)
        each = self.dense_each(shape, ("query", "key", "value"), x)
        query, key, value = (y.astype(x.dtype) for y in each)
        if query.dtype == jnp.bfloat16 and has_fused_attention(*shape):
            read = attend_fused(query, key, value, where)
        else:
            query, value = (y.transpose(0, 2, 1, 3) for y in (query, value))
            (read,) = attend(query, key.transpose(0, 2, 3, 1), (value,), where)
            read = read.transpose(0, 2, 1, 3)
        return self.dense(width, "out", read, axes=2)

    def mlp(self, x: jax.Array, where: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        del where
        hidden = nn.gelu(self.dense(self.config.mlp_width, "up", x), approximate=False)
        return self.dense(x.shape[-1], "down", hidden)


class Trunk(nn.Module):
    """`depth` blocks, run `loops` times with the same weights, then a norm.

    A learned embedding tells each round which one it is. By default plain Python loops: `nn.scan`
    does not convert to ONNX, and would keep all blocks' weights in one array.
    """

    config: ModelConfig
    block: type[PreNorm]
    depth: int
    loops: int = 1

    @nn.compact
    def __call__(self, x: Any, where: Any, *, train: bool) -> Any:
        """Maps states [*B, D] to [*B, D]; arguments as for the blocks."""
        dtype = jnp.dtype(self.config.compute)
        rounds = each_part(x, self._rounds)
        run = self._scan if self.config.scan_layers else self._unroll
        x = run(x, rounds, where, train)
        return each_part(x, lambda prefix, y: LayerNorm(dtype, name=f"{prefix}norm")(y))

    def _unroll(self, x: Any, rounds: Any, where: Any, train: bool) -> Any:
        """Runs the blocks one after the other, each of them written out in the program."""
        kind = nn.remat(self.block, static_argnums=(3,)) if self.config.remat else self.block
        blocks = [kind(self.config, name=f"block_{i}") for i in range(self.depth)]
        for loop in range(self.loops):
            x = self._begin_round(x, jax.tree.map(lambda each: each[loop], rounds))  # noqa: B023
            for block in blocks:
                x = block(x, where, train)
        return x

    def _scan(self, x: Any, rounds: Any, where: Any, train: bool) -> Any:
        """The same with one block in the program, run for each block's weights in turn."""
        if self.is_initializing():
            return self._unroll(x, rounds, where, train)  # which makes the weights
        own = self.variables["params"]
        blocks = [own[f"block_{i}"] for i in range(self.depth)]
        weights = jax.tree.map(lambda *each: jnp.stack(each), *blocks)
        block = self.block(self.config, parent=None)

        def run_block(x: Any, weights: Any) -> tuple[Any, None]:
            return block.apply({"params": weights}, x, where, train), None

        if self.config.remat:
            run_block = jax.checkpoint(run_block, prevent_cse=False)

        def run_round(x: Any, which: Any) -> tuple[Any, None]:
            return jax.lax.scan(run_block, self._begin_round(x, which), weights)[0], None

        x = jax.tree.map(lambda y: y.astype(jnp.dtype(self.config.compute)), x)
        return jax.lax.scan(run_round, x, rounds)[0]

    def _begin_round(self, x: Any, which: Any) -> Any:
        dtype = jnp.dtype(self.config.compute)
        return jax.tree.map(lambda y, by: (y + by).astype(dtype), x, which)

    def _rounds(self, prefix: str, x: jax.Array) -> jax.Array:
        """The embeddings of the rounds, with the state's number of axes: [loops, 1.., D]."""
        shape = (self.loops, x.shape[-1])
        rounds = self.param(f"{prefix}rounds", nn.initializers.zeros, shape)
        return rounds.reshape(self.loops, *[1] * (x.ndim - 1), -1)
