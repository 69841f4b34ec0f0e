"""The proofs that an export is held against: inputs with what the JAX student says to them.

In the shape descriptions: `B` batch, `N` canvas side, `V` cell classes, `T` teacher tokens, `F`
teacher feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge import weights
from bridge.arc import Grid
from bridge.canvas import classes_of, decode, log_probs_of
from bridge.errors import InputError
from bridge.weights import Array

PROOFS = "proof.safetensors"  # in an export's folder
_FEATURES = {"features": ("batch", "tokens", ""), "mask": ("batch", "tokens")}
# What a student takes, in this order, and the name of each size that is free.
INPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "grid": {
        "demonstrations": ("batch", "demonstrations", "", "side", "side"),
        "mask": ("batch", "demonstrations"),
        "palette": ("batch", "colors"),
        "query": ("batch", "side", "side"),
    },
    "feature": _FEATURES,
    "original": _FEATURES,
}
MIN_PROOFS = 100
TOLERANCE = 1e-4  # of log-probabilities in f32; the largest gap is told
MAX_TIES = 0.03  # share of the questions whose grids may differ, and those by a near-tie only


@dataclass(frozen=True)
class Proof:
    """One batch, and the JAX student's answers in f32."""

    inputs: dict[str, Array]  # in the order that a student takes them
    log_probs: Array  # f32[B, N, N, V]
    projected: Array | None = None  # f32[B, T, F], of some that read features


# Inputs by name -> log-probabilities, and projected features where there are any.
Answer = Callable[[dict[str, Array]], tuple[Array, Array | None]]


@dataclass(frozen=True)
class Verdict:
    """What became of a comparison that did not fail."""

    largest: float  # gap
    inputs: int
    questions: int  # in the inputs' batches
    ties: int  # questions with other grids, each by a near-tie

    def __str__(self) -> str:
        """Says it in a few words."""
        same = "all grids the same" if not self.ties else f"{self.ties} near-ties fell otherwise"
        told = f"largest gap {self.largest:.2e} over {self.inputs} inputs"
        return f"{told} ({self.questions} questions), {same}"


def save_proofs(path: Path, kind: str, proofs: Sequence[Proof]) -> None:
    """Writes proofs into one file."""
    tensors: dict[str, Array] = {}
    for i, proof in enumerate(proofs):
        values = {**proof.inputs, "log_probs": proof.log_probs}
        if proof.projected is not None:
            values["projected"] = proof.projected
        tensors |= {f"{i}.{name}": np.ascontiguousarray(value) for name, value in values.items()}
    weights.save(path, tensors, {"kind": kind, "proofs": str(len(proofs))})


def read_proofs(folder: Path) -> list[Proof]:
    """Reads an export's proofs.

    Raises:
        InputError: if they are damaged, or too few to prove anything.
    """
    path = folder / PROOFS
    tensors, about = weights.load(path)
    try:
        names = INPUTS[about["kind"]]
        proofs = [
            Proof(
                {name: tensors[f"{i}.{name}"] for name in names},
                tensors[f"{i}.log_probs"],
                tensors.get(f"{i}.projected"),
            )
            for i in range(int(about["proofs"]))
        ]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: expected the proofs of an export, lacks {error}; export the student again"
        ) from None
    if len(proofs) < MIN_PROOFS:
        raise InputError(f"{path}: expected at least {MIN_PROOFS} proofs, got {len(proofs)}")
    return proofs


def hold(answer: Answer, proofs: Sequence[Proof], what: str) -> Verdict:
    """Compares a student's answers with JAX's.

    Log-probabilities may be `TOLERANCE` apart, projected features as much relative to their
    largest. Both attempts must be the same grids, cell by cell. One exception, which is counted:
    two grids between which JAX's own numbers hardly choose (see `is_near_tie`) may fall either way
    by rounding, in at most `MAX_TIES` of all questions.

    Raises:
        InputError: naming the first proof that fails.
    """
    largest, ties, questions = 0.0, 0, 0
    for i, proof in enumerate(proofs):
        try:
            log_probs, projected = answer(proof.inputs)
            gap = float(np.abs(log_probs - proof.log_probs).max())
            if proof.projected is not None and projected is not None:
                valid = proof.inputs["mask"]
                apart = np.abs(projected - proof.projected)[valid].max()
                gap = max(gap, float(apart / max(np.abs(proof.projected).max(), 1.0)))
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            fault = " ".join(str(error).split())[:160]
            raise InputError(f"{what}: proof {i}: cannot be answered: {fault}") from None
        if not gap <= TOLERANCE:
            raise InputError(
                f"{what}: proof {i}: expected the JAX student's answer, got one {gap:.2e} away "
                f"(at most {TOLERANCE:.0e}); no file was written"
            )
        largest, questions = max(largest, gap), questions + len(log_probs)
        for ours, theirs in zip(proof.log_probs, log_probs, strict=True):
            ties += _falls_otherwise(ours, theirs, f"{what}: proof {i}")
    if ties > MAX_TIES * questions:
        raise InputError(
            f"{what}: expected the JAX student's grids, got {ties} of {questions} questions "
            f"answered otherwise (at most {MAX_TIES:.0%}, near-ties only); no file was written"
        )
    return Verdict(largest, len(proofs), questions, ties)


def is_near_tie(log_probs: Array, one: Grid, other: Grid) -> bool:
    """Whether two answers are as probable as each other, up to twice the tolerance a cell.

    Twice, since one answer's cell may have lost and the other's may have won as much as is
    tolerated; only cells in which their canvases differ count.

    Args:
        log_probs: f32[N, N, V] of the student that is trusted.
        one: an answer.
        other: another.
    """
    differ = classes_of(one, log_probs) != classes_of(other, log_probs)
    lead = log_probs_of(one, log_probs) - log_probs_of(other, log_probs)
    return abs(float(lead.sum(dtype=np.float64))) <= 2 * TOLERANCE * int(differ.sum())


def _falls_otherwise(ours: Array, theirs: Array, where: str) -> bool:
    """Whether a near-tie has another answer; any other difference is refused."""
    ours_read, theirs_read = decode(ours), decode(theirs)
    same = True
    for name in ("first", "second"):
        one, other = getattr(ours_read, name), getattr(theirs_read, name)
        if np.array_equal(one, other):
            continue
        same = False
        if not is_near_tie(ours, one, other):
            raise InputError(
                f"{where}: expected the JAX student's {name} attempt, got another grid; "
                "no file was written"
            )
    return not same
