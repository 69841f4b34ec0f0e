"""The whole GR00T N1.5, backbone and action head: what "GR00T" means in a latency table.

Of the release's 2,724,163,520 parameters, 2,398,284,528 take part in an action; the rest are the
vision tower's pooling head (15,238,352) and a stored copy of the tied output layer (310,640,640),
which the released code never runs either.

In the shape descriptions: `B` views, `A` = 16 actions, `Q` = 32 action dimensions, `P` = 64 state
dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bridge.views import View
from teacher_torch.action_head import ActionHead, ActionHeadConfig
from teacher_torch.backbone import parameter_counts
from teacher_torch.gr00t import Gr00tTeacher, load_gr00t
from teacher_torch.gr00t_config import Size
from teacher_torch.processor import BackboneInputs
from teacher_torch.tensors import checkpoint_folder
from teacher_torch.weights import load_action_head, random_action_head

UNUSED = {"vision pooling head, never run": 15_238_352, "lm_head copy, never run": 310_640_640}
TINY_HEAD = ActionHeadConfig(
    num_embodiments=2,
    hidden_size=32,
    dit_layers=2,
    dit_heads=2,
    dit_head_dim=16,
    vl_layers=1,
    vl_heads=4,
    vl_head_dim=16,
    num_future_tokens=4,
    max_positions=32,
)


@dataclass(frozen=True)
class Gr00tPolicy:
    """Views, state and noise to a chunk of actions."""

    teacher: Gr00tTeacher
    action_head: ActionHead

    def parameter_counts(self) -> dict[str, int]:
        """Returns the parameters by component; at full size they sum to the released file's."""
        counts = parameter_counts(self.teacher.backbone)
        del counts["backbone"]
        for name, part in self.action_head.named_children():
            counts[f"action head, {name}"] = sum(p.numel() for p in part.parameters())
        return {**counts, "taking part": sum(counts.values())}

    def prepare(self, views: Sequence[View]) -> BackboneInputs:
        """Turns views into pixels and tokens, on the CPU."""
        return self.teacher.prepare(views)

    def get_action(
        self,
        inputs: BackboneInputs,
        state: torch.Tensor,
        embodiment_id: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """Runs the backbone once and the action head's four denoising steps.

        Args:
            inputs: from `prepare`.
            state: [B, 1, P].
            embodiment_id: i64[B].
            noise: [B, A, Q], standard normal.

        Returns:
            [B, A, Q] in the weights' dtype, on the teacher's device.
        """
        device = self.teacher.device
        mask = inputs.attention_mask.to(device)
        with torch.inference_mode():
            features = self.teacher.backbone(
                inputs.pixel_values.to(device), inputs.input_ids.to(device), mask
            )
            return self.action_head.get_action(
                features, mask, state.to(device), embodiment_id.to(device), noise.to(device)
            )


def load_policy(
    checkpoint: str = "random",
    size: Size = "tiny",
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    draw_on: str = "cpu",
) -> Gr00tPolicy:
    """Returns the whole model; arguments as for `load_gr00t`.

    Raises:
        InputError: if the checkpoint cannot be used.
    """
    teacher = load_gr00t(checkpoint, size, seed, device, dtype, draw_on)
    if checkpoint == "random":
        config = ActionHeadConfig() if size == "full" else TINY_HEAD
        head = random_action_head(config, seed, dtype, draw_on)
    else:
        head = load_action_head(checkpoint_folder(checkpoint), dtype)
    return Gr00tPolicy(teacher, head.to(teacher.device))
