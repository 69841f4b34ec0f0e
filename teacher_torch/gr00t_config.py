"""GR00T N1.5's numbers, and how a checkpoint folder overrides them.

The released `config.json` does not hold the vision-language part's sizes: those come from the code
repository's Eagle folder, so they are written down here. A checkpoint of another size (a tiny one,
say) brings its own `eagle_config.json` beside `config.json`.

Source: Eagle config.json of the N1.5 era; checkpoint config.json of nvidia/GR00T-N1.5-3B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bridge.arc_files import read_json
from bridge.errors import InputError

Size = Literal["tiny", "full"]

VISION = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151680,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "attention_bias": False,
}
TINY_VISION = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# Fields of an Eagle config that would change the forward pass, with the only value built here.
FIXED = {"use_pixel_shuffle": False, "mlp_connector_layers": 1, "select_layer": -1}


@dataclass(frozen=True, kw_only=True)
class Gr00tConfig:
    """What builds a backbone and its processor."""

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    num_layers: int = 12  # language layers kept: the checkpoint's `select_layer`
    image_token_id: int = 151669
    tile_px: int = 224
    max_tiles: int = 12
    min_tiles: int = 1
    use_thumbnail: bool = True

    @property
    def tokens_per_tile(self) -> int:
        """One token a patch: 256 for 224 px tiles of 14 px patches."""
        return (self.tile_px // self.vision["patch_size"]) ** 2

    @property
    def feature_width(self) -> int:
        """`F`."""
        return int(self.text["hidden_size"])

    @staticmethod
    def of_size(size: Size) -> Gr00tConfig:
        """Returns the released size, or the same architecture at toy width."""
        if size == "full":
            return Gr00tConfig(vision=VISION, text=TEXT)
        return Gr00tConfig(
            vision={**VISION, **TINY_VISION}, text={**TEXT, **TINY_TEXT}, num_layers=2
        )

    @staticmethod
    def of_checkpoint(folder: Path) -> Gr00tConfig:
        """Reads `config.json` and, where it is there, `eagle_config.json`.

        Raises:
            InputError: if it is no N1.5 checkpoint, or needs what is not built here.
        """
        path = folder / "config.json"
        outer = read_json(path)
        if not isinstance(outer, dict):
            raise InputError(f"{path}: expected an object")
        kind = outer.get("model_type", "gr00t_n1_5")
        if kind != "gr00t_n1_5":
            raise InputError(f"{path}: model_type: expected gr00t_n1_5, got {kind!r}")
        backbone = outer.get("backbone_cfg") or {}
        if not isinstance(backbone, dict):
            raise InputError(f"{path}: backbone_cfg: expected an object, got {backbone!r}")
        if backbone.get("project_to_dim") not in (None, -1):
            raise InputError(
                f"{path}: backbone_cfg.project_to_dim: expected null as in N1.5, "
                f"got {backbone['project_to_dim']} (an N1 checkpoint?)"
            )
        num_layers = backbone.get("select_layer", 12)
        if type(num_layers) is not int or num_layers < 1:
            raise InputError(
                f"{path}: backbone_cfg.select_layer: expected a layer count, got {num_layers!r}"
            )
        eagle_path = folder / "eagle_config.json"
        if not eagle_path.is_file():
            return Gr00tConfig(vision=VISION, text=TEXT, num_layers=num_layers)
        return Gr00tConfig.of_eagle(read_json(eagle_path), num_layers, str(eagle_path))

    @staticmethod
    def of_eagle(eagle: Mapping[str, Any], num_layers: int, where: str = "eagle") -> Gr00tConfig:
        """Returns the config that an Eagle config dict describes; missing fields are N1.5's.

        Raises:
            InputError: on a field that would change the forward pass in a way not built here.
        """
        parts = ("vision_config", "text_config")
        if not isinstance(eagle, Mapping) or not all(
            isinstance(eagle.get(part, {}), Mapping) for part in parts
        ):
            raise InputError(f"{where}: expected an object with {' and '.join(parts)}")
        for key, value in FIXED.items():
            if eagle.get(key, value) != value:
                raise InputError(f"{where}: {key}: expected {value}, got {eagle[key]}")
        vision = {**VISION, **eagle.get("vision_config", {})}
        return Gr00tConfig(
            vision=vision,
            text={**TEXT, **eagle.get("text_config", {})},
            num_layers=num_layers,
            image_token_id=int(eagle.get("image_token_index", 151669)),
            tile_px=int(eagle.get("force_image_size") or vision["image_size"]),
            max_tiles=int(eagle.get("max_dynamic_tiles", 12)),
            min_tiles=int(eagle.get("min_dynamic_tiles", 1)),
            use_thumbnail=bool(eagle.get("use_thumbnail", True)),
        )
