"""Shared fixtures. Sets up JAX before anything imports it."""

import os
from importlib.metadata import version


def virtual_devices(count):
    """XLA's flags for so many; older emitters, and modules in one piece, compile in less time."""
    # XLA ends a process that names a flag which it no longer has.
    older = " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
    flags = f"--xla_force_host_platform_device_count={count}{older}"
    return f"{flags} --xla_cpu_parallel_codegen_split_count=1"


# Four virtual devices, so that data parallelism is really exercised. On few cores such devices can
# deadlock in a loop of collectives unless XLA's thread pool is larger than the machine.
os.environ["XLA_FLAGS"] = virtual_devices(4)
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
# PyTorch's threads wait without giving way: beside another worker, tests take ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# A hundred frames an operation take their time.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
# Commands would start themselves anew for mimalloc, importing twice: test_spread has one do so.
os.environ.setdefault("LD_PRELOAD", "")

import gc
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Compile time is test time: a program compiled by one test is reused by the next, in the next
# process, and in the next run.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# A third less time to compile; models are so tiny that nothing runs long enough to miss it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

# Tracing makes millions of objects that live on: looking through them every 700 takes a tenth.
gc.set_threshold(50_000, 20, 50)

import hypothesis
import numpy as np
import pytest
import yaml

from bridge.arc import Pair, Task

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("ci")


def make_grid(rng, rows, cols):
    grid = rng.integers(0, 10, (rows, cols)).astype(np.uint8)
    grid.setflags(write=False)
    return grid


def black_task(rng, task_id, side):
    """Everything turns black."""
    black = np.zeros((side, side), np.uint8)
    pairs = tuple(Pair(make_grid(rng, side, side), black) for _ in range(2))
    return Task(task_id, pairs, (make_grid(rng, side, side),))


@pytest.fixture
def task():
    """Three demonstrations and one test input, all 3 x 3; the answer is known."""
    rng = np.random.default_rng(0)
    pairs = tuple(Pair(make_grid(rng, 3, 3), make_grid(rng, 3, 3)) for _ in range(3))
    return Task("0a0a0a0a", pairs, (make_grid(rng, 3, 3),), (make_grid(rng, 3, 3),))


def task_json(task, *, answers=True):
    """The task as the JSON of a task file."""
    tests = [{"input": g.tolist()} for g in task.test_inputs]
    if answers:
        for item, grid in zip(tests, task.test_outputs, strict=True):
            item["output"] = grid.tolist()
    train = [{"input": p.input.tolist(), "output": p.output.tolist()} for p in task.demonstrations]
    return {"train": train, "test": tests}


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of 1 MiB, or of another size by `indirect`.

    Mounting one takes rights that not every machine gives.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    size = getattr(request, "param", "1m")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("no mount command: the disk-full test needs a small file system")
    if done.returncode:
        pytest.skip("may not mount a tmpfs: the disk-full test needs a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    """Six tasks on disk; `flip` mirrors its input, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(1)
    for name in ("1a", "1b", "1c", "1d", "1e", "1f"):
        inputs = [make_grid(rng, 3, 3) for _ in range(3)]
        pairs = tuple(Pair(g, g[:, ::-1]) for g in inputs[:2])
        value = task_json(Task(name, pairs, (inputs[2],), (inputs[2][:, ::-1],)))
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="session")
def extract_config(task_folder, tmp_path_factory):
    """The config of the session's feature store, and its path."""
    from bridge.task_set import TaskSet
    from teacher_torch.extract import ExtractConfig

    return ExtractConfig(
        out=str(tmp_path_factory.mktemp("extract") / "features"),
        tasks=TaskSet(source=str(task_folder)),
    )


@pytest.fixture(scope="session")
def store_path(extract_config):
    """A feature store written by the real command with the tiny teacher."""
    from teacher_torch.extract import main

    main(extract_config)
    return Path(extract_config.out)


def train_dict(task_folder, store, out, **changes):
    """A tiny training run as a plain dict; `changes` are dotted keys."""
    value = {
        "out": str(out),
        "data": {"store": store and str(store), "tasks": {"source": str(task_folder)}},
        "model": {
            "kind": "grid",
            "width": 16,
            "heads": 2,
            "mlp_width": 16,
            "depth": 1,
            "encoder_depth": 1,
            "tokens_per_pair": 2,
            "canvas": 8,
        },
        "optim": {"total_steps": 4, "batch_size": 4, "peak_lr": 1e-2},
        "log_steps": 1,
        "checkpoint_steps": 2,
        "dev_questions": 0,  # answering compiles, too
    }
    for key, item in changes.items():
        *path, last = key.split(".")
        place = value
        for part in path:
            place = place.setdefault(part, {})
        place[last] = item
    return value


@pytest.fixture
def train_config(task_folder, store_path, tmp_path):
    """Makes tiny training configs: `train_config(**{"optim.total_steps": 2})`."""
    from bridge import config as configs
    from student_jax.config import TrainConfig

    def make(**changes):
        return configs.from_dict(
            TrainConfig,
            train_dict(task_folder, changes.pop("store", store_path), tmp_path / "run", **changes),
        )

    return make


def examples_of(config, store=None):
    """The examples that a run with this config trains on."""
    from student_jax.train import load_examples

    training, _ = config.data.tasks.split(config.data.tasks.load())
    return load_examples(config, training, {}, store)


def metric_lines(out):
    """A run's metrics, without what a clock had a part in."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name != "speed"} for line in lines]


@pytest.fixture
def write_yaml(tmp_path):
    def write(value, name="config.yaml"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
        return path

    return write
