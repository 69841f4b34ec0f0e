"""Reads a released student: a folder with model.safetensors, config.json and a card.

`python -m student_jax.export` writes such folders; the package brings one, student_jax/nano.
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
from bridge.tree import flatten, unflatten
from student_jax.batch import smallest_batch
from student_jax.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from student_jax.state import empty_scaling
from student_jax.students import make_student


@dataclass(frozen=True)
class Release:
    """A student's weights and what is told of them."""

    config: TrainConfig  # of the run that the weights come from, as far as it is known
    about: dict[str, Any]  # config.json
    params: Any
    scaling: Scaling


def read_release(folder: Path, out: Path | None = None, store: str | None = None) -> Release:
    """Reads the weights; they cross bit for bit.

    Args:
        folder: with model.safetensors and config.json.
        out: the folder of the run that goes on with them; by default there is none.
        store: the teacher's features, for a student that reads them.

    Raises:
        InputError: naming what is missing, too many or of another shape.
    """
    about = _read_about(folder)
    config = _make_config(about, out or folder, store)
    tensors, _ = weights.load(folder / weights.MODEL)
    scaling = _take_scaling(tensors, config, about["feature_width"], str(folder))
    shapes = shapes_of(config.model, about["feature_width"])
    flat = weights.to_flax(tensors, shapes, config.model.kind, str(folder))
    params = unflatten({name: jnp.asarray(value) for name, value in flat.items()})
    return Release(config, about, params, scaling)


def shapes_of(model: ModelConfig, feature_width: int) -> weights.Shapes:
    """Returns dotted name -> shape of a student's parameters; nothing is computed."""
    batch = smallest_batch(model, feature_width)
    student = make_student(model, feature_width)
    variables = jax.eval_shape(lambda: student.init(jax.random.key(0), batch))
    return {name: leaf.shape for name, leaf in flatten(variables["params"]).items()}


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text())
        missing = {"model", "feature_width", "scaling", "step", "trained_on"} - about.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: expected an export's config.json, got: {error}") from None
    if missing:
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}")
    return {"teacher": None, "data": {}, **about}


def _make_config(about: dict[str, Any], out: Path, store: str | None) -> TrainConfig:
    model = configs.from_dict(ModelConfig, about["model"])
    form = "original" if model.kind == "original" else "corrected"
    loss = configs.from_dict(LossConfig, {"scaling": about["scaling"], "form": form})
    data = replace(configs.from_dict(DataConfig, about["data"]), store=store)
    try:
        seed = about.get("seed", 0)
        return TrainConfig(out=out, seed=seed, model=model, data=data, loss=loss)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--store: {error}") from None


def _take_scaling(tensors: weights.Flat, config: TrainConfig, width: int, where: str) -> Scaling:
    """Takes the scaling of the features out of the tensors; only a feature student has one."""
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
