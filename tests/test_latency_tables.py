import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from latency_tables import show


def timing(p50: float, flops_per_second: float, compute: str) -> dict:
    return {
        "p50": p50,
        "p95": p50,
        "p99": p50,
        "runs": 3,
        "flops_per_second": flops_per_second,
        "compute": compute,
    }


def test_shares_are_of_the_ceiling_of_what_is_computed_in(capsys):
    timings = {
        "JAX: network": timing(2.0, 4e11, "bfloat16"),
        "ONNX Runtime: network": timing(4.0, 3e11, "float32"),
        "GR00T: whole": timing(100.0, 0.0, ""),
    }
    result = {
        "parameters": 1234,
        "weights": "random",
        "ceilings": {"bfloat16": 8e11, "float32": 4e11},
        "cases": {"8x4x3": {"timings": timings, "device_bytes": 5e6, "run": 0}},
        "cold": {"nothing kept": {"seconds": 9.0, "peak_host_mib": 900.0}},
        "run_of": {"cold": 0},
    }
    show(result)
    lines = {
        line.split("│")[1].strip(): line
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    }
    assert "50%" in lines["JAX: network"]
    assert "50.0 x" in lines["JAX: network"]
    assert "75%" in lines["ONNX Runtime: network"]
    assert "%" not in lines["GR00T: whole"]
