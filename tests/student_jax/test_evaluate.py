"""What the scorer says beside the scores; no student is run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bridge.arc_files import load_tasks
from bridge.canvas import Attempts
from bridge.predictions import write_predictions
from student_jax.evaluate import EvaluateConfig, main

EVALUATION = "arcagi/evaluation"
IDS = ("00576224", "009d5c81", "070dd51e", "50a16a69")
TEACHER = {"teacher": "gr00t-n1.5", "weights": "pretrained"}


@pytest.fixture(scope="module")
def tasks():
    loaded = load_tasks(EVALUATION)
    return {i: loaded[i] for i in IDS}


def write(path, tasks, solved, **about):
    """Predictions that solve the tasks named and answer black elsewhere."""
    attempts = {}
    for task_id, task in tasks.items():
        answers = [g if task_id in solved else np.zeros_like(g) for g in task.test_outputs]
        attempts[task_id] = tuple(Attempts(g, g, 0.5) for g in answers)
    write_predictions(path, {"student": "grid", "trained_on": [], **about}, attempts)
    return path


def evaluate(*files, tmp_path, capsys):
    main(EvaluateConfig(predictions=files, source=EVALUATION, out=tmp_path / "s.json"))
    text = capsys.readouterr().out.translate(dict.fromkeys(map(ord, "│┃"), " "))
    return json.loads((tmp_path / "s.json").read_text()), " ".join(text.split())


def groups(scores):
    """Tasks and pass@2 of each group."""
    rows = {group: rows["grid student"] for group, rows in scores.items()}
    return {group: (row["num_tasks"], row["pass_2"]) for group, row in rows.items()}


def test_the_two_tasks_given_away_are_told_apart(tasks, tmp_path, capsys):
    file = write(tmp_path / "p.json", tasks, IDS[2:])
    scores = evaluate(file, tmp_path=tmp_path, capsys=capsys)[0]["scores"]
    assert groups(scores) == {
        "held-out tasks": (4, 0.5),
        "held-out tasks without the two that training tasks give away": (2, 0.0),
    }


def test_tasks_that_training_gave_away_do_not_count_as_held_out(tasks, tmp_path, capsys):
    file = write(tmp_path / "p.json", tasks, IDS[1:], trained_on=list(IDS[2:]))
    scores = evaluate(file, tmp_path=tmp_path, capsys=capsys)[0]["scores"]
    assert groups(scores) == {
        "held-out tasks": (2, 0.5),
        "tasks trained on, answers included": (2, 1.0),
        "all, with the two given away, as others report it": (4, 0.75),
    }


def test_a_teacher_without_its_controls_is_told(tasks, tmp_path, capsys):
    taught = write(tmp_path / "a.json", tasks, IDS, teacher=TEACHER)
    text = evaluate(taught, tmp_path=tmp_path, capsys=capsys)[1]
    assert "missing: the same student without a teacher, with a random-weights teacher" in text
    alone = write(tmp_path / "b.json", tasks, IDS, teacher=None)
    control = write(
        tmp_path / "c.json", tasks, IDS, teacher={**TEACHER, "weights": "random weights, seed 0"}
    )
    text = evaluate(taught, alone, control, tmp_path=tmp_path, capsys=capsys)[1]
    assert "no benefit" not in text


@pytest.mark.parametrize("about", [{"untrained": True}, {"taught_before": [TEACHER]}])
def test_what_was_never_trained_or_taught_before_is_no_student_without_a_teacher(
    tasks, tmp_path, capsys, about
):
    random = {**TEACHER, "weights": "random weights, seed 0"}
    files = [
        write(tmp_path / "a.json", tasks, IDS, teacher=TEACHER),
        write(tmp_path / "b.json", tasks, IDS, teacher=random),
        write(tmp_path / "c.json", tasks, IDS, teacher=None, **about),
    ]
    text = evaluate(*files, tmp_path=tmp_path, capsys=capsys)[1]
    assert "missing: the same student without a teacher" in text


def test_a_student_and_its_untrained_control_are_no_two_runs_of_one(tasks, tmp_path, capsys):
    files = [
        write(tmp_path / "a.json", tasks, IDS[:1], untrained=True),
        write(tmp_path / "b.json", tasks, IDS),
    ]
    assert "in the mean of" not in evaluate(*files, tmp_path=tmp_path, capsys=capsys)[1]


def test_an_untrained_reader_is_a_control_and_not_the_teachers_score(tasks, tmp_path, capsys):
    reads = {"student": "feature", "needs_teacher": True, "teacher": TEACHER}
    files = [
        write(tmp_path / "a.json", tasks, IDS[:1], **reads, untrained=True),
        write(tmp_path / "b.json", tasks, IDS, **reads),
    ]
    found, text = evaluate(*files, tmp_path=tmp_path, capsys=capsys)
    assert list(found["retention"]) == ["feature student (reads the teacher), untrained"]
    assert "of the feature student (reads the teacher) " in text


def test_a_student_that_was_stopped_is_told(tasks, tmp_path, capsys):
    text = evaluate(
        write(tmp_path / "a.json", tasks, IDS, stopped=True), tmp_path=tmp_path, capsys=capsys
    )[1]
    assert "stopped by a signal: tasks are missing" in text


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (IDS, "grid student 50.0 % 50% 0-100 % not met 50% "),
        (IDS[:2], "grid student 50.0 % 100% 100-100 % met 100% 100%"),
        ((), "grid student 50.0 % undefined - open"),
    ],
)
def test_retention_is_shown_met_or_not(tasks, tmp_path, capsys, read, words):
    reader = write(tmp_path / "a.json", tasks, read, student="feature", needs_teacher=True)
    alone = write(tmp_path / "b.json", tasks, IDS[:2])
    found, text = evaluate(reader, alone, tmp_path=tmp_path, capsys=capsys)
    assert words in text
    assert ("solves none of these tasks" in text) == (not read)
    assert list(found["retention"]) == ["grid student"]


def test_the_teachers_score_is_not_that_of_its_random_control(tasks, tmp_path, capsys):
    reads = {"student": "feature", "needs_teacher": True}
    control = {**TEACHER, "weights": "random weights, seed 0"}
    files = [
        write(tmp_path / "a.json", tasks, IDS, **reads, teacher=control),
        write(tmp_path / "b.json", tasks, IDS[:2], **reads, teacher=TEACHER),
        write(tmp_path / "c.json", tasks, IDS[:1], teacher=TEACHER),
        write(tmp_path / "d.json", tasks, (), teacher=None),
    ]
    found, text = evaluate(*files, tmp_path=tmp_path, capsys=capsys)
    kept = {name: each["share"] for name, each in found["retention"].items()}
    assert kept == {
        "feature student (reads the teacher), teacher random gr00t-n1.5": 2.0,
        "grid student, teacher gr00t-n1.5": 0.5,
        "grid student, no teacher": 0.0,
    }
    assert "50.0 %, of the feature student (reads the teacher), teacher gr00t-n1.5 " in text
    again = write(tmp_path / "e.json", tasks, IDS[:2], **reads, teacher=TEACHER)
    found, text = evaluate(*files, again, tmp_path=tmp_path, capsys=capsys)
    assert found["retention"] == {}
    assert "one reader of its features at a time; here are 2" in text


def test_what_zero_shot_answers_took_is_told(tasks, tmp_path, capsys):
    together = {"tasks": 4, "seconds": 10.0}
    file = write(tmp_path / "p.json", tasks, IDS[:1], views=8, answering=together)
    text = evaluate(file, tmp_path=tmp_path, capsys=capsys)[1]
    assert "2.50 s a task, in 8 view(s): all 4 together in 10.0 s, compilation included" in text


def test_comparison_prints_and_writes_what_changed(tasks, tmp_path, capsys):
    a = write(tmp_path / "a.json", tasks, IDS[:1])
    b = write(tmp_path / "b.json", tasks, IDS[1:])
    main(EvaluateConfig(compare=(a, b), source=EVALUATION))
    text = " ".join(capsys.readouterr().out.split())
    assert f"solved by it alone (3): {' '.join(IDS[1:])}" in text
    assert f"lost (1): {IDS[0]}" in text
    found = json.loads((tmp_path / "comparison.json").read_text())["comparison"]["held-out tasks"]
    assert found["p_value"] == pytest.approx(0.625)


def test_runs_of_one_student_are_told_together(tasks, tmp_path, capsys):
    files = [write(tmp_path / f"{n}.json", tasks, IDS[:n], teacher=None) for n in (1, 3)]
    text = evaluate(*files, tmp_path=tmp_path, capsys=capsys)[1]
    assert "grid student: pass@2 50.0 % in the mean of 2 runs, 25.0 to 75.0 %" in text


def test_breakdown_is_written(tasks, tmp_path, capsys):
    adapted = {
        i: {"fit": 1.0, "steps": 9, "seconds": s, "rounds": 1}
        for i, s in zip(IDS, (1, 2, 3, 6), strict=True)
    }
    file = write(tmp_path / "p.json", tasks, IDS[:1], adapted=adapted)
    found, text = evaluate(file, tmp_path=tmp_path, capsys=capsys)
    details = found["held-out tasks"]["grid student"]
    assert sum(kind["num_tasks"] for kind in details["kinds"].values()) == 2 * len(IDS)
    assert len(details["colors"]) == 10
    assert details["risk_coverage"] == [[1.0, 0.75]]  # all equally sure
    assert "3.0 s a task, to learn and answer it, at most 6.0 s" in text


def test_predictions_or_a_comparison_but_not_both():
    with pytest.raises(ValueError, match="at least one file, or two to --compare"):
        replace(EvaluateConfig(predictions=("a",)), compare=("a", "b"))
