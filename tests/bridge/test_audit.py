"""Leaks between task sets, blind tasks, Kaggle's submissions."""

import json

import numpy as np
import pytest

from bridge.arc import Pair, Task
from bridge.arc.__main__ import ArcConfig, main
from bridge.arc_files import load_tasks
from bridge.audit import audit, known_answers_of
from bridge.canvas import Attempts
from bridge.duplicates import keys_of
from bridge.errors import InputError
from bridge.predictions import read_predictions, write_predictions
from bridge.submission import read_submission
from bridge.transforms import Transform


def grid(*rows):
    return np.array([[int(c) for c in row] for row in rows], np.uint8)


@pytest.fixture
def source(tmp_path):
    """Three tasks in a folder; the first has two test inputs."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for i, name in enumerate(("a", "b", "c")):
        pair = {"input": [[i, 1], [2, 3]], "output": [[i]]}
        value = {"train": [pair], "test": [pair] * (2 if name == "a" else 1)}
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def answers_to(source):
    return {
        task_id: tuple(Attempts(g, g[::-1], 0.5) for g in task.test_inputs)
        for task_id, task in load_tasks(str(source)).items()
    }


def test_audit_tells_a_leaked_answer_from_a_leaked_demonstration():
    pair, other = Pair(grid("12", "00"), grid("3")), Pair(grid("45"), grid("5"))
    turned = Transform(5, (9, 8, 7, 6, 5, 4, 3, 2, 1, 0))
    disguised = Pair(turned.grid(pair.input), turned.grid(pair.output))
    train = Task("t", (disguised,), ())
    asked = Task("asked", (other,), (pair.input,), (pair.output,))
    shown = Task("shown", (pair,), (other.input,), (other.output,))
    clean = Task("clean", (other,), (pair.output,), (pair.input,))
    leaks = audit([train], [asked, shown, clean])
    assert leaks.keys() == {"asked", "shown"}
    assert leaks["asked"].answers == {"asked_test_0": ["t_train_0"]}
    assert leaks["asked"].demonstrations == {}
    assert leaks["shown"].answers == {}
    assert leaks["shown"].demonstrations == {"shown_train_0": ["t_train_0"]}


def test_audit_finds_what_is_known_of_the_public_sets(tmp_path, capsys):
    """fchollet/ARC-AGI issue 162, and a pair of caa06a1f: 398 clean tasks."""
    out = tmp_path / "audit.json"
    with pytest.raises(SystemExit, match="1"):
        main(
            ArcConfig(action="audit", what="arcagi/training", against="arcagi/evaluation", out=out)
        )
    found = json.loads(out.read_text())
    assert found["clean_tasks"] == 398
    answered = {name: list(leak["answers"].values()) for name, leak in found["tasks"].items()}
    assert answered["070dd51e"] == [["40853293_test_0"]]
    assert answered["50a16a69"] == [["caa06a1f_train_2"]]
    assert "caa06a1f" in capsys.readouterr().out


def test_arc_agi_2_training_holds_376_evaluation_tasks():
    training = load_tasks("arcagi2/training")
    assert len(training) == 1000
    assert len(load_tasks("arcagi2/evaluation")) == 120
    assert len(known_answers_of(keys_of(training.values()))) == 376


def test_blind_tasks_hold_no_answer_and_are_the_same_else(source, tmp_path, capsys):
    folder, kaggle = tmp_path / "blind", tmp_path / "x_challenges.json"
    for out in (folder, kaggle):
        main(ArcConfig(action="blind", what=str(source), out=out))
        blind = load_tasks(str(out))
        for task_id, task in load_tasks(str(source)).items():
            assert blind[task_id].test_outputs is None
            for mine, theirs in zip(blind[task_id].test_inputs, task.test_inputs, strict=True):
                np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(InputError, match="expected an empty folder"):
        main(ArcConfig(action="blind", what=str(source), out=folder))
    (tmp_path / "x_solutions.json").write_text("{}")
    with pytest.raises(InputError, match="no solutions beside blind tasks"):
        main(ArcConfig(action="blind", what=str(source), out=kaggle))


def test_submission_goes_both_ways(source, tmp_path, capsys):
    predictions, submission = tmp_path / "p.json", tmp_path / "submission.json"
    write_predictions(predictions, {"student": "grid"}, answers_to(source))
    main(ArcConfig(action="submit", what=str(predictions), against=str(source)))
    value = json.loads(submission.read_text())
    assert {name: len(items) for name, items in value.items()} == {"a": 2, "b": 1, "c": 1}
    assert value["a"][0].keys() == {"attempt_1", "attempt_2"}
    again = tmp_path / "again.json"
    main(
        ArcConfig(
            action="import",
            what=str(submission),
            against=str(source),
            out=again,
            trained_on=str(source),
        )
    )
    got = read_predictions(again)
    assert got.about["trained_on"] == ["a", "b", "c"]
    for task_id, items in answers_to(source).items():
        for mine, theirs in zip(got.attempts[task_id], items, strict=True):
            np.testing.assert_array_equal(mine.first, theirs.first)
            np.testing.assert_array_equal(mine.second, theirs.second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("b"), "expected all 3 tasks, got 2: b is missing"),
        (lambda v: v.update(z=v["b"]), "task z is not in the tasks"),
        (lambda v: v["a"].pop(), "task a: expected 2 test inputs, got 1"),
        (lambda v: v["a"][1].pop("attempt_2"), r"task a\[1\]: expected an object with attempt_1"),
        (lambda v: v["b"][0].update(attempt_1=[[11]]), r"attempt_1\[0\]\[0\]: expected an integer"),
        (lambda v: v.update(a={}), "task a: expected a list"),
    ],
)
def test_faulty_submission_is_one_line(source, tmp_path, change, message):
    path = tmp_path / "submission.json"
    value = {
        name: [{"attempt_1": [[1]], "attempt_2": [[2]]} for _ in items]
        for name, items in answers_to(source).items()
    }
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        main(
            ArcConfig(
                action="submit", what=str(path), against=str(source), out=tmp_path / "out.json"
            )
        )
    assert not (tmp_path / "out.json").exists()
    path.write_text("[]")
    with pytest.raises(InputError, match="expected an object"):
        read_submission(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"action": "blind", "what": "x"}, "expected blind SOURCE --out"),
        ({"action": "audit", "what": "x"}, "expected two names"),
        ({"action": "import", "what": "x", "against": "y"}, "trained_on: expected with import"),
    ],
)
def test_action_says_what_it_lacks(args, message):
    with pytest.raises(ValueError, match=message):
        ArcConfig(**args)
