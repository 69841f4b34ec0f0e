"""A run of 40 steps, whole and half-way, for the tests that harm one; runs alike trace once."""

import gc
import shutil
from dataclasses import replace
from functools import lru_cache

import jax
import numpy as np
import pytest

from bridge import config as configs
from student_jax import checkpoints, proofs
from student_jax import train as module
from student_jax.config import TrainConfig
from student_jax.log import SHOWN
from student_jax.train import train
from tests.conftest import train_dict
from tests.student_jax.runs import FEW_DRAWS, FIRST, LONG, Stopped, complete_steps


@pytest.fixture(autouse=True, scope="session")
def traced_once():
    """Runs that compute alike share their traced programs: tracing is most of a tiny run's time."""
    made, like, first = module.make_train_step, checkpoints.state_like, module.first_state
    begun = {}

    @lru_cache
    def keep(config, model, mesh):
        return made(config, model, module.make_optimizer(config.optim, config.loss.form), mesh)

    @lru_cache
    def remember(config, width):
        return like({"config": configs.to_dict(config), "feature_width": width})

    def begin(config, model, tx, scaling, sharding):
        plain = {"dropout": 0.0, "remat": False, "scan_layers": False, "compute": "float32"}
        same = replace(config.model, **plain)  # weights do not depend on these
        what = (config.seed, same, config.loss.form, config.loss.scaling, len(scaling.mean))
        if what not in begun:
            begun[what] = jax.device_get(first(config, model, tx, scaling, sharding))
        params = begun[what].params
        average = params if config.optim.ema_decay else None
        fresh = replace(begun[what], scaling=scaling, ema=average)
        return jax.device_put(jax.tree.map(np.copy, fresh), sharding)  # steps donate it

    def bare(config):
        """What decides the programs."""
        parts = ("seed", "model", "loss", "optim", "map")
        return TrainConfig(
            data=replace(TrainConfig().data, store=""),
            **{name: getattr(config, name) for name in parts},
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "make_train_step",
            lambda config, model, _, mesh: keep(bare(config), model, mesh),
        )
        patch.setattr(module, "first_state", begin)
        patch.setattr(
            checkpoints,
            "state_like",
            lambda about: remember(
                bare(configs.from_dict(TrainConfig, about["config"])), about["feature_width"]
            ),
        )
        yield


@jax.jit
def shrink(state, _):
    """A step in name only."""
    params, ema = jax.tree.map(lambda x: 0.9 * x, (state.params, state.ema))
    state = replace(state, step=state.step + 1, params=params, ema=ema)
    return state, dict.fromkeys(SHOWN, state.step * 0.5)


@pytest.fixture(scope="session")
def write_run():
    """Trains in name only: each step makes the weights smaller, and next to nothing compiles."""

    def write(config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "make_train_step", lambda *_: shrink)
            module.train(config)

    return write


@pytest.fixture(scope="module")
def few_shapes():
    """Exports prove few shapes, since each compiles; `slow` tests export with all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "GRID_DRAWS", FEW_DRAWS)
        yield


@pytest.fixture(scope="module")
def frozen():
    """What was there before a module has no part in its collections, which would take seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def collect(frozen):
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


@pytest.fixture(scope="module")  # while it is open, nothing else in this thread can use asyncio
def browser():
    """Debian's Chromium, as .ci/run installs it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium: pages were not looked at; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()
