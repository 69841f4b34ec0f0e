"""The proof of a student: trained, frozen, answered once, beside its control."""

import functools
import importlib
import json
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import yaml

from bridge import config as configs
from bridge.errors import InputError
from student_jax.solver import load_solver
from tests.conftest import train_dict
from tests.student_jax.runs import release

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import proof


@pytest.fixture
def called(monkeypatch):
    """Commands run in this process, where programs are compiled already; those that were run."""
    called = []

    def call(module, words, limit):
        called.append((module.removeprefix("student_jax."), *words))
        if limit is not None:
            return proof.STOPPED, True
        main = importlib.import_module(module).main
        config = configs.parse(typing.get_type_hints(main)["config"], words)
        (freeze if module == "student_jax.export" else main)(config)
        return 0, False

    monkeypatch.setattr(proof, "call", call)
    # Asked once what the device is, and not in each of five calls, by a process that imports JAX.
    run = functools.cache(lambda *command: subprocess.run(command, capture_output=True, text=True))
    asks = SimpleNamespace(run=lambda command, **_: run(*command))
    monkeypatch.setattr(proof, "subprocess", asks)
    # Each device has programs of its own.
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    return called


def freeze(config):
    """Exports, as far as it is looked at here."""
    release(load_solver(config.checkpoint, config.which), config.out)
    (config.out / "manifest.json").write_text("{}")


@pytest.fixture
def asked(task_folder, store_path, tmp_path):
    """A proof of a tiny student, whose tasks learn for no time."""
    value = train_dict(
        task_folder, store_path, tmp_path, **{"data.tasks.dev_fraction": 0.5, "dev_questions": 64}
    )
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(value))
    tiny = {"tiers": ("tokens",), "seconds": 1e-6, "views": 2}
    return lambda **more: proof.ProofConfig(train=path, out=tmp_path / "proof", **tiny, **more)


def test_a_student_is_proved_beside_its_control_and_answers_once(asked, called):
    with pytest.raises(SystemExit) as stopped:
        proof.main(asked(minutes=1.0))
    assert stopped.value.code == proof.STOPPED
    config = asked()
    proof.main(config)
    assert [name for name, *_ in called] == [
        *("train", "train", "export"),  # stopped, and gone on with
        *("solve", "solve", "solve", "solve"),
        *("evaluate", "evaluate", "evaluate"),
    ]
    found = json.loads((config.out / "proof.json").read_text())
    about = json.loads((config.out / "student/config.json").read_text())
    assert found["weights_sha256"] == about["weights_sha256"]
    assert found["comparisons"].keys() == {"dev_zero_shot", "dev_tokens"}
    held_out = found["scores"]["dev"]["held-out tasks"]
    assert sum("untrained" in name for name in held_out) == 2
    assert set(found["digests"]) == {
        f"dev_{tier}{kind}.json" for tier in ("zero_shot", "tokens") for kind in ("", "_untrained")
    }
    assert [each["exit"] for each in found["commands"]] == [proof.STOPPED, *[0] * 9]

    del called[:]
    proof.main(config)
    assert {name for name, *_ in called} == {"evaluate"}
    assert json.loads((config.out / "proof.json").read_text())["digests"] == found["digests"]
    with pytest.raises(InputError, match=r"views: expected 2, as in .*proof\.json, got 4"):
        proof.main(replace(config, views=4))
    (config.out / "student/config.json").write_text(json.dumps({**about, "weights_sha256": "0"}))
    with pytest.raises(InputError, match=r"expected weights .*, got 0; another"):
        proof.main(config)


def test_a_command_that_takes_too_long_is_told_to_stop(monkeypatch, tmp_path):
    (tmp_path / "sleeper.py").write_text(
        "import sys, time\nfrom bridge.stop import Stop\nprint('on', flush=True)\n"
        "with Stop() as stop:\n    while not stop.requested: time.sleep(0.01)\nsys.exit(130)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert proof.call("sleeper", [], 3.0) == (proof.STOPPED, True)
    (tmp_path / "quick.py").write_text("import sys; sys.exit(int(sys.argv[1]))\n")
    assert proof.call("quick", ["2"], 60.0) == (2, False)
