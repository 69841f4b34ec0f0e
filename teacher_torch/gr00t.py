"""GR00T N1.5 as a teacher: a checkpoint's weights, or seeded random ones of the same sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bridge.from_torch import to_numpy
from bridge.views import View
from teacher_torch.backbone import Gr00tBackbone
from teacher_torch.gr00t_config import Gr00tConfig, Size
from teacher_torch.processor import BackboneInputs, Processor
from teacher_torch.teacher import TeacherOutput
from teacher_torch.tensors import checkpoint_folder
from teacher_torch.tokenizer import tokenizer_for
from teacher_torch.weights import load_backbone, random_backbone


class Gr00tTeacher:
    """The backbone of GR00T N1.5 behind the `Teacher` protocol.

    Random weights give the true shapes, cost and code path, and features without any knowledge:
    everything made with them says so.
    """

    name = "gr00t-n1.5"
    code: tuple[str, ...] = (
        "gr00t_config",
        "tokenizer",
        "processor",
        "weights",
        "backbone",
        "gr00t",
    )

    def __init__(
        self,
        backbone: Gr00tBackbone,
        processor: Processor,
        weights: str,
        licence: str,
        device: str = "cpu",
    ) -> None:
        """Takes a frozen backbone and its processor; `load_gr00t` makes both."""
        self.processor = processor
        self.weights = weights
        self.licence = licence
        self.weights_digest = backbone.weights_digest
        self.feature_width = backbone.config.feature_width
        self.tap = f"hidden state {backbone.config.num_layers}, after the final norm"
        self.device = torch.device(device)
        self.backbone = backbone.to(self.device)

    def prepare(self, views: Sequence[View]) -> BackboneInputs:
        """Turns views into pixels and tokens, on the CPU; may run beside `forward`."""
        return self.processor.prepare(views)

    def num_tokens(self, inputs: BackboneInputs) -> int:
        """Counts the tokens of one prepared view."""
        return inputs.input_ids.shape[1]

    def forward(self, inputs: BackboneInputs) -> TeacherOutput:
        """Runs the backbone on prepared views."""
        with torch.inference_mode():
            hidden = self.backbone(
                inputs.pixel_values.to(self.device),
                inputs.input_ids.to(self.device),
                inputs.attention_mask.to(self.device),
            )
        return TeacherOutput(
            to_numpy(hidden.to(torch.bfloat16)),
            inputs.attention_mask.bool().numpy(),
            inputs.frames,
        )


def load_gr00t(
    checkpoint: str = "random",
    size: Size = "tiny",
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    draw_on: str = "cpu",
) -> Gr00tTeacher:
    """Returns GR00T N1.5 as a teacher.

    Args:
        checkpoint: a folder, a hub id such as nvidia/GR00T-N1.5-3B, or `random`.
        size: of random weights; a checkpoint has its own.
        seed: of random weights.
        device: where it runs.
        dtype: of weights and computation; bf16 as the original ran it, f32 where bf16 has no
            hardware path.
        draw_on: device that random weights are drawn on, see `random_backbone`.

    Raises:
        InputError: if the checkpoint cannot be used.
    """
    if checkpoint == "random":
        config = Gr00tConfig.of_size(size)
        backbone = random_backbone(config, seed, dtype, draw_on)
        processor = Processor(config, tokenizer_for(None, config.image_token_id))
        weights = f"random weights, {size}, seed {seed}"
        return Gr00tTeacher(backbone, processor, weights, "none (random weights)", device)
    folder = checkpoint_folder(checkpoint)
    backbone = load_backbone(folder, dtype)
    config = backbone.config
    processor = Processor(config, tokenizer_for(folder, config.image_token_id))
    licence = "the checkpoint's own; NVIDIA's release is non-commercial"
    return Gr00tTeacher(backbone, processor, f"checkpoint {checkpoint}", licence, device)
