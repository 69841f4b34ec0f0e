"""The vision-language backbone of GR00T N1.5: SigLIP, a linear connector, Qwen3 cut to 12 layers.

In the shape descriptions: `N` tiles, `B` views, `S` tokens, `F` feature width.

Sizes: the Eagle config.json of the N1.5 release; 1,329,478,384 parameters when `full`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from bridge.from_torch import to_numpy
from bridge.views import TILE_PX, View
from teacher_torch.processor import IMAGE_TOKEN_ID, prepare
from teacher_torch.teacher import TeacherOutput

Size = Literal["tiny", "full"]
VOCABULARY = 151680
TILES_AT_ONCE = 8  # bounds the vision tower's memory

_VISION = {
    "full": {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
    },
    "tiny": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    },
}
_LANGUAGE = {
    "full": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}


class Gr00tBackbone(nn.Module):
    """Pixels and token ids to features; attribute names are the checkpoint's own."""

    def __init__(self, size: Size) -> None:
        """Builds the network; call it under `torch.device("meta")` to allocate nothing."""
        super().__init__()
        vision = SiglipVisionConfig.from_dict(
            {"image_size": TILE_PX, "patch_size": 14, "vision_use_head": False, **_VISION[size]}
        )
        language = Qwen3Config.from_dict(
            {
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 40960,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e6,
                "use_cache": False,
                **_LANGUAGE[size],
            }
        )
        self.vision_model = SiglipVisionModel(vision)
        connector = nn.Linear(vision.hidden_size, language.hidden_size)
        self.mlp1 = nn.Sequential(connector)
        self.language_model = Qwen3Model(language)

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Returns the hidden state after the final norm of the last layer.

        Args:
            pixel_values: f32[N, 3, 224, 224] in [-1, 1].
            input_ids: i64[B, S], `256 * N` of them image tokens.
            attention_mask: i64[B, S], 1 where valid.

        Returns:
            [B, S, F] in the weights' dtype.
        """
        dtype = next(self.mlp1.parameters()).dtype
        maps = [
            self.mlp1(self.vision_model(pixel_values=tiles.to(dtype)).last_hidden_state)
            for tiles in pixel_values.split(TILES_AT_ONCE)
        ]  # [tiles, 256, F] each
        embeddings = self.language_model.embed_tokens(input_ids).clone()  # [B, S, F]
        embeddings[input_ids == IMAGE_TOKEN_ID] = torch.cat(maps).flatten(0, 1)
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=attention_mask
        ).last_hidden_state


class Gr00tTeacher:
    """GR00T N1.5's backbone with seeded random weights, as a `Teacher`.

    Random weights give the true shapes, cost and code path, and features without any knowledge:
    everything made with them says so.
    """

    tap = "backbone_features: hidden state after the final norm"
    licence = "none (random weights)"

    def __init__(self, size: Size = "tiny", seed: int = 0) -> None:
        """Builds the backbone and draws its weights from `seed`."""
        self.name = "gr00t-n1.5"
        self.weights = f"random weights, {size}, seed {seed}"
        self.backbone = random_backbone(size, seed)
        self.weights_digest = weights_digest(self.backbone)
        self.feature_width = int(self.backbone.language_model.config.hidden_size)

    def features(self, views: Sequence[View]) -> TeacherOutput:
        """Runs the backbone on a batch of views."""
        inputs = prepare(views)
        with torch.inference_mode():
            hidden = self.backbone(inputs.pixel_values, inputs.input_ids, inputs.attention_mask)
        return TeacherOutput(
            to_numpy(hidden.to(torch.bfloat16)),
            inputs.attention_mask.bool().numpy(),
            inputs.frames,
        )


def random_backbone(size: Size, seed: int) -> Gr00tBackbone:
    """Returns a frozen backbone in f32 whose weights are a pure function of `(size, seed)`.

    Matrices are N(0, 1 / fan_in) so that random features keep the picture's information at any
    depth; norms and biases keep their neutral values.
    """
    with torch.device("meta"):
        backbone = Gr00tBackbone(size)
    backbone.to_empty(device="cpu")
    _restore_buffers(backbone)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(backbone.named_parameters()):
            if "embed" in name and "patch" not in name:
                weight.normal_(0, 1, generator=generator)
            elif weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.fill_(0 if name.endswith("bias") else 1)
    return backbone.eval().requires_grad_(False)


def weights_digest(module: nn.Module) -> str:
    """Returns the sha256 over all named tensors, names included."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(to_numpy(tensor).tobytes())
    return total.hexdigest()


def _restore_buffers(backbone: Gr00tBackbone) -> None:
    """Rebuilds the buffers that no checkpoint holds and a meta construction leaves empty."""
    for module in backbone.vision_model.modules():
        if isinstance(ids := getattr(module, "position_ids", None), torch.Tensor):
            module.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
    config = backbone.language_model.config
    backbone.language_model.rotary_emb = Qwen3RotaryEmbedding(config)
