import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from bridge.errors import InputError
from student_jax.goals import goals, goals_title, make_goals_table, read_latency, whose_goals
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


def kept(student, teacher):
    """What is kept, as far as goals look at it."""
    share = student / teacher if teacher else None
    return Retention(student, teacher, share, share, share, 0.7, 1.0)


def verdicts(latency, retained=None, parameters=1000):
    return [row.met for row in goals(parameters, latency, retained)]


def test_goals_are_met_missed_or_not_measured():
    most, half = kept(0.38, 0.4), kept(0.2, 0.4)
    assert verdicts(measured(), most) == [True, True, None, True, None]  # milliseconds want a GPU
    assert verdicts(measured("NVIDIA H200"), half) == [True, True, False, False, True]
    slow = {**TIMES, "JAX: JSON to grid": {"p50": 250.0, "p99": 9.0}}
    assert verdicts(measured("NVIDIA H200", slow), parameters=1100)[:3] == [False, False, True]
    alone = {"JAX: JSON to grid": TIMES["JAX: JSON to grid"]}
    nobody = measured(timings=alone, teacher=None)
    assert verdicts(nobody) == [None] * 5


def test_only_times_of_one_run_are_compared():
    """The dearer case was timed without the teacher: its time is not held against another run's."""
    latency = measured()
    alone = {"JAX: JSON to grid": {"p50": 900.0, "p99": 999.0}}
    latency["cases"]["32x10x3"] = {"timings": alone, "device_bytes": 350_000_000}
    table = {row.what: row for row in goals(1000, latency, None)}
    assert table["latency, median"].student == "30.0 ms (100x faster)"
    assert table["memory"].student == "350 MB (planned)"
    assert goals_title("a", latency).endswith("task 8x4x3")


def test_table_says_what_was_not_measured():
    latency = measured()
    console = Console(record=True, width=120)
    console.print(make_goals_table("goals", goals(1000, latency, kept(0.1, 0.0))))
    text = console.export_text()
    assert "57x fewer" in text
    assert "100x faster" in text
    assert text.count("not measured on a GPU") == 2
    assert "│ accuracy, pass@2   │             undefined │" in text
    rows = goals(None, None, None)
    assert {row.verdict for row in rows} == {"not measured"}


def test_latency_of_another_student_is_refused(tmp_path):
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(measured()))
    file = {"a": SimpleNamespace(about={"parameters": 1000})}
    sizes = {"reader": {"parameters": 1000, "needs_teacher": True}, "small": {"parameters": 7}}
    files = {name: SimpleNamespace(about=about) for name, about in sizes.items()}
    assert whose_goals(files, measured()) == "small"  # a reader cannot stand for the product
    assert whose_goals({**files, **file}, measured()) == "a"
    assert read_latency(path, file)["parameters"] == 1000
    other = {"a": SimpleNamespace(about={"parameters": 7})}
    with pytest.raises(InputError, match="expected a student of 7 parameters, got one of 1,000"):
        read_latency(path, other)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"expected what tools/bench_latency\.py wrote"):
        read_latency(path, file)
