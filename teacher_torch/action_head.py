"""The action head of GR00T N1.5: backbone features, robot state and noise to a chunk of actions.

A diffusion transformer (DiT) predicts the velocity of a flow from noise (t = 0) to actions (t = 1);
`get_action` follows it with a few Euler steps. For inference: the reference's dropouts, which do
nothing in `eval`, are left out.

In the shape descriptions: `B` examples, `S` backbone tokens, `F` backbone width (2048), `D` the
DiT's width (1536), `T` its tokens (state, future, action: 1 + 32 + 16), `A` action horizon, `Q`
action dimensions, `P` state dimensions, `E` embodiments.

Source: lerobot 0.4.4, policies/groot/action_head; attention, feed-forward and timestep embedding
are those of diffusers 0.39.0. Sizes: the `action_head_cfg` of the N1.5 release's config.json and
its tensor shapes; 1,068,806,144 parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.nn import functional

MAX_PERIOD = 10_000.0  # of both sinusoidal encodings (action_encoder.py; diffusers' default)
TIMESTEP_CHANNELS = 256  # TimestepEncoder in cross_attention_dit.py
MLP_RATIO = 4  # diffusers' FeedForward default
NORM_OUT_EPS = 1e-6  # the DiT's last norm; every other norm has torch's default, 1e-5


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
        self.model = DiT(c)
        self.state_encoder = EmbodimentMLP(c, c.state_dim, c.width)
        self.action_encoder = ActionEncoder(c)
        self.action_decoder = EmbodimentMLP(c, c.hidden_size, c.action_dim)
        self.future_tokens = nn.Embedding(c.num_future_tokens, c.width)
        self.position_embedding = nn.Embedding(c.max_positions, c.width)
        self.vlln = nn.LayerNorm(c.backbone_width)
        self.vl_self_attention = SelfAttention(c)

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


class TimestepEmbedder(nn.Module):
    """Time to the vector that conditions every block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """Returns [B, D] from i64[B]."""
        half = TIMESTEP_CHANNELS // 2
        # Unlike the action encoder's: cosine first, and the last wave's rate is 1 / MAX_PERIOD.
        angles = phase_angles(timestep, half, half - 1)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(waves)))


def phase_angles(timestep: torch.Tensor, count: int, spacing: int) -> torch.Tensor:
    """Returns the angles of `count` waves, f32[B, count]: `timestep / MAX_PERIOD ** (i / spacing)`.

    Always in f32: bf16 would round timestep 750 to 752. The order of operations is diffusers', bit
    for bit; the reference's action encoder has another (its waves differ by 6e-5 at most).
    """
    index = torch.arange(count, dtype=torch.float32, device=timestep.device)
    return timestep[:, None].float() * torch.exp(-math.log(MAX_PERIOD) * index / spacing)


class Attention(nn.Module):
    """Multi-head attention without any mask; self-attention where no source is given."""

    def __init__(self, width: int, heads: int, source_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(source_width, width)
        self.to_v = nn.Linear(source_width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [B, N, width] from x [B, N, width] and source [B, M, source width]."""
        source = x if source is None else source
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, tokens, head]
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class GELULinear(nn.Module):
    """A linear layer and GELU in its tanh form (the reference's "gelu-approximate")."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [*B, out] from [*B, in]."""
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """The MLP of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = MLP_RATIO * width
        dropped = nn.Identity()  # in the place of the reference's dropout, so that the keys agree
        self.net = nn.Sequential(GELULinear(width, inner), dropped, nn.Linear(inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the shape it gets."""
        return self.net(x)


class AdaLayerNorm(nn.Module):
    """Layer norm whose scale and shift are read from the conditioning vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """Returns [B, N, D] from x [B, N, D] and conditioning [B, D]."""
        scale, shift = self.linear(functional.silu(conditioning))[:, None].chunk(2, dim=-1)
        return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class SelfAttentionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, width)
        self.norm3 = nn.LayerNorm(width)  # the reference has no norm2
        self.ff = FeedForward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [B, S, F] from [B, S, F]."""
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class SelfAttention(nn.Module):
    """Blocks in which the backbone's tokens see each other once more, without positions."""

    def __init__(self, config: ActionHeadConfig) -> None:
        super().__init__()
        width, heads = config.backbone_width, config.vl_heads
        blocks = (SelfAttentionBlock(width, heads) for _ in range(config.vl_layers))
        self.transformer_blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [B, S, F] from [B, S, F]."""
        for block in self.transformer_blocks:
            x = block(x)
        return x


class DiTBlock(nn.Module):
    """A pre-norm block whose first norm is conditioned and whose second has no weights."""

    def __init__(self, width: int, heads: int, source_width: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNorm(width)
        self.attn1 = Attention(width, heads, source_width)
        self.norm3 = nn.LayerNorm(width, elementwise_affine=False)
        self.ff = FeedForward(width)

    def forward(
        self, x: torch.Tensor, source: torch.Tensor | None, conditioning: torch.Tensor
    ) -> torch.Tensor:
        """Returns [B, T, D]; attends to source [B, S, F], or to x [B, T, D] itself if None."""
        x = x + self.attn1(self.norm1(x, conditioning), source)
        return x + self.ff(self.norm3(x))


class DiT(nn.Module):
    """The diffusion transformer: even blocks attend to the backbone, odd ones to themselves."""

    def __init__(self, config: ActionHeadConfig) -> None:
        super().__init__()
        width = config.width
        # The checkpoint's name for it has two parts.
        self.timestep_encoder = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(width)})
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(width, config.dit_heads, width if odd else config.backbone_width)
            for odd in (index % 2 for index in range(config.dit_layers))
        )
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.hidden_size)

    def forward(
        self, x: torch.Tensor, vl_embs: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Returns [B, T, hidden_size] from x [B, T, D], vl_embs [B, S, F], timestep i64[B]."""
        conditioning = self.timestep_encoder["timestep_embedder"](timestep)  # [B, D]
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, None if index % 2 else vl_embs, conditioning)
        # Shift comes first here and second in AdaLayerNorm: so are the weights stored.
        shift, scale = self.proj_out_1(functional.silu(conditioning))[:, None].chunk(2, dim=-1)
        x = functional.layer_norm(x, x.shape[-1:], eps=NORM_OUT_EPS) * (1 + scale) + shift
        return self.proj_out_2(x)
