"""Writes tests/golden/eagle_*: what the reference GR00T N1.5 backbone returns on tiny checkpoints.

The reference is lerobot 0.4.4, unmodified. It needs an environment of its own, never the project's:

    python3.11 -m venv oracle
    oracle/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    oracle/bin/pip install transformers==4.57.6 peft diffusers einops draccus==0.10.0
    oracle/bin/pip install --no-deps lerobot==0.4.4
    oracle/bin/python -m tools.make_golden      # in the root of this repository

The image processor has no golden file: it needs torchvision, which does not go with a CPU torch.

Every parameter comes from `tests.golden.formula.weight` with the name it has in a checkpoint, every
tile from `tests.golden.formula.pixels`. Each case writes

    eagle_NAME.npz    input_ids, attention_mask [B, L] and num_tiles [B] (tiles per example), i64;
                      features_f32, features_bf16_as_f32 [B, L, H], both with eager attention
    eagle_NAME.json   the versions, the Eagle config, select_layer, tie_word_embeddings and the
                      largest difference between the two features where the mask is 1

Features of padding are recorded as they come, but they mean nothing: such a row has no token to
attend to, and what comes out depends on the attention's implementation.
"""

from __future__ import annotations

import datetime
import importlib
import json
import sys
import types
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import SiglipVisionModel

from tests.golden import formula

OUT = Path(__file__).resolve().parents[1] / "tests" / "golden"
EAGLE_FIXED = {  # what N1.5's Eagle config says besides the keys that the golden files carry
    "select_layer": -1,
    "use_pixel_shuffle": False,
    "mlp_connector_layers": 1,
    "_attn_implementation": "eager",
}


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint and a batch."""

    eagle: dict[str, Any]
    select_layer: int
    batch: list[list[int]]  # per example: text tokens, tiles of an image, text tokens, tiles, ...


def eagle_config(vision: dict, text: dict, image_token: int) -> dict[str, Any]:
    """An Eagle config with N1.5's settings and the given sizes."""
    return {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            **vision,
        },
        "text_config": {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            **text,
        },
        "image_token_index": image_token,
        "force_image_size": vision["image_size"],
        "use_thumbnail": True,
        "min_dynamic_tiles": 1,
        "max_dynamic_tiles": 12,
    }


def sizes(*values: int) -> dict[str, int]:
    """Sizes under the names that both towers have for them; a fifth one counts the kv heads."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip((*names, "num_key_value_heads"), values, strict=False))


TOY = eagle_config(
    {"image_size": 28, **sizes(32, 2, 2, 48)},
    {"head_dim": 16, "vocab_size": 80, "tie_word_embeddings": True, **sizes(32, 4, 4, 64, 2)},
    image_token=70,
)
UNTIED = eagle_config(
    {"image_size": 42, **sizes(24, 4, 3, 40)},
    {"head_dim": 12, "vocab_size": 96, "tie_word_embeddings": False, **sizes(40, 3, 6, 56, 2)},
    image_token=90,
)
CASES = {
    "toy": Case(TOY, 2, [[5, 1, 4]]),
    "untied": Case(UNTIED, 3, [[3, 1, 2, 2, 5]]),
    "padded": Case(TOY, 2, [[4, 3, 6], [3, 1, 4]]),
}


def reference(module: str) -> Any:
    """A module of lerobot's groot, without its packages' `__init__`: those load every policy."""
    root = Path(importlib.import_module("lerobot").__path__[0])
    for name in ("policies", "policies/groot"):
        package = types.ModuleType(f"lerobot.{name}".replace("/", "."))
        package.__path__ = [str(root / name)]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"lerobot.policies.groot.{module}")


def build(case: Case, dtype: torch.dtype) -> Any:
    """The reference's EagleBackbone, which itself drops the layers past select_layer.

    Its constructor would fetch a config and ask for flash attention; it is handed a model instead.
    """
    groot = reference("groot_n1")
    configuration = reference("eagle2_hg_model.configuration_eagle2_5_vl")
    modeling = reference("eagle2_hg_model.modeling_eagle2_5_vl")
    config = configuration.Eagle25VLConfig(**case.eagle, **EAGLE_FIXED)
    config.text_config._attn_implementation = "eager"
    config.vision_config._attn_implementation = "eager"
    vision_model = SiglipVisionModel(config.vision_config)
    eagle = modeling.Eagle25VLForConditionalGeneration(config, vision_model)
    groot.ensure_eagle_cache_ready = groot.AutoConfig = mock.Mock()
    groot.AutoModel = mock.Mock(**{"from_config.return_value": eagle})
    backbone = groot.EagleBackbone(select_layer=case.select_layer, project_to_dim=None)
    for name, parameter in backbone.named_parameters():
        values = torch.from_numpy(formula.weight(f"backbone.{name}", parameter.shape))
        parameter.data = values.to(dtype)  # parameters only: the rotary frequencies stay f32
    return backbone.eval()


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Token ids, left padded with 0, the mask and the tiles per example."""
    image, tokens = case.eagle["image_token_index"], (case.eagle["force_image_size"] // 14) ** 2
    rows = []
    for example in case.batch:
        row: list[int] = []
        for place, count in enumerate(example):
            if place % 2:  # an image, between its two marks, whose ids follow, as in N1.5
                row += [image + 1] + [image] * (count * tokens) + [image + 2]
            else:
                row += [1 + (len(row) * 17 + i * 29) % (image - 1) for i in range(count)]
        rows.append(row)
    shape = len(rows), max(map(len, rows))
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for i, row in enumerate(rows):
        input_ids[i, -len(row) :] = row
        attention_mask[i, -len(row) :] = 1
    tiles = np.array([sum(example[1::2]) for example in case.batch])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "num_tiles": tiles}


def features(case: Case, batch: dict[str, np.ndarray], dtype: torch.dtype) -> np.ndarray:
    """What the reference backbone returns, as f32."""
    tiles = formula.pixels(int(batch["num_tiles"].sum()), case.eagle["force_image_size"])
    given = {
        "eagle_pixel_values": torch.from_numpy(tiles).to(dtype),
        "eagle_input_ids": torch.from_numpy(batch["input_ids"]),
        "eagle_attention_mask": torch.from_numpy(batch["attention_mask"]),
        "eagle_image_sizes": None,  # the reference drops it
    }
    with torch.no_grad():
        result = build(case, dtype)(given)
    assert np.array_equal(result["backbone_attention_mask"], batch["attention_mask"])
    return result["backbone_features"].float().numpy()


def main() -> None:
    """Writes every case."""
    for name, case in CASES.items():
        arrays = inputs(case)
        arrays["features_f32"] = features(case, arrays, torch.float32)
        arrays["features_bf16_as_f32"] = features(case, arrays, torch.bfloat16)
        gaps = np.abs(arrays["features_f32"] - arrays["features_bf16_as_f32"])
        facts = {
            "generator": {p: version(p) for p in ("lerobot", "transformers", "torch", "numpy")},
            "date": datetime.date.today().isoformat(),
            "eagle_config": case.eagle,
            "select_layer": case.select_layer,
            "tie_word_embeddings": case.eagle["text_config"]["tie_word_embeddings"],
            "bf16_max_abs_gap": float(gaps[arrays["attention_mask"] == 1].max()),
        }
        np.savez_compressed(OUT / f"eagle_{name}.npz", allow_pickle=False, **arrays)
        (OUT / f"eagle_{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
