"""The vision-language backbone of GR00T N1.5: SigLIP, a linear connector, Qwen3 cut to 12 layers.

In the shape descriptions: `N` tiles, `B` views, `S` tokens, `F` feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from teacher_torch.gr00t_config import Gr00tConfig

TILES_AT_ONCE = 8  # bounds the vision tower's memory on a CPU; a GPU takes all at once
# Keys of a config dict that belong to the file or to how it was once run, not to the network: the
# reference forces flash attention, and `layer_types` counts the layers that were cut off.
_NOT_SIZES = {"model_type", "architectures", "torch_dtype", "dtype", "num_hidden_layers"}
_NOT_SIZES |= {"_attn_implementation", "attn_implementation", "layer_types", "use_cache"}


class Gr00tBackbone(nn.Module):
    """Pixels and token ids to features; 1,329,478,384 parameters at the released size."""

    def __init__(self, config: Gr00tConfig) -> None:
        """Builds the network; under `torch.device("meta")` it allocates nothing."""
        super().__init__()
        self.config = config
        self.weights_digest = ""  # sha256 of the weights as stored; set by whoever fills them
        keep = {"num_hidden_layers": config.vision["num_hidden_layers"], "vision_use_head": False}
        vision = SiglipVisionConfig.from_dict(_sizes(config.vision) | keep)
        keep = {"num_hidden_layers": config.num_layers, "use_cache": False}
        language = Qwen3Config.from_dict(_sizes(config.text) | keep)
        connector = nn.Linear(vision.hidden_size, language.hidden_size)
        # Attribute names are the checkpoint's own.
        self.vision_model = SiglipVisionModel(vision)
        self.mlp1 = nn.Sequential(connector)
        self.language_model = Qwen3Model(language)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.mlp1.parameters()).dtype

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Returns `backbone_features`: the hidden state after the final norm of the last layer.

        Args:
            pixel_values: f32[N, 3, H, W] in [-1, 1]; tiles of all views in order.
            input_ids: i64[B, S], left-padded, one image token for each of the tiles' patches.
            attention_mask: i64[B, S], 1 where valid. Positions count from 0 over the padding, as
                in the reference; rotary embeddings are relative, so it does not matter.

        Returns:
            [B, S, F] in the weights' dtype.

        Raises:
            ValueError: if tiles and image tokens do not match.
        """
        at_once = TILES_AT_ONCE if pixel_values.device.type == "cpu" else len(pixel_values)
        maps = [
            self.mlp1(self.vision_model(pixel_values=tiles.to(self.dtype)).last_hidden_state)
            for tiles in pixel_values.split(max(at_once, 1))
        ]  # [tiles, patches, F] each, after SigLIP's post_layernorm
        is_image = input_ids == self.config.image_token_id
        image = torch.cat(maps).flatten(0, 1)  # [N * patches, F]
        if int(is_image.sum()) != len(image):
            raise ValueError(
                f"input_ids: expected {len(image)} image tokens for {len(pixel_values)} tiles, "
                f"got {int(is_image.sum())}"
            )
        embeddings = self.language_model.embed_tokens(input_ids).clone()  # [B, S, F]
        embeddings[is_image] = image
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=attention_mask
        ).last_hidden_state


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that size the network."""
    return {key: value for key, value in config.items() if key not in _NOT_SIZES}


def empty_backbone(config: Gr00tConfig) -> Gr00tBackbone:
    """Returns a backbone on the meta device: built in a tenth of a second at any size."""
    with torch.device("meta"):
        return Gr00tBackbone(config)


def restore_buffers(backbone: Gr00tBackbone, device: torch.device) -> None:
    """Rebuilds the buffers that no checkpoint holds and a meta construction leaves empty.

    The rotary frequencies stay f32 whatever the weights' dtype, as in the reference.
    """
    for module in backbone.vision_model.modules():
        if isinstance(ids := getattr(module, "position_ids", None), torch.Tensor):
            module.position_ids = torch.arange(ids.shape[-1], device=device).expand(ids.shape)
    config = backbone.language_model.config
    backbone.language_model.rotary_emb = Qwen3RotaryEmbedding(config).to(device)


def parameter_counts(backbone: Gr00tBackbone) -> dict[str, int]:
    """Returns the parameters by component."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    language = backbone.language_model
    counts = {
        "vision (SigLIP)": count(backbone.vision_model),
        "connector (mlp1)": count(backbone.mlp1),
        "language, embeddings": count(language.embed_tokens),
        "language, layers and norm": count(language) - count(language.embed_tokens),
    }
    return {**counts, "backbone": sum(counts.values())}
