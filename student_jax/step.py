"""The training step: one per-device function, mapped over a mesh of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from student_jax.batch import Batch, scale_teacher
from student_jax.config import OptimConfig, TrainConfig
from student_jax.cores import map_at_once
from student_jax.losses import LossTerms, distillation_loss, divisors_of
from student_jax.state import PROJECTOR, TrainState, make_feature_schedule, make_schedule

AXIS = "data"
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def train_step(
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """Makes one update on one device's share of the batch; runs under a mapped axis "data".

    Returns:
        The new state, and the loss terms with what else is worth watching; equal on all devices.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)  # dropout's, for this step
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    divisors = divisors_of(batch, config.loss, AXIS)
    weight = jnp.asarray(make_feature_schedule(config)(state.step))

    def loss_fn(params: Any, share: Batch, key: jax.Array) -> tuple[jax.Array, LossTerms]:
        if config.loss.form == "original":  # its optimizer never saw the projector
            params = {**params, PROJECTOR: jax.lax.stop_gradient(params[PROJECTOR])}
        share = scale_teacher(share, state.scaling)
        also: dict[str, Any] = {"left_out": True} if config.loss.left_out else {}
        output = model.apply({"params": params}, share, train=True, rngs={"dropout": key}, **also)
        terms = distillation_loss(output, share, config.loss, divisors, weight)  # pyright: ignore[reportArgumentType]
        return terms.total, terms

    grads, terms = accumulate(
        jax.grad(loss_fn, has_aux=True), state.params, batch, key, config.optim.accumulate
    )
    grads, terms = jax.lax.pmean((grads, terms), AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=None if state.ema is None else average(config.optim, state, params),
        scaling=state.scaling,
    )
    metrics = {field.name: getattr(terms, field.name) for field in fields(terms)}
    metrics["loss"] = metrics.pop("total")
    return new_state, metrics | {
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        "feature_weight": weight,
        "learning_rate": jnp.asarray(make_schedule(config.optim)(state.step)),
    }


def accumulate(
    grad_fn: Callable[..., Any], params: Any, batch: Batch, key: jax.Array, count: int
) -> Any:
    """Returns the sum of `grad_fn` over `count` micro-batches, one in memory at a time."""
    if count == 1:
        return grad_fn(params, batch, key)
    shares = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)
    keys = jax.random.split(key, count)

    grad_fn = jax.jit(grad_fn, inline=True)  # traced once, for its shapes and in the loop

    def add(total: Any, share: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad_fn(params, *share)), None

    like = jax.eval_shape(grad_fn, params, *jax.tree.map(lambda x: x[0], (shares, keys)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(add, zeros, (shares, keys))[0]


def average(config: OptimConfig, state: TrainState, params: Any) -> Any:
    """Returns the moving average with new parameters in it; early on it follows them closely.

    Source of the start: TensorFlow's ExponentialMovingAverage, min(decay, (1 + n) / (10 + n)).
    """
    decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(params, state.ema, 1 - decay)


def make_mesh(count: int | None = None) -> Mesh:
    """Returns a mesh of the first `count` devices, or of all, along the axis "data"."""
    devices = np.array(jax.devices()[:count])
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def make_train_step(
    config: TrainConfig, model: nn.Module, tx: optax.GradientTransformation, mesh: Mesh
) -> Step:
    """Maps `train_step` over the mesh: `shard_map` under jit, or `pmap` where a config asks for it.

    The batch is one that `make_placer` placed. Under `shard_map` the state is donated: do not use
    it after the call.
    """

    def per_device(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(config, model, tx, state, batch)

    if config.map == "pmap":
        devices = mesh.devices.tolist()
        return jax.pmap(per_device, AXIS, in_axes=(None, 0), out_axes=None, devices=devices)
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    # check_vma=False keeps gradients local until the explicit pmean, as under pmap.
    mapped = jax.shard_map(
        per_device, mesh=mesh, in_specs=(whole, split), out_specs=(whole, whole), check_vma=False
    )
    return jax.jit(
        mapped,
        in_shardings=(replicated(mesh), NamedSharding(mesh, split)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


def compile_ahead(step_fn: Step, state: TrainState, batches: Sequence[Batch]) -> Step:
    """Returns the same step, compiled for every shape of batch; one of another is an error.

    Arguments as for `compile_each`.
    """
    compiled = compile_each(step_fn, state, batches)
    programs = dict(zip(map(_shapes, batches), compiled, strict=True))
    return lambda state, batch: programs[_shapes(batch)](state, batch)


def compile_each(step_fn: Step, state: TrainState, batches: Sequence[Batch]) -> list[Any]:
    """Compiles a step for several batches, at once on a GPU.

    Args:
        step_fn: jitted, from `make_train_step`.
        state: to train.
        batches: one of each shape, placed.
    """

    def compiled(batch: Batch) -> Any:
        return step_fn.lower(state, batch).compile()  # pyright: ignore[reportFunctionMemberAccess]

    return list(map_at_once(compiled, batches))


def _shapes(batch: Batch) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def make_placer(config: TrainConfig, mesh: Mesh) -> Callable[[Batch], Batch]:
    """Returns what spreads a batch, or this process' share of one, over its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(batch: Batch) -> Batch:
        if config.map == "pmap":  # wants a leading device axis
            count = len(mesh.local_devices)
            batch = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
        )

    return place


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
