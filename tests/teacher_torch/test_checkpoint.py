"""A whole checkpoint folder, from its files to a feature store."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel

from bridge.errors import InputError
from bridge.store import FeatureStore
from teacher_torch.backbone import empty_backbone
from teacher_torch.extract import main as extract
from teacher_torch.gr00t import load_gr00t
from teacher_torch.gr00t_config import Gr00tConfig
from teacher_torch.tokenizer import SPECIAL_IDS
from teacher_torch.weights import PREFIX, spellings
from tests.golden.formula import weight


@pytest.fixture
def whole(tmp_path):
    """A tiny checkpoint folder that runs end to end: own tokenizer, 224 px tiles."""
    vocab = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    special = list(SPECIAL_IDS)
    eagle = {
        "vision_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "_attn_implementation": "flash_attention_2",
        },
        "text_config": {
            "hidden_size": 16,
            "num_hidden_layers": 28,
            "layer_types": ["full_attention"] * 28,
            "_attn_implementation": "flash_attention_2",
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": 256 + len(special),
        },
        "image_token_index": 256 + special.index("<IMG_CONTEXT>"),
    }
    config = Gr00tConfig.of_eagle(eagle, 1)
    tensors = {
        PREFIX + spellings(key)[0]: torch.from_numpy(
            weight(PREFIX + spellings(key)[0], tuple(value.shape))
        )
        for key, value in empty_backbone(config).state_dict().items()
    }
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(tensors, str(folder / "model.safetensors"))
    added = {token: 256 + i for i, token in enumerate(special)}
    for name, value in (
        ("config.json", {"backbone_cfg": {"select_layer": 1}}),
        ("eagle_config.json", eagle),
        ("vocab.json", vocab),
        ("added_tokens.json", added),
    ):
        (folder / name).write_text(json.dumps(value))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_checkpoint_is_extracted_end_to_end(whole, extract_config, tmp_path):
    config = replace(
        extract_config,
        out=str(tmp_path / "features"),
        tasks=replace(extract_config.tasks, limit=1),
        teacher=replace(extract_config.teacher, checkpoint=str(whole)),
    )
    extract(config)
    store = FeatureStore(config.out)
    assert store.provenance["weights"] == f"checkpoint {whole}"
    assert store.provenance["tap"] == "hidden state 1, after the final norm"
    assert len(store.records) == 3
    # The same weights by another path go on with the same store.
    moved = whole.rename(tmp_path / "moved")
    extract(replace(config, teacher=replace(config.teacher, checkpoint=str(moved))))


def test_digest_names_the_weights_as_stored_not_as_used(whole):
    exact, rough = (load_gr00t(str(whole), dtype=d) for d in (torch.float32, torch.bfloat16))
    assert exact.weights_digest == rough.weights_digest
    assert exact.weights_digest != load_gr00t().weights_digest


def test_checkpoint_without_its_tokenizer_is_refused(whole):
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (whole / name).unlink()
    with pytest.raises(InputError, match="put the model's own tokenizer files beside"):
        load_gr00t(str(whole))


def test_tokenizer_that_spells_image_marks_as_text_is_refused(whole):
    added = json.loads((whole / "added_tokens.json").read_text())
    del added["</img>"]  # the last id, so that the others stay
    (whole / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(InputError, match="</img>: expected one id"):
        load_gr00t(str(whole))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eagle_config.json", []),
        ("eagle_config.json", {"text_config": None}),
        ("eagle_config.json", {"vision_config": {"num_attention_heads": 5, "hidden_size": 32}}),
        ("config.json", {"backbone_cfg": {"select_layer": None}}),
        ("config.json", {"backbone_cfg": {"select_layer": "x"}}),
        ("config.json", {"backbone_cfg": {"select_layer": -1}}),
        ("config.json", {"backbone_cfg": 7}),
    ],
)
def test_config_that_builds_no_network_is_one_line(whole, name, value):
    (whole / name).write_text(json.dumps(value))
    with pytest.raises(InputError) as error:
        load_gr00t(str(whole))
    assert "\n" not in str(error.value)
