import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bridge import config as configs
from bridge.errors import InputError
from bridge.store import FeatureStore
from teacher_torch import gr00t
from teacher_torch.extract import ExtractConfig, main
from tests.conftest import ROOT


def contents(folder):
    """Every file of a store with its bytes, but for the config that names its folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "config.yaml" and not path.name.endswith(".__lock")
    }


def test_store_holds_every_question_with_provenance(store_path, extract_config):
    store = FeatureStore(store_path)
    assert len(store.records) == 6 * 3
    assert store.provenance["view"] == "task"
    assert "random weights" in store.provenance["weights"]
    assert store.statistics().num_tokens == sum(r.num_tokens for r in store.records.values())
    assert configs.load(ExtractConfig, store_path / "config.yaml") == extract_config


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


def test_killed_extract_goes_on_to_the_same_bytes(store_path, extract_config, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "teacher_torch.extract"]
    command += ["--out", str(out), "--tasks.source", extract_config.tasks.source]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("manifest/*.json"))) < 3:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 3 <= len(list(out.glob("manifest/*.json"))) < 18
    main(replace(extract_config, out=str(out)))
    assert contents(out) == contents(store_path)


def test_sigterm_stops_with_a_word_and_leaves_whole_examples(extract_config, tmp_path):
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "teacher_torch.extract"]
    command += ["--out", str(out), "--tasks.source", extract_config.tasks.source]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(out.glob("manifest/*.json"))) < 2:
        time.sleep(0.005)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "stopped; extract and train go on when given again" in errors
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
