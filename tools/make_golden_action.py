"""Writes tests/golden/action_head.*: what the reference GR00T N1.5 action head does, tiny.

The reference is lerobot 0.4.4, unmodified. It needs an environment of its own, never the project's:

    python3.11 -m venv oracle
    oracle/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    oracle/bin/pip install transformers==4.57.6 diffusers==0.39.0 draccus==0.10.0
    oracle/bin/pip install --no-deps lerobot==0.4.4
    oracle/bin/python -m tools.make_golden_action      # in the root of this repository

No random numbers: parameters and inputs are formulas, and the noise that the reference draws is
replaced by one. `action_head.npz` holds the inputs and, from the reference in eval mode,

    vl_embs      f32[B, S, F]           backbone features after vlln and vl_self_attention
    velocities   f32[steps, B, A, Q]    one per Euler step
    actions      f32[B, A, Q]           what get_action returns
    actions_bf16_as_f32                 the same, with weights and inputs in bf16
    actions_unpadded                    f32[1, A, Q], of the padded example without its padding

`action_head.json` holds the versions, the config and two facts seen on the way: whether the mask
changes anything, and the largest gap between bf16 and f32.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.golden import formula

OUT = Path(__file__).resolve().parents[1] / "tests" / "golden"
PADDED, PADS = 1, 3  # example 1 has 3 padded tokens, on the left as in the backbone's batches
# What is not a size is as in N1.5's config.json, whose flags are the reference's defaults. No two
# axes that could be mixed up have the same size.
BLOCKS = {"dropout": 0.2, "final_dropout": True, "positional_embeddings": None}
DIT = {"norm_type": "ada_norm", "interleave_self_attention": True, "cross_attention_dim": 16}
CONFIG: dict[str, Any] = {
    "max_num_embodiments": 4,
    "max_state_dim": 6,
    "action_dim": 5,
    "action_horizon": 7,
    "hidden_size": 20,
    "input_embedding_dim": 24,
    "backbone_embedding_dim": 16,
    "num_target_vision_tokens": 3,
    "max_seq_len": 9,
    "num_inference_timesteps": 4,
    "num_timestep_buckets": 1000,
    "diffusion_model_cfg": {"num_layers": 4, "num_attention_heads": 3, "attention_head_dim": 8}
    | {"output_dim": 20, **DIT, **BLOCKS},
    "vl_self_attention_cfg": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    | BLOCKS,
}


def build(dtype: torch.dtype) -> Any:
    """The reference's action head; its packages are entered without their `__init__`."""
    spec = importlib.util.find_spec("lerobot")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("lerobot is not installed: see the docstring of tools/make_golden_action.py")
    root = Path(spec.submodule_search_locations[0])
    for name in ("policies", "policies.groot"):  # which would load every policy of lerobot
        package = types.ModuleType(f"lerobot.{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    module = importlib.import_module("lerobot.policies.groot.action_head.flow_matching_action_head")
    head = module.FlowmatchingActionHead(module.FlowmatchingActionHeadConfig(**CONFIG))
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            values = formula.weight(f"action_head.{name}", parameter.shape)
            if name.endswith(".W"):  # [E, in, out], and the formula takes the first for the output
                values = values * np.float32(parameter.shape[-1] ** 0.5)
            parameter.copy_(torch.from_numpy(values))
    return head.to(dtype).eval()


def inputs() -> dict[str, np.ndarray]:
    """Three examples of three embodiments, the second left padded."""
    mask = np.ones((3, 10), np.int64)
    mask[PADDED, :PADS] = 0
    shapes = {
        "backbone_features": (3, 10, CONFIG["backbone_embedding_dim"]),
        "state": (3, 1, CONFIG["max_state_dim"]),
        "noise": (3, CONFIG["action_horizon"], CONFIG["action_dim"]),
    }
    floats = {n: (1.5 * formula.wave(n, shape)).astype(np.float32) for n, shape in shapes.items()}
    return {**floats, "backbone_attention_mask": mask, "embodiment_id": np.array([2, 0, 3])}


def run(given: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    """The reference's get_action on these inputs; results as f32."""
    from transformers.feature_extraction_utils import BatchFeature

    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    head, velocities, noise = build(dtype), [], tensors.pop("noise")
    head.action_decoder.register_forward_hook(
        lambda _module, _given, out: velocities.append(out[:, -CONFIG["action_horizon"] :])
    )
    backbone = BatchFeature({k: v for k, v in tensors.items() if k.startswith("backbone")})
    action = BatchFeature({k: tensors[k] for k in ("state", "embodiment_id")})
    with mock.patch.object(torch, "randn", return_value=noise) as randn:
        actions = head.get_action(backbone, action)["action_pred"]
    randn.assert_called_once_with(size=tuple(noise.shape), dtype=dtype, device=noise.device)
    # get_action writes vl_embs over the backbone's features.
    found = {"vl_embs": backbone["backbone_features"], "velocities": torch.stack(velocities)}
    return {n: t.float().numpy() for n, t in {**found, "actions": actions}.items()}


def main() -> None:
    """Writes both files."""
    given = inputs()
    result = run(given)
    bf16 = run(given, torch.bfloat16)["actions"]
    ones = np.ones_like(given["backbone_attention_mask"])
    unmasked = run({**given, "backbone_attention_mask": ones})["actions"]
    alone = {name: value[PADDED : PADDED + 1] for name, value in given.items()}
    for name in ("backbone_features", "backbone_attention_mask"):
        alone[name] = alone[name][:, PADS:]
    arrays = {**given, **result, "actions_bf16_as_f32": bf16}
    arrays["actions_unpadded"] = run(alone)["actions"]
    packages = ("lerobot", "diffusers", "transformers", "torch", "numpy")
    facts = {
        "generator": {package: version(package) for package in packages},
        "date": datetime.date.today().isoformat(),
        "config": CONFIG,
        "mask_changes_actions": not np.array_equal(unmasked, result["actions"]),
        "bf16_max_abs_gap": float(np.abs(bf16 - result["actions"]).max()),
    }
    np.savez_compressed(OUT / "action_head.npz", allow_pickle=False, **arrays)
    (OUT / "action_head.json").write_text(json.dumps(facts, indent=2) + "\n")
    for name, value in arrays.items():
        print(f"{name:25}{value.shape!s:16}max abs {np.abs(value).max():.3f}")


if __name__ == "__main__":
    main()
