"""What goes in and out, as the interface's description has it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bridge.arc import MAX_SIDE, NUM_COLORS
from student_jax.config import Tier
from student_jax.service.jobs import State

Grid = list[list[int]]

_CELL = {"type": "integer", "minimum": 0, "maximum": NUM_COLORS - 1}
_ROW = {"type": "array", "minItems": 1, "maxItems": MAX_SIDE, "items": _CELL}
_GRID = {"type": "array", "minItems": 1, "maxItems": MAX_SIDE, "items": _ROW}
FLIP = {  # an example: each row reversed
    "train": [
        {"input": [[1, 0, 0], [0, 2, 0]], "output": [[0, 0, 1], [0, 2, 0]]},
        {"input": [[3, 3, 0], [0, 0, 4]], "output": [[0, 3, 3], [4, 0, 0]]},
    ],
    "test": [{"input": [[5, 0, 0], [6, 6, 0]]}],
}


def task_body(demonstrations: int, test_inputs: int) -> dict[str, Any]:
    """Describes a request's body; that rows are equally long JSON Schema cannot say."""

    def items(keys: list[str], most: int) -> dict[str, Any]:
        pair = {"type": "object", "properties": dict.fromkeys(keys, _GRID), "required": keys}
        return {"type": "array", "minItems": 1, "maxItems": most, "items": pair}

    schema = {
        "type": "object",
        "properties": {
            "train": items(["input", "output"], demonstrations),
            "test": items(["input"], test_inputs),
        },
        "required": ["train", "test"],
        "example": FLIP,
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class Form(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Fault(Form):
    """Why there is no answer."""

    detail: str = Field(description="one line")


class Answer(Form):
    """What is answered to one test input."""

    attempts: list[Grid] = Field(description="two, the likelier first")
    confidence: float = Field(description="in the first attempt, 0..1")
    log_prob: float | None = Field(description="mean over the cells of the first attempt, nats")
    certainty: list[list[float]] | None = Field(
        None, description="of each cell of the first attempt, 0..1; where it is asked for"
    )


class Solved(Form):
    """Answers in one pass."""

    tier: str
    views: int
    milliseconds: float = Field(description="from the parsed question to the grid")
    queued_milliseconds: float = Field(description="before that, in the queue")
    answers: list[Answer] = Field(description="one a test input, in order")


class Queued(Form):
    """An adaptation that was taken on."""

    job: str
    state: State


class Learning(Form):
    """How far an adaptation has come."""

    job: str
    state: State
    tier: Tier
    views: int
    step: int
    progress: float = Field(description="share of the steps or seconds that is spent, 0..1")
    loss: float | None = Field(description="of the last step, nats a cell")
    fit: float = Field(description="share of right cells in the last steps, 0..1")
    seconds: float
    curve: list[tuple[int, float | None, float]] = Field(description="step, loss and fit")
    answers: list[Answer] = Field(description="one a test input, once there are some")
    error: str | None = None


class Health(Form):
    """Who answers here, and whether more is taken on."""

    status: Literal["ok", "draining"]
    student: str
    parameters: int
    step: int
    trained_on_tasks: int
    teacher: str
    waiting: int = Field(description="questions in the queue")
    max_side: int
    max_demonstrations: int = Field(description="of a task, read in one pass; learning takes all")
    tiers: list[str]


class KnownPair(Form):
    """An input grid with its output, which is null where it is not known."""

    input: Grid
    output: Grid | None


class KnownTask(Form):
    """A task of the sources, its truth included: for people to see, never for the student."""

    id: str
    source: str
    trained_on: bool
    train: list[KnownPair]
    test: list[KnownPair]


class Compared(Form):
    """What another student answered to a task."""

    name: str
    tier: str
    answers: list[Answer]
