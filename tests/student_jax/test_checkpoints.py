"""What a bad disk does to a checkpoint is noticed, and the step before takes over."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bridge import config as configs
from bridge.errors import InputError
from student_jax.checkpoints import Checkpoints, CheckpointsConfig, digests_of
from student_jax.checkpoints import main as checkpoints_main
from student_jax.config import TrainConfig
from student_jax.solver import load_solver
from student_jax.state import state_like
from student_jax.train import train
from tests.conftest import metric_lines, train_dict
from tests.student_jax.runs import HARMED, SCORES, TRIED, end_of, scripted
from tests.test_walls import invoke

pytestmark = HARMED


@pytest.fixture(scope="module")
def finished(task_folder, store_path, tmp_path_factory):
    """A run of 4 steps with checkpoints at 2 and 4."""
    out = tmp_path_factory.mktemp("checkpoints") / "run"
    train(configs.from_dict(TrainConfig, train_dict(task_folder, store_path, out)))
    return out


@pytest.fixture
def run(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    return out


def data_files(out, step):
    """The files that hold arrays."""
    files = [path for path in (out / f"checkpoints/{step}/state").rglob("d/*") if path.is_file()]
    assert files
    return sorted(files)


def spoil(out, step, fault):
    """Does the same to every file that holds arrays: some bytes in some are never read."""
    for path in data_files(out, step):
        data = bytearray(path.read_bytes())
        if fault == "missing":
            path.unlink()
        elif fault == "flip":
            for place in range(40, len(data), 97):
                data[place] ^= 16
            path.write_bytes(bytes(data))
        else:
            path.write_bytes(bytes(data[: {"truncate": -40, "empty": 0}[fault]]))


def test_digests_name_every_leaf_and_tell_dtype_and_shape_apart():
    tree = {"a": jnp.zeros(4), "b": (np.zeros((2, 2), np.float32), jnp.zeros(4, jnp.int32))}
    digests = digests_of(tree)
    assert list(digests) == ["['a']", "['b'][0]", "['b'][1]"]
    assert len(set(digests.values())) == 3
    assert digests_of(tree) == digests


@pytest.mark.slow  # most bits are noticed by Orbax, or never read: the silent ones take a search
def test_flipped_bits_that_orbax_restores_silently_are_noticed(run):
    """One bit at a time, anywhere in the arrays' files; some bytes there are never read."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(run) as checkpoints:
        about = checkpoints.about(4)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state_like(about)
        )
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    rng = np.random.default_rng(0)
    files = data_files(run, 4)
    sizes = np.array([path.stat().st_size for path in files])
    silent = 0
    for _ in range(100):
        if silent:
            break
        path = files[rng.choice(len(files), p=sizes / sizes.sum())]
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        with Checkpoints(run) as checkpoints:
            try:
                bare = checkpoints._manager.restore(4, args=arguments)["state"]
                changed = digests_of(bare) != about["digests"]
                silent += changed
            except Exception:
                changed = True  # noticed by Orbax itself
            assert checkpoints.restore_newest(one)[0] == (2 if changed else 4)
        path.write_bytes(data)
    assert silent, "Orbax noticed everything: this test has lost its point"


@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "missing", "about"])
def test_damaged_latest_step_falls_back_to_the_one_before(run, fault, capsys):
    if fault == "about":
        next((run / "checkpoints/4/about").rglob("metadata")).write_text('{"config": ')
    else:
        spoil(run, 4, fault)
    assert load_solver(run).step == 2
    warning = capsys.readouterr().err
    assert "step 4 is damaged" in warning
    assert "looking at another step" in warning


def test_run_goes_on_from_the_newest_whole_step_to_the_same_end(
    run, finished, task_folder, store_path
):
    spoil(run, 4, "truncate")
    config = train_dict(task_folder, store_path, run)
    train(configs.from_dict(TrainConfig, config))
    before, after = load_solver(finished), load_solver(run)
    assert after.step == 4
    chex.assert_trees_all_equal(before.params, after.params)
    assert metric_lines(run) == metric_lines(finished)


def test_nothing_whole_is_an_error_and_nothing_is_deleted(run, task_folder, store_path):
    for step in (2, 4):
        spoil(run, step, "missing")
    with pytest.raises(InputError, match="no step is whole"):
        load_solver(run)
    with pytest.raises(InputError, match="no step is whole"):
        train(configs.from_dict(TrainConfig, train_dict(task_folder, store_path, run)))
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"2", "4"}


def test_verify_names_what_is_damaged(run, monkeypatch, capsys):
    done = invoke("student_jax.checkpoints", "verify", str(run))
    assert done.returncode == 0, done.stderr
    assert "whole: step 4" in done.stdout
    spoil(run, 2, "flip")
    assert end_of(monkeypatch, checkpoints_main, CheckpointsConfig, "verify", run) == 1
    told = capsys.readouterr().out
    assert "whole: step 4" in told
    assert "step 2 is damaged" in told


def test_restored_leaves_are_those_saved(finished):
    with Checkpoints(finished) as checkpoints:
        digests = checkpoints.about(4)["digests"]
    solver = load_solver(finished)
    found = digests_of({"params": solver.params, "scaling": solver.scaling})
    assert set(found.values()) < set(digests.values())
    assert {name.split("'")[1] for name in found} == {"params", "scaling"}


def test_best_that_is_damaged_gives_way_to_the_next_best(train_config, monkeypatch, capsys):
    config = train_config(**TRIED)
    scripted(monkeypatch, SCORES)
    train(config)
    for path in (config.out / "checkpoints/1/state").rglob("d/*"):
        path.write_bytes(b"")
    assert load_solver(config.out, "best").step == 3
    printed = capsys.readouterr().err
    assert "step 1 is damaged" in printed
    assert "Traceback" not in printed
