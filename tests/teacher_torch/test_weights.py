"""The loader, against checkpoints written here under the release's names."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bridge.errors import InputError
from teacher_torch.backbone import empty_backbone
from teacher_torch.gr00t_config import Gr00tConfig
from teacher_torch.teachers import check_device
from teacher_torch.tensors import checkpoint_folder
from teacher_torch.weights import load_backbone, spellings
from tests.conftest import ROOT
from tests.golden.formula import pixels, weight

GOLDEN = ROOT / "tests" / "golden"
PREFIX = "backbone.eagle_model."
CASES = ["toy", "untied", "padded"]


def describe(case):
    return json.loads((GOLDEN / f"eagle_{case}.json").read_text())


def config_of(case):
    about = describe(case)
    return Gr00tConfig.of_eagle(about["eagle_config"], about["select_layer"])


def tensors_of(case):
    """All backbone tensors of a tiny checkpoint, named and shaped as in the release."""
    names = {
        PREFIX + spellings(key)[0]: tuple(value.shape)
        for key, value in empty_backbone(config_of(case)).state_dict().items()
    }
    return {name: torch.from_numpy(weight(name, shape)) for name, shape in names.items()}


def write(folder, case="toy", tensors=None, shards=1):
    """Writes a checkpoint folder and returns it."""
    about = describe(case)
    folder.mkdir(parents=True, exist_ok=True)
    outer = {"model_type": "gr00t_n1_5", "backbone_cfg": {"select_layer": about["select_layer"]}}
    (folder / "config.json").write_text(json.dumps(outer))
    (folder / "eagle_config.json").write_text(json.dumps(about["eagle_config"]))
    tensors = {k: v.clone() for k, v in (tensors or tensors_of(case)).items()}
    if shards == 1:
        save_file(tensors, str(folder / "model.safetensors"))
        return folder
    weight_map = {}
    for i in range(shards):
        part = dict(list(tensors.items())[i::shards])
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(part, str(folder / name))
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def run(backbone, case):
    golden = np.load(GOLDEN / f"eagle_{case}.npz")
    config = config_of(case)
    with torch.inference_mode():
        features = backbone(
            torch.from_numpy(pixels(int(golden["num_tiles"].sum()), config.tile_px)),
            torch.from_numpy(golden["input_ids"]),
            torch.from_numpy(golden["attention_mask"]),
        )
    return features.float().numpy(), golden


@pytest.mark.parametrize("case", CASES)
def test_fp32_features_equal_the_reference(case, tmp_path):
    """Oracle: lerobot 0.4.4's unmodified backbone, see tools/make_golden.py."""
    got, golden = run(load_backbone(write(tmp_path, case), torch.float32), case)
    valid = golden["attention_mask"] == 1
    assert np.abs(got - golden["features_f32"])[valid].max() <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_bf16_features_stay_inside_the_references_own_gap(case, tmp_path):
    got, golden = run(load_backbone(write(tmp_path, case), torch.bfloat16), case)
    valid = golden["attention_mask"] == 1
    gap = np.abs(got - golden["features_f32"])[valid]
    own = np.abs(golden["features_bf16_as_f32"] - golden["features_f32"])[valid]
    assert gap.max() <= max(describe(case)["bf16_max_abs_gap"] for case in CASES)  # 0.083
    assert gap.mean() <= 1.05 * own.mean()  # measured: 0.985 to 1.015


def same(folder, case="toy"):
    got, golden = run(load_backbone(folder, torch.float32), case)
    np.testing.assert_allclose(got, golden["features_f32"], atol=1e-4)


def test_shards_with_an_index_are_one_checkpoint(tmp_path):
    same(write(tmp_path, shards=3))


def test_finetune_prefix_is_taken(tmp_path):
    tensors = {f"_groot_model.{name}": value for name, value in tensors_of("toy").items()}
    same(write(tmp_path, tensors=tensors))


def test_flattened_siglip_names_are_taken(tmp_path):
    flat = {
        name.replace("vision_model.vision_model.", "vision_model."): value
        for name, value in tensors_of("toy").items()
    }
    assert flat.keys() != tensors_of("toy").keys()
    same(write(tmp_path, tensors=flat))


def test_embedding_saved_only_as_tied_head_is_taken(tmp_path):
    tensors = tensors_of("toy")
    embedding = tensors.pop(PREFIX + "language_model.model.embed_tokens.weight")
    same(write(tmp_path, tensors={**tensors, PREFIX + "language_model.lm_head.weight": embedding}))


def test_separate_head_is_not_taken_for_the_embedding(tmp_path):
    tensors = tensors_of("untied")
    name = PREFIX + "language_model.lm_head.weight"
    embedding = tensors[PREFIX + "language_model.model.embed_tokens.weight"]
    tensors[name] = torch.from_numpy(weight(name, tuple(embedding.shape)))
    same(write(tmp_path, "untied", tensors), "untied")


def test_parts_that_features_do_not_need_are_skipped(tmp_path):
    extra = {
        PREFIX + "vision_model.vision_model.head.probe": torch.ones(1, 1, 32),
        "action_head.vlln.weight": torch.ones(32),
    }
    same(write(tmp_path, tensors={**tensors_of("toy"), **extra}))


def test_bf16_file_loads_without_a_copy_in_f32(tmp_path):
    tensors = {name: value.bfloat16() for name, value in tensors_of("toy").items()}
    backbone = load_backbone(write(tmp_path, tensors=tensors), torch.bfloat16)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert backbone.language_model.rotary_emb.inv_freq.dtype == torch.float32


def drop(*parts):
    return {n: v for n, v in tensors_of("toy").items() if not any(p in n for p in parts)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (drop("model.layers.1.mlp"), "3 tensors missing: language_model.model.layers.1.mlp"),
        (drop("mlp1.0.bias"), "1 tensors missing: mlp1.0.bias"),
        (drop("embed_tokens"), "missing: language_model.model.embed_tokens.weight"),
        (
            {
                **drop(),
                PREFIX + "language_model.model.layers.2.input_layernorm.weight": torch.ones(32),
            },
            "1 tensors unexpected: language_model.model.layers.2.input_layernorm.weight",
        ),
        (
            {**drop(), PREFIX + "mlp1.0.weight": torch.ones(16, 32)},
            "mlp1.0.weight: expected shape [32, 32], got [16, 32]",
        ),
        ({"model.weight": torch.ones(2)}, "is this a GR00T N1.5 checkpoint?"),
    ],
)
def test_wrong_tensors_are_named_in_one_line(tensors, message, tmp_path):
    with pytest.raises(InputError) as error:
        load_backbone(write(tmp_path, tensors=tensors), torch.float32)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_truncated_file_is_one_line(size, tmp_path):
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        load_backbone(tmp_path, torch.float32)


def test_garbage_file_is_one_line(tmp_path):
    (write(tmp_path) / "model.safetensors").write_bytes(b"\x80\x04" * 999)
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        load_backbone(tmp_path, torch.float32)


def test_missing_shard_is_named(tmp_path):
    (write(tmp_path, shards=2) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="expected the shard model-00002-of-00002"):
        load_backbone(tmp_path, torch.float32)


def test_shard_outside_the_folder_is_refused(tmp_path):
    folder = write(tmp_path / "inner", shards=2)
    index = {"weight_map": {"x": "../outside.safetensors"}}
    save_file({"x": torch.ones(1)}, str(tmp_path / "outside.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="expected the shard"):
        load_backbone(folder, torch.float32)


def test_pickled_weights_are_never_read(tmp_path):
    (write(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match=r"pytorch_model.bin is pickled and never read"):
        load_backbone(tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        ({"model_type": "llama"}, "model_type: expected gr00t_n1_5, got 'llama'"),
        ({"backbone_cfg": {"project_to_dim": 1536}}, "an N1 checkpoint"),
        ([], "expected an object"),
    ],
)
def test_other_models_config_is_refused(outer, message, tmp_path):
    (write(tmp_path) / "config.json").write_text(json.dumps(outer))
    with pytest.raises(InputError, match=message):
        load_backbone(tmp_path, torch.float32)


def test_eagle_field_that_is_not_built_is_refused():
    with pytest.raises(InputError, match="use_pixel_shuffle: expected False, got True"):
        Gr00tConfig.of_eagle({"use_pixel_shuffle": True}, 12)


def test_released_numbers_hold_without_an_eagle_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"backbone_cfg": {"select_layer": 12}}))
    assert Gr00tConfig.of_checkpoint(tmp_path) == Gr00tConfig.of_size("full")


@pytest.mark.parametrize("checkpoint", ["nowhere", "a/b/c", "../x y"])
def test_checkpoint_that_is_neither_folder_nor_hub_id_is_one_line(checkpoint):
    with pytest.raises(InputError, match="expected a folder, a hub id"):
        checkpoint_folder(checkpoint)


def test_hub_id_that_cannot_be_fetched_is_one_line(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"could not be fetched: no network"):
        checkpoint_folder("nvidia/GR00T-N1.5-3B")


def test_full_size_names_and_shapes_are_the_releases():
    """Oracle: names and shapes of the released checkpoint's backbone."""
    listed = json.loads((GOLDEN / "n15_tensors.json").read_text())
    backbone = empty_backbone(Gr00tConfig.of_size("full"))
    ours = {
        PREFIX + spellings(key)[0]: list(value.shape)
        for key, value in backbone.state_dict().items()
    }
    theirs = {name: shape for name, shape in listed.items() if name.startswith(PREFIX)}
    unused = {n for n in theirs if "vision_model.head." in n or "lm_head" in n}
    assert ours == {name: shape for name, shape in theirs.items() if name not in unused}
    assert len(theirs) == 585


def test_mismatch_of_tiles_and_image_tokens_is_an_error(tmp_path):
    backbone = load_backbone(write(tmp_path), torch.float32)
    ids = torch.full((1, 3), backbone.config.image_token_id)
    with pytest.raises(ValueError, match="expected 4 image tokens for 1 tiles, got 3"):
        backbone(torch.from_numpy(pixels(1, 28)), ids, torch.ones_like(ids))


def test_tensor_beside_both_parts_is_refused(tmp_path):
    extra = {"backbone.eagle_linear.weight": torch.ones(2, 2)}
    with pytest.raises(InputError, match=r"1 tensors unexpected: backbone\.eagle_linear"):
        load_backbone(write(tmp_path, tensors=tensors_of("toy") | extra), torch.float32)


def test_quantised_tensors_are_refused(tmp_path):
    tensors = {name: value.to(torch.int8) for name, value in tensors_of("toy").items()}
    with pytest.raises(InputError, match=r"expected a float tensor, got torch\.int8"):
        load_backbone(write(tmp_path, tensors=tensors), torch.float32)


def test_prefix_tie_and_shards_together(tmp_path):
    tensors = tensors_of("toy")
    embedding = tensors.pop(PREFIX + "language_model.model.embed_tokens.weight")
    tensors[PREFIX + "language_model.lm_head.weight"] = embedding
    same(write(tmp_path, tensors={f"_groot_model.{n}": v for n, v in tensors.items()}, shards=4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_fp32_features_on_a_gpu_equal_the_reference(case, tmp_path):
    check_device("cuda")
    torch.backends.cudnn.allow_tf32 = False
    backbone = load_backbone(write(tmp_path, case), torch.float32).to("cuda")
    golden = np.load(GOLDEN / f"eagle_{case}.npz")
    arrays = (
        torch.from_numpy(pixels(int(golden["num_tiles"].sum()), backbone.config.tile_px)),
        torch.from_numpy(golden["input_ids"]),
        torch.from_numpy(golden["attention_mask"]),
    )
    with torch.inference_mode():
        got = backbone(*(array.to("cuda") for array in arrays)).cpu().numpy()
    valid = golden["attention_mask"] == 1
    assert np.abs(got - golden["features_f32"])[valid].max() <= 1e-4
