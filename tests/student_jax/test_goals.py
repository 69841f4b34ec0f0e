import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from bridge.errors import InputError
from student_jax.goals import goals, make_goals_table, read_latency
from student_jax.paired import Retention

TIMES = {
    "GR00T: whole": {"p50": 3000.0, "p99": 3100.0},
    "JAX: JSON to grid": {"p50": 30.0, "p99": 40.0},
}


def measured(device="cpu", timings=TIMES, **changes):
    return {
        "device": device,
        "date": "2026-11-25",
        "parameters": 1000,
        "teacher": {"released_parameters": 57_000, "bytes": 2_000_000_000},
        "cases": {"8x4x3": {"timings": timings, "device_bytes": 150_000_000}},
        **changes,
    }


def verdicts(latency, retained=None):
    return [row.met for row in goals(latency, retained)]


def test_goals_are_met_missed_or_not_measured():
    kept, lost = Retention(0.95, 0.8, 1.1, 0.7), Retention(0.5, 0.3, 0.7, 0.4)
    assert verdicts(measured(), kept) == [True, True, None, True, None]  # milliseconds want a GPU
    assert verdicts(measured("NVIDIA H200"), lost) == [True, True, False, False, True]
    slow = {**TIMES, "JAX: JSON to grid": {"p50": 250.0, "p99": 9.0}}
    assert verdicts(measured("NVIDIA H200", slow, parameters=1100))[:3] == [False, False, True]
    alone = {"JAX: JSON to grid": TIMES["JAX: JSON to grid"]}
    nobody = measured(timings=alone, teacher=None)
    assert verdicts(nobody) == [None] * 5


def test_table_says_what_was_not_measured():
    latency = measured()
    console = Console(record=True, width=120)
    console.print(make_goals_table(latency, goals(latency, None)))
    text = console.export_text()
    assert "57x fewer" in text
    assert "100x faster" in text
    assert text.count("not measured") == 3


def test_latency_of_another_student_is_refused(tmp_path):
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(measured()))
    file = {"a": SimpleNamespace(about={"parameters": 1000})}
    assert read_latency(path, file)["parameters"] == 1000
    other = {"a": SimpleNamespace(about={"parameters": 7})}
    with pytest.raises(InputError, match="expected a student of 7 parameters, got one of 1,000"):
        read_latency(path, other)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"expected what tools/bench_latency\.py wrote"):
        read_latency(path, file)
