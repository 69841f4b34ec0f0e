"""The action head of GR00T N1.5: backbone features, robot state and noise to a chunk of actions.

A diffusion transformer (DiT) predicts the velocity of a flow from noise (t = 0) to actions (t = 1);
`get_action` follows it with a few Euler steps. For inference: the reference's dropouts, which do
nothing in `eval`, are left out.

In the shape descriptions: `B` examples, `S` backbone tokens, `F` backbone width (2048), `D` the
DiT's width (1536), `T` its tokens (state, future, action: 1 + 32 + 16), `A` action horizon, `Q`
action dimensions, `P` state dimensions, `E` embodiments.

Source: lerobot 0.4.4, policies/groot/action_head. Sizes: the `action_head_cfg` of the N1.5
release's config.json and its tensor shapes; 1,068,806,144 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from teacher_torch.dit import DiT, SelfAttention, phase_angles

# Flags that would change the forward pass, with the only value built here.
FIXED = {"add_pos_embed": True, "use_vlln": True}
# Our field -> the checkpoint's, in `action_head_cfg` (dit: diffusion_model_cfg, vl:
# vl_self_attention_cfg).
UPSTREAM = {
    "num_embodiments": "max_num_embodiments",
    "state_dim": "max_state_dim",
    "action_dim": "action_dim",
    "action_horizon": "action_horizon",
    "hidden_size": "hidden_size",
    "dit_layers": "dit.num_layers",
    "dit_heads": "dit.num_attention_heads",
    "dit_head_dim": "dit.attention_head_dim",
    "vl_layers": "vl.num_layers",
    "vl_heads": "vl.num_attention_heads",
    "vl_head_dim": "vl.attention_head_dim",
    "num_future_tokens": "num_target_vision_tokens",
    "max_positions": "max_seq_len",
    "num_inference_timesteps": "num_inference_timesteps",
    "num_timestep_buckets": "num_timestep_buckets",
}


@dataclass(frozen=True, kw_only=True)
class ActionHeadConfig:
    """Sizes of the action head; the defaults are GR00T N1.5's."""

    num_embodiments: int = 32  # E; an embodiment is a kind of robot with projectors of its own
    state_dim: int = 64  # P; a robot with fewer pads with zeros
    action_dim: int = 32  # Q; likewise
    action_horizon: int = 16  # A, actions in a chunk
    hidden_size: int = 1024  # of the state encoder and the action decoder; the DiT's output width
    dit_layers: int = 16
    dit_heads: int = 32
    dit_head_dim: int = 48
    vl_layers: int = 4
    vl_heads: int = 32
    vl_head_dim: int = 64
    num_future_tokens: int = 32  # upstream: num_target_vision_tokens
    max_positions: int = 1024  # rows of the position table; only the first A are read
    num_inference_timesteps: int = 4  # Euler steps
    num_timestep_buckets: int = 1000  # integer resolution of t

    def __post_init__(self) -> None:
        """Checks what the network cannot be built without."""
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise ValueError(f"{field.name}: expected at least 1, got {value}")
        if self.width % 2:
            raise ValueError(f"dit_heads * dit_head_dim: expected an even width, got {self.width}")
        if self.action_horizon > self.max_positions:
            limit = f"max_positions = {self.max_positions}"
            raise ValueError(f"action_horizon: expected at most {limit}, got {self.action_horizon}")

    @staticmethod
    def of_checkpoint(cfg: Mapping[str, Any]) -> ActionHeadConfig:
        """Returns the sizes that a checkpoint's `action_head_cfg` names; the rest are N1.5's."""
        for key, value in FIXED.items():
            if cfg.get(key, value) != value:
                raise ValueError(f"action_head_cfg.{key}: expected {value}, got {cfg[key]}")
        flat = dict(cfg)
        for part, prefix in (("diffusion_model_cfg", "dit"), ("vl_self_attention_cfg", "vl")):
            flat |= {
                f"{prefix}.{key}": value for key, value in (flat.pop(part, None) or {}).items()
            }
        return ActionHeadConfig(
            **{own: int(flat[name]) for own, name in UPSTREAM.items() if name in flat}
        )

    @property
    def width(self) -> int:
        """The DiT's width, D."""
        return self.dit_heads * self.dit_head_dim

    @property
    def backbone_width(self) -> int:
        """The backbone's width, F."""
        return self.vl_heads * self.vl_head_dim


class ActionHead(nn.Module):
    """State, noise and backbone features to actions; attribute names are the checkpoint's own."""

    def __init__(self, config: ActionHeadConfig | None = None) -> None:
        """Builds the network; call it under `torch.device("meta")` to allocate nothing."""
        super().__init__()
        self.config = c = config or ActionHeadConfig()
        self.model = DiT(c.width, c.dit_heads, c.dit_layers, c.backbone_width, c.hidden_size)
        self.state_encoder = EmbodimentMLP(c, c.state_dim, c.width)
        self.action_encoder = ActionEncoder(c)
        self.action_decoder = EmbodimentMLP(c, c.hidden_size, c.action_dim)
        self.future_tokens = nn.Embedding(c.num_future_tokens, c.width)
        self.position_embedding = nn.Embedding(c.max_positions, c.width)
        self.vlln = nn.LayerNorm(c.backbone_width)
        self.vl_self_attention = SelfAttention(c.backbone_width, c.vl_heads, c.vl_layers)

    def encode_backbone(self, backbone_features: torch.Tensor) -> torch.Tensor:
        """Returns `vl_embs`, what the DiT attends to: [B, S, F] from [B, S, F]."""
        return self.vl_self_attention(self.vlln(backbone_features))

    def forward(
        self,
        vl_embs: torch.Tensor,
        state: torch.Tensor,
        embodiment_id: torch.Tensor,
        noisy_trajectory: torch.Tensor,
        timestep: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the velocity, d trajectory / d t, at one time; `get_action` checks the inputs.

        Args:
            vl_embs: [B, S, F] from `encode_backbone`, in the weights' dtype as all floats here.
            state: [B, 1, P].
            embodiment_id: i64[B], in [0, E).
            noisy_trajectory: [B, A, Q], `(1 - t) * noise + t * actions`.
            timestep: i64[B], `int(t * num_timestep_buckets)`.

        Returns:
            [B, A, Q], an estimate of `actions - noise`.
        """
        state_features = self.state_encoder(state, embodiment_id)  # [B, 1, D]
        future_tokens = self.future_tokens.weight.expand(len(state), -1, -1)
        action_features = self.action_encoder(noisy_trajectory, timestep, embodiment_id)
        # Only the actions carry a position, counted among themselves.
        horizon = noisy_trajectory.shape[1]
        action_features = action_features + self.position_embedding.weight[:horizon]
        sa_embs = torch.cat((state_features, future_tokens, action_features), dim=1)  # [B, T, D]
        hidden = self.model(sa_embs, vl_embs, timestep)
        return self.action_decoder(hidden, embodiment_id)[:, -horizon:]

    @torch.no_grad()
    def get_action(
        self,
        backbone_features: torch.Tensor,
        backbone_attention_mask: torch.Tensor,
        state: torch.Tensor,
        embodiment_id: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """Denoises a chunk of actions; a pure function of its arguments.

        Args:
            backbone_features: [B, S, F]; all floats are cast to the weights' dtype.
            backbone_attention_mask: [B, S]. Its shape is checked and its values are ignored, as in
                the reference: PADDED TOKENS ARE ATTENDED TO, so an example's actions depend on the
                padding its batch gave it. To be rid of that, pass one example without padding.
            state: [B, 1, P].
            embodiment_id: i64[B], in [0, E).
            noise: [B, A, Q], standard normal: the trajectory at t = 0.

        Returns:
            [B, A, Q] in the weights' dtype: the trajectory at t = 1.

        Raises:
            ValueError: if a shape, the id's dtype or an id does not fit.
        """
        self._check(backbone_features, backbone_attention_mask, state, embodiment_id, noise)
        dtype = self.vlln.weight.dtype
        vl_embs = self.encode_backbone(backbone_features.to(dtype))
        state, trajectory = state.to(dtype), noise.to(dtype)
        num_steps = self.config.num_inference_timesteps
        for step in range(num_steps):
            bucket = int(step / num_steps * self.config.num_timestep_buckets)
            timestep = torch.full_like(embodiment_id, bucket)
            velocity = self(vl_embs, state, embodiment_id, trajectory, timestep)
            trajectory = trajectory + 1 / num_steps * velocity
        return trajectory

    def _check(
        self,
        backbone_features: torch.Tensor,
        backbone_attention_mask: torch.Tensor,
        state: torch.Tensor,
        embodiment_id: torch.Tensor,
        noise: torch.Tensor,
    ) -> None:
        """Raises ValueError where the inputs fit neither the network nor each other."""
        c = self.config
        batch, source = backbone_features.shape[:1], backbone_features.shape[1:2]
        for name, tensor, expected in (
            ("backbone_features", backbone_features, [*batch, *source, c.backbone_width]),
            ("backbone_attention_mask", backbone_attention_mask, [*batch, *source]),
            ("state", state, [*batch, 1, c.state_dim]),
            ("embodiment_id", embodiment_id, [*batch]),
            ("noise", noise, [*batch, c.action_horizon, c.action_dim]),
        ):
            if list(tensor.shape) != expected:
                raise ValueError(f"{name}: expected {expected}, got {list(tensor.shape)}")
        # Indexing would take a negative id from the end, and a bool as a mask.
        if embodiment_id.dtype != torch.int64:
            raise ValueError(f"embodiment_id: expected int64, got {embodiment_id.dtype}")
        if not ((embodiment_id >= 0) & (embodiment_id < c.num_embodiments)).all():
            got = embodiment_id.tolist()
            raise ValueError(f"embodiment_id: expected 0 to {c.num_embodiments - 1}, got {got}")


class EmbodimentLinear(nn.Module):
    """One affine map per embodiment; `W` is stored input first, unlike `nn.Linear`'s weight."""

    def __init__(self, count: int, in_width: int, out_width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(0.02 * torch.randn(count, in_width, out_width))  # upstream's scale
        self.b = nn.Parameter(torch.zeros(count, out_width))

    def forward(self, x: torch.Tensor, embodiment_id: torch.Tensor) -> torch.Tensor:
        """Returns [B, N, out] from [B, N, in]."""
        return torch.bmm(x, self.W[embodiment_id]) + self.b[embodiment_id][:, None]


class EmbodimentMLP(nn.Module):
    """Two layers per embodiment with a ReLU between."""

    def __init__(self, config: ActionHeadConfig, in_width: int, out_width: int) -> None:
        super().__init__()
        self.layer1 = EmbodimentLinear(config.num_embodiments, in_width, config.hidden_size)
        self.layer2 = EmbodimentLinear(config.num_embodiments, config.hidden_size, out_width)

    def forward(self, x: torch.Tensor, embodiment_id: torch.Tensor) -> torch.Tensor:
        """Returns [B, N, out] from [B, N, in]."""
        return self.layer2(functional.relu(self.layer1(x, embodiment_id)), embodiment_id)


class ActionEncoder(nn.Module):
    """Noisy actions and their time to tokens, per embodiment."""

    def __init__(self, config: ActionHeadConfig) -> None:
        super().__init__()
        count, width = config.num_embodiments, config.width
        self.W1 = EmbodimentLinear(count, config.action_dim, width)
        self.W2 = EmbodimentLinear(count, 2 * width, width)
        self.W3 = EmbodimentLinear(count, width, width)

    def forward(
        self, actions: torch.Tensor, timestep: torch.Tensor, embodiment_id: torch.Tensor
    ) -> torch.Tensor:
        """Returns [B, A, D] from actions [B, A, Q] and timestep i64[B]."""
        x = self.W1(actions, embodiment_id)  # [B, A, D]
        half = x.shape[-1] // 2
        angles = phase_angles(timestep, half, half)
        tau = torch.cat((angles.sin(), angles.cos()), dim=-1).to(x.dtype)  # [B, D]
        x = torch.cat((x, tau[:, None].expand_as(x)), dim=-1)  # [B, A, 2 D]
        return self.W3(functional.silu(self.W2(x, embodiment_id)), embodiment_id)
