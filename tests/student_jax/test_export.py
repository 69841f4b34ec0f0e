"""Out to PyTorch and back, through the commands."""

import hashlib
import json
import logging
import os
import pickle
from dataclasses import asdict

import chex
import jax
import numpy as np
import pytest
import torch

from bridge import torch_export, weights
from bridge.errors import InputError
from bridge.manifest import digest_of, read_manifest
from bridge.proofs import read_proofs
from bridge.torch_export import TorchExportConfig
from bridge.torch_student import OriginalMirror, make_mirror
from student_jax.config import ModelConfig
from student_jax.export import ExportConfig
from student_jax.export import main as export
from student_jax.import_weights import ImportConfig
from student_jax.import_weights import main as import_weights
from student_jax.proofs import batch_of, feature_inputs
from student_jax.solver import load_solver

KINDS = {
    "grid": {"model.kind": "grid"},
    "feature": {"model.kind": "feature", "model.max_tokens": 2048, "model.projector": "orthogonal"},
    "original": {
        "model.kind": "original",
        "model.max_tokens": 2048,
        "loss.scaling": "none",
        "loss.form": "original",
    },
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, task_folder, store_path, tmp_path_factory, few_shapes, write_run):
    """A short run of each kind, and its export."""
    from bridge import config as configs
    from student_jax.config import TrainConfig
    from tests.conftest import train_dict

    folder = tmp_path_factory.mktemp(request.param)
    changes = {**KINDS[request.param], "optim.total_steps": 1}
    config = train_dict(task_folder, store_path, folder / "run", **changes)
    write_run(configs.from_dict(TrainConfig, config))
    export(ExportConfig(checkpoint=folder / "run", out=folder / "export"))
    return folder


def test_folder_holds_what_others_look_for(exported):
    folder = exported / "export"
    about = json.loads((folder / "config.json").read_text())
    solver = load_solver(exported / "run")
    assert about["model_type"] == f"sage-distill-{solver.config.model.kind}"
    assert about["num_parameters"] == solver.num_parameters
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]  # all may read it
    card = (folder / "README.md").read_text()
    assert "random weights, tiny, seed 0" in card
    assert ("cannot answer without the teacher" in card) == solver.config.model.reads_features


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_and_export_answer_as_the_student_does(exported, capsys):
    folder = exported / "export"
    logging.getLogger("torch").setLevel(logging.WARNING)
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)  # pytest would keep megabytes
    grid = not load_solver(exported / "run").config.model.reads_features
    formats = ("torchscript",) if grid else ("torchscript", "onnx")  # see test_export_formats.py
    torch_export.main(TorchExportConfig(folder=folder, format=formats))
    told = capsys.readouterr().out
    assert told.count("largest gap") == 2 + len(formats)
    proofs = read_proofs(folder)
    assert len(proofs) >= 100
    script = torch.jit.load(str(folder / "model.torchscript.pt"))
    assert torch_export.check(script, proofs, "TorchScript").largest < 1e-4
    program = torch.export.load(folder / "model.pt2").module()
    assert torch_export.check(program, proofs, "torch.export").largest < 1e-4
    told = read_manifest(folder)
    assert told["formats"].keys() == {"safetensors", *formats}
    assert all(told["formats"][name]["max_error"] < 1e-4 for name in formats)
    for format in told["formats"].values():
        for name, about in format["files"].items():
            assert about["sha256"] == digest_of(folder / name)


def test_gate_fails_on_other_weights(exported, tmp_path):
    folder = exported / "export"
    tensors, about = weights.load(folder / "model.safetensors")
    name = next(
        name for name in ("head.bias", "color_head.bias", "decoder.6.bias") if name in tensors
    )
    for changed in (name, *(["projector.bias"] if "projector.bias" in tensors else [])):
        other = {**tensors, changed: tensors[changed] + (1 + np.arange(tensors[changed].size)) / 99}
        other[changed] = other[changed].astype(np.float32)
        weights.save(tmp_path / "model.safetensors", other, about)
        for file in ("config.json", "proof.safetensors"):
            (tmp_path / file).write_bytes((folder / file).read_bytes())
        (tmp_path / "model.pt2").write_text("of an earlier run")
        with pytest.raises(InputError, match=r"expected the weights that config\.json tells"):
            torch_export.main(TorchExportConfig(folder=tmp_path))
        config = json.loads((folder / "config.json").read_text())
        digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
        (tmp_path / "config.json").write_text(json.dumps({**config, "weights_sha256": digest}))
        with pytest.raises(InputError, match="mirror: proof 0: expected the JAX student's answer"):
            torch_export.main(TorchExportConfig(folder=tmp_path))
        assert not list(tmp_path.glob("model.*pt*"))


def test_export_again_gives_the_same_weights_and_removes_what_is_stale(
    exported, tmp_path, monkeypatch
):
    run = exported / "run"
    if load_solver(run).config.model.reads_features:
        pytest.skip("one kind is enough")
    export(ExportConfig(checkpoint=run, out=tmp_path))
    before = digest_of(exported / "export/model.safetensors")
    assert digest_of(tmp_path / "model.safetensors") == before
    assert digest_of(tmp_path / "proof.safetensors") == digest_of(
        exported / "export/proof.safetensors"
    )
    # The same proofs again would take as long.
    monkeypatch.setattr("student_jax.export.make_proofs", lambda _: read_proofs(tmp_path))
    (tmp_path / "model.onnx").write_text("of these weights")
    (tmp_path / "stablehlo").mkdir()
    (tmp_path / "stablehlo/8x4.bin").write_text("of these weights")
    export(ExportConfig(checkpoint=run, out=tmp_path))
    assert (tmp_path / "model.onnx").exists()
    told = json.loads((tmp_path / "manifest.json").read_text())
    told["student"]["weights_sha256"] = "of others"
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    export(ExportConfig(checkpoint=run, out=tmp_path))
    assert not (tmp_path / "model.onnx").exists()
    assert not list(tmp_path.rglob("*.bin"))
    assert read_manifest(tmp_path)["student"]["weights_sha256"] == before


def test_import_gives_the_same_student_bit_for_bit(exported, store_path, tmp_path):
    out = tmp_path / "imported"
    needs = load_solver(exported / "run").config.model.reads_features
    store = str(store_path) if needs else None
    import_weights(ImportConfig(folder=exported / "export", store=store, out=out))
    before = load_solver(exported / "run")
    for after in (load_solver(out), load_solver(exported / "export", store=store)):
        chex.assert_trees_all_equal(before.params, after.params)
        if before.config.model.kind == "feature":
            chex.assert_trees_all_equal(before.scaling, after.scaling)
        assert after.step == before.step
        assert after.trained_on == before.trained_on
        assert after.config.data.max_demonstrations == before.config.data.max_demonstrations


def test_export_and_run_never_share_a_folder(exported):
    """It would answer by the export, however far the run has come since."""
    run = exported / "run"
    with pytest.raises(InputError, match="is a training run's folder; give another --out"):
        export(ExportConfig(checkpoint=run, out=run))
    assert not (run / "model.safetensors").exists()
    folder = exported / "export"
    with pytest.raises(InputError, match="holds an export; give another folder"):
        import_weights(ImportConfig(folder=folder, out=folder))


def test_import_does_not_write_over_checkpoints(exported):
    with pytest.raises(InputError, match="holds checkpoints already"):
        import_weights(ImportConfig(folder=exported / "export", out=exported / "run"))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_weights_of_another_dtype_are_refused(exported, tmp_path, dtype):
    folder = exported / "export"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors, about = weights.load(folder / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name].astype(dtype)
    weights.save(tmp_path / "model.safetensors", tensors, about)
    message = f"{name}: expected float32 .* got {np.dtype(dtype)}"
    needs = json.loads((folder / "config.json").read_text())["model"]["kind"] != "grid"
    with pytest.raises(InputError, match=message):
        import_weights(ImportConfig(folder=tmp_path, store="x" * needs or None, out=tmp_path / "o"))
    with pytest.raises(InputError, match=message):
        torch_export.main(TorchExportConfig(folder=tmp_path))


def test_missing_scaling_is_named(exported, tmp_path):
    folder = exported / "export"
    tensors, about = weights.load(folder / "model.safetensors")
    if "scaling.std" not in tensors:
        pytest.skip("this student scales nothing")
    del tensors["scaling.std"]
    weights.save(tmp_path / "model.safetensors", tensors, about)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(
        InputError, match=r"scaling\.std: expected float32 \[64\], got no such leaf"
    ):
        import_weights(ImportConfig(folder=tmp_path, store="x", out=tmp_path / "o"))


def test_export_is_left_alone_by_damaged_config(exported, tmp_path):
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(InputError, match="lacks feature_width"):
        import_weights(ImportConfig(folder=tmp_path))
    with pytest.raises(InputError, match=r"expected an export's config\.json"):
        torch_export.main(TorchExportConfig(folder=tmp_path))
    with pytest.raises(InputError, match=r"config\.json"):
        import_weights(ImportConfig(folder=tmp_path / "none"))


def original_state(width=32):
    """What the original's script would have saved, at a small size."""
    sizes = {"width": width, "heads": 8, "mlp_width": 48, "depth": 2, "max_tokens": 2048}
    mirror = OriginalMirror(asdict(ModelConfig(kind="original", **sizes)), 64)
    state = {k: v for k, v in mirror.state_dict().items() if not k.startswith("projector")}
    return mirror, state


def test_originals_checkpoint_answers_in_jax_as_in_torch(store_path, tmp_path):
    mirror, state = original_state()
    path = tmp_path / "best_model.pt"
    optimizer = torch.optim.AdamW(mirror.parameters()).state_dict()
    torch.save(
        {
            "epoch": 1,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer,
            "val_accuracy": 94.45,
            "val_loss": 3265.0,
        },
        path,
    )
    torch_export.main(TorchExportConfig(folder=tmp_path / "folder", original=path))
    import_weights(
        ImportConfig(folder=tmp_path / "folder", store=str(store_path), out=tmp_path / "run")
    )
    solver = load_solver(tmp_path / "run")
    assert len(solver.trained_on) == 400  # it split pairs: every task was trained on
    batch = batch_of(next(feature_inputs(solver)), 30)
    got = solver.predict(solver.params, solver.scaling, batch)
    with torch.no_grad():
        logits, _ = mirror.eval()(torch.tensor(batch.teacher), torch.tensor(batch.teacher_mask))
    np.testing.assert_allclose(got, torch.log_softmax(logits, -1).numpy(), atol=1e-5)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/sage_distill_was_here",)


@pytest.mark.parametrize(
    "what",
    [
        "code",
        "keys",
        "plain pickle",
        "text",
        "dtype",
        "missing leaf",
        "other leaf",
        "deep leaf",
        "odd name",
        "odd width",
    ],
)
def test_original_checkpoint_with_anything_else_in_it_is_refused(tmp_path, what):
    path = tmp_path / "best_model.pt"
    _, state = original_state()
    if what == "plain pickle":
        path.write_bytes(pickle.dumps({"model_state_dict": {}}))
    elif what == "text":
        path.write_text("weights")
    else:
        value = {"model_state_dict": state, "epoch": 1}
        if what == "code":
            value["history"] = Evil()
        if what == "keys":
            value["extra"] = torch.zeros(1)
        if what == "dtype":
            state["decoder.0.bias"] = state["decoder.0.bias"].half()
        if what in ("other leaf", "deep leaf", "odd name"):
            name = {"other leaf": "projector.weight", "odd name": 3}.get(
                what, "transformer.layers.999999999.norm1.weight"
            )
            state[name] = torch.zeros(3)
        if what == "odd width":
            value["model_state_dict"] = {
                name: tensor[..., :30] for name, tensor in state.items() if tensor.ndim
            }
        if what == "missing leaf":
            del state["decoder.0.bias"]
        torch.save(value, path)
    with pytest.raises(InputError) as error:
        torch_export.main(TorchExportConfig(folder=tmp_path / "out", original=path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not os.path.exists("/tmp/sage_distill_was_here")  # noqa: PTH110


def test_import_of_a_student_that_reads_features_wants_a_store(exported, tmp_path):
    if not load_solver(exported / "run").config.model.reads_features:
        pytest.skip("a grid student needs none")
    with pytest.raises(InputError, match=r"--store: .* needs a store"):
        import_weights(ImportConfig(folder=exported / "export", out=tmp_path / "x"))


def test_state_dict_loads_where_only_the_mirror_is_known(exported):
    about = json.loads((exported / "export/config.json").read_text())
    student = make_mirror(about["model"], about["feature_width"], about["scaling"])
    tensors, _ = weights.load(exported / "export/model.safetensors")
    student.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    assert jax.tree.leaves(tensors)
