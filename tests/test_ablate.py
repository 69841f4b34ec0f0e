"""The ablation's rows: each differs from its control in one thing, and measured ones are kept."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bridge import config as configs
from bridge.errors import InputError
from bridge.tree import flatten

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import ablate


def differences(one, other):
    """The dotted keys in which two rows' training differs, but for where it is written."""
    a, b = (
        flatten(configs.to_dict(ablate.settings_of(ablate.AblateConfig(), name, 0)))
        for name in (one, other)
    )
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - {"out"}


def test_every_row_differs_from_its_control_in_one_thing():
    teacher = "teacher: DINOv2"
    assert differences("as configured", "1-D positions") == {"model.positions"}
    assert differences("as configured", "no convolution") == {"model.convolution"}
    assert differences("as configured", "no loops") == {"model.loops"}
    assert differences("as configured", "queries alone") == {"loss.left_out"}
    for name in (teacher, f"{teacher}, random weights"):
        assert differences("no teacher", name) == {"data.store"}
    assert differences(teacher, f"{teacher}, fading") == {"loss.fade"}
    assert differences("as configured", "no teacher") == {"data.rearc", "data.augmented_fraction"}


def test_rows_of_another_budget_never_join_a_table(tmp_path):
    config = ablate.AblateConfig(out=tmp_path / "rows.json")
    assert ablate.kept(config) == []
    value = {"config": configs.to_dict(config), "rows": [{"seed": 0, "variant": "no loops"}]}
    config.out.write_text(json.dumps(value))
    assert ablate.kept(config) == value["rows"]
    with pytest.raises(InputError, match="expected rows of train_steps 5, got 200"):
        ablate.kept(replace(config, train_steps=5))
    with pytest.raises(ValueError, match=r"variants: expected some of .*; got \['no conv'\]"):
        ablate.AblateConfig(variants=("no conv",))
