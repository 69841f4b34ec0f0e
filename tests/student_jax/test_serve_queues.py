"""The queues of questions and adaptations, with a stand-in that answers when it is told to."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from starlette.testclient import TestClient

from bridge.arc import open_questions
from bridge.canvas import Attempts
from bridge.errors import InputError
from student_jax.course import Seen
from student_jax.service.app import make_app
from student_jax.service.batcher import Batcher, FullError
from student_jax.service.host import Host
from student_jax.service.jobs import POINTS, Curve, Jobs, Wanted
from student_jax.service.library import Library
from student_jax.service.limits import Limits
from tests.conftest import task_json

SECONDS = 20  # to wait for what takes milliseconds


class StandIn:
    """Answers a question with its query, as soon as `go` is set; a shape is a query's shape."""

    def __init__(self):
        self.go = threading.Event()
        self.calls = []

    def shape(self, question, views):
        return (question.query.shape, views)

    def answer_all(self, questions, views):
        self.calls.append(len(questions))
        assert self.go.wait(SECONDS)
        if questions[0].query.tolist() == [[9]]:
            raise RuntimeError("broken")
        return [Attempts(q.query, q.query, 0.5) for q in questions]


@pytest.fixture
def answerer():
    return StandIn()


@pytest.fixture
def question(task):
    return open_questions(task)[0]


def with_query(question, query):
    return replace(question, query=np.array(query, np.uint8))


def wait_for(condition):
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_what_waits_together_and_is_alike_shares_a_call(answerer, question):
    batcher = Batcher(answerer, 16, 4)
    first = batcher.ask([question], 1)
    wait_for(lambda: answerer.calls == [1])
    small = with_query(question, [[1]])
    asked = batcher.ask([question, small, question], 1) + batcher.ask([question], 8)
    more = batcher.ask([with_query(question, [[i] * 3] * 3) for i in range(4)], 1)
    answerer.go.set()
    batcher.close()
    # The oldest first, with up to three of its shape; then what is left of each shape.
    assert answerer.calls == [1, 4, 1, 1, 2]
    assert asked[1].result().attempts.first.tolist() == [[1]]
    for i, future in enumerate(more):
        assert future.result().attempts.first[0, 0] == i
    answered = first[0].result()
    assert answered.arrived <= answered.began <= answered.ended


def test_the_oldest_waits_for_others_no_longer_than_it_may(answerer, question):
    answerer.go.set()
    batcher = Batcher(answerer, 16, 2, wait_seconds=SECONDS)
    started = time.monotonic()
    for _ in range(2):
        futures = batcher.ask([question], 1)
    assert futures[0].result(SECONDS)
    assert time.monotonic() - started < SECONDS / 2  # a full batch waits no more
    batcher.close()
    assert answerer.calls == [2]
    batcher = Batcher(answerer, 16, 2, wait_seconds=0.05)
    answered = batcher.ask([question], 1)[0].result(SECONDS)
    batcher.close()
    assert answered.began - answered.arrived >= 0.05


def test_what_is_given_up_while_others_of_its_shape_are_awaited_ends_nothing(answerer, question):
    answerer.go.set()
    batcher = Batcher(answerer, 16, 8, wait_seconds=0.2)
    (given_up,) = batcher.ask([question], 1)
    given_up.cancel()
    (other,) = batcher.ask([with_query(question, [[1]])], 1)  # drops the first from the queue
    assert other.result(SECONDS).attempts.first.tolist() == [[1]]
    batcher.close()


def test_a_full_queue_takes_all_or_none_and_what_is_given_up_makes_room(answerer, question):
    batcher = Batcher(answerer, 3, 1)
    batcher.ask([question], 1)
    wait_for(lambda: answerer.calls)
    futures = batcher.ask([question] * 2, 1)
    with pytest.raises(FullError, match="1"):
        batcher.ask([question] * 2, 1)
    assert batcher.waiting == 2
    assert futures[0].cancel()
    batcher.ask([question] * 2, 1)
    answerer.go.set()
    batcher.close()
    assert answerer.calls == [1] * 4


def test_a_fault_is_told_and_the_next_question_answered(answerer, question):
    answerer.go.set()
    batcher = Batcher(answerer, 3, 1)
    (broken,) = batcher.ask([with_query(question, [[9]])], 1)
    with pytest.raises(RuntimeError, match="broken"):
        broken.result(SECONDS)
    assert batcher.ask([question], 1)[0].result(SECONDS)
    batcher.close()


def wanted(task, seconds=60.0):
    return Wanted(task, "weights", seconds, 2000, 1)


def learn_until_stopped(wanted, watch, stop):
    step = 0
    while not stop.requested:
        step += 1
        watch(Seen(step, 0.5, 1.0, 0.25))
        time.sleep(0.001)
    return tuple(Attempts(grid, grid, 1.0) for grid in wanted.task.test_inputs)


def test_jobs_go_one_at_a_time_and_end_when_asked(task):
    jobs = Jobs(learn_until_stopped, Limits(jobs_waiting=2))
    first, second = jobs.add(wanted(task)), None
    wait_for(lambda: first.seen)
    second, third = jobs.add(wanted(task)), jobs.add(wanted(task))
    with pytest.raises(FullError, match="60"):
        jobs.add(wanted(task))
    assert jobs.count() == {"queued": 2, "learning": 1, "done": 0, "cancelled": 0, "failed": 0}
    jobs.cancel(second)
    assert (second.state, second.answers) == ("cancelled", ())
    jobs.cancel(first)
    wait_for(lambda: third.seen)
    assert (first.state, len(first.answers)) == ("cancelled", 1)
    assert jobs.find(first.key) is first
    jobs.close(SECONDS)
    assert (third.state, len(third.answers)) == ("cancelled", 1)
    assert not jobs.are_collected
    assert jobs.tell(third, lambda job: {"state": job.state}) == {"state": "cancelled"}
    assert jobs.are_collected


def test_a_job_is_done_or_fails_in_words(task):
    def learn(wanted, watch, stop):
        if wanted.seconds == 1:
            raise InputError("task: too odd")
        if wanted.seconds == 2:
            raise RuntimeError("secret")
        return ()

    jobs = Jobs(learn, Limits())
    done, odd, broken = (jobs.add(wanted(task, seconds)) for seconds in (0, 1, 2))
    wait_for(lambda: jobs.is_idle)
    assert (done.state, odd.state, broken.state) == ("done", "failed", "failed")
    assert odd.error == "task: too odd"
    assert "secret" not in broken.error
    jobs.close(SECONDS)


def test_ended_jobs_are_kept_for_a_while(task):
    jobs = Jobs(lambda *_: (), Limits(jobs_kept=2, job_minutes=1))
    added = []
    for _ in range(4):
        added.append(jobs.add(wanted(task)))
        wait_for(lambda: jobs.is_idle)
    assert [jobs.find(job.key) is not None for job in added] == [False, False, True, True]
    added[2].ended -= 61
    assert [jobs.find(job.key) is not None for job in added[2:]] == [False, True]
    jobs.close(SECONDS)


def test_a_curve_stays_short_and_even():
    curve = Curve()
    for step in range(1, 2001):
        curve.see(Seen(step, 0.0, float("nan"), 0.5))
    steps = [step for step, _, _ in curve.points]
    assert POINTS / 2 <= len(steps) <= POINTS
    assert len(set(np.diff(steps))) == 1
    assert curve.points[0][1:] == (None, 0.5)


def test_full_queues_and_late_answers_by_http(answerer, task):
    limits = Limits(waiting=1, seconds=1.5, jobs_waiting=1)
    host = Host(
        about={},
        trained_on=frozenset(),
        batcher=Batcher(answerer, limits.waiting, 1),
        jobs=Jobs(learn_until_stopped, limits),
        library=Library({}, {}),
        limits=limits,
    )
    asked = task_json(task)
    web = TestClient(make_app(host, None), raise_server_exceptions=False)
    assert web.post("/solve", json=asked).status_code == 504
    (waiting,) = host.batcher.ask([open_questions(task)[0]], 1)
    full = web.post("/solve", json=asked)
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert full.json() == {"detail": "questions: the queue is full; come again in 1 s"}
    assert "sage_waiting" in web.get("/metrics").text
    answerer.go.set()
    assert waiting.result(SECONDS)
    assert web.post("/solve", json=asked).status_code == 200
    asked["test"][0]["input"] = [[9]]
    broken = web.post("/solve", json=asked)
    assert (broken.status_code, set(broken.json())) == (500, {"detail"})
    first = web.post("/adapt", json=asked).json()["job"]
    wait_for(lambda: host.jobs.find(first).state == "learning")
    assert web.post("/adapt", json=asked).status_code == 202
    assert web.post("/adapt", json=asked).status_code == 429
    host.close()
