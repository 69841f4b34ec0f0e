"""The rooms and their walls, held up by running code in fresh processes."""

import os
import pkgutil
import subprocess
import sys

import pytest

import bridge
import student_jax
import teacher_torch
from tests.conftest import ROOT

COMMANDS = [
    "teacher_torch.extract",
    "bridge.arc",
    "bridge.store",
    "bridge.rearc",
    "student_jax.train",
    "student_jax.solve",
    "student_jax.adapt",
    "student_jax.evaluate",
    "student_jax.similarity",
    "student_jax.report",
    "student_jax.serve",
    "student_jax.client",
    "student_jax.checkpoints",
    "student_jax.export",
    "student_jax.import_weights",
    "bridge.torch_export",
]
EDGES = {
    "bridge.from_torch",
    "bridge.to_jax",
    "bridge.torch_export",
    "bridge.torch_onnx",
    "bridge.torch_original",
    "bridge.torch_student",
    "bridge.torch_grid_student",
}


def modules_of(package):
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [module.name for module in found]


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (modules_of(student_jax), ["torch", "transformers"]),
        (modules_of(teacher_torch), ["jax", "flax", "optax"]),
        (sorted(set(modules_of(bridge)) - EDGES), ["torch", "transformers", "jax", "flax"]),
    ],
    ids=["student without torch", "teacher without jax", "bridge without either"],
)
def test_modules_import_without_the_other_side(modules, blocked):
    """Nor does anything they import, though it is installed: that would cost seconds a start."""
    code = f"import sys, {', '.join(modules)}; print(*set(sys.modules) & set({blocked}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("edges", "blocked"),
    [
        (["to_jax"], "torch"),
        (["from_torch", "torch_student", "torch_grid_student", "torch_export"], "jax"),
    ],
)
def test_edges_import_one_framework_each(edges, blocked):
    modules = ", ".join(f"bridge.{edge}" for edge in edges)
    code = f"import sys; sys.modules['{blocked}'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def invoke(module, *arguments):
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )


HELP = """
import runpy, sys
for module in sys.argv[1:]:
    print("MODULE", module)
    sys.argv = [module, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, module
"""


def test_help_names_each_command_and_what_it_does():
    """In one process: their imports are most of the time."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *COMMANDS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "LD_PRELOAD": ""},
    )
    assert done.returncode == 0, done.stderr
    told = dict(part.split("\n", 1) for part in done.stdout.split("MODULE ")[1:])
    assert list(told) == COMMANDS
    for module, text in told.items():
        assert f"usage: python -m {module} " in text
        assert "--config PATH reads a YAML file first" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("teacher_torch.extract", "--config", "none.yaml"), "none.yaml: cannot be read"),
        (("teacher_torch.extract", "--tasks.source", "none"), "'none', which does not exist"),
        (("student_jax.train", "--data.store", "none"), "store none: expected a feature store"),
        (("student_jax.solve", "007bbfb7", "--checkpoint", "none"), "expected a training run"),
        (("student_jax.solve", "nonsense"), "got 'nonsense'"),
        (("student_jax.evaluate", "--predictions", "none.json"), "none.json: cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line_and_no_traceback(arguments, message, tmp_path):
    if arguments[0] == "student_jax.train":
        arguments += ("--out", str(tmp_path / "run"))
    done = invoke(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
