"""Loads a server on loopback with wrk: latency by concurrency, what it sheds, its memory.

    python tools/bench_serve.py --out tools/measurements/serve_cpu.json

wrk (Debian's package of that name) keeps so many connections busy, each with one request at a time,
and asks again at once where it is refused. It shares the cores with the server. Percentiles are
wrk's, over all responses; each server is a process of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditions import conditions
from rich.console import Console
from rich.table import Table

from bridge import config as configs
from bridge.arc_files import ARC_AGI_1, load_tasks, without_answers
from bridge.errors import InputError
from bridge.files import write_text
from student_jax.client import Client

LUA = """
local bodies, threads, made = {%s}, {}, {}
local i = 0
ok, full, other, silent = 0, 0, 0, 0
function setup(thread) threads[#threads + 1] = thread end
function init(args)
  for k, body in ipairs(bodies) do made[k] = wrk.format("POST", "/solve", nil, body) end
end
function request() i = i %% #made + 1; return made[i] end
function response(status, headers)
  if status == 200 then ok = ok + 1
  elseif status == 429 then
    full = full + 1
    if not headers["retry-after"] then silent = silent + 1 end
  else other = other + 1 end
end
function done(summary, latency)
  local t, e = threads[1], summary.errors
  io.write(string.format('JSON{"ok":%%d,"refused":%%d,"other":%%d,"without_retry_after":%%d,' ..
    '"socket_errors":%%d,"seconds":%%f,"p50_ms":%%f,"p99_ms":%%f,"max_ms":%%f}\\n',
    t:get("ok"), t:get("full"), t:get("other"), t:get("silent"),
    e.connect + e.read + e.write + e.timeout, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""
WORKLOADS = {"small": 8, "medium": 16}  # sides of the grids' canvases, at most
TASKS = 16  # of a workload, in turn


@dataclass(frozen=True, kw_only=True)
class BenchServeConfig:
    """What to measure."""

    checkpoint: Path = Path("student_jax/nano")
    """a run, or a released student's folder"""
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """connections, each with one request at a time"""
    seconds: int = 8
    """of each level"""
    requests: int = 100_000
    """over which memory is watched; 0 for none"""
    out: Path | None = None
    """JSON to write"""


def main(config: BenchServeConfig) -> None:
    """Measure what a server answers, sheds and keeps in memory under load, on this machine."""
    if shutil.which("wrk") is None:
        raise InputError("wrk: expected it on the PATH; apt-get install wrk")
    about = conditions("jax", "fastapi", "starlette", "uvicorn", "h11", "pydantic")
    about["versions"]["wrk"] = wrk_version()
    found: dict[str, Any] = {**about, "checkpoint": str(config.checkpoint)}
    with tempfile.TemporaryDirectory() as folder:
        scripts = {name: write_script(Path(folder), name, side) for name, side in WORKLOADS.items()}
        with server(config) as client:
            for script in scripts.values():
                load(client, script, 1, config.seconds)  # compiles
            found["levels"] = {
                name: [load(client, script, n, config.seconds) for n in config.concurrency]
                for name, script in scripts.items()
            }
            found["while_learning"] = load_while_learning(client, scripts["small"], config.seconds)
        found["batching"] = compare_batching(config, scripts)
        if config.requests:
            with server(config) as client:
                found["memory"] = watch_memory(client, scripts["small"], config)
    show(found)
    if config.out:
        write_text(config.out, json.dumps(found, indent=1) + "\n")


@contextmanager
def server(config: BenchServeConfig, *more: str) -> Iterator[Client]:
    """Runs a server with its default limits, and ends it."""
    command = [sys.executable, "-m", "student_jax.serve", "--port", "0"]
    command += ["--checkpoint", str(config.checkpoint), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        found = re.search(r"http://\S+?(?=;)", line)
        if found is None:
            raise InputError(f"server: expected it to say where it answers, got '{line}'")
        yield Client(found[0])
    finally:
        process.terminate()
        process.wait(60)


def write_script(folder: Path, name: str, side: int) -> Path:
    """Writes what wrk asks: tasks whose grids fit a canvas of that side."""
    tasks = [task for source in ARC_AGI_1 for task in load_tasks(source).values()]
    chosen = [task for task in tasks if side / 2 <= task.largest_side < side][:TASKS]
    bodies = [json.dumps(without_answers(task), separators=(",", ":")) for task in chosen]
    path = folder / f"{name}.lua"
    path.write_text(LUA % ", ".join(f"'{body}'" for body in bodies))
    return path


def load(client: Client, script: Path, connections: int, seconds: int) -> dict[str, Any]:
    """Keeps so many connections busy; returns counts and latencies."""
    before = read_metrics(client)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s"]
    done = subprocess.run(
        [*command, "-s", str(script), client.url], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.rpartition("JSON")[2])
    after = read_metrics(client)
    grown = {name: after[name] - before[name] for name in after}
    questions, calls = (grown[f"sage_batch_questions_{what}"] for what in ("sum", "count"))
    return {
        "connections": connections,
        **found,
        "answers_per_second": found["ok"] / found["seconds"],
        "questions_a_call": questions / max(1, calls),
        "rss_mb": after["process_resident_memory_bytes"] / 1e6,
    }


def read_metrics(client: Client) -> dict[str, float]:
    """Returns the metrics that have no labels."""
    with urllib.request.urlopen(f"{client.url}/metrics") as response:
        lines = response.read().decode().splitlines()
    pairs = (line.split() for line in lines if "{" not in line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def load_while_learning(client: Client, script: Path, seconds: int) -> dict[str, Any]:
    """Returns what eight connections get while a task is learnt, and how fast it is learnt."""
    task = load_tasks(ARC_AGI_1[0])["3c9b0459"]
    learning = client.adapt(task, seconds=6 * seconds + 120, steps=20_000)
    while learning.look().step < 5:
        time.sleep(0.5)
    speeds = {}
    for name in ("alone", "under_load"):
        began, started = learning.look().step, time.perf_counter()
        found = load(client, script, 8, seconds) if name == "under_load" else {}
        time.sleep(0 if found else seconds)
        speeds[name] = (learning.look().step - began) / (time.perf_counter() - started)
    learning.cancel()
    return {**found, "steps_per_second": speeds}


def compare_batching(config: BenchServeConfig, scripts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Returns what sixteen connections get by how questions are batched."""
    found = []
    ways: dict[str, Sequence[str]] = {
        "one by one": ("--batch", "1"),
        "what waits anyway": ("--batch", "4"),
        "waits 2 ms": ("--batch", "4", "--batch_wait_ms", "2"),
    }
    for way, more in ways.items():
        with server(config, *more) as client:
            for name, script in scripts.items():
                for connections in (1, 16):  # compiles
                    load(client, script, connections, max(1, config.seconds // 2))
                for connections in (1, 16):
                    got = load(client, script, connections, config.seconds)
                    found.append({"way": way, "workload": name, **got})
    return found


def watch_memory(client: Client, script: Path, config: BenchServeConfig) -> list[dict[str, float]]:
    """Returns the resident memory by requests answered."""
    load(client, script, 16, config.seconds)  # compiles
    points: list[dict[str, float]] = []
    total = 0
    while total < config.requests:
        got = load(client, script, 16, config.seconds)
        if got["other"] or got["socket_errors"] or not got["ok"]:
            raise InputError(f"memory: expected answers alone, got {got}")
        total += got["ok"]
        points.append({"requests": total, "rss_mb": got["rss_mb"]})
    return points


def show(found: Mapping[str, Any]) -> None:
    """Prints the levels."""
    names = ("connections", "answers_per_second", "p50_ms", "p99_ms", "refused", "other")
    for workload, levels in found["levels"].items():
        table = Table(*names, title=workload)
        for level in levels:
            table.add_row(*(f"{level[name]:.4g}" for name in names))
        Console().print(table)
    for each in found["batching"]:
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in each.items()})
    print(found["while_learning"], found.get("memory", [])[-1:])


def wrk_version() -> str:
    """Returns what wrk says it is."""
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return (said.stdout + said.stderr).split()[1]


if __name__ == "__main__":
    configs.command(main, BenchServeConfig)
