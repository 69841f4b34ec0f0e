"""The benchmark's two sides take the same steps; slow, since it compiles both."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("student", ["grid", "feature"])
def test_pytorch_and_jax_lose_alike(student, tmp_path):
    out = tmp_path / "b.json"
    small = "--side 8 --demonstrations 2 --tokens 64 --feature_width 16 --batch_size 4 --steps 2"
    done = subprocess.run(
        [sys.executable, "tools/bench_train.py", "--student", student, *small.split()]
        + ["--scaling", "False", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert json.loads(out.read_text())["largest_loss_gap"] < 1e-4
