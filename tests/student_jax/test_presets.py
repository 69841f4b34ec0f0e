"""The committed training configs: they load, and their sizes are what they say."""

from math import prod
from pathlib import Path

import pytest

from bridge import config as configs
from student_jax.config import TrainConfig
from student_jax.release import shapes_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LIMITS = {
    "nano": (2_000_000, 1),
    "small": (19_000_000, 2048),
    "full": (48_500_000, 2048),
    "readout": (48_500_000, 2048),
}


@pytest.mark.parametrize("name", LIMITS)
def test_preset_keeps_its_size_and_holds_tasks_out(name):
    limit, feature_width = LIMITS[name]
    config = configs.load(TrainConfig, CONFIGS / f"{name}.yaml")
    count = sum(prod(shape) for shape in shapes_of(config.model, feature_width).values())
    assert 0.9 * limit < count <= limit or name == "nano"
    assert config.data.tasks.source == "arcagi/training"
    assert config.data.tasks.dev_fraction >= 0.2
