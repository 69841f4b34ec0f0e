"""The server's contract, by a real student in one process."""

import asyncio
import json
import time

import numpy as np
import pytest
from fastapi import HTTPException, Request
from starlette.testclient import TestClient

from bridge.arc import open_questions, parse_task
from bridge.errors import InputError
from bridge.predictions import write_predictions
from student_jax.client import Client, RefusedError, attempts_of
from student_jax.engine import Engine
from student_jax.serve import ServeConfig, make_host, names_of
from student_jax.service.app import make_app
from student_jax.service.forms import Health, KnownTask, Learning, Solved
from student_jax.service.limits import Limits
from student_jax.service.reading import read_body
from student_jax.solve import NANO
from student_jax.solver import load_solver

LIMITS = Limits(body_bytes=20_000, demonstrations=4, test_inputs=3, job_seconds=60)


@pytest.fixture(scope="module")
def host(task_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "predictions.json"
    grid = np.zeros((3, 3), np.uint8)
    attempts = attempts_of([{"attempts": [grid, grid], "confidence": 0.5, "log_prob": 0.0}])
    write_predictions(path, {"student": "grid", "tier": "zero-shot"}, {"1a": attempts})
    source = (str(task_folder),)
    host = make_host(ServeConfig(source=source, compare=(path,), warm=0, limits=LIMITS))
    yield host
    host.close()


@pytest.fixture(scope="module")
def web(host):
    with TestClient(make_app(host, None), raise_server_exceptions=False) as web:
        yield web


@pytest.fixture
def asked(task_folder):
    return json.loads((task_folder / "1a.json").read_text())


def test_solve_answers_as_the_engine_does(web, asked):
    asked["test"] += asked["test"][:1]
    asked["name"] = "extra keys are no fault"
    for views in (1, 2):
        said = web.post(f"/solve?views={views}&certainty=true", json=asked)
        assert said.status_code == 200
        Solved.model_validate(said.json())
        engine = Engine(load_solver(NANO))
        question = open_questions(parse_task("x", asked, "x").blind())[0]
        expected = engine.answer(question, views)
        assert (said.json()["tier"], said.json()["views"]) == ("zero-shot", views)
        assert len(said.json()["answers"]) == 2
        for answer in said.json()["answers"]:
            assert answer["attempts"] == [expected.first.tolist(), expected.second.tolist()]
            assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
            np.testing.assert_allclose(answer["certainty"], expected.certainty, atol=1e-4)
    assert "certainty" not in web.post("/solve", json=asked).json()["answers"][0]


def test_answers_are_not_read(web, asked):
    told = [web.post("/solve", json=asked).json()["answers"]]
    for output in ([[7]], "nonsense", None, [[10, -1], []]):
        asked["test"][0]["output"] = output
        told.append(web.post("/solve", json=asked).json()["answers"])
    assert all(each == told[0] for each in told)


def test_a_task_is_learnt_and_ended(web, host, asked):
    said = web.post("/adapt?tier=tokens&seconds=60&steps=20000&views=8", json=asked)
    assert said.status_code == 202
    where = said.headers["location"]
    assert where == f"/adapt/{said.json()['job']}"
    until = time.monotonic() + 120
    while (told := web.get(where).json())["step"] < 3 and time.monotonic() < until:
        Learning.model_validate(told)
        time.sleep(0.05)
    assert told["state"] == "learning"
    assert web.delete(where).status_code == 200
    while not (told := web.get(where).json())["answers"] and time.monotonic() < until:
        time.sleep(0.05)
    Learning.model_validate(told)
    assert (told["state"], told["tier"], told["views"]) == ("cancelled", "tokens", 8)
    assert [step for step, _, _ in told["curve"]][:3] == [1, 2, 3]
    assert told["curve"][0][1] > 0
    assert np.array(told["answers"][0]["certainty"]).shape == (3, 3)
    assert web.delete(where).json()["state"] == "cancelled"
    assert web.get("/metrics").text.count('sage_jobs{state="cancelled"} 1.0') == 1


def test_what_there_is_to_pick(web, host, asked, task_folder):
    assert web.get("/tasks").json() == {str(task_folder): ["1a", "1b", "1c", "1d", "1e", "1f"]}
    told = web.get("/tasks/1a").json()
    KnownTask.model_validate(told)
    assert (told["train"], told["test"]) == (asked["train"], asked["test"])
    assert not told["trained_on"]
    (other,) = web.get("/tasks/1a/compared").json()
    assert other["tier"] == "zero-shot"
    assert other["answers"][0]["attempts"][0] == [[0, 0, 0]] * 3
    assert web.get("/tasks/1b/compared").json() == []
    for path in ("/tasks/none", "/tasks/none/compared", "/adapt/none", "/none"):
        assert web.get(path).status_code == 404


def test_health_and_metrics(web, host, asked):
    told = web.get("/health").json()
    Health.model_validate(told)
    assert (told["student"], told["status"]) == ("nano", "ok")
    assert told["parameters"] > 200_000
    web.post("/solve", json=asked)
    web.get("/made/up")
    web.request("MADE", "/solve")
    text = web.get("/metrics").text
    assert 'sage_requests_total{method="POST",route="/solve",status="200"}' in text
    assert "process_resident_memory_bytes" in text
    assert "made" not in text.lower()  # what is made up makes no series


def test_pages_load_nothing_from_elsewhere(web):
    page = web.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text.replace("<!doctype html>", "")
    for name in ("docs.js", "swagger-ui-bundle.js", "swagger-ui.css"):
        assert web.get(f"/docs/{name}").status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert set(web.get("/openapi.json").json()["paths"]) >= {"/solve", "/adapt", "/health"}


GRID = [[0, 1], [2, 3]]
PAIR = {"input": GRID, "output": GRID}
TASK = {"train": [PAIR], "test": [{"input": GRID}]}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "expected JSON"),
        (b"\xff\xfe\xfd", "expected JSON"),
        (b"[" * 9000, "nested too deeply"),
        (b'{"train": NaN}', "got NaN"),
        (b'{"train": [], "train": []}', "duplicate key 'train'"),
        (b'{"\\ud800": 1, "\\ud800": 1}', "duplicate key"),
        (b"[]", "expected an object with 'train' and 'test', got list"),
        ({**TASK, "train": []}, "train: expected a list of 1.."),
        ({**TASK, "train": [PAIR] * 5}, "train: expected at most 4, got 5"),
        ({**TASK, "test": [{"input": GRID}] * 4}, "test: expected at most 3, got 4"),
        ({**TASK, "test": [{"output": GRID}]}, "test[0]: expected an object with the key 'input'"),
        ({**TASK, "test": [{"input": [[10]]}]}, "test[0].input[0][0]: expected an integer color"),
        ({**TASK, "test": [{"input": [[1.0]]}]}, "got float 1.0"),
        ({**TASK, "test": [{"input": [[True]]}]}, "got bool True"),
        ({**TASK, "test": [{"input": [[0]] * 31}]}, "expected 1..30 rows, got 31"),
        ({**TASK, "test": [{"input": [[0, 1], [2]]}]}, "make every row equally long"),
        ({**TASK, "test": [{"input": [[10**50]]}]}, "expected an integer color"),
    ],
)
def test_a_malformed_task_is_one_clear_line(web, body, line):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    for route in ("/solve", "/adapt"):
        said = web.post(route, content=content)
        assert said.status_code == 422
        assert set(said.json()) == {"detail"}
        assert line in said.json()["detail"]
        assert "\n" not in said.json()["detail"]


def test_other_refusals(web, host, asked):
    assert web.post("/solve?views=9", json=asked).status_code == 422
    assert web.post("/adapt?seconds=nan", json=asked).status_code == 422
    assert web.post("/adapt?tier=soul", json=asked).json()["detail"].startswith("tier: ")
    assert web.get("/solve").status_code == web.delete("/solve").status_code == 405
    assert web.post("/solve", content=b" " * 20_001).status_code == 413
    assert web.post("/solve", content=iter([b" " * 15_000] * 2)).status_code == 413
    host.draining = True
    try:
        assert web.post("/solve", json=asked).status_code == 503
        assert web.post("/adapt", json=asked).status_code == 503
        assert (web.get("/health").status_code, web.get("/tasks").status_code) == (503, 200)
    finally:
        host.draining = False


def test_a_body_that_stalls_or_breaks_off_is_given_up():
    async def stall():
        await asyncio.sleep(60)

    async def leave():
        return {"type": "http.disconnect"}

    for receive, status in ((stall, 408), (leave, 400)):
        request = Request({"type": "http", "method": "POST", "headers": []}, receive)
        with pytest.raises(HTTPException) as refused:
            asyncio.run(read_body(request, Limits(body_seconds=0.05)))
        assert refused.value.status_code == status


def test_pages_of_other_sites_may_not_ask(host, asked):
    names = names_of(ServeConfig(names=("sage.example",)))
    web = TestClient(make_app(host, names), base_url="http://127.0.0.1:8000")
    same, other = "http://127.0.0.1:8000", "http://evil.example"
    assert web.get("/health", headers={"origin": same}).status_code == 200
    assert web.get("/health", headers={"host": "sage.example"}).status_code == 200
    assert web.post("/solve", json=asked, headers={"origin": other}).status_code == 403
    neighbour = {"origin": "http://127.0.0.1:9000"}
    assert web.post("/solve", json=asked, headers=neighbour).status_code == 403
    proxy = {"origin": "https://sage.example"}
    assert web.post("/solve", json=asked, headers=proxy).status_code == 200
    assert web.post("/solve", json=asked, headers={"origin": "null"}).status_code == 403
    assert web.get("/health", headers={"host": "evil.example"}).status_code == 403
    assert names_of(ServeConfig(host="0.0.0.0")) is None


def test_the_client_says_who_is_not_there():
    with pytest.raises(InputError, match=r"nobody answers at http://127\.0\.0\.1:9"):
        Client("http://127.0.0.1:9").health()
    with pytest.raises(InputError, match="expected http://host:port"):
        Client("127.0.0.1:8000")
    assert issubclass(RefusedError, InputError)
