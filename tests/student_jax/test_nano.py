"""The student that comes with the package."""

import json

import numpy as np
import pytest

from bridge import torch_export
from bridge.arc import open_questions
from bridge.errors import InputError
from bridge.predictions import read_predictions
from bridge.proofs import read_proofs
from student_jax.solve import NANO, SolveConfig
from student_jax.solve import main as solve_main
from student_jax.solver import load_solver
from tests.test_walls import invoke


@pytest.fixture(scope="module")
def solver():
    return load_solver(NANO)


def test_it_is_small_and_brings_a_card():
    assert sum(path.stat().st_size for path in NANO.iterdir()) < 20 * 2**20
    assert {path.name for path in NANO.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "README.md",
    }


def test_no_task_that_it_calls_held_out_was_trained_on(solver):
    tasks = solver.config.data.tasks
    trained, held_out = tasks.split(tasks.load())
    assert solver.trained_on <= set(trained)
    assert len(held_out) >= 40
    assert solver.num_parameters <= 2_000_000


def test_it_has_no_best_weights():
    with pytest.raises(InputError, match="a released student has no best weights"):
        load_solver(NANO, "best")


def test_pytorch_answers_alike(solver):
    verdict = torch_export.check(torch_export.load(NANO), read_proofs(NANO), "nano")
    assert verdict.largest < 1e-4
    assert verdict.questions >= 100


def test_it_answers_whatever_is_asked(solver):
    tasks = list(solver.config.data.tasks.load().values())[:3]
    answers = solver.solve([q for task in tasks for q in open_questions(task.blind())])
    for attempts in answers.values():
        assert 0 <= attempts.confidence <= 1
        assert max(attempts.first.shape) <= 30


def test_solve_works_out_of_the_box(tmp_path):
    task = {"train": [{"input": [[1, 2]], "output": [[2, 1]]}] * 2, "test": [{"input": [[3, 4]]}]}
    (tmp_path / "mirror.json").write_text(json.dumps(task))
    done = invoke("student_jax.solve", str(tmp_path / "mirror.json"))
    assert done.returncode == 0, done.stderr
    assert "mirror" in done.stdout
    out = tmp_path / "p.json"
    solve_main(SolveConfig(source=str(tmp_path), out=out))
    predictions = read_predictions(out)
    assert predictions.about["parameters"] <= 2_000_000
    assert np.asarray(predictions.attempts["mirror"][0].first).size >= 1
