import pytest
import yaml

from bridge import config as configs
from bridge.errors import InputError
from student_jax.config import TrainConfig
from student_jax.similarity import SimilarityConfig
from teacher_torch.extract import ExtractConfig
from tests.conftest import ROOT

FILES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_config_file_loads_and_round_trips(path, tmp_path):
    kind = ExtractConfig if "extract" in path.name else TrainConfig
    config = configs.load(kind, path)
    configs.save(config, tmp_path / "resolved.yaml")
    assert configs.load(kind, tmp_path / "resolved.yaml") == config
    assert configs.parse(kind, ["--config", str(tmp_path / "resolved.yaml")]) == config


def test_flags_override_the_file(write_yaml):
    path = write_yaml({"optim": {"peak_lr": 0.5, "batch_size": 4}})
    config = configs.parse(TrainConfig, ["--optim.batch_size", "8", "--config", str(path)])
    assert (config.optim.peak_lr, config.optim.batch_size) == (0.5, 8)
    config = configs.parse(TrainConfig, [f"--config={path}", "--data.store=somewhere"])
    assert config.data.store == "somewhere"


def test_yaml_number_without_a_dot_is_a_float(write_yaml):
    assert yaml.safe_load("1e-3") == "1e-3"  # the trap
    config = configs.load(TrainConfig, write_yaml("optim: {peak_lr: 1e-3, clip_norm: 1}"))
    assert config.optim.peak_lr == 1e-3
    assert isinstance(config.optim.clip_norm, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {peak_lrr: 1}", "unknown key 'optim.peak_lrr'; did you mean 'optim.peak_lr'"),
        ("otpim: {}", "unknown key 'otpim'; did you mean 'optim'"),
        ("zzz: 1", "unknown key 'zzz'; known: out, seed"),
        (
            "model: {kind: gird}",
            "model.kind: expected one of ['feature', 'grid', 'original'], got 'gird'; did",
        ),
        ("model: {width: 30}", "model.width: expected a multiple of 4 * heads = 32, got 30"),
        ("optim: {batch_size: true}", "optim.batch_size: expected int, got True"),
        ("optim: {batch_size: 1.5}", "optim.batch_size: expected int, got 1.5"),
        ("optim: {peak_lr: fast}", "optim.peak_lr: expected float, got 'fast'"),
        ("optim: [1]", "optim: expected keys and values, got [1]"),
        ("model: {kind: feature}", "a student of kind feature needs a store"),
        ("a: [", "expected YAML"),
    ],
)
def test_bad_file_is_one_line_with_the_key(write_yaml, text, message):
    path = write_yaml(text)
    with pytest.raises(InputError) as error:
        configs.load(TrainConfig, path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_required_key_and_file_are_named(write_yaml, tmp_path):
    with pytest.raises(InputError, match="missing key 'checkpoint'"):
        configs.load(SimilarityConfig, write_yaml("{}"))
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        configs.load(TrainConfig, tmp_path / "none.yaml")


def test_misspelt_flag_exits_with_a_suggestion(capsys):
    with pytest.raises(SystemExit) as stop:
        configs.parse(TrainConfig, ["--optim.peak_lrr", "1"])
    assert stop.value.code == 2
    assert "--optim.peak_lr" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--optim.warmup_fraction", "--loss.fade"])
def test_bad_flag_value_exits_before_any_work(capsys, flag):
    with pytest.raises(SystemExit) as stop:
        configs.parse(TrainConfig, [flag, "2"])
    assert stop.value.code == 2
    assert f"{flag.split('.')[1]}: expected 0" in capsys.readouterr().err
