"""What the teacher is shown.

In the shape descriptions: `B` batch (1 here), `T` frames in time, `V` cameras (1 here),
`H`, `W` pixels, `C` = 3 channels.

`task_view` takes a `Question` and `pair_view` takes a demonstration `Pair`: no function here can
be given a query's answer, because neither type holds one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bridge.arc import MAX_SIDE, Grid, Pair, Question
from bridge.render import OUTSIDE, render_on

TILE_PX = 224  # SigLIP so400m's input side: 16 x 16 patches of 14 px
PATCHES = 16  # a frame's image tokens form a PATCHES x PATCHES map
TASK_CELL_PX = 7  # one 14 px patch shows 2 x 2 cells; 32 cells fill a tile
PATCH_CELLS = 2  # cells a side of one patch of a task view
MAX_DEMONSTRATIONS = 10  # + the query = 21 frames = 5376 image tokens, inside the seed's 6000
PAIR_CELL_PX = 30  # the original's: 30 x 30 cells = 900 px
TASK_PROMPT = "Work out the rule from the examples and apply it to the last grid."

Role = Literal["input", "output", "query"]


@dataclass(frozen=True)
class Frame:
    """Which grid a frame shows. `demonstration` is -1 for the query."""

    role: Role
    demonstration: int
    rows: int
    cols: int


@dataclass(frozen=True)
class View:
    """A video for the teacher with a note of what each frame shows."""

    example_id: str
    video: npt.NDArray[np.uint8]  # u8[1, T, 1, H, W, 3]
    frames: tuple[Frame, ...]  # T of them
    prompt: str
    dynamic_tiling: bool  # cut each frame into up to 12 tiles, or one tile a frame


def task_view(question: Question, prompt: str = TASK_PROMPT) -> View:
    """Shows the demonstrations, then the query: in1 out1 in2 out2 ... query, one tile each.

    Only the first 10 demonstrations are shown; the largest ARC-AGI-1 task has 10. The prompt holds
    no task id: the original's did, and leaked it to the student as text tokens.

    Returns:
        View with video u8[1, 2 * demonstrations + 1, 1, 224, 224, 3].
    """
    grids: list[tuple[Role, int, Grid]] = []
    for i, pair in enumerate(question.demonstrations[:MAX_DEMONSTRATIONS]):
        grids.append(("input", i, pair.input))
        grids.append(("output", i, pair.output))
    grids.append(("query", -1, question.query))
    tiles = [render_on(TILE_PX // TASK_CELL_PX, g, TASK_CELL_PX, OUTSIDE) for _, _, g in grids]
    frames = tuple(Frame(role, i, *grid.shape) for role, i, grid in grids)
    return View(question.example_id, _video(tiles), frames, prompt, dynamic_tiling=False)


def pair_view(example_id: str, demonstration: Pair, prompt: str = TASK_PROMPT) -> View:
    """Shows one demonstration as the original did: input, then output, 900 x 900 px each.

    For parity with the original and for latency. There is no way to ask it for a query: a query's
    output is never part of a `Pair`. Cells outside the grid are black, as in the original.

    Returns:
        View with video u8[1, 2, 1, 900, 900, 3].
    """
    pictures = [
        render_on(MAX_SIDE, grid, PAIR_CELL_PX, (0, 0, 0))
        for grid in (demonstration.input, demonstration.output)
    ]
    frames = (
        Frame("input", 0, *demonstration.input.shape),
        Frame("output", 0, *demonstration.output.shape),
    )
    return View(example_id, _video(pictures), frames, prompt, dynamic_tiling=True)


def shown_sides(question: Question) -> tuple[tuple[int, int], ...]:
    """Returns rows and columns of each grid that `task_view` shows, in order."""
    pairs = question.demonstrations[:MAX_DEMONSTRATIONS]
    shown = [grid for pair in pairs for grid in (pair.input, pair.output)] + [question.query]
    return tuple((grid.shape[0], grid.shape[1]) for grid in shown)


def task_digest(question: Question, prompt: str) -> str:
    """Returns the sha256 of all that `task_view` shows: grids in order, and the prompt."""
    shown = [g for pair in question.demonstrations for g in (pair.input, pair.output)]
    return _digest([*shown, question.query], prompt)


def pair_digest(demonstration: Pair, prompt: str) -> str:
    """Returns the sha256 of all that `pair_view` shows."""
    return _digest([demonstration.input, demonstration.output], prompt)


def prompt_for(template: str, task_id: str) -> str:
    """Returns the prompt for a task: `{task_id}` is replaced, as the original did."""
    return template.replace("{task_id}", task_id)


def _digest(grids: Sequence[Grid], prompt: str) -> str:
    total = hashlib.sha256(prompt.encode())
    for grid in grids:
        total.update(bytes(grid.shape) + grid.tobytes())
    return total.hexdigest()


def _video(pictures: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.stack(pictures)[None, :, None]  # [T, H, W, 3] -> [1, T, 1, H, W, 3]
