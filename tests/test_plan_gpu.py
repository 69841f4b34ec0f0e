"""Compiling for a GPU that is not there."""

import sys
from pathlib import Path

import jax
import pytest
from jax.experimental import topologies

from bridge.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import plan_gpu
from plan_gpu import PlanGpuConfig

from student_jax.step import make_mesh


def test_without_the_plugin_it_is_one_line(monkeypatch):
    def none(*args, **options):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", none)
    with pytest.raises(InputError, match=r"expected its CUDA plugin: pip install 'jax\[cuda12\]'"):
        plan_gpu.mesh_of_an_h100()


def test_programs_are_told_with_their_seconds_and_memory(monkeypatch, tmp_path, capsys):
    """On a CPU in place of the GPU."""
    monkeypatch.setattr(plan_gpu, "mesh_of_an_h100", lambda: make_mesh(1))
    monkeypatch.setattr(jax, "default_backend", jax.default_backend)  # put back what it changes
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    preset = tmp_path / "tiny.yaml"
    preset.write_text(
        "model: {kind: grid, width: 8, heads: 2, mlp_width: 8, encoder_depth: 1, depth: 1}\n"
        "loss: {left_out: 1.0}\n"
    )
    out = tmp_path / "plan.json"
    asked = {"side": 8, "colors": 4, "batch_size": 2, "tasks": 2}
    plan_gpu.main(PlanGpuConfig(preset=preset, **asked, out=out))
    text = capsys.readouterr().out
    for name in ("training step, unrolled", "training step, scanned", "2 tasks make a step"):
        assert name in text
    assert '"seconds_to_compile"' in out.read_text()
