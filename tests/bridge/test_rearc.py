"""Generated pairs: what is loaded, what is asked of them, and what the generators give."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from bridge import rearc
from bridge.arc import Pair
from bridge.arc_files import load_tasks
from bridge.duplicates import content_key, keys_of
from bridge.errors import InputError
from bridge.rearc import ABOUT, RearcConfig, digest_of, generated_questions, load_generated


@pytest.fixture
def folder(tmp_path):
    """Two tasks in RE-ARC's own form; `a` has a pair of 4 x 4, the rest is 1 x 2."""
    pairs = [{"input": [[i, 0]], "output": [[0, i]]} for i in range(5)]
    large = {"input": [[1] * 4] * 4, "output": [[2] * 4] * 4}
    (tmp_path / "a.json").write_text(json.dumps([*pairs, large]))
    (tmp_path / "b.json").write_text(json.dumps(pairs))
    return tmp_path


def test_small_pairs_of_the_tasks_that_are_asked_for_are_loaded(folder):
    found = load_generated(folder, {"a", "c"}, 30)
    assert list(found) == ["a"]
    assert len(found["a"]) == 6
    assert len(load_generated(folder, {"a", "b"}, 3)["a"]) == 5
    np.testing.assert_array_equal(found["a"][1].output, [[0, 1]])


def test_each_pair_is_the_query_once_and_never_its_own_demonstration(folder):
    pairs = load_generated(folder, {"b"}, 30)["b"]
    questions, answers = generated_questions("b", pairs)
    assert len(questions) == len(answers) == 5
    for question, pair in zip(questions, pairs, strict=True):
        assert rearc.is_generated(question)
        assert answers[question.example_id] is pair.output
        assert not any(shown is pair for shown in question.demonstrations)
        assert len(question.demonstrations) == 3


def test_too_few_pairs_give_no_question_that_shows_its_own_answer(folder):
    pairs = load_generated(folder, {"b"}, 30)["b"]
    assert generated_questions("b", pairs[:3]) == ([], {})
    assert len(generated_questions("b", pairs[:4])[0]) == 4


def test_file_that_changed_since_it_was_generated_is_noticed(folder):
    (folder / ABOUT).write_text(json.dumps({"digest": digest_of(folder)}))
    load_generated(folder, {"a"}, 30)
    (folder / "b.json").write_text("[]")
    with pytest.raises(InputError, match="differ from those that were generated"):
        load_generated(folder, {"a"}, 30)


def test_folder_without_pairs_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"run python -m bridge\.rearc"):
        load_generated(tmp_path, {"a"}, 30)


def test_bad_grid_is_named(folder):
    (folder / "a.json").write_text(json.dumps([{"input": [[11]], "output": [[1]]}]))
    with pytest.raises(InputError, match=r"a\.json\[0\]\.input"):
        load_generated(folder, {"a"}, 30)
    for broken in ({"input": [[1]]}, [{"input": [[1]]}], [3]):
        (folder / "a.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"a\.json.*: expected a"):
            load_generated(folder, {"a"}, 30)
    (folder / ABOUT).write_text("{}")
    with pytest.raises(InputError, match=r"about\.json: expected what this command wrote"):
        load_generated(folder, {"b"}, 30)


def test_pairs_of_tasks_that_repeat_the_evaluation_set_are_never_loaded(folder):
    """Also from RE-ARC's own folder, which has them."""
    (folder / "40853293.json").write_text((folder / "b.json").read_text())
    assert list(load_generated(folder, {"40853293", "b"}, 30)) == ["b"]


PAIR = {"input": [[1]], "output": [[2]]}


@pytest.fixture
def given(monkeypatch):
    """What the generators of three tasks give, by task id; an error is raised."""
    given = {"1a": [PAIR], "1b": [PAIR], "1c": [PAIR]}

    def generate(task_id, config):
        if isinstance(given[task_id], BaseException):
            raise given[task_id]
        return given[task_id], 0

    monkeypatch.setattr(rearc, "load_tasks", lambda source: given)
    monkeypatch.setattr(rearc, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(rearc, "_package", lambda: SimpleNamespace(__version__="1"))
    monkeypatch.setattr(rearc, "_generate", generate)
    return given


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_of_a_stopped_command_is_no_whole_one_and_is_begun_anew(given, tmp_path):
    given["1c"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        rearc.main(RearcConfig(out=tmp_path))
    assert files_of(tmp_path) == ["1a.json", "1b.json", ABOUT]
    with pytest.raises(InputError, match=r"unfinished; run python -m bridge\.rearc --out"):
        load_generated(tmp_path, {"1a"}, 30)
    (tmp_path / "mine.json").write_text("[]")
    given.update({"1b": [], "1c": [PAIR]})  # smaller grids: a task may give none
    rearc.main(RearcConfig(out=tmp_path, max_side=10))
    assert files_of(tmp_path) == ["1a.json", "1c.json", ABOUT, "mine.json"]
    assert list(load_generated(tmp_path, {"1a", "1b", "1c"}, 30)) == ["1a", "1c"]


def test_whole_folder_is_kept_and_other_pairs_go_elsewhere(given, tmp_path, capsys):
    rearc.main(RearcConfig(out=tmp_path))
    given.clear()
    rearc.main(RearcConfig(out=tmp_path))
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds other pairs"):
        rearc.main(RearcConfig(out=tmp_path, max_side=10))
    assert len(files_of(tmp_path)) == 4
    (tmp_path / "1b.json").write_text("[]")
    with pytest.raises(InputError, match=r"differ from .* remove the folder, then run"):
        rearc.main(RearcConfig(out=tmp_path))


def test_files_that_the_command_did_not_write_are_left_alone(given, tmp_path):
    (tmp_path / "1b.json").write_text(json.dumps([PAIR]))
    with pytest.raises(InputError, match=r"holds another's 1b\.json; give another folder"):
        rearc.main(RearcConfig(out=tmp_path))
    assert files_of(tmp_path) == ["1b.json"]
    assert len(load_generated(tmp_path, {"1b"}, 30)["1b"]) == 1


needs_generators = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="reasoning-gym is not installed: pip install -e '.[rearc]'",
)


@pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is not None, reason="reasoning-gym is installed"
)
def test_missing_package_is_one_line(tmp_path):
    with pytest.raises(InputError, match="reasoning-gym is not installed"):
        rearc.main(RearcConfig(out=tmp_path / "pairs"))


@needs_generators
def test_generated_pairs_are_verified_small_repeatable_and_no_leaks():
    config = RearcConfig(pairs=5, max_side=10)
    held = keys_of(load_tasks("arcagi/evaluation").values())
    for task_id in ("007bbfb7", "3c9b0459"):
        pairs, _ = rearc._generate(task_id, config)
        assert (pairs, 0) == rearc._generate(task_id, config)
        assert len(pairs) == 5
        for pair in pairs:
            assert max(len(side) for grid in pair.values() for side in (grid, grid[0])) <= 10
        assert not any(content_key(pair) in held for pair in _as_pairs(pairs))


def _as_pairs(values):
    return [Pair(np.array(v["input"], np.uint8), np.array(v["output"], np.uint8)) for v in values]
