"""What is installed: each side without the other's framework, and all that lies in the packages."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import student_jax
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = ("bridge", "student_jax", "teacher_torch")


def requirements_of(name, extras):
    """What a package asks for with these extras: ours from pyproject.toml, others as installed."""
    if name == PROJECT["name"]:
        return PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # an accelerator's, which is not here
        return []
    wanted = map(Requirement, lines)
    return [
        str(each)
        for each in wanted
        if each.marker is None
        or any(each.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
    ]


def closure(*extras):
    """The names of all that pip installs with these extras."""
    seen, left = set(), [(PROJECT["name"], extras)]
    while left:
        asked = left.pop()
        if asked in seen:
            continue
        seen.add(asked)
        for line in requirements_of(*asked):
            each = Requirement(line)
            left.append((canonicalize_name(each.name), tuple(sorted(each.extras))))
    return {name for name, _ in seen}


@pytest.mark.parametrize(
    ("extras", "wanted", "never"),
    [
        ((), set(), {"torch", "jax", "jaxlib", "transformers", "flax"}),
        *(((extra,), {"jax"}, {"torch", "transformers"}) for extra in ("student", "cuda12")),
        (("teacher",), {"torch"}, {"jax", "jaxlib", "flax"}),
        (("dinov2",), {"torch"}, {"jax", "jaxlib", "flax"}),
        *(((extra,), set(), {"torch", "jax", "jaxlib"}) for extra in ("serve", "export")),
    ],
)
def test_an_extra_brings_one_framework_however_deep_one_looks(extras, wanted, never):
    found = closure(*extras)
    assert wanted <= found
    assert not never & found
    assert {"numpy", "tensorstore", "tyro"} <= found


def test_whoever_asks_for_both_gets_both():
    assert {"torch", "jax"} <= closure("student", "teacher")
    assert "torchvision" not in closure(*EXTRAS)  # beside a CPU torch it breaks every vision import


def test_everything_in_the_packages_is_shipped():
    code = """
import sys
from setuptools.dist import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files(["pyproject.toml"])
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
print(distribution.metadata.version)
print(*(path for _, _, path in command.find_all_modules()), sep="\\n")
for _, folder, _, names in command.data_files:
    print(*(f"{folder}/{name}" for name in names), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, *files = done.stdout.split("\n")
    assert version == student_jax.__version__
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there <= set(files), "add its suffix to package-data in pyproject.toml"
    for package in PACKAGES:
        assert f"{package}/py.typed" in files
    assert "student_jax/nano/model.safetensors" in files


def test_the_version_is_told_alike_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == student_jax.__version__
    assert citation["license"] == PROJECT["license"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == student_jax.__version__


def test_containers_install_as_the_makefile_does():
    """No container is built here: what both say is compared as text."""
    makefile, dockerfile = ((ROOT / name).read_text() for name in ("Makefile", "Dockerfile"))
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert "-c constraints.txt" in makefile
    assert "-c constraints.txt" in dockerfile
    assert not re.search(r"^USER root|^ADD ", dockerfile, re.MULTILINE)
    assert re.search(r"^USER \d+", dockerfile, re.MULTILINE)
    assert '"-m", "student_jax.serve"' in dockerfile
    for extra in re.findall(r"EXTRAS=([\w,]+\w)", dockerfile):
        assert set(extra.split(",")) <= EXTRAS.keys()
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", dockerfile, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in let_in


def test_a_server_without_its_extra_says_so_in_one_line(tmp_path):
    for name in ("starlette", "uvicorn"):
        missing = f"raise ModuleNotFoundError(name='{name}')"
        (tmp_path / f"{name}.py").write_text(missing)
    done = subprocess.run(
        [sys.executable, "-m", "student_jax.serve"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'sage-distill[student,serve]'" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_wheel_stands_alone(tmp_path):
    """Needs a package index."""
    command = [sys.executable, "tools/check_package.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
