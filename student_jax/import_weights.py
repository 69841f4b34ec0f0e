"""Makes a checkpoint of weights that came from PyTorch, so that every command can use them.

python -m student_jax.import_weights --folder runs/from_torch --store runs/features
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge import config as configs
from bridge import weights
from bridge.errors import InputError
from bridge.scaling import Scaling
from bridge.store import FeatureStore
from bridge.tree import flatten, unflatten
from student_jax.checkpoints import Checkpoints
from student_jax.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from student_jax.state import empty_scaling, init_state, make_optimizer
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
    about = read_config(config.folder)
    tensors, _ = weights.load(config.folder / "model.safetensors")
    train_config = make_config(about, config)
    width = about["feature_width"]
    scaling = take_scaling(tensors, train_config, width, str(config.folder))
    model = make_student(train_config.model, width)
    tx = make_optimizer(train_config.optim, train_config.loss.form)
    state = jax.jit(lambda: init_state(train_config, model, tx, scaling))()
    shapes = {name: leaf.shape for name, leaf in flatten(state.params).items()}
    flat = weights.to_flax(tensors, shapes, train_config.model.kind, str(config.folder))
    params = unflatten({name: jnp.asarray(value) for name, value in flat.items()})
    state = replace(state, params=params, step=jnp.asarray(about["step"], jnp.int32))
    store = FeatureStore(config.store) if config.store else None
    notes = {
        "feature_width": width,
        "teacher": store.provenance if store else about["teacher"],
        "trained_on": about["trained_on"],
    }
    configs.save(train_config, config.out / "config.yaml")
    with Checkpoints(config.out, create=True) as checkpoints:
        checkpoints.save(about["step"], state, train_config, notes)
        checkpoints.wait()
    print(f"wrote {config.out}: a {train_config.model.kind} student at step {about['step']}")


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json.

    Raises:
        InputError: if it is missing or lacks something.
    """
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text())
        missing = {"model", "feature_width", "scaling", "step", "trained_on"} - about.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: expected an export's config.json, got: {error}") from None
    if missing:
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}")
    return {"teacher": None, **about}


def make_config(about: dict[str, Any], config: ImportConfig) -> TrainConfig:
    """Returns the config of the run that the weights would have come from."""
    model = configs.from_dict(ModelConfig, about["model"])
    try:
        return TrainConfig(
            out=config.out,
            model=model,
            data=DataConfig(store=config.store),
            loss=configs.from_dict(
                LossConfig,
                {
                    "scaling": about["scaling"],
                    "form": "original" if model.kind == "original" else "corrected",
                },
            ),
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--store: {error}") from None


def take_scaling(tensors: weights.Flat, config: TrainConfig, width: int, where: str) -> Scaling:
    """Takes the scaling of the features out of the tensors; only a feature student has one.

    Raises:
        InputError: naming the leaf that is missing or does not fit.
    """
    scaling = empty_scaling(config.loss.scaling, width)
    if config.model.kind != "feature":
        return scaling
    taken: dict[str, np.ndarray] = {}
    for name in ("mean", "std", "rotation"):
        like = getattr(scaling, name)
        if like is not None:
            key = f"scaling.{name}"
            weights.check_leaf(key, tensors.get(key), like.shape, where)
            taken[name] = tensors.pop(key)
    return replace(scaling, **taken)


if __name__ == "__main__":
    configs.command(main, ImportConfig)
