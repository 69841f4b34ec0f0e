"""More pairs for the training tasks of ARC-AGI-1, from the generators of RE-ARC.

python -m bridge.rearc --out data/rearc --pairs 100

RE-ARC: Hodel 2024, arXiv 2404.07353; its generators and verifiers come with the package
reasoning-gym (`pip install -e '.[rearc]'`). A folder holds one `{task_id}.json` per task, a list of
pairs, the form in which RE-ARC itself was published: its files can be used, too.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bridge import config as configs
from bridge.arc import MAX_SIDE, Grid, Pair, Question, parse_grid, parse_pair
from bridge.arc_files import load_tasks, read_json
from bridge.duplicates import content_key, keys_of
from bridge.errors import InputError
from bridge.files import write_text

# The evaluation set's 070dd51e and 50a16a69 hold pairs of these training tasks.
LEAKING = ("40853293", "caa06a1f")
TRIES = 10  # for a pair, each easier, that is smaller, than the one before
PATIENCE = 20  # pairs in a row that no try gave, and a task gives no more
CONTEXT = 3  # demonstrations of a generated question; most ARC tasks show 3
ABOUT = "about.json"
MARK = "_rearc_"  # in the ids of generated questions


@dataclass(frozen=True, kw_only=True)
class RearcConfig:
    """How many pairs of which tasks."""

    out: Path = Path("data/rearc")
    """folder for one file a task"""
    pairs: int = 100
    """of each task; VARC's score with 10, 100, 1000: 38.6, 52.3, 54.0 % (arXiv 2511.14761)"""
    max_side: int = MAX_SIDE
    """rows and columns of a grid, at most"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.pairs < 1 or self.seed < 0 or not 1 <= self.max_side <= MAX_SIDE:
            raise ValueError(f"expected pairs >= 1, seed >= 0, max_side in 1..{MAX_SIDE}")


def main(config: RearcConfig) -> None:
    """Generate pairs for the training tasks of ARC-AGI-1.

    A pair is kept if RE-ARC's verifier agrees and if it is no pair of an evaluation task, turned,
    mirrored and recolored in any way. The generators of two tasks that the evaluation set repeats
    are left out. The same command gives the same pairs; a folder that is whole is kept, one that a
    stopped command left is begun anew.
    """
    wanted = {name: value for name, value in asdict(config).items() if name != "out"}
    wanted |= {"package": f"reasoning-gym {_package().__version__}"}
    about = _about(config.out)
    if about is not None and about["digest"] is not None:
        if {name: about.get(name) for name in wanted} != wanted:
            raise InputError(f"--out {config.out}: holds other pairs: {about}; give another folder")
        _check_unchanged(config.out, about["digest"])
        print(f"{config.out}: is there already, digest {about['digest'][:12]}")
        return
    task_ids = [name for name in load_tasks("arcagi/training") if name not in LEAKING]
    _begin(config.out, wanted, task_ids)
    counts, dropped = {}, 0
    with ProcessPoolExecutor() as pool:
        jobs = pool.map(_generate, task_ids, [config] * len(task_ids))
        for task_id, (pairs, leaks) in zip(task_ids, tqdm(jobs, total=len(task_ids)), strict=True):
            dropped += leaks
            if pairs:
                counts[task_id] = len(pairs)
                write_text(config.out / f"{task_id}.json", json.dumps(pairs))
    digest = digest_of(config.out)
    write_text(config.out / ABOUT, json.dumps(wanted | {"digest": digest, "pairs_of": counts}))
    print(
        f"{config.out}: {sum(counts.values())} pairs of {len(counts)} tasks, digest {digest[:12]}; "
        f"{dropped} left out that the evaluation set has"
    )


def load_generated(folder: Path, task_ids: set[str], max_side: int) -> dict[str, list[Pair]]:
    """Returns task_id -> pairs, for those of the tasks that the folder has.

    Args:
        folder: from this command, or RE-ARC's own.
        task_ids: whose pairs may be used; those of `LEAKING` may not.
        max_side: of a grid; pairs with a larger one are left out.

    Raises:
        InputError: if a file was changed since it was written, or is none; if the command that
            wrote the folder was stopped.
    """
    about = _about(folder)
    if about is not None and about["digest"] is None:
        raise InputError(
            f"{folder}: unfinished; run python -m bridge.rearc --out {folder} again, to its end"
        )
    allowed = task_ids - {*LEAKING}
    files = sorted(path for path in folder.glob("*.json") if path.stem in allowed)
    if not files:
        raise InputError(f"{folder}: expected files {{task_id}}.json; run python -m bridge.rearc")
    if about is not None:
        _check_unchanged(folder, about["digest"])
    found = {}
    for path in files:
        items = read_json(path)
        if not isinstance(items, list):
            raise InputError(f"{path}: expected a list of pairs, got {type(items).__name__}")
        pairs = [parse_pair(item, f"{path}[{i}]") for i, item in enumerate(items)]
        found[path.stem] = [p for p in pairs if max(*p.input.shape, *p.output.shape) <= max_side]
    return found


def distinct_pairs(
    pairs: list[Pair], held: Collection[str]
) -> tuple[dict[str, Pair], Counter[str]]:
    """Returns content key -> pair, each once in whatever guise, and why how many are left out.

    A twin, turned or recolored, would as a demonstration show the answer.

    Args:
        pairs: of one task.
        held: content keys of pairs that may not be trained on.
    """
    found: dict[str, Pair] = {}
    left_out: Counter[str] = Counter()
    for pair in pairs:
        key = content_key(pair)
        if key in held:
            left_out["that held-out tasks have"] += 1
        elif key in found:
            left_out["twins of others"] += 1
        else:
            found[key] = pair
    return found, left_out


def generated_questions(task_id: str, pairs: list[Pair]) -> tuple[list[Question], dict[str, Grid]]:
    """Returns each pair as the query once, with the `CONTEXT` pairs after it as demonstrations.

    Too few pairs give no question: one would be its own demonstration.
    """
    if len(pairs) <= CONTEXT:
        return [], {}
    questions = [
        Question(
            f"{task_id}{MARK}{i}",
            task_id,
            tuple(pairs[(i + j) % len(pairs)] for j in range(1, CONTEXT + 1)),
            pair.input,
        )
        for i, pair in enumerate(pairs)
    ]
    return questions, {q.example_id: p.output for q, p in zip(questions, pairs, strict=True)}


def is_generated(question: Question) -> bool:
    """Whether it is one of `generated_questions`."""
    return MARK in question.example_id


def digest_of(folder: Path) -> str:
    """Returns the sha256 of a folder's task files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        if path.name != ABOUT:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _check_unchanged(folder: Path, digest: str) -> None:
    if digest_of(folder) != digest:
        raise InputError(
            f"{folder}: files differ from those that were generated; remove the folder, then run "
            f"python -m bridge.rearc --out {folder}"
        )


def _about(folder: Path) -> dict[str, Any] | None:
    """Returns what this command told of a folder; its digest is None until all pairs are there.

    None of RE-ARC's own folder, and of one that is not there.
    """
    if not (folder / ABOUT).is_file():
        return None
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or "digest" not in about:
        raise InputError(f"{folder / ABOUT}: expected what this command wrote; remove the folder")
    return about


def _begin(folder: Path, wanted: dict[str, Any], task_ids: list[str]) -> None:
    """Marks a folder as unfinished, and removes what a stopped command left of these tasks.

    Raises:
        InputError: if it holds files of theirs that are not this command's.
    """
    paths = [folder / f"{task_id}.json" for task_id in task_ids]
    left = [path for path in paths if path.is_file()]
    if left and _about(folder) is None:
        raise InputError(f"--out {folder}: holds another's {left[0].name}; give another folder")
    write_text(folder / ABOUT, json.dumps(wanted | {"digest": None}))  # first: it guards the rest
    for path in left:
        path.unlink()


def _generate(task_id: str, config: RearcConfig) -> tuple[list[dict[str, Any]], int]:
    """Returns one task's pairs as JSON values, and how many were left out as leaks."""
    utils = "reasoning_gym.arc.rearc_utils"
    generate = getattr(import_module(f"{utils}.generators"), f"generate_{task_id}")
    verify = getattr(import_module(f"{utils}.verifiers"), f"verify_{task_id}")
    found: dict[str, dict[str, Any]] = {}
    leaks = failed = index = 0
    while len(found) < config.pairs and failed < PATIENCE:
        pair = _one(generate, verify, f"{config.seed}/{task_id}/{index}", config.max_side)
        index += 1
        if pair is None or (key := json.dumps(pair)) in found:
            failed += 1
            continue
        grids = (parse_grid(pair[side], task_id) for side in ("input", "output"))
        if content_key(Pair(*grids)) in _evaluation_keys():
            leaks += 1
            failed += 1
            continue
        found[key] = pair
        failed = 0
    return list(found.values()), leaks


def _one(generate: Any, verify: Any, seed: str, max_side: int) -> dict[str, Any] | None:
    """Returns a pair that the verifier agrees with and that is small enough, or None."""
    rng = random.Random(seed)
    for attempt in range(TRIES):
        try:
            pair = generate(rng, 0, 1 - attempt / TRIES)
            if verify(pair["input"]) != pair["output"]:
                continue
        except Exception:
            continue
        grids = (pair["input"], pair["output"])
        if max(len(side) for grid in grids for side in (grid, grid[0])) <= max_side:
            return {name: [list(row) for row in pair[name]] for name in ("input", "output")}
    return None


@cache
def _evaluation_keys() -> frozenset[str]:
    return frozenset(keys_of(load_tasks("arcagi/evaluation").values()))


def _package() -> Any:
    try:
        return import_module("reasoning_gym")
    except ImportError:
        raise InputError("reasoning-gym is not installed; run: pip install -e '.[rearc]'") from None


if __name__ == "__main__":
    configs.command(main, RearcConfig)
