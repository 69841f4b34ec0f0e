"""Whatever comes in, the server says what its description says, and never 500."""

import json
import random

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from starlette.testclient import TestClient

from bridge.canvas import Attempts
from student_jax.serve import ServeConfig, make_host
from student_jax.service.app import make_app
from student_jax.service.batcher import Batcher
from student_jax.service.host import Host
from student_jax.service.jobs import Jobs
from student_jax.service.library import open_library
from student_jax.service.limits import Limits

# JSON Schema cannot say that rows are equally long, so some of what it allows is refused; and that
# numbers of no cell are refused is said of a body, where a query's are meant.
OPTIONS = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}
OUT = ("positive_data_acceptance", "negative_data_rejection")
FLIP = {"input": [[1, 0], [0, 2]], "output": [[0, 1], [2, 0]]}
TASK = {"train": [FLIP, FLIP], "test": [{"input": [[3, 0], [4, 4]]}]}


class Echo:
    """Answers a question with its query."""

    def shape(self, question, views):
        return (question.query.shape, views)

    def answer_all(self, questions, views):
        grids = [question.query for question in questions]
        return [Attempts(g, g, 1.0, certainty=np.ones(g.shape, np.float32)) for g in grids]


def echo(wanted, watch, stop):
    return tuple(Attempts(grid, grid, 1.0) for grid in wanted.task.test_inputs)


@pytest.fixture(scope="module")
def app(task_folder):
    limits = Limits(jobs_waiting=1000)
    library = open_library([str(task_folder)], [])
    batcher, jobs = Batcher(Echo(), 64, 4), Jobs(echo, limits)
    about = {
        "student": "echo",
        "parameters": 0,
        "step": 0,
        "trained_on_tasks": 0,
        "teacher": "none",
        "max_side": 30,
        "max_demonstrations": 20,
        "tiers": [],
    }
    host = Host(about, frozenset(), batcher, jobs, library, limits)
    yield make_app(host, None)
    host.close()


@pytest.fixture(scope="module")
def api(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def keeps_to_its_description(api, examples):
    """Asks every operation what its description allows, and what not."""
    excluded = [CHECKS.get_one(name) for name in OUT]
    asked = set()
    for result in api.get_all_operations():
        operation = result.ok()
        takes = len(operation.body) + len(operation.query)  # else nothing of it can be wrong
        for mode in GenerationMode if takes else [GenerationMode.POSITIVE]:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=examples, **OPTIONS)
            def ask(case):
                asked.add(case.operation.label)
                case.call_and_validate(excluded_checks=excluded)

            ask()
    return asked


def test_it_keeps_to_its_description(api):
    assert keeps_to_its_description(api, 6) >= {"POST /solve", "POST /adapt", "GET /adapt/{job}"}


@pytest.mark.slow
def test_it_keeps_to_its_description_for_long(api):
    keeps_to_its_description(api, 150)


def harm(rng, text):
    """Changes, drops, doubles and moves bytes."""
    data = bytearray(text)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 20)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        else:
            data[at:at] = rng.choice([b"[", b"]", b"{", b"1e999", b"-", b"NaN", b'"', b"\\ud800"])
        data = data or bytearray(b"x")
    return bytes(data)


def ask_nonsense(app, count):
    web = TestClient(app, raise_server_exceptions=False)
    rng, seen = random.Random(0), set()
    for i in range(count):
        noise = i % 3 == 0
        content = (
            rng.randbytes(rng.randint(0, 300)) if noise else harm(rng, json.dumps(TASK).encode())
        )
        said = web.post(rng.choice(["/solve", "/solve?certainty=true", "/adapt"]), content=content)
        assert said.status_code in (200, 202, 422, 429), (content, said.text)
        if said.status_code == 422:
            assert "\n" not in said.json()["detail"]
        seen.add(said.status_code)
    return seen


def test_random_bytes_are_refused_in_one_line(app):
    assert ask_nonsense(app, 300) >= {200, 422}


@pytest.mark.slow
def test_random_bytes_are_refused_for_long(app):
    ask_nonsense(app, 20_000)


@pytest.mark.slow
def test_grids_of_every_shape_are_answered(task_folder):
    """By the student itself: all sides, all numbers of colors, every growth."""
    host = make_host(ServeConfig(source=(str(task_folder),), warm=0))
    web = TestClient(make_app(host, None))
    rng = np.random.default_rng(0)

    def grid(rows, cols):
        return rng.integers(0, rng.integers(1, 11), (rows, cols)).tolist()

    for i in range(150):
        sides = rng.choice([1, 2, 3, 7, 8, 15, 29, 30], (4, 2)).tolist() if i else [[30, 30]] * 4
        shown, grown, *asked = sides
        pairs = [{"input": grid(*shown), "output": grid(*grown)} for _ in range(1 + i % 12)]
        task = {"train": pairs, "test": [{"input": grid(*each)} for each in asked]}
        said = web.post(f"/solve?views={1 + i % 2}&certainty=true", json=task)
        assert said.status_code == 200, said.text
        for answer in said.json()["answers"]:
            assert np.shape(answer["certainty"]) == np.shape(answer["attempts"][0])
    host.close()
