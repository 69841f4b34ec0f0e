"""A trained student, ready to answer questions. It never sees an answer: questions hold none."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bridge import config as configs
from bridge.arc import Question, Task, open_questions
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.scaling import Scaling
from bridge.store import FeatureStore, check_provenance
from bridge.transforms import Transform
from bridge.weights import is_release
from student_jax.batch import Augmentation, Batch, scale_teacher, smallest_batch
from student_jax.checkpoints import Checkpoints, digests_of
from student_jax.config import ModelConfig, TrainConfig
from student_jax.cores import map_at_once
from student_jax.data import Bucket, Examples
from student_jax.release import read_release
from student_jax.state import on_cpu
from student_jax.step import make_mesh, replicated
from student_jax.students import make_student
from student_jax.vote import Said, tally, views_of

Which = Literal["latest", "best"]
# (params, scaling, batch) -> log-probabilities f32[B, N, N, V]
Predict = Callable[[Any, Scaling, Batch], jax.Array]
BATCH = 8  # questions a call, at most; padded, so that a bucket compiles once
CELLS = 2048  # of queries a call, at most: memory follows them


@dataclass(frozen=True)
class Solver:
    """A student's weights with what is needed to use them."""

    config: TrainConfig
    step: int
    teacher: dict[str, Any] | None  # provenance of the features it was trained with
    init: dict[str, Any] | None  # the run whose weights it began with, see `resume.warm_start`
    trained_on: frozenset[str]  # task ids, and evaluation tasks whose answers it was shown
    feature_width: int  # of the teacher; 1 without one
    params: Any  # the moving average where the run kept one
    scaling: Scaling  # of the teacher's features
    predict: Predict

    @property
    def num_parameters(self) -> int:
        """Unique weights, embedding tables included."""
        return optax.tree.size(self.params)

    def digest(self) -> str:
        """Returns a sha256 of all weights."""
        leaves = digests_of(self.params)
        return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()

    @property
    def taught_before(self) -> list[dict[str, Any]]:
        """The teachers of the weights that it began with, as far as they are told."""
        return (self.init or {}).get("teachers", [])

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """Whoever taught these weights, or weights that they began with, the latest first."""
        return [*([self.teacher] if self.teacher else []), *self.taught_before]

    def solve(
        self, questions: Sequence[Question], store: str | None = None, views: int = 1
    ) -> dict[str, Attempts]:
        """Answers questions.

        Args:
            questions: what to answer.
            store: where a feature student finds the teacher's features of these questions; by
                default the store it was trained on. A grid student needs none.
            views: of each question, to vote on; a student that reads features knows only one.

        Returns:
            example_id -> attempts.

        Raises:
            InputError: if a feature student's store lacks a question or is another teacher's.
        """
        needs_teacher = self.config.model.reads_features
        features = open_store(self, store) if needs_teacher else None
        examples = Examples(questions, {}, self.config.model, self.config.data, features)
        if needs_teacher and views > 1:
            raise InputError("views: the teacher saw each question in one view; pass --views 1")
        return answer_all(self.predict, self.params, self.scaling, examples, views)


def load_solver(out: Path, which: Which = "latest", store: str | None = None) -> Solver:
    """Reads a training run's checkpoint, or a released student.

    Args:
        out: the folder.
        which: the latest, or the one that answered the most held-out questions.
        store: the teacher's features, which a released student that reads them needs.

    Raises:
        InputError: if there is none; if the best of a released student is asked for.
    """
    if is_release(out):
        if which == "best":
            raise InputError(f"{out}: a released student has no best weights; leave --which out")
        release = read_release(out, store=store)
        step = release.about["step"]
        return make_solver(release.config, step, release.about, release.params, release.scaling)
    # Orbax restores in all processes together or not at all.
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sharding = alone if jax.process_count() == 1 else replicated(make_mesh())
    with Checkpoints(out) as checkpoints:
        if which == "best":
            _, about, state = checkpoints.restore_best(sharding)
        elif newest := checkpoints.restore_newest(sharding):
            _, about, state = newest
        else:
            raise InputError(f"checkpoint: {out} holds no complete checkpoint yet")
    config = configs.from_dict(TrainConfig, about["config"])
    return make_solver(config, int(state.step), about, state.answering, state.scaling)


def make_solver(
    config: TrainConfig, step: int, about: Mapping[str, Any], params: Any, scaling: Scaling
) -> Solver:
    """Puts a student together with what a checkpoint or a release tells of it."""
    return Solver(
        config=config,
        step=step,
        teacher=about["teacher"],
        init=about.get("init"),
        # What its training pairs gave away of the evaluation set it was trained on, too.
        trained_on=frozenset({*about["trained_on"], *about.get("leaked", {})}),
        feature_width=about["feature_width"],
        params=params,
        scaling=scaling,
        predict=make_predict(config.model, about["feature_width"]),
    )


def begin_again(solver: Solver) -> Solver:
    """Returns the control of a student: the same with new random weights, drawn by its seed.

    They are those that its training began with, unless that began with another run's. What has
    learnt nothing was trained on no task, and no teacher taught it.
    """
    model = make_student(solver.config.model, solver.feature_width)
    empty = smallest_batch(solver.config.model, solver.feature_width)
    seed = solver.config.seed
    params = on_cpu(lambda: model.init(jax.random.key(seed), empty)["params"])
    teacher = solver.teacher if solver.config.model.reads_features else None  # it still reads them
    return replace(
        solver,
        step=0,
        teacher=teacher,
        init=None,
        trained_on=frozenset(),
        params=jax.device_put(params),
    )


def answer_all(
    predict: Predict, params: Any, scaling: Scaling, examples: Examples, views: int = 1
) -> dict[str, Attempts]:
    """Returns example_id -> attempts, in the order of the examples; all views in few calls."""
    said: dict[int, list[Said]] = defaultdict(list)

    def ask(call: tuple[Batch, list[tuple[int, Transform]]]) -> tuple[Any, Any]:
        batch, asked = call
        return asked, np.asarray(predict(params, scaling, batch))

    # Grids take little memory, features do not.
    in_turn: Any = map if examples.model.reads_features else map_at_once
    for asked, log_probs in in_turn(ask, calls(examples, views)):
        for (i, view), values in zip(asked, log_probs, strict=False):
            said[i].append((view, values))
    return {
        example.question.example_id: tally(said[i]) for i, example in enumerate(examples.examples)
    }


def calls(
    examples: Examples, views: int = 1
) -> Iterator[tuple[Batch, list[tuple[int, Transform]]]]:
    """Yields batches of one bucket each, all of a bucket of one size, in few calls.

    With each the examples and views that are asked; what fills the batch up comes after them. In
    the first view an example is as its teacher saw it.
    """
    buckets: dict[Bucket, list[tuple[int, Transform]]] = defaultdict(list)
    for i, example in enumerate(examples.examples):
        buckets[example.bucket] += [(i, view) for view in views_of(views)]
    for bucket, asked in sorted(buckets.items()):
        size = BATCH
        if examples.model.kind == "grid":
            size = max(1, min(BATCH, CELLS // bucket.size**2))
        for start in range(0, len(asked), size):
            chosen = asked[start : start + size]
            indices, shown = zip(*chosen, *[chosen[-1]] * (size - len(chosen)), strict=True)
            plain = Transform()
            how = [None if view == plain else Augmentation(view) for view in shown]
            yield examples.batch(indices, how), chosen


def by_task(
    tasks: Iterable[Task], answers: Mapping[str, Attempts]
) -> dict[str, tuple[Attempts, ...]]:
    """Returns task_id -> the attempts at its test inputs, in order."""
    return {
        task.task_id: tuple(answers[question.example_id] for question in open_questions(task))
        for task in tasks
    }


@functools.lru_cache(maxsize=8)  # traced once a process, however many solvers there are
def make_predict(config: ModelConfig, feature_width: int) -> Predict:
    """Returns the jitted forward pass."""
    model = make_student(config, feature_width)

    def predict(params: Any, scaling: Scaling, batch: Batch) -> jax.Array:
        variables = {"params": params}
        if config.reads_features:
            output = model.apply(variables, scale_teacher(batch, scaling))
            logits = output.logits  # pyright: ignore[reportAttributeAccessIssue]
        else:
            read: Any = model.apply(variables, batch, method="read")
            logits = read[2]
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
