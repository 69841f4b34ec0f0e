import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bridge import config as configs
from bridge.errors import InputError
from bridge.store import Encoding, FeatureStore
from bridge.store.__main__ import StoreConfig
from bridge.store.__main__ import main as store_main
from teacher_torch import gr00t
from teacher_torch.extract import ExtractConfig, items_of, main
from tests.conftest import ROOT
from tests.test_walls import invoke


def contents(folder):
    """Every file of a store with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.endswith(".__lock")
    }


def test_store_holds_every_question_with_provenance(store_path, extract_config):
    store = FeatureStore(store_path)
    assert len(store.records) == 6 * 3
    assert store.provenance["view"] == "task"
    assert "random weights" in store.provenance["weights"]
    assert store.statistics().num_tokens == sum(r.num_tokens for r in store.records.values())
    (key,) = set(store.expected().values())
    config = configs.load(ExtractConfig, store_path / f"configs/{key}.yaml")
    assert replace(config, out=extract_config.out) == extract_config


def test_interrupted_extract_goes_on_to_the_same_bytes(
    store_path, extract_config, tmp_path, monkeypatch
):
    config = replace(extract_config, out=str(tmp_path / "again"))
    calls = []
    forward = gr00t.Gr00tTeacher.forward

    def counted(self, inputs):
        calls.append(inputs.input_ids.shape)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return forward(self, inputs)

    monkeypatch.setattr(gr00t.Gr00tTeacher, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        main(config)
    done = len(FeatureStore(config.out).records)
    assert 0 < done < 18
    calls.clear()
    monkeypatch.setattr(
        gr00t.Gr00tTeacher, "forward", lambda self, x: calls.append(1) or forward(self, x)
    )
    main(config)
    main(config)  # a third run has nothing left to do
    checks = 4  # calls by which the teacher proves itself, each run
    assert len(calls) == 18 - done + 2 * checks  # once per missing example
    assert contents(config.out) == contents(store_path)


# Fills one store again and again, forking a child for each attempt: a child starts at once, so that
# a kill can strike anywhere. The parent reads manifest files by hand: TensorStore forbids forks of
# a process that has used it.
KILLED = """
import json, os, pathlib, random, signal, sys, time
import torch
from teacher_torch import gr00t
from teacher_torch.extract import ExtractConfig, items_of, main
from bridge.task_set import TaskSet
out, source, calls = sys.argv[1:]
config = ExtractConfig(out=out, tasks=TaskSet(source=source))
forward = gr00t.Gr00tTeacher.forward
random.seed(0)

def acknowledged():
    entries = pathlib.Path(out).glob("manifest/*.json")
    return {path.name: json.loads(path.read_text())["digest"] for path in entries}

def extract():
    torch.set_num_threads(1)
    def counted(self, inputs):
        with open(calls, "a") as file:
            file.write("x")
        return forward(self, inputs)
    gr00t.Gr00tTeacher.forward = counted
    main(config)
    os._exit(0)

for attempt in range(100):
    before = acknowledged()
    open(calls, "w").close()
    child = os.fork()
    if child == 0:
        extract()
    grown, done = len(before) + random.randint(0, 1), 0
    while not done and (attempt >= 10 or len(acknowledged()) < grown):
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        time.sleep(random.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    now = acknowledged()
    assert before.items() <= now.items(), "lost or changed an acknowledged example"
    if done:
        assert status == 0, status
        checks = 4
        assert len(open(calls).read()) == checks + 18 - len(before), "not once per missing view"
        print(attempt, "kills")
        break
else:
    sys.exit("did not end")
"""


def test_kills_at_random_points_lose_nothing_and_end_in_the_same_bytes(
    store_path, extract_config, tmp_path
):
    out, calls = tmp_path / "killed", tmp_path / "calls"
    arguments = [str(out), extract_config.tasks.source, str(calls)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-2]) > 4, "too few kills struck"
    assert contents(out) == contents(store_path)


def test_views_shown_twice_are_extracted_once(extract_config, task_folder, tmp_path, monkeypatch):
    """Two tasks with the same grids; a third joins when the first two are done."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("1a", "2a"):
        shutil.copy(task_folder / "1a.json", folder / f"{name}.json")
    config = replace(
        extract_config,
        out=str(tmp_path / "s"),
        tasks=replace(extract_config.tasks, source=str(folder)),
    )
    calls = []
    forward = gr00t.Gr00tTeacher.forward
    monkeypatch.setattr(
        gr00t.Gr00tTeacher, "forward", lambda self, x: calls.append(1) or forward(self, x)
    )
    main(config)
    checks = 4
    assert len(calls) == 3 + checks
    shutil.copy(task_folder / "1a.json", folder / "3a.json")
    main(config)
    assert len(calls) == 3 + 2 * checks
    store = FeatureStore(config.out)
    assert len(store) == 9
    assert len(store.views) == 3
    np.testing.assert_array_equal(store["1a_train_1"], store["3a_train_1"])


def test_only_some_examples_leave_the_rest_missing(store_path, extract_config, tmp_path, capsys):
    config = replace(extract_config, out=str(tmp_path / "s"), only=("1b_train_1", "1d_test_0"))
    main(config)
    store = FeatureStore(config.out)
    assert store.ids == ["1b_train_1", "1d_test_0"]
    main(replace(config, only=()))
    assert contents(config.out) == contents(store_path)
    with pytest.raises(InputError, match="--only: expected an example of the chosen tasks, got x"):
        main(replace(config, only=("x",)))


def test_repair_extracts_only_what_is_damaged(store_path, tmp_path, capsys):
    out = tmp_path / "s"
    shutil.copytree(store_path, out)
    store = FeatureStore(out)
    values = "values/c.0.0"
    flipped = out / "views" / store.record("1c_test_0").view_digest / values
    data = bytearray(flipped.read_bytes())
    data[100] ^= 8
    flipped.write_bytes(data)
    (out / "manifest/1e_train_0.json").write_text("{")
    kept = out / "views" / store.record("1a_test_0").view_digest / values
    before = kept.stat().st_mtime_ns
    found = invoke("bridge.store", "verify", str(out))
    assert found.returncode == 1
    assert "damaged: 1c_test_0: DATA_LOSS" in found.stdout
    assert "damaged: 1e_train_0: manifest entry is not readable" in found.stdout
    assert "16 of 18 examples are as they were written" in found.stdout
    store_main(StoreConfig(action="repair", path=str(out)))  # starts the extract command
    assert contents(out) == contents(store_path)
    assert kept.stat().st_mtime_ns == before
    store_main(StoreConfig(action="verify", path=str(out)))
    capsys.readouterr()
    store_main(StoreConfig(action="repair", path=str(out)))
    assert "nothing to repair" in capsys.readouterr().out
    assert FeatureStore(out).is_complete


def test_repair_that_cannot_extract_changes_nothing(store_path, tmp_path):
    out = tmp_path / "s"
    shutil.copytree(store_path, out)
    (out / "views" / FeatureStore(out).record("1c_test_0").view_digest / "values/c.0.0").unlink()
    config = next((out / "configs").iterdir())
    config.write_text(config.read_text().replace("dtype: float32", "dtype: bfloat16"))
    before = contents(out)
    done = invoke("bridge.store", "repair", str(out))
    assert done.returncode == 2
    assert "give another --out" in done.stderr
    config.unlink()
    assert "missing" in invoke("bridge.store", "repair", str(out)).stderr
    (out / "expected.json").unlink()
    assert "--again True --only 1c_test_0" in invoke("bridge.store", "repair", str(out)).stderr
    assert before.items() >= contents(out).items()


def test_run_over_fewer_tasks_leaves_an_unfinished_store_unfinished(extract_config, tmp_path):
    config = replace(extract_config, out=str(tmp_path / "s"))
    items = [i for t in config.tasks.load().values() for i in items_of(t, config)]
    store_path = Path(config.out)
    main(config)
    (store_path / f"manifest/{items[-1].example_ids[0]}.json").unlink()
    (store_path / "statistics.json").unlink()
    main(replace(config, tasks=replace(config.tasks, limit=1)))
    assert not FeatureStore(config.out).is_complete
    main(config)
    assert FeatureStore(config.out).is_complete


def test_dry_run_into_another_store_is_refused(store_path, extract_config):
    config = replace(extract_config, encoding=Encoding(values="fp8"), dry_run=True)
    with pytest.raises(InputError, match=r"encoding: expected .*fp8"):
        main(config)


def test_store_commands_say_what_is_there(store_path):
    info = invoke("bridge.store", "info", str(store_path)).stdout
    for text in ("gr00t-n1.5: random weights, tiny, seed 0", "18 of 6 tasks, 18 distinct", "bf16"):
        assert text in info
    stats = invoke("bridge.store", "stats", str(store_path)).stdout
    assert "the top 8 channels hold" in stats
    missing = invoke("bridge.store", "verify", "none")
    assert missing.returncode == 2
    assert "store none: expected a feature store, got none" in missing.stderr


def test_dry_run_says_size_and_time_and_writes_nothing(extract_config, tmp_path, capsys):
    out = tmp_path / "s"
    main(replace(extract_config, out=str(out), dry_run=True))
    told = capsys.readouterr().out
    assert "18 to extract" in told
    assert "time:" in told
    assert not out.exists()


@pytest.mark.parametrize("tokens", ["all", "shown", "pooled"])
@pytest.mark.parametrize("values", ["bf16", "fp8"])
def test_size_estimated_is_the_size_stored(
    extract_config, store_path, tmp_path, capsys, tokens, values
):
    encoding = Encoding(tokens=tokens, values=values)
    config = replace(extract_config, out=str(tmp_path / "s"), encoding=encoding)
    main(replace(config, dry_run=True))
    told = capsys.readouterr().out
    main(config)
    store = FeatureStore(config.out)
    kept = sum(record.num_tokens for record in store.records.values())
    assert f"18 to extract, {kept:,} tokens to keep" in told
    arrays = [path.stat().st_size for path in Path(config.out).rglob("c.*")]
    arrays += [path.stat().st_size for path in Path(config.out).glob("moments/*")]
    most = sum(encoding.num_bytes(r.num_tokens, 64) for r in store.records.values())
    assert f"at most {most:,}" in told
    assert sum(arrays) < most * 1.05 + 100 * len(arrays)
    assert store.is_complete


def test_dump_that_cannot_fit_is_refused_before_the_teacher_runs(
    extract_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("teacher_torch.extract.free_space", lambda _: 1000)
    monkeypatch.setattr(gr00t.Gr00tTeacher, "forward", None)
    with pytest.raises(InputError, match=r"needs about [\d,]+ bytes, 1,000 are free; free some"):
        main(replace(extract_config, out=str(tmp_path / "s")))
    assert not (tmp_path / "s").exists()


def test_pair_view_is_only_stored_whole():
    with pytest.raises(ValueError, match=r"encoding.tokens: expected all with the pair view"):
        ExtractConfig(view="pair", encoding=Encoding(tokens="pooled"))


def test_sigterm_finishes_what_is_in_hand_and_leaves_whole_examples(extract_config, tmp_path):
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "teacher_torch.extract"]
    command += ["--out", str(out), "--tasks.source", extract_config.tasks.source]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(out.glob("manifest/*.json"))) < 2:
        time.sleep(0.005)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "finishing what is in hand" in errors
    assert "stopped; goes on when given again" in errors
    assert not list(out.rglob("*.__lock"))
    folders = {path.name for path in (out / "views").iterdir()}
    assert folders == set(FeatureStore(out).views)  # nothing half done
    assert "Traceback" not in errors
    store = FeatureStore(out)
    assert 2 <= len(store.records) < 18
    for name in store.records:
        store.read(name)


def test_other_teacher_into_the_same_store_is_refused(store_path, extract_config):
    before = contents(store_path)
    with pytest.raises(InputError, match="weights: expected 'random weights, tiny, seed 1'"):
        main(replace(extract_config, teacher=replace(extract_config.teacher, seed=1)))
    assert contents(store_path) == before


def test_pair_view_store_holds_demonstrations_only(extract_config, tmp_path):
    config = replace(
        extract_config,
        out=str(tmp_path / "pairs"),
        view="pair",
        prompt="Solve ARC task {task_id}",
        tasks=replace(extract_config.tasks, limit=1),
    )
    main(config)
    store = FeatureStore(config.out)
    assert sorted(store.records) == ["1a_train_0", "1a_train_1"]
    (first, second) = store.record("1a_train_0").frames
    assert (first.tile_rows, first.tile_cols) == (3, 3)
    assert second.first_token - first.first_token == 2560 + 7
    assert np.isfinite(store.read("1a_train_0").astype(np.float32)).all()


def test_ranks_share_one_store_and_write_the_same_bytes(store_path, extract_config, tmp_path):
    """Two ranks under torchrun's environment, disjoint examples, one store."""
    out = tmp_path / "ranks"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port=29517", "-m", "teacher_torch.extract"]
    command += ["--out", str(out), "--tasks.source", extract_config.tasks.source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(out) == contents(store_path)


def test_batches_of_like_length_hold_the_same_features(store_path, extract_config, tmp_path):
    config = replace(extract_config, out=str(tmp_path / "batched"), batch_size=4)
    main(config)
    one, many = FeatureStore(store_path), FeatureStore(config.out)
    for name in one.records:
        a, b = (store.read(name).astype(np.float32) for store in (one, many))
        np.testing.assert_allclose(a, b, atol=0.03 * a.std() + 0.01 * abs(a).max())


def test_teacher_that_computes_otherwise_may_not_go_on(extract_config, tmp_path, monkeypatch):
    config = replace(
        extract_config, out=str(tmp_path / "s"), tasks=replace(extract_config.tasks, limit=1)
    )
    main(config)
    forward = gr00t.Gr00tTeacher.forward

    def doubled(self, inputs):
        output = forward(self, inputs)
        return replace(output, features=output.features * 2)

    monkeypatch.setattr(gr00t.Gr00tTeacher, "forward", doubled)
    with pytest.raises(InputError, match="same weights, other computation"):
        main(config)
