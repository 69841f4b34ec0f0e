"""The training state, and the optimizer that moves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bridge import config as configs
from bridge.scaling import Scaling, no_scaling
from student_jax.batch import scale_teacher, smallest_batch
from student_jax.config import OptimConfig, TrainConfig
from student_jax.students import make_student

PROJECTOR = "projector"  # of the students that read features


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes; the same on every device."""

    step: jax.Array  # i32[], optimizer updates completed
    params: Any
    opt_state: Any
    ema: Any  # the parameters' moving average, or None
    scaling: Scaling  # of the teacher's features; constant, kept beside the weights that need it

    @property
    def answering(self) -> Any:
        """The parameters to answer with: the moving average where one is kept."""
        return self.params if self.ema is None else self.ema


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


def make_feature_schedule(config: TrainConfig) -> optax.Schedule:
    """Returns the weight of the feature terms: constant, then falling to 0 over the last steps."""
    steps = config.optim.total_steps
    fading = round(config.loss.fade * steps)
    return optax.linear_schedule(config.loss.feature, 0.0, fading, steps - fading)  # 0: constant


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
    """True for matrices; an attention's biases have two axes, heads and width, and are none."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.ndim > 1 and path[-1].key != "bias", params
    )


def decays_all(params: Any) -> Any:
    """True for everything but the projector."""
    return {
        name: jax.tree.map(lambda _, decayed=name != PROJECTOR: decayed, tree)
        for name, tree in params.items()
    }


def init_state(
    config: TrainConfig, model: nn.Module, tx: optax.GradientTransformation, scaling: Scaling
) -> TrainState:
    """Makes the first state; `jax.eval_shape` of this gives its shapes for free.

    Args:
        config: gives the seed of the weights, and says whether their average is kept.
        model: a student.
        tx: the optimizer.
        scaling: of the teacher's features.
    """
    batch = scale_teacher(smallest_batch(config.model, len(scaling.mean)), scaling)
    params = model.init(jax.random.key(config.seed), batch)["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        # A copy: a buffer can only be donated once.
        ema=jax.tree.map(jnp.copy, params) if config.optim.ema_decay else None,
        scaling=scaling,
    )


def first_state(
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    scaling: Scaling,
    sharding: jax.sharding.Sharding,
) -> TrainState:
    """Makes the first state and places it; arguments as for `init_state`."""
    return jax.device_put(on_cpu(lambda: init_state(config, model, tx, scaling)), sharding)


def on_cpu(draw: Callable[[], Any]) -> Any:
    """Draws on the CPU: a GPU's compiler takes a minute for the draws of some hundred arrays.

    Where JAX has no CPU beside the GPU, on the GPU.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        cpu = jax.local_devices()[0]
    with jax.default_device(cpu):
        return jax.device_get(jax.jit(draw)())


def state_like(about: dict[str, Any]) -> TrainState:
    """Returns the shapes and dtypes of the state that a checkpoint holds.

    Args:
        about: what the checkpoint says of itself.
    """
    config = configs.from_dict(TrainConfig, about["config"])
    width = about["feature_width"]
    model, tx = make_student(config.model, width), make_optimizer(config.optim, config.loss.form)
    scaling = empty_scaling(config.loss.scaling, width)
    return jax.eval_shape(lambda: init_state(config, model, tx, scaling))


def empty_scaling(kind: str, width: int) -> Scaling:
    """Returns a scaling of the right shapes, to restore one into."""
    rotation = np.zeros((width, width), np.float32) if kind == "phi_s" else None
    return replace(no_scaling(width), rotation=rotation, per_token=kind == "layer_norm")
