"""The training state and the step that moves it: one per-device function, mapped over a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bridge.scaling import Scaling
from student_jax.batch import Batch, scale_teacher
from student_jax.config import LossConfig, OptimConfig, TrainConfig
from student_jax.losses import distillation_loss

AXIS = "data"
PROJECTOR = "projector"  # of the students that read features
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes; the same on every device."""

    step: jax.Array  # i32[], optimizer updates completed
    params: Any
    opt_state: Any
    scaling: Scaling  # of the teacher's features; constant, kept beside the weights that need it


def make_schedule(config: OptimConfig) -> optax.Schedule:
    """Returns linear warm-up to `peak_lr`, then cosine decay to 1 % of it."""
    warmup = max(1, round(config.warmup_fraction * config.total_steps))
    peak = config.peak_lr
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / warmup,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(config.total_steps, warmup + 1),
        end_value=peak / 100,
    )


def make_optimizer(config: OptimConfig, form: str = "corrected") -> optax.GradientTransformation:
    """Returns AdamW with clipping; decay acts on matrices only, not on norms and biases.

    In the original form it acts on everything but the projector, which stays as it was drawn.
    """
    decayed = decays_all if form == "original" else decays_matrices
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config),
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )


def decays_matrices(params: Any) -> Any:
    """True for matrices."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def decays_all(params: Any) -> Any:
    """True for everything but the projector."""
    return {
        name: jax.tree.map(lambda _, decayed=name != PROJECTOR: decayed, tree)
        for name, tree in params.items()
    }


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    batch: Batch,
    scaling: Scaling,
    seed: int,
) -> TrainState:
    """Makes the first state; `jax.eval_shape` of this gives its shapes for free.

    Args:
        model: a student.
        tx: the optimizer.
        batch: any batch of the right shapes.
        scaling: of the teacher's features.
        seed: of the weights.
    """
    params = model.init(jax.random.key(seed), scale_teacher(batch, scaling))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        scaling=scaling,
    )


def train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    weights: LossConfig,
    seed: int,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """Makes one update on one device's share of the batch; runs under a mapped axis "data".

    Returns:
        The new state and the loss terms, both equal on all devices.
    """
    batch = scale_teacher(batch, state.scaling)
    key = jax.random.fold_in(jax.random.key(seed), state.step)  # dropout's stream for this step
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        if weights.form == "original":  # its optimizer never saw the projector
            params = {**params, PROJECTOR: jax.lax.stop_gradient(params[PROJECTOR])}
        output = model.apply({"params": params}, batch, train=True, rngs={"dropout": key})
        terms = distillation_loss(output, batch, weights, AXIS)  # pyright: ignore[reportArgumentType]
        return terms.total, terms

    grads, terms = jax.grad(loss_fn, has_aux=True)(state.params)
    grads, terms = jax.lax.pmean((grads, terms), AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        scaling=state.scaling,
    )
    metrics = {field.name: getattr(terms, field.name) for field in fields(terms)}
    metrics["loss"] = metrics.pop("total")
    norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(new_state.params)}
    return new_state, metrics | norms


def make_mesh(count: int | None = None) -> Mesh:
    """Returns a mesh of the first `count` devices, or of all, along the axis "data"."""
    devices = np.array(jax.devices()[:count])
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def make_train_step(
    config: TrainConfig, model: nn.Module, tx: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Maps `train_step` over the mesh: `shard_map` under jit, or `pmap` where a config asks for it.

    Under `shard_map` the state is donated: do not use it after the call.
    """

    def per_device(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(model, tx, config.loss, config.seed, state, batch)

    if config.map == "pmap":
        return _pmapped(per_device, mesh)
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


def over_devices(config: TrainConfig, mesh: Mesh) -> NamedSharding | None:
    """Returns how a batch lies on the devices; None where `pmap` places it itself."""
    return None if config.map == "pmap" else NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _pmapped(per_device: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Gives `pmap`, which wants a leading device axis, the same interface as the jitted step."""
    devices = mesh.devices.tolist()
    mapped = jax.pmap(per_device, AXIS, in_axes=(None, 0), out_axes=None, devices=devices)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shares = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
        return mapped(state, shares)

    return step
