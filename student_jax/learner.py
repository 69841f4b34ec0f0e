"""The programs by which tasks are learnt: how one begins, makes a step, and answers.

Nothing but demonstrations is learnt from: each is answered from the task's tokens, its own among
them, which are learnt with the weights or alone, and all are augmented (VARC, arXiv 2511.14761,
section 4).

In the shape descriptions: `W` tasks at once, `A` augmented copies of a task, `P` demonstrations,
`Q` queries, `N` canvas side, `C` slots of the palette, `K` task tokens a demonstration, `D` width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bridge.canvas import BACKGROUND
from student_jax.batch import smallest_batch
from student_jax.config import AdaptConfig, ModelConfig, Tier
from student_jax.grid_student import TaskTokens
from student_jax.lesson import Shown
from student_jax.students import OF_ANSWERING, make_student
from student_jax.terms import cross_entropy

STATES = 2**15  # cells x colors that are read or answered at once: memory follows them
# The weights that tokens are read with; a small student has no lift.
ANSWERING = (*OF_ANSWERING, "color")
TOKENS_RATE = 3.0  # times the learning rate: tokens are the task's alone


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Learnt:
    """What a task has of its own; of one task, or with a leading axis W of several."""

    tokens: jax.Array  # f32[V, P * K, C, D], a set for each view; P + 1 with a table
    weights: Any  # those that answer; empty where they stay as they are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fit:
    """How well a step's copies were answered before they were learnt from; of one task, or of W."""

    loss: Any  # nats a cell
    cells: Any  # the share of right cells, border included
    exact: Any  # whether all are right


class Learner:
    """Each program takes W tasks of one shape, which learn alone, and compiles once for a shape."""

    def __init__(
        self, model: ModelConfig, feature_width: int, tier: Tier, weight_decay: float
    ) -> None:
        """Prepares the programs; arguments as in `ModelConfig` and `AdaptConfig`."""
        self._own = ANSWERING if tier == "weights" else ()
        self._model = make_student(model, feature_width)
        clipped = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(1.0, b2=0.98, weight_decay=weight_decay),  # the rate comes later
        )
        self._tx = optax.flatten(clipped)  # one long vector: a CPU pays for each array
        self._smallest = smallest_batch(model, feature_width)
        self._begin_each = jax.jit(jax.vmap(self._begin))
        self._copies = jax.jit(_copies, static_argnums=1)
        self._draw = jax.jit(jax.vmap(self._fresh, in_axes=(None, 0)))
        self.update = jax.jit(
            jax.vmap(self._update, in_axes=(0, 0, None, 0, 0, 0)), donate_argnums=(0, 1)
        )
        self.begin_joint = jax.jit(self._begin_joint)
        self.update_jointly = jax.jit(self._update_jointly, donate_argnums=(0, 1))
        self.select = jax.jit(jax.vmap(_select), donate_argnums=2)
        self.say = jax.jit(self._say)

    def begin(self, params: Any, plain: Shown) -> tuple[Learnt, Any, TaskTokens]:
        """Returns what each of W tasks learns, as it starts; its optimizer's state; and its tokens.

        Args:
            params: the student's.
            plain: the tasks, see `show_plainly`.
        """
        return self._begin_each(self._copies(params, len(plain.view)), plain)

    def _begin(self, params: Any, plain: Shown) -> tuple[Learnt, Any, TaskTokens]:
        task = self._read(params, plain)
        weights = {name: params[name] for name in self._own if name in params}
        learnt: Any = Learnt(task.tokens, weights)
        return learnt, self._tx.init(learnt), task

    def _read(self, params: Any, plain: Shown) -> TaskTokens:
        """Reads one task's demonstrations, so many views at once as memory allows."""

        def read(shown: Shown) -> TaskTokens:
            task, _ = self._model.apply(
                {"params": params},
                shown.demonstrations,
                shown.mask,
                shown.palette,
                method="encode_task",
            )
            return task

        _, pairs, _, side, _ = plain.demonstrations.shape
        return _in_turns(read, plain, pairs * side**2 * plain.palette.shape[-1])

    def begin_anew(self, seed: int, closed: Any, plain: Shown) -> tuple[Learnt, Any, TaskTokens]:
        """The same from new random weights, other ones after each round that is closed, i32[W].

        In programs of their own: drawing takes as long to compile, and is the same for all forms.
        """
        return self._begin_each(self._draw(seed, closed), plain)

    def _fresh(self, seed: Any, closed: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), closed)
        return self._model.init(key, self._smallest)["params"]

    def _update(
        self,
        learnt: Any,
        opt_state: Any,
        params: Any,
        task: TaskTokens,
        shown: Shown,
        rate: Any,
    ) -> tuple[Learnt, Any, Fit]:
        """Makes one update of one task, or none where the rate is 0.

        Returns:
            What is learnt, the optimizer's state, and how well it answered before the update.
        """
        grads, fit = jax.grad(self.loss, has_aux=True)(learnt, params, task, shown)
        updates: Any
        updates, after = self._tx.update(grads, opt_state, learnt)
        updates = Learnt(TOKENS_RATE * updates.tokens, updates.weights)
        new = optax.apply_updates(learnt, optax.tree.scale(rate, updates)), after
        return *_select(rate > 0, new, (learnt, opt_state)), fit

    def _begin_joint(self, params: Any) -> tuple[Any, Any]:
        """Returns the weights that tasks learn together, and their optimizer's state."""
        weights = {name: params[name] for name in ANSWERING if name in params}
        return weights, self._tx.init(weights)

    def _update_jointly(
        self,
        shared: tuple[Any, Any],
        own: tuple[Learnt, Any],
        params: Any,
        tasks: TaskTokens,
        shown: Shown,
        rate: Any,
    ) -> tuple[tuple[Any, Any], tuple[Learnt, Any], Fit]:
        """Makes one update of weights that W tasks share, and of the tokens of each.

        The weights follow the mean of the tasks' gradients; tokens learn as they would alone.

        Returns:
            What is shared, what tasks have of their own, and how well they answered before.
        """
        (weights, state), (learnt, states) = shared, own

        def loss(weights: Any, learnt: Learnt) -> tuple[jax.Array, Fit]:
            each = jax.vmap(lambda x, *task: self.loss(replace(x, weights=weights), params, *task))
            losses, fit = each(learnt, tasks, shown)
            return losses.sum(), fit

        (grads, grad), fit = jax.grad(loss, (0, 1), has_aux=True)(weights, learnt)
        grads = optax.tree.scale(1 / len(fit.loss), grads)
        updates, state = self._tx.update(grads, state, weights)
        weights = optax.apply_updates(weights, optax.tree.scale(rate, updates))
        update: Any = jax.vmap(self._tx.update)
        updates, states = update(grad, states, learnt)
        tokens: Any = optax.tree.scale(TOKENS_RATE * rate, updates)
        own = optax.apply_updates(learnt, tokens), states  # pyright: ignore[reportArgumentType, reportAssignmentType]
        return (weights, state), own, fit

    def loss(
        self, learnt: Learnt, params: Any, task: TaskTokens, shown: Shown
    ) -> tuple[jax.Array, Fit]:
        """Returns the mean cross entropy over one task's demonstrations, and how well they fit."""
        answers, mask = jnp.asarray(shown.demonstrations)[:, :, 1], jnp.asarray(shown.mask)
        own = jax.tree.map(lambda x: x[shown.view], replace(task, tokens=learnt.tokens))
        inputs = jnp.asarray(shown.demonstrations)[:, :, 0]
        logits = self._from_tokens(learnt, params, own, inputs)
        nats = cross_entropy(logits, answers).mean((2, 3))
        right, drawn = logits.argmax(-1) == answers, answers != BACKGROUND
        cells = (right & drawn).sum((2, 3)) / drawn.sum((2, 3))
        exact = ((right | ~drawn).all((2, 3)) | ~mask).all()
        nats, cells = ((x * mask).sum() / mask.sum() for x in (nats, cells))
        return nats, Fit(nats, cells, exact)

    def _from_tokens(
        self, learnt: Learnt, params: Any, task: TaskTokens, inputs: jax.Array
    ) -> jax.Array:
        """Answers inputs u8[A, Q, N, N] in A views from their tokens, f32[A, Q, N, N, V].

        So many at once as memory allows; the rest of the activations is computed again.
        """
        copies, count, side, _ = inputs.shape
        weights = {**params, **learnt.weights}

        def answer(asked: tuple[TaskTokens, jax.Array]) -> jax.Array:
            logits, _ = self._model.apply({"params": weights}, *asked, method="answer")
            return logits.astype(jnp.float32)

        each = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), task)
        asked = each, inputs.reshape(-1, side, side)
        logits = _in_turns(answer, asked, side**2 * task.palette.shape[-1])
        return logits.reshape(copies, count, *logits.shape[1:])

    def _say(self, learnt: Learnt, params: Any, task: TaskTokens, inputs: jax.Array) -> jax.Array:
        """Answers test inputs u8[views, Q, N, N]: log-probabilities f32[views, Q, N, N, V]."""
        own = replace(task, tokens=learnt.tokens)
        return jax.nn.log_softmax(self._from_tokens(learnt, params, own, inputs))


@functools.lru_cache(maxsize=4)
def _learner(model: ModelConfig, feature_width: int, tier: Tier, weight_decay: float) -> Learner:
    return Learner(model, feature_width, tier, weight_decay)


def learner_of(model: ModelConfig, feature_width: int, config: AdaptConfig) -> Learner:
    """Returns the programs: the same for all that differ in steps, time or rates alone."""
    return _learner(model, feature_width, config.tier, config.weight_decay)


def _in_turns(call: Callable[[Any], Any], asked: Any, states: int) -> Any:
    """Calls with so many of what is asked at once as memory allows.

    Args:
        call: takes and returns trees of arrays [B, ...].
        asked: one of those it takes.
        states: cells x colors of one of B.
    """
    at_once = max(1, STATES // states)
    if at_once >= len(jax.tree.leaves(asked)[0]):
        return call(asked)

    def one(x: Any) -> Any:
        return jax.tree.map(lambda y: y[0], call(jax.tree.map(lambda y: y[None], x)))

    return jax.lax.map(jax.checkpoint(one), asked, batch_size=at_once)


def _copies(params: Any, count: int) -> Any:
    """Returns the weights so many times: the program that begins tasks takes some for each."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), params)


def _select(chosen: Any, new: Any, old: Any) -> Any:
    """Returns one of two states of a task."""
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), new, old)
