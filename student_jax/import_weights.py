"""Makes a checkpoint of weights that came from PyTorch, so that training can go on from them.

python -m student_jax.import_weights --folder runs/from_torch --store runs/features
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from bridge import config as configs
from bridge.errors import InputError
from bridge.store import FeatureStore
from bridge.weights import is_release
from student_jax.checkpoints import Checkpoints
from student_jax.release import read_release
from student_jax.state import first_state, make_optimizer
from student_jax.students import make_student


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which weights, to where."""

    folder: Path
    """with model.safetensors and config.json: from student_jax.export or bridge.torch_export"""
    store: str | None = None
    """the teacher's features; a student that reads them needs one, a grid student does not"""
    out: Path = Path("runs/imported")
    """folder of the checkpoint, as of a training run"""


def main(config: ImportConfig) -> None:
    """Turn PyTorch weights into a checkpoint.

    Weights cross bit for bit; a leaf that is missing, too many or of another shape is named.
    """
    if (config.out / "checkpoints").exists():
        raise InputError(f"--out {config.out}: holds checkpoints already; give another folder")
    if is_release(config.out):
        raise InputError(f"--out {config.out}: holds an export; give another folder")
    release = read_release(config.folder, config.out, config.store)
    about = release.about
    # What was generated for the training that made the weights is no part of what comes.
    run = replace(release.config, data=replace(release.config.data, rearc=None))
    model = make_student(run.model, about["feature_width"])
    tx = make_optimizer(run.optim, run.loss.form)
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = first_state(run, model, tx, release.scaling, alone)
    step = jnp.asarray(about["step"], jnp.int32)
    state = replace(state, params=release.params, step=step)
    store = FeatureStore(config.store) if config.store else None
    notes = {
        "feature_width": about["feature_width"],
        "teacher": store.provenance if store else about["teacher"],
        "init": about.get("init"),
        "trained_on": about["trained_on"],
    }
    configs.save(run, config.out / "config.yaml")
    with Checkpoints(config.out, create=True) as checkpoints:
        checkpoints.save(about["step"], state, run, notes)
        checkpoints.wait()
    print(f"wrote {config.out}: a {run.model.kind} student at step {about['step']}")


if __name__ == "__main__":
    configs.command(main, ImportConfig)
