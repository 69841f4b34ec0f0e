"""Looks after a feature store: verify it, repair it, say what is in it.

python -m bridge.store verify runs/quickstart/features
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from bridge import config as configs
from bridge.errors import InputError
from bridge.store import storage
from bridge.store.check import Report, free, verify
from bridge.store.feature_store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What to do with which store."""

    action: Annotated[Literal["verify", "repair", "stats", "info"], tyro.conf.Positional]
    """verify: read everything and name what is damaged; repair: extract just that again;
    stats: mean, std and energy of the channels; info: whose features, how many, how large"""
    path: Annotated[str, tyro.conf.Positional]
    """the store: a folder, or a kvstore URL such as gs://bucket/folder"""


def main(config: StoreConfig) -> None:
    """Verify, repair or describe a feature store.

    verify ends with exit code 1 if anything is damaged. repair runs the extract command for what
    verify names; do not run it beside an extraction into the same store.
    """
    store = FeatureStore(config.path)
    if config.action == "info":
        print(describe(store))
    elif config.action == "stats":
        print(describe_statistics(store))
    else:
        report = show_verify(store)
        if config.action == "repair":
            repair(store, report)
        elif not report.is_whole:
            raise SystemExit(1)


def show_verify(store: FeatureStore) -> Report:
    """Verifies a store and prints what was found."""
    total = len(store.records) + len(store.damaged)
    with tqdm(total=total, desc="verify", unit="example", leave=False) as bar:
        report = verify(store, bar.update)
    for name, fault in report.faults.items():
        print(f"damaged: {name}: {fault}")
    if report.statistics_fault:
        print(f"damaged: {report.statistics_fault}")
    if report.leftovers:
        print(f"left over: {len(report.leftovers)} files that no example needs; repair frees them")
    whole = report.num_examples - len(report.faults)
    print(f"{whole} of {report.num_examples} examples are as they were written")
    if not store.is_complete and report.statistics_fault is None:
        print("unfinished: run the extract command again, it goes on where it stopped")
    return report


def repair(store: FeatureStore, report: Report) -> None:
    """Extracts again what is damaged; nothing is taken out before its replacement is there.

    Raises:
        InputError: if the store does not know how an example was extracted; nothing is changed.
        SystemExit: with the extract command's exit code, if that fails.
    """
    freed = free(store, report.leftovers)
    if freed:
        print(f"freed: {len(freed)} files left over")
    configs_of: dict[str, list[str]] = {}
    expected = store.expected() if report.faults else {}
    for name in report.faults:
        if name not in expected:
            raise InputError(
                f"store {store.path}: {name}: not known how it was extracted; run the extract "
                f"command with the flags it was filled with and --again True --only {name}"
            )
        configs_of.setdefault(expected[name], []).append(name)
    for key, names in configs_of.items():
        extract_again(store, key, names)
    if not report.faults and report.statistics_fault:
        store.write_statistics()
        print("statistics: written anew")
    elif report.is_whole and not freed:
        print("nothing to repair")


def extract_again(store: FeatureStore, config_key: str, names: list[str]) -> None:
    """Runs the extract command for some examples, with the config that first made them."""
    config = storage.read_key(store.kv, f"configs/{config_key}.yaml")
    if config is None:
        raise InputError(f"store {store.path}: configs/{config_key}.yaml: missing")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(config)
        command = [sys.executable, "-m", "teacher_torch.extract", "--config", str(path)]
        command += ["--out", store.path, "--again", "True", "--only", *names]
        code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)


def describe(store: FeatureStore) -> str:
    """Returns whose features a store holds, how many, and how large they are."""
    provenance = store.provenance
    tokens = sum(record.num_tokens for record in store.views.values())
    raw = 2 * tokens * store.feature_width
    size = stored_bytes(store)
    share = f", {size / raw:.1%} of the kept tokens in bf16" if raw and size else ""
    free = storage.free_bytes(store.kv)
    tasks = {record.task_id for record in store.records.values()}
    lines = {
        "store": store.path,
        "teacher": f"{provenance.get('teacher')}: {provenance.get('weights')}",
        "weights": str(provenance.get("weights_digest"))[:16],
        "tap": provenance.get("tap"),
        "licence": provenance.get("licence"),
        "view": f"{provenance.get('view')}, prompt {provenance.get('prompt')!r}",
        "encoding": f"tokens {store.encoding.tokens}, values {store.encoding.values}",
        "code": ", ".join(provenance.get("code") or ()) or "unknown",
        "examples": f"{len(store)} of {len(tasks)} tasks, {len(store.views)} distinct views",
        "tokens": f"{tokens:,} x {store.feature_width} channels",
        "size": (f"{size:,} bytes{share}" if size else "unknown")
        + (f"; {free:,} free" if free is not None else ""),
        "state": "complete" if store.is_complete else "unfinished: run the extract command again",
    }
    if store.damaged:
        lines["damaged"] = f"{len(store.damaged)} manifest entries; see verify"
    return "\n".join(f"{name + ':':<10} {value}" for name, value in lines.items())


def describe_statistics(store: FeatureStore) -> str:
    """Returns what the channels of a store look like."""
    statistics = store.statistics()
    low, middle, high = np.quantile(statistics.std, (0, 0.5, 1))
    shares = ", ".join(f"{c}: {statistics.energy[c]:.1%}" for c in statistics.top_channels)
    return (
        f"tokens:    {statistics.num_tokens:,} x {store.feature_width} channels\n"
        f"std:       {low:.4g} to {high:.4g}, median {middle:.4g}\n"
        f"energy:    the top 8 channels hold {statistics.top_energy_share:.1%} "
        f"(an even share would be {8 / store.feature_width:.1%})\n"
        f"           {shares}"
    )


def stored_bytes(store: FeatureStore) -> int | None:
    """Returns the size of a store's files; None where only a file system could tell."""
    folder = storage.local_folder(store.kv)
    if folder is None:
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    configs.command(main, StoreConfig)
