"""Who takes part in the bench of latencies: none that answers otherwise than JAX."""

import sys
from pathlib import Path

import jax
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import latency_sides
from bench_latency import BenchLatencyConfig, middle_case


class Other(torch.nn.Module):
    """Says something else once it is told to."""

    gap = 0.0

    def forward(self, x):
        return x + self.gap * torch.arange(12.0)


def test_who_answers_otherwise_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    logits = torch.randn(1, 4, 4, 12, generator=torch.Generator().manual_seed(0))
    said = torch.log_softmax(logits, -1).numpy()
    mirror = Other()
    found = latency_sides.torch_runners(mirror, (logits,), said, "float32")
    assert list(found) == ["PyTorch eager", "torch.compile"]
    np.testing.assert_allclose(found["PyTorch eager"]().numpy(), said, atol=1e-5)
    assert not capsys.readouterr().out
    mirror.gap = 0.1
    assert latency_sides.torch_runners(mirror, (logits,), said, "float32") == {}
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": expected")[0] for line in told] == [
        "not timed: PyTorch eager: PyTorch eager",
        "not timed: torch.compile: torch.compile",
    ]


def test_what_others_are_compared_with_is_exact_on_a_gpu_too():
    precision = []
    latency_sides.exactly(lambda: precision.append(jax.config.jax_default_matmul_precision) or 0)
    assert precision == ["highest"]
    assert jax.config.jax_default_matmul_precision is None


def test_what_pytorch_cannot_count_is_not_counted():
    """On a GPU it refuses attention whose queries share keys, as GR00T's language model has it."""
    assert latency_sides.counted(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 2 * 2 * 3 * 4

    def refused():
        raise AssertionError("shapes are incompatible")

    assert latency_sides.counted(refused) == 0


def test_the_middle_case_is_a_usual_one_where_only_other_parts_are_asked_for():
    cases = [("8x4x3", "12x6x3", "32x10x3"), ("8x4x3",), ()]
    found = [middle_case(BenchLatencyConfig(cases=each)) for each in cases]
    assert found == ["12x6x3", "8x4x3", "12x4x3"]
