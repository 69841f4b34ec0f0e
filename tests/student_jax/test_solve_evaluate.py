import json
import shutil
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from bridge import config as configs
from bridge.arc import Task, open_questions
from bridge.arc.__main__ import ArcConfig
from bridge.arc.__main__ import main as arc_main
from bridge.arc_files import load_tasks
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.predictions import read_predictions, write_predictions
from student_jax.adapter import Adapter
from student_jax.baselines import BASELINES, baseline
from student_jax.evaluate import EvaluateConfig
from student_jax.evaluate import main as evaluate_main
from student_jax.metrics import cell_accuracy, score
from student_jax.report import ReportConfig
from student_jax.report import main as report_main
from student_jax.sheet import AnswerSheet
from student_jax.solve import SolveConfig
from student_jax.solve import main as solve_main
from student_jax.solver import begin_again, load_solver
from student_jax.terminal import print_attempts


def grid(*rows):
    return np.array([[int(c) for c in row] for row in rows], np.uint8)


def test_cell_accuracy_counts_only_the_expected_grids_cells():
    expected = grid("12", "34")
    assert cell_accuracy(expected, expected) == 1
    assert cell_accuracy(grid("12"), expected) == 0.5  # missing cells are wrong
    assert cell_accuracy(grid("129", "349", "999"), expected) == 1  # the shape score counts these
    assert cell_accuracy(grid("9"), expected) == 0


def test_score_by_hand():
    truth = grid("12")
    tasks = {
        "two": Task("two", (), (truth, truth), (truth, truth)),
        "one": Task("one", (), (truth,), (truth,)),
        "none": Task("none", (), (truth,), (truth,)),
    }
    wrong = grid("13")
    attempts = {
        "two": (Attempts(truth, wrong, 1.0), Attempts(wrong, truth, 1.0)),
        "one": (Attempts(grid("1"), wrong, 1.0),),
    }
    scores = score(attempts, tasks, tasks)
    assert scores.num_tasks == 3
    assert scores.pass_1 == pytest.approx((0.5 + 0 + 0) / 3)
    assert scores.pass_2 == pytest.approx((1 + 0 + 0) / 3)
    assert scores.shape == pytest.approx((1 + 0 + 0) / 3)
    assert scores.cell == pytest.approx((0.75 + 0.5 + 0) / 3)


def test_black_and_copy_solve_nothing_of_arc_agi_1():
    """Known: no ARC-AGI-1 training task is solved by copying or by black."""
    tasks = load_tasks("arcagi/training")
    for name in ("black", "copy"):
        scores = score(baseline(name, tasks), tasks, tasks)
        assert scores.pass_2 == 0
        assert 0.2 < scores.cell < 0.8


def test_predictions_round_trip_and_are_checked(tmp_path):
    path = tmp_path / "p.json"
    attempts = {"a": (Attempts(grid("1"), grid("2"), 0.25),)}
    write_predictions(path, {"student": "grid"}, attempts)
    got = read_predictions(path)
    np.testing.assert_array_equal(got.attempts["a"][0].second, grid("2"))
    assert got.attempts["a"][0].confidence == 0.25
    value = json.loads(path.read_text())
    value["submission"]["a"][0]["attempt_2"] = [[1, 2], [3]]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"task a\[0\].attempt_2\[1\]: expected 2 cells"):
        read_predictions(path)


@pytest.fixture(scope="module")
def run(task_folder, store_path, tmp_path_factory, write_run):
    """A grid student trained a little, with one task held out."""
    from bridge import config as configs
    from student_jax.config import TrainConfig
    from tests.conftest import train_dict

    out = tmp_path_factory.mktemp("solve") / "run"
    value = train_dict(task_folder, store_path, out, **{"data.tasks.dev_fraction": 0.5})
    write_run(configs.from_dict(TrainConfig, value))
    return out


def test_solve_evaluate_and_report_end_to_end(run, task_folder, tmp_path, capsys):
    predictions = tmp_path / "p.json"
    solve_main(SolveConfig(checkpoint=run, split="all", out=predictions))
    about = read_predictions(predictions).about
    assert (about["tier"], about["views"]) == ("zero-shot", 1)
    assert about["answering"]["tasks"] == 6
    assert 0 < len(about["trained_on"]) < 6
    evaluate_main(EvaluateConfig(predictions=(predictions,), source=str(task_folder)))
    text = capsys.readouterr().out
    for word in ("held-out tasks", "tasks trained on", "black", "copy", "grid student"):
        assert word in text
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert sum(rows["copy"]["num_tasks"] for rows in scores.values()) == 6

    page = tmp_path / "page.html"
    report_main(ReportConfig(predictions=(predictions,), source=str(task_folder), out=page))
    html = page.read_text()
    assert "The teacher's weights are random" in html
    provenance = read_predictions(predictions).about["teacher"]
    for key in ("teacher", "weights", "tap", "licence"):
        assert provenance[key] in html
    assert provenance["weights_digest"][:12] in html
    assert html.count('<section class="task">') == 6
    assert "http" not in html.replace("http-equiv", "")  # needs no network
    for name in ("1a", "1f"):
        assert f"<h3>{name}</h3>" in html


def test_untrained_control_is_drawn_anew_and_says_so(run, task_folder, tmp_path):
    drawn = [begin_again(load_solver(run)) for _ in range(2)]
    chex.assert_trees_all_equal(drawn[0].params, drawn[1].params)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(drawn[0].params, load_solver(run).params)
    solve_main(SolveConfig(checkpoint=run, split="all", untrained=True))
    solve_main(SolveConfig(checkpoint=run, split="all"))
    files = run / "untrained.json", run / "predictions.json"  # neither takes the other's place
    about = read_predictions(files[0]).about
    assert (about["step"], about["teacher"], about["trained_on"]) == (0, None, [])
    found = EvaluateConfig(predictions=files, source=str(task_folder), out=tmp_path / "s.json")
    evaluate_main(found)
    rows = json.loads((tmp_path / "s.json").read_text())["scores"]["held-out tasks"]
    assert list(rows)[-2:] == ["grid student, untrained", "grid student"]
    assert rows["copy"]["num_tasks"] < 6  # what one was trained on counts so for both


def test_learning_that_is_stopped_says_so_and_goes_on(run, tmp_path, monkeypatch, capsys):
    adapt, asked = Adapter.adapt, []

    def stopped(self, tasks, views, stop):
        for i, found in enumerate(adapt(self, tasks, views, stop=stop)):
            stop.requested = i > 0
            yield found

    def noted(self, tasks, views, stop):
        asked.append([task.task_id for task in tasks])
        return adapt(self, tasks, views, stop=stop)

    monkeypatch.setattr(Adapter, "adapt", stopped)
    out = tmp_path / "p.json"
    config = SolveConfig(checkpoint=run, split="all", adapt="tokens", steps=1, out=out)
    with pytest.raises(KeyboardInterrupt):
        solve_main(config)
    before = read_predictions(out)
    count = len(before.attempts)
    assert count >= 2
    assert (before.about["stopped"], before.about["answering"]["tasks"]) == (True, count)
    assert f"stopped: {6 - count} of 6 tasks are left out" in capsys.readouterr().out
    (whole,) = [i for i, how in before.about["adapted"].items() if not how["cut"]]

    monkeypatch.setattr(Adapter, "adapt", noted)
    solve_main(config)
    after = read_predictions(out)
    assert len(asked[0]) == 5
    assert whole not in asked[0]  # what was cut short is learnt again
    assert (after.about["stopped"], len(after.attempts)) == (False, 6)
    np.testing.assert_array_equal(after.attempts[whole][0].first, before.attempts[whole][0].first)
    assert after.about["answering"]["seconds"] > before.about["answering"]["seconds"]

    solve_main(config)  # it was whole: begun anew
    assert len(asked[1]) == 6
    assert list(read_predictions(out).attempts) == list(after.attempts)


@pytest.mark.parametrize(("steps", "kept"), [(1, 1), (2, 0)])
def test_answers_are_on_disk_before_the_command_ends(tmp_path, monkeypatch, steps, kept):
    monkeypatch.setattr("student_jax.sheet.PAUSE", 0.0)
    about, answer = {"learning": {"steps": 1}}, (Attempts(grid("1"), grid("2"), 0.0),)
    sheet = AnswerSheet(tmp_path / "p.json", about, ["a", "b"], {"b"})
    sheet.add("b", answer, cut=False, seconds=1.0)
    found = read_predictions(tmp_path / "p.json")
    assert (list(found.attempts), found.about["stopped"]) == (["b"], True)
    assert found.about["trained_on"] == ["b"]
    again = AnswerSheet(tmp_path / "p.json", {"learning": {"steps": steps}}, ["a", "b"], {"b"})
    assert len(again.attempts) == kept


def test_settings_of_learning_are_checked_before_anything_is_done():
    with pytest.raises(ValueError, match="steps"):
        SolveConfig(adapt="weights", steps=0)
    with pytest.raises(ValueError, match="of learning; add --adapt weights"):
        SolveConfig(seconds=5.0)
    for asked in ({"task": "007bbfb7"}, {"source": "arcagi/evaluation"}):
        with pytest.raises(ValueError, match="split: of the run's own tasks"):
            SolveConfig(split="train", **asked)


def test_canary_no_test_output_reaches_the_predictions(run, task_folder, tmp_path):
    """As they are, scrambled, and taken out by the program for it: the same predictions."""
    scrambled, blind = tmp_path / "scrambled", tmp_path / "blind"
    scrambled.mkdir()
    for path in task_folder.glob("*.json"):
        value = json.loads(path.read_text())
        for item in value["test"]:
            item["output"] = [[9 - c for c in row] for row in item["output"]]
        (scrambled / path.name).write_text(json.dumps(value))
    arc_main(ArcConfig(action="blind", what=str(task_folder), out=blind))
    found = []
    for source in (task_folder, scrambled, blind):
        out = tmp_path / f"{source.name}.json"
        solve_main(SolveConfig(checkpoint=run, source=str(source), out=out))
        value = json.loads(out.read_text())
        assert value["about"].pop("source") == str(source)
        assert value["about"].pop("answering")["seconds"] > 0
        found.append(json.dumps(value))
    assert found[0] == found[1] == found[2]


def test_solve_prints_attempts_and_what_is_expected(run, task_folder, capsys):
    solve_main(SolveConfig(task=str(task_folder / "1a.json"), checkpoint=run))
    text = capsys.readouterr().out
    for word in ("1a", "test input 0", "attempt 1", "attempt 2", "expected", "confidence"):
        assert word in text


def test_larger_tasks_than_asked_for_are_left_out_and_the_predictions_say_so(run, tmp_path):
    from tests.conftest import black_task, task_json

    for side in (3, 5):
        task = black_task(np.random.default_rng(0), f"{side}a", side)
        (tmp_path / f"{side}a.json").write_text(json.dumps(task_json(task, answers=False)))
    out = tmp_path / "out" / "p.json"
    asked = SolveConfig(checkpoint=run, source=str(tmp_path), max_side=4, out=out)
    solve_main(asked)
    found = json.loads(out.read_text())
    assert found["about"]["max_side"] == 4
    assert list(found["submission"]) == ["3a"]
    with pytest.raises(InputError, match=r"max_side: expected at least 3.*got 2"):
        solve_main(replace(asked, max_side=2))
    with pytest.raises(ValueError, match="whatever its size"):
        SolveConfig(task="3a", max_side=3)
    with pytest.raises(ValueError, match=r"expected 1\.\.30, got 31"):
        SolveConfig(max_side=31)


def test_printed_grids_carry_the_palette(task):
    console = Console(record=True, force_terminal=True, color_system="truecolor", width=120)
    blind = task.blind()
    attempts = (Attempts(grid("12"), grid("21"), 0.5),)
    print_attempts(console, blind, attempts, "trained on")
    text = console.export_text(styles=True)
    assert "48;2;0;116;217" in text  # color 1
    assert "expected" not in text


def test_solving_does_not_depend_on_what_else_is_asked(run, task_folder):
    solver = load_solver(run)
    tasks = load_tasks(str(task_folder))
    questions = [q for task in tasks.values() for q in open_questions(task)]
    together = solver.solve(questions)
    alone = solver.solve(questions[:1])[questions[0].example_id]
    np.testing.assert_array_equal(alone.first, together[questions[0].example_id].first)


def test_buckets_that_are_asked_at_once_as_on_a_gpu_answer_alike(run, task_folder, monkeypatch):
    solver = load_solver(run)
    tasks = load_tasks(str(task_folder))
    questions = [q for task in tasks.values() for q in open_questions(task)]
    want = solver.solve(questions, views=2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    got = solver.solve(questions, views=2)
    assert list(got) == list(want)
    for name, attempts in want.items():
        np.testing.assert_array_equal(got[name].first, attempts.first)
        np.testing.assert_array_equal(got[name].second, attempts.second)


def test_feature_student_asks_for_features_it_lacks(train_config, task, write_run):
    config = train_config(
        **{"model.kind": "feature", "model.max_tokens": 2048, "optim.total_steps": 1}
    )
    write_run(config)
    solver = load_solver(config.out)
    tasks = config.data.tasks.load()
    (question,) = open_questions(tasks["1a"])
    assert solver.solve([question])[question.example_id].first.ndim == 2
    with pytest.raises(InputError, match="expected the example 0a0a0a0a_test_0"):
        solver.solve(open_questions(task))
    with pytest.raises(InputError, match="one view; pass --views 1"):
        solver.solve([question], views=2)


def test_scoring_predictions_of_other_tasks_is_refused(task_folder, tmp_path):
    path = tmp_path / "p.json"
    write_predictions(path, {"trained_on": []}, {"zz": (Attempts(grid("1"), grid("2"), 0.0),)})
    with pytest.raises(InputError, match="task zz is not in the tasks"):
        evaluate_main(EvaluateConfig(predictions=(path,), source=str(task_folder)))


def test_checkpoint_that_is_none_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="make one with python -m student_jax"):
        load_solver(tmp_path)


def test_scoring_without_answers_is_refused(tmp_path, task):
    from tests.conftest import task_json

    folder = tmp_path / "blind"
    folder.mkdir()
    (folder / "t.json").write_text(json.dumps(task_json(replace(task), answers=False)))
    path = tmp_path / "p.json"
    write_predictions(path, {"trained_on": []}, {"t": (Attempts(grid("1"), grid("2"), 0.0),)})
    with pytest.raises(InputError, match="its test outputs are not known"):
        evaluate_main(EvaluateConfig(predictions=(path,), source=str(folder)))


def test_trained_on_is_what_the_checkpoint_says_not_what_the_folder_holds_now(
    train_config, task_folder, tmp_path, write_run
):
    """Adding files to the folder once moved trained tasks among the held-out ones."""
    folder = tmp_path / "tasks"
    shutil.copytree(task_folder, folder)
    config = train_config(
        store=None,
        **{
            "data.tasks.source": str(folder),
            "data.tasks.dev_fraction": 0.0,
            "data.tasks.limit": 3,
            "optim.total_steps": 1,
        },
    )
    write_run(config)
    shutil.copy(folder / "1f.json", folder / "0a.json")
    out = tmp_path / "p.json"
    solve_main(SolveConfig(checkpoint=config.out, source=str(folder), out=out))
    assert read_predictions(out).about["trained_on"] == ["1a", "1b", "1c"]
    shutil.rmtree(folder)  # a checkpoint is used where its training data is not
    solve_main(SolveConfig(checkpoint=config.out, task=str(task_folder / "1a.json")))


def test_task_is_looked_up_in_the_source(run, task_folder, capsys):
    solve_main(SolveConfig(checkpoint=run, task="1b", source=str(task_folder)))
    assert "1b (" in capsys.readouterr().out


def test_every_predictions_file_has_a_row_of_its_own(run, task_folder, tmp_path):
    files = tuple(tmp_path / f"{i}.json" for i in range(3))
    for file in files:
        solve_main(SolveConfig(checkpoint=run, split="all", out=file))
    scores = tmp_path / "new" / "scores.json"
    evaluate_main(EvaluateConfig(predictions=files, source=str(task_folder), out=scores))
    rows = json.loads(scores.read_text())["scores"]["held-out tasks"]
    assert len(rows) == len(BASELINES) + 3


def test_predictions_that_do_not_say_what_was_trained_on_are_refused(task_folder, tmp_path):
    path = tmp_path / "p.json"
    write_predictions(path, {}, {"1a": (Attempts(grid("1"), grid("2"), 0.0),)})
    with pytest.raises(InputError, match=r"about\.trained_on: expected the tasks"):
        evaluate_main(EvaluateConfig(predictions=(path,), source=str(task_folder)))


def test_each_output_has_its_resolved_config_beside_it(run, task_folder, tmp_path):
    file = tmp_path / "p.json"
    solve_main(SolveConfig(checkpoint=run, split="all", out=file))
    config = EvaluateConfig(predictions=(file,), source=str(task_folder), out=tmp_path / "s.json")
    evaluate_main(config)
    assert configs.load(EvaluateConfig, tmp_path / "s.config.yaml") == config
    assert configs.load(SolveConfig, tmp_path / "p.config.yaml").out == file
