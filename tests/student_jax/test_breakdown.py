"""Kinds, colors, confidence, paired comparisons: by hand, and against scipy."""

import numpy as np
import pytest
from scipy import stats

from bridge.arc import Pair, Task
from bridge.canvas import Attempts
from student_jax.baselines import siblings
from student_jax.breakdown import area_under, color_scores, kinds_of, risk_coverage
from student_jax.metrics import interval, score
from student_jax.paired import compare, retention, sign_test


def grid(*rows):
    return np.array([[int(c) for c in row] for row in rows], np.uint8)


def make_task(name, query, answer, demonstrations=()):
    return Task(name, demonstrations, (query,), (answer,))


def solved(answer, *, right=True, confidence=0.5):
    wrong = (answer + 1) % 10
    return (Attempts(answer if right else wrong, wrong, confidence),)


@pytest.mark.parametrize(("right", "count"), [(0, 43), (10, 43), (43, 43), (1, 400)])
def test_interval_is_wilsons(right, count):
    expected = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    assert interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (4, 2), (9, 1), (0, 6)])
def test_sign_test_is_the_exact_one(gained, lost):
    total = gained + lost
    expected = stats.binomtest(gained, total).pvalue if total else 1.0
    assert sign_test(gained, lost) == pytest.approx(expected)


def test_strict_asks_for_every_test_input():
    answer = grid("12")
    task = Task("t", (), (answer, answer), (answer, answer))
    scores = score({"t": solved(answer) + solved(answer, right=False)}, {"t": task}, ["t"])
    assert (scores.pass_2, scores.strict) == (0.5, 0.0)
    assert score({"t": solved(answer) * 2}, {"t": task}, ["t"]).strict == 1.0


def test_tasks_are_sorted_by_the_largest_grid_and_by_whether_sizes_stay():
    small, large = grid("12"), np.zeros((11, 3), np.uint8)
    tasks = {
        "same": make_task("same", small, small, (Pair(small, small),)),
        "other": make_task("other", small, grid("1"), (Pair(small, small),)),
        "large answer": make_task("large answer", small, large, (Pair(small, small),)),
    }
    kinds = kinds_of(tasks, tasks)
    assert kinds["sides 1 to 10"] == ["same", "other"]
    assert kinds["sides 11 to 20"] == ["large answer"]
    assert "sides 21 to 30" not in kinds
    assert kinds["same size"] == ["same"]


def test_color_scores_by_hand():
    expected, answered = grid("112"), grid("1220", "0000")
    tasks = {"t": make_task("t", expected, expected)}
    scores = color_scores({"t": (Attempts(answered, answered, 1.0),)}, tasks, tasks)
    assert (scores[1].precision, scores[1].recall) == (1.0, 0.5)
    assert (scores[2].precision, scores[2].recall, scores[2].f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (scores[0].precision, scores[0].cells) == (0.0, 0)  # all of its cells are too many
    assert scores[9].f1 == 0.0


def test_risk_rises_as_less_sure_answers_are_given():
    answer = grid("12")
    tasks = {name: make_task(name, answer, answer) for name in "abcd"}
    answers = {
        "a": solved(answer, confidence=0.9),
        "b": solved(answer, right=False, confidence=0.8),
        "c": solved(answer, confidence=0.8),  # as sure as b: the two come together
        "d": solved(answer, right=False, confidence=0.1),
    }
    curve = risk_coverage(answers, tasks, tasks)
    assert curve == [(0.25, 0.0), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)]
    assert area_under(curve) == pytest.approx(0.5 / 3 + 0.25 * 0.5)


def test_comparison_names_what_is_gained_and_lost():
    answer = grid("12")
    tasks = {str(i): make_task(str(i), answer, answer) for i in range(8)}
    of_a = {i: solved(answer, right=i in "01") for i in tasks}
    of_b = {i: solved(answer, right=i in "123456") for i in tasks}
    found = compare(of_a, of_b, tasks, list(tasks))
    assert found.gained == list("23456")
    assert found.lost == ["0"]
    assert found.difference == pytest.approx(4 / 8)
    assert found.low < found.difference < found.high
    assert found.p_value == pytest.approx(stats.binomtest(5, 6).pvalue)
    same = compare(of_a, of_a, tasks, list(tasks))
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_retention_is_the_students_share_of_the_teachers_score():
    answer = grid("12")
    tasks = {str(i): make_task(str(i), answer, answer) for i in range(20)}
    teacher = {i: solved(answer, right=int(i) < 10) for i in tasks}
    student = {i: solved(answer, right=int(i) < 5) for i in tasks}
    found = retention(student, teacher, tasks, list(tasks))
    assert found.share == pytest.approx(0.5)
    assert 0 <= found.low < 0.5 < found.high <= 1
    assert found.agreement == pytest.approx(15 / 20)  # wrong alike agrees, too
    none = {i: solved(answer, right=False) for i in tasks}
    assert retention(student, none, tasks, list(tasks)).share is None


def test_siblings_answer_what_the_other_outputs_have_most_often():
    demonstrations = tuple(
        Pair(grid("0"), g) for g in (grid("12"), grid("13"), grid("43"), grid("7"))
    )
    task = make_task("t", grid("000"), grid("1"), demonstrations)
    first, second = siblings(task, task.test_inputs[0])
    np.testing.assert_array_equal(first, grid("13"))
    np.testing.assert_array_equal(second, grid("12"))
