"""A run of 40 steps, whole and half-way, for the tests that harm one."""

import gc

import pytest

from bridge import config as configs
from student_jax import train as module
from student_jax.config import TrainConfig
from student_jax.train import train
from tests.conftest import train_dict
from tests.student_jax.runs import FIRST, LONG, Stopped, complete_steps


@pytest.fixture
def collect():
    """Collects before the test ends, where what is found is let pass; see `runs.HARMED`."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def whole(task_folder, store_path, tmp_path_factory):
    """A run of 40 steps that nothing stopped; steps 30 and 40 are kept."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(configs.from_dict(TrainConfig, train_dict(task_folder, store_path, out, **LONG)))
    return out


@pytest.fixture(scope="module")
def half(task_folder, store_path, tmp_path_factory):
    """The same run, stopped half-way."""
    out = tmp_path_factory.mktemp("half") / "run"
    config = configs.from_dict(TrainConfig, train_dict(task_folder, store_path, out, **LONG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TrainLog", Stopped)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert complete_steps(out) == [10, FIRST]
    return out
