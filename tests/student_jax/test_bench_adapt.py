"""The benchmark's three sides take the same steps; slow, since it compiles and starts processes."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_all_sides_lose_alike_and_every_round_is_told(tmp_path):
    out = tmp_path / "b.json"
    small = "--sides 8 --colors 4 --tasks 1 --rounds 2 --steps 2"
    done = subprocess.run(
        [sys.executable, "tools/bench_adapt.py", *small.split(), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-800:]
    (row,) = json.loads(out.read_text())["rows"]
    for other in ("torch", "torch_apart"):
        assert row["losses"][other] == pytest.approx(row["losses"]["jax"], rel=1e-4)
        assert len(row["losses"][other]) == 3
        seconds = row["seconds_of_rounds"]
        ratios = [t / j for t, j in zip(seconds[other], seconds["jax"], strict=True)]
        assert row["ratios_of_rounds"][f"jax_over_{other}"] == pytest.approx(ratios, rel=2e-3)
        assert len(ratios) == 2
