"""Batches as a pure function of (seed, step): nothing about the data needs to be checkpointed."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bridge.arc import Grid, Question
from bridge.canvas import fits, side_for
from bridge.errors import InputError
from bridge.rearc import is_generated
from bridge.store import FeatureStore
from bridge.views import prompt_for, task_digest
from student_jax.batch import (
    TOKEN_BUCKET,
    Augmentation,
    Batch,
    answer_canvas,
    check_features,
    colors_of,
    demonstration_canvases,
    feature_batch,
    frame_maps,
    palette_of,
    room_for,
    whole_answer,
)
from student_jax.config import DataConfig, ModelConfig
from student_jax.plan import Plan, plan_epoch

SPOILT = "features not finite"
HIDDEN = 0.5  # share of the examples that do without their row of the table
AHEAD = 2  # batches drawn before they are asked for


class Bucket(NamedTuple):
    """What examples share that go into one batch; each compiles once."""

    size: int  # grid: canvas side; feature: padded sequence length
    colors: int = 0  # grid: slots of the palette


@dataclass(frozen=True)
class Example:
    """A question, its answer if it is to be trained on, and the bucket its shapes fall in."""

    question: Question
    answer: Grid | None
    bucket: Bucket
    colors: tuple[int, ...]  # that demonstrations and query show

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's features are there to be learnt, if there is a store."""
        return self.answer is not None and not is_generated(self.question)

    @property
    def longest(self) -> int:
        """Cells along the longest side of all its grids."""
        grids = [
            grid for pair in self.question.demonstrations for grid in (pair.input, pair.output)
        ]
        grids += [self.question.query, *([] if self.answer is None else [self.answer])]
        return max(max(grid.shape) for grid in grids)


class Examples:
    """Makes batches of examples for one kind of student."""

    def __init__(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, Grid],
        model: ModelConfig,
        data: DataConfig,
        store: FeatureStore | None,
        side: int | None = None,
        doubles: Mapping[str, Sequence[str]] | None = None,
        leaked: Mapping[str, Sequence[str]] | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Sorts the questions into buckets.

        Args:
            questions: what to answer.
            answers: example_id -> output; empty when solving. A question whose answer does not fit
                the canvas that its question suggests is left out and counted in `left_out`.
            model: which student.
            data: how many demonstrations, and whether to augment.
            store: the teacher's features, or None for a grid student without a teacher.
            side: of a grid student's canvases; by default the smallest that each question suggests.
            doubles: task_id -> held-out pairs, for tasks that were left out because they have them.
            leaked: id of a public evaluation task -> the examples that hold its answers.
            dropped: why -> how many generated pairs were left out.

        Raises:
            InputError: if the store cannot serve this student.
        """
        self.model, self.data, self.store, self._side = model, data, store, side
        self.doubles, self.leaked = dict(doubles or {}), dict(leaked or {})
        self.dropped = dict(dropped or {})
        self._planned: tuple[tuple[int, int, int], list[npt.NDArray[np.int64]]] | None = None
        self._steps: dict[int, int] = {}  # of an epoch, by the size of its batches
        if store is not None and store.provenance.get("view") != "task":
            raise InputError(
                f"store {store.path}: view: expected task, got {store.provenance.get('view')}; "
                "the pair view shows the teacher the answer, so nothing may be trained on it"
            )
        self.count = min(
            data.max_demonstrations, max((len(q.demonstrations) for q in questions), default=1)
        )
        self.examples = [self._example(q, answers.get(q.example_id)) for q in questions]
        if store is not None:
            for example in self.examples:  # now, not a thousand steps in
                if example.has_teacher or model.reads_features:
                    check_shown(store, example.question)
        kept = [e for e in self.examples if e.answer is None or self._has_room(e, e.answer)]
        self.left_out = len(self.examples) - len(kept)
        self.examples = kept

    @property
    def feature_width(self) -> int:
        """`F`, or 1 without a store: projectors are there, and no features to hold them against."""
        return self.store.feature_width if self.store else 1

    def taught_share(self, plan: Plan) -> float:
        """Returns the share of an epoch's examples that come with the teacher's features."""
        if self.store is None:
            return 0.0
        places = range(plan.batch_size)
        if not self.model.reads_features:
            places = plan.plain(self.data.augmented_fraction)
        planned = self._plan(plan, 0)
        seen = sum(self.examples[batch[i]].has_teacher for batch in planned for i in places)
        return seen / (len(planned) * plan.batch_size)

    def batch(
        self,
        indices: Sequence[int],
        augmentations: Sequence[Augmentation | None] | None = None,
        stride: int = 1,
    ) -> Batch:
        """Draws the examples of one bucket.

        Args:
            indices: into `examples`, all of the same bucket.
            augmentations: one per example; None leaves an example as its teacher saw it.
            stride: a grid student's teacher is read for every so many-th; 0: for none.
        """
        chosen = [self.examples[i] for i in indices]
        if self.model.reads_features:
            return self._feature_batch(chosen)
        shown = augmentations or [None] * len(chosen)
        drawn = [self._draw(example, how) for example, how in zip(chosen, shown, strict=True)]
        stacked = {name: np.stack([each[name] for each in drawn]) for name in drawn[0]}
        places = range(0, len(chosen), stride) if stride and self.store else ()
        return Batch(**stacked, **self._teacher(chosen, shown, places))

    def train_batches(
        self, plan: Plan, first_step: int, place: Callable[[Batch], Batch] = lambda batch: batch
    ) -> Generator[Batch, None, None]:
        """Yields the batches from `first_step` on; the next ones are drawn and placed meanwhile."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        submit = lambda step: pool.submit(lambda: place(self.train_batch(plan, step)))  # noqa: E731
        try:
            upcoming = deque(submit(first_step + i) for i in range(AHEAD))
            for step in itertools.count(first_step + AHEAD):
                batch = upcoming.popleft().result()
                upcoming.append(submit(step))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def train_batch(self, plan: Plan, step: int) -> Batch:
        """Returns this process' rows of a step's batch: a pure function of plan and step."""
        chosen, shown = self.indices(plan, step), self._augment(plan, step)
        stride = plan.stride(self.data.augmented_fraction)
        batch = self.batch(chosen[plan.rows], shown[plan.rows], stride)
        if self.model.table:
            batch = replace(batch, row=self._rows(plan, step, chosen, shown)[plan.rows])
        return batch

    def steps_per_epoch(self, batch_size: int) -> int:
        """How many batches show each example at least once."""
        if batch_size not in self._steps:
            self._steps[batch_size] = len(self._plan(Plan(0, batch_size), 0))
        return self._steps[batch_size]

    def buckets(self, plan: Plan) -> dict[Bucket, tuple[int, int]]:
        """Returns bucket -> its first step of the first epoch, and its steps an epoch."""
        found: dict[Bucket, tuple[int, int]] = {}
        for step in range(self.steps_per_epoch(plan.batch_size)):
            bucket = self.examples[self.indices(plan, step)[0]].bucket
            first, count = found.get(bucket, (step, 0))
            found[bucket] = (first, count + 1)
        return found

    def indices(self, plan: Plan, step: int) -> list[int]:
        """Returns which examples a step's whole batch holds."""
        epoch, place = divmod(step, self.steps_per_epoch(plan.batch_size))
        return self._plan(plan, epoch)[place].tolist()

    def name_batch(self, plan: Plan, step: int) -> str:
        """Names the examples in a step's batch, and which of them a teacher spoilt."""
        names = [self.examples[i].question.example_id for i in self.indices(plan, step)]
        spoilt = [
            name
            for name in names
            if self.store and name in self.store.records
            if not np.isfinite(self.store.read(name).astype(np.float32)).all()
        ]
        text = ", ".join(names)
        return f"{text} ({SPOILT}: {', '.join(spoilt)})" if spoilt else text

    def _plan(self, plan: Plan, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Returns an epoch's plan, made once an epoch and not once a step."""
        key = (plan.batch_size, plan.seed, epoch)
        planned = self._planned  # another thread, which names a batch, may be at another epoch
        if planned is None or planned[0] != key:
            buckets = [e.bucket for e in self.examples]
            seen = [e.has_teacher for e in self.examples]
            plain = plan.plain(self.data.augmented_fraction)
            planned = self._planned = (key, plan_epoch(buckets, seen, plain, *key))
        return planned[1]

    def _augment(self, plan: Plan, step: int) -> list[Augmentation | None]:
        """Augments all examples but those in the plain places."""
        if self.model.reads_features:
            return [None] * plan.batch_size  # the teacher saw the original
        rng = np.random.default_rng((plan.seed, step))
        plain = set(plan.plain(self.data.augmented_fraction))
        chosen = [self.examples[i] for i in self.indices(plan, step)]
        return [
            None if i in plain else Augmentation.draw(rng, example.longest, example.bucket.size)
            for i, example in enumerate(chosen)
        ]

    def _rows(
        self,
        plan: Plan,
        step: int,
        chosen: Sequence[int],
        shown: Sequence[Augmentation | None],
    ) -> npt.NDArray[np.int32]:
        """Tells which row of the table each example may use, i32[B, 2]; half of them none.

        So the encoder learns to do without, and the one row of all that have none is learnt.
        """
        hidden = np.random.default_rng((plan.seed, step, 1)).random(len(chosen)) < HIDDEN
        rows = [self._row_of[self.examples[i].question.task_id] for i in chosen]
        symmetries = [(how or Augmentation()).transform.dihedral for how in shown]
        return np.stack([np.where(hidden, -1, rows), symmetries], 1).astype(np.int32)

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        """Numbers the tasks in the order of their names."""
        tasks = sorted({example.question.task_id for example in self.examples})
        return {task_id: row for row, task_id in enumerate(tasks)}

    def _has_room(self, example: Example, answer: Grid) -> bool:
        side = self.model.answer_side if self.model.reads_features else example.bucket.size
        return self.model.kind == "original" or fits(answer, side)

    def _example(self, question: Question, answer: Grid | None) -> Example:
        if self.model.kind != "grid":
            return Example(question, answer, Bucket(self._length(question)), ())
        colors = colors_of(question.demonstrations[: self.count], question.query)
        bucket = Bucket(self._side or side_for(question), room_for(colors))
        return Example(question, answer, bucket, colors)

    def _length(self, question: Question) -> int:
        if self.store is None:
            raise InputError("data.store: a feature student needs a feature store")
        tokens = self.store.record(question.example_id).num_tokens
        if tokens > self.model.max_tokens:
            raise InputError(
                f"model.max_tokens: expected at least {tokens} for {question.example_id}, "
                f"got {self.model.max_tokens}"
            )
        return min(-(-tokens // TOKEN_BUCKET) * TOKEN_BUCKET, self.model.max_tokens)

    def _draw(self, example: Example, augmentation: Augmentation | None) -> dict[str, npt.NDArray]:
        question, side, how = example.question, example.bucket.size, augmentation or Augmentation()
        pairs, mask = demonstration_canvases(question.demonstrations, side, self.count, how)
        return {
            "demonstrations": pairs,
            "demonstration_mask": mask,
            "palette": palette_of(example.colors, how),
            "query": how.canvas(question.query, side),
            "answer": answer_canvas(example.answer, side, how),
        }

    def _teacher(
        self,
        examples: Sequence[Example],
        shown: Sequence[Augmentation | None],
        places: Sequence[int],
    ) -> dict[str, npt.NDArray]:
        """The teacher's maps in some places; masked zeros where it never saw an example so."""
        side = examples[0].bucket.size
        tokens = (2 * self.count + 1) * (side // 2) ** 2
        maps = np.zeros((len(places), tokens, self.feature_width), ml_dtypes.bfloat16)
        mask = np.zeros((len(places), tokens), bool)
        for row, place in enumerate(places):
            example, name = examples[place], examples[place].question.example_id
            if self.store is not None and shown[place] is None and example.has_teacher:
                maps[row], mask[row] = frame_maps(
                    self.store.read(name), self.store.record(name), side, self.count
                )
        return {"teacher": maps, "teacher_mask": mask}

    def _feature_batch(self, examples: Sequence[Example]) -> Batch:
        if self.store is None:
            raise InputError("data.store: a feature student needs a feature store")
        ids = [example.question.example_id for example in examples]
        features, mask = self.store.batch(ids, TOKEN_BUCKET, self.model.max_tokens)
        check_features(features, mask, self.feature_width, self.model.max_tokens)
        side = self.model.answer_side
        draw = whole_answer if self.model.kind == "original" else answer_canvas
        answers = np.stack([draw(example.answer, side) for example in examples])
        return feature_batch(features, mask, answers)


def check_shown(store: FeatureStore, question: Question) -> None:
    """Refuses features of other grids than the question's: a task that changed since.

    Raises:
        InputError: also if the store lacks the example.
    """
    prompt = prompt_for(store.provenance["prompt"], question.task_id)
    if store.record(question.example_id).view_digest != task_digest(question, prompt):
        raise InputError(
            f"store {store.path}: {question.example_id}: the teacher was shown other grids than "
            "the task holds now; run the extract command again"
        )
