"""What every engine does, whichever runtime computes: draws, remembers tasks, reads the grids.

In the shape descriptions: `Q` questions, `W` views of each, `P` places for demonstrations, `N`
canvas side, `C` slots of the palette, `V` cell classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bridge.arc import Question
from bridge.canvas import Attempts, side_for
from student_jax.batch import (
    Augmentation,
    colors_of,
    demonstration_canvases,
    palette_of,
    places_for,
    room_for,
)
from student_jax.data import Bucket
from student_jax.vote import tally, views_of

REMEMBERED = 256  # tasks whose tokens are kept: the oldest make room
CELLS = 8192  # of queries in one call, at most: memory follows them


class Shape(NamedTuple):
    """What questions share that one call answers."""

    bucket: Bucket
    places: int  # P
    views: int  # W
    questions: int = 1  # Q, or tasks to be read


class Drawn(NamedTuple):
    """A question's views."""

    demonstrations: npt.NDArray[np.uint8]  # u8[W, P, 2, N, N]
    mask: npt.NDArray[np.bool_]  # bool[W, P], False for empty places
    palette: npt.NDArray[np.uint8]  # u8[W, C]
    queries: npt.NDArray[np.uint8]  # u8[W, N, N]

    @property
    def shape(self) -> Shape:
        """Of one such question."""
        bucket = Bucket(self.queries.shape[-1], self.palette.shape[-1])
        return Shape(bucket, self.mask.shape[1], len(self.queries))


@dataclass(frozen=True)
class Prepared:
    """Questions whose tasks are read: all that is left is one call."""

    run: Callable[[], Any]  # log-probabilities f32[>= Q * W, N, N, V]; they may still be computed
    tasks: tuple[Any, ...]  # Q of them, as the runtime keeps them


class Answerer(ABC):
    """A grid student, ready: what a server holds. It is used by one thread at a time."""

    def __init__(self, most_pairs: int) -> None:
        """Remembers no task yet.

        Args:
            most_pairs: demonstrations that the student reads; what a task has more is left out.
        """
        self.most_pairs = most_pairs
        self._tasks: OrderedDict[bytes, Any] = OrderedDict()

    @abstractmethod
    def warm_up(self, shape: Shape) -> None:
        """Makes ready whatever takes time at the first question of a shape."""

    @abstractmethod
    def read(self, drawn: Sequence[Drawn]) -> Sequence[Any]:
        """Reads the tasks of questions of one shape."""

    @abstractmethod
    def ask(self, tasks: Sequence[Any], drawn: Sequence[Drawn]) -> Callable[[], Any]:
        """Returns what answers questions of one shape, given their tasks; see `Prepared.run`."""

    def answer(self, question: Question, views: int = 1) -> Attempts:
        """Answers a question from so many views of it, all in one call.

        Raises:
            InputError: if there are not so many views.
        """
        return self.answer_all([question], views)[0]

    def answer_all(self, questions: Sequence[Question], views: int = 1) -> list[Attempts]:
        """Answers questions as `answer` does each; those of one shape share a call.

        Raises:
            InputError: if there are not so many views.
        """
        shown = [Augmentation(view) for view in views_of(views)]
        drawn = [self.draw(question, shown) for question in questions]
        called = [(members, self.ready([drawn[i] for i in members])) for members in calls(drawn)]
        running = [(members, prepared.run()) for members, prepared in called]
        attempts: dict[int, Attempts] = {}
        for members, said in running:
            log_probs = np.asarray(said)
            for start, i in enumerate(members):
                own = log_probs[start * views : (start + 1) * views]
                answered = zip(shown, own, strict=True)
                attempts[i] = tally([(how.transform, values) for how, values in answered])
        return [attempts[i] for i in range(len(questions))]

    def prepare(self, question: Question, views: int = 1) -> Prepared:
        """Reads a question's task, unless that was done before."""
        shown = [Augmentation(view) for view in views_of(views)]
        return self.ready([self.draw(question, shown)])

    def shape(self, question: Question, views: int = 1) -> Shape:
        """Returns what questions share that can be answered in one call; nothing is drawn."""
        pairs = question.demonstrations[: self.most_pairs]
        bucket = Bucket(side_for(question), room_for(colors_of(pairs, question.query)))
        return Shape(bucket, places_for(len(pairs), self.most_pairs), views)

    def draw(self, question: Question, shown: Sequence[Augmentation] = (Augmentation(),)) -> Drawn:
        """Draws views of a question."""
        pairs, side = question.demonstrations[: self.most_pairs], side_for(question)
        places, colors = places_for(len(pairs), self.most_pairs), colors_of(pairs, question.query)
        drawn = [demonstration_canvases(pairs, side, places, how) for how in shown]
        demonstrations, mask = (np.stack(each) for each in zip(*drawn, strict=True))
        palette = np.stack([palette_of(colors, how) for how in shown])
        queries = np.stack([how.canvas(question.query, side) for how in shown])
        return Drawn(demonstrations, mask, palette, queries)

    def ready(self, drawn: Sequence[Drawn]) -> Prepared:
        """Reads what tasks of questions of one shape were not read before, each once."""
        sizes = str(drawn[0].shape).encode()
        keys = [b"".join([sizes, *(x.tobytes() for x in each[:3])]) for each in drawn]
        known = {key: self._tasks[key] for key in keys if key in self._tasks}
        new = {key: each for key, each in zip(keys, drawn, strict=True) if key not in known}
        if new:
            known |= zip(new, self.read(list(new.values())), strict=True)
        for key in keys:
            self._tasks[key] = known[key]
            self._tasks.move_to_end(key)
        while len(self._tasks) > REMEMBERED:
            self._tasks.popitem(last=False)
        tasks = tuple(known[key] for key in keys)
        return Prepared(self.ask(tasks, drawn), tasks)

    def forget(self) -> None:
        """Forgets the tasks that were read."""
        self._tasks.clear()


def calls(drawn: Sequence[Drawn]) -> list[list[int]]:
    """Returns which questions are answered in one call: those of one shape, up to `CELLS` cells."""
    members: dict[Shape, list[int]] = defaultdict(list)
    for i, each in enumerate(drawn):
        members[each.shape].append(i)
    found = []
    for shape, alike in members.items():
        room = max(1, CELLS // (shape.views * shape.bucket.size**2))
        most = 1 << (room.bit_length() - 1)  # a power of two, so that a full call pads nothing
        found += [alike[start : start + most] for start in range(0, len(alike), most)]
    return found
