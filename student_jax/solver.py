"""A trained student, ready to answer questions. It never sees an answer: questions hold none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge import config as configs
from bridge.arc import Question
from bridge.canvas import Attempts, decode, decode_whole
from bridge.errors import InputError
from bridge.scaling import Scaling, no_scaling
from bridge.store import FeatureStore, check_provenance
from student_jax.batch import Batch, scale_teacher
from student_jax.checkpoints import Checkpoints
from student_jax.config import TrainConfig
from student_jax.data import Examples
from student_jax.state import TrainState, init_state, make_optimizer
from student_jax.students import make_student

BATCH = 8  # questions a call; padded, so that a bucket compiles once


@dataclass(frozen=True)
class Solver:
    """A student's weights with what is needed to use them."""

    config: TrainConfig
    step: int
    teacher: dict[str, Any] | None  # provenance of the features it was trained with
    trained_on: frozenset[str]  # task ids
    feature_width: int  # of the teacher; 1 without one
    state: TrainState
    predict: Any  # jitted (state, batch) -> log-probabilities f32[B, N, N, V]

    @property
    def num_parameters(self) -> int:
        """Unique weights, embedding tables included."""
        return sum(x.size for x in jax.tree.leaves(self.state.params))

    def solve(self, questions: Sequence[Question], store: str | None = None) -> dict[str, Attempts]:
        """Answers questions.

        Args:
            questions: what to answer.
            store: where a feature student finds the teacher's features of these questions; by
                default the store it was trained on. A grid student needs none.

        Returns:
            example_id -> attempts.

        Raises:
            InputError: if a feature student's store lacks a question or is another teacher's.
        """
        needs_teacher = self.config.model.reads_features
        features = open_store(self, store) if needs_teacher else None
        examples = Examples(questions, {}, self.config.model, self.config.data, features)
        buckets: dict[int, list[int]] = defaultdict(list)
        for i, example in enumerate(examples.examples):
            buckets[example.bucket].append(i)
        attempts: dict[str, Attempts] = {}
        for _, indices in sorted(buckets.items()):
            for start in range(0, len(indices), BATCH):
                chosen = indices[start : start + BATCH]
                batch = examples.batch([*chosen, *[chosen[-1]] * (BATCH - len(chosen))])
                log_probs = np.asarray(self.predict(self.state, batch))
                read = decode_whole if self.config.model.kind == "original" else decode
                for i, values in zip(chosen, log_probs, strict=False):
                    attempts[examples.examples[i].question.example_id] = read(values)
        return {question.example_id: attempts[question.example_id] for question in questions}


def load_solver(out: Path) -> Solver:
    """Reads a training run's latest checkpoint.

    Raises:
        InputError: if there is none.
    """
    with Checkpoints(out) as checkpoints:
        newest = checkpoints.restore_newest(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    if newest is None:
        raise InputError(f"checkpoint: {out} holds no complete checkpoint yet")
    _, about, state = newest
    config = configs.from_dict(TrainConfig, about["config"])
    width = about["feature_width"]
    return Solver(
        config=config,
        step=int(state.step),
        teacher=about["teacher"],
        trained_on=frozenset(about["trained_on"]),
        feature_width=width,
        state=state,
        predict=make_predict(config, width),
    )


def state_like(about: dict[str, Any]) -> TrainState:
    """Returns the shapes and dtypes of the state that a checkpoint holds.

    Args:
        about: what the checkpoint says of itself.
    """
    config = configs.from_dict(TrainConfig, about["config"])
    width = about["feature_width"]
    model, batch = make_student(config.model, width), smallest_batch(config, width)
    tx = make_optimizer(config.optim, config.loss.form)
    scaling = empty_scaling(config.loss.scaling, width)
    return jax.eval_shape(lambda: init_state(model, tx, batch, scaling, 0))


def make_predict(config: TrainConfig, feature_width: int) -> Any:
    """Returns the jitted forward pass: (state, batch) -> log-probabilities f32[B, N, N, V]."""
    model = make_student(config.model, feature_width)

    def predict(state: TrainState, batch: Batch) -> jax.Array:
        variables = {"params": state.params}
        if config.model.reads_features:
            output = model.apply(variables, scale_teacher(batch, state.scaling))
            logits = output.logits  # pyright: ignore[reportAttributeAccessIssue]
        else:
            task, _ = model.apply(
                variables, batch.demonstrations, batch.demonstration_mask, method="encode_task"
            )
            logits, _ = model.apply(variables, task, batch.query, method="answer")
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    return jax.jit(predict)


def open_store(solver: Solver, path: str | None) -> FeatureStore:
    """Opens the features that a feature student reads, if they are its own teacher's."""
    path = path or solver.config.data.store
    if path is None:
        raise InputError("store: a feature student needs its teacher's features; pass --store")
    store = FeatureStore(path)
    kept = ("teacher", "weights_digest", "tap", "view", "prompt", "feature_width", "encoding")
    check_provenance(
        {key: store.provenance.get(key) for key in kept},
        {key: (solver.teacher or {}).get(key) for key in kept},
        path,
        hint="pass the --store that this student was trained on",
    )
    return store


def empty_scaling(kind: str, width: int) -> Scaling:
    """Returns a scaling of the right shapes, to restore one into."""
    rotation = np.zeros((width, width), np.float32) if kind == "phi_s" else None
    return replace(no_scaling(width), rotation=rotation, per_token=kind == "layer_norm")


def smallest_batch(config: TrainConfig, width: int) -> Batch:
    """A batch of one with the fewest tokens: parameter shapes depend on neither."""
    reads_features = config.model.reads_features
    side = config.model.answer_side if reads_features else 8
    tokens = 1 if reads_features else 3 * (side // 2) ** 2
    return Batch(
        demonstrations=np.zeros((1, 1, 2, side, side), np.uint8),
        demonstration_mask=np.ones((1, 1), bool),
        query=np.zeros((1, side, side), np.uint8),
        answer=np.zeros((1, side, side), np.uint8),
        teacher=np.zeros((1, tokens, width), np.float32),
        teacher_mask=np.ones((1, tokens), bool),
    )
