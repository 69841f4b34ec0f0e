"""The transformers inside GR00T N1.5's action head; attribute names are the checkpoint's own.

In the shape descriptions: `B` examples, `S` backbone tokens, `F` backbone width, `T` the DiT's
tokens, `D` its width, `N`, `M` any token counts.

Source: lerobot 0.4.4, policies/groot/action_head; attention, feed-forward and timestep embedding
are those of diffusers 0.39.0.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

MAX_PERIOD = 10_000.0  # of both sinusoidal encodings (action_encoder.py; diffusers' default)
TIMESTEP_CHANNELS = 256  # TimestepEncoder in cross_attention_dit.py
MLP_RATIO = 4  # diffusers' FeedForward default
NORM_OUT_EPS = 1e-6  # the DiT's last norm; every other norm has torch's default, 1e-5


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

    def __init__(self, width: int, heads: int, num_layers: int) -> None:
        super().__init__()
        blocks = (SelfAttentionBlock(width, heads) for _ in range(num_layers))
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

    def __init__(
        self, width: int, heads: int, num_layers: int, source_width: int, out_width: int
    ) -> None:
        super().__init__()
        # The checkpoint's name for it has two parts.
        self.timestep_encoder = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(width)})
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(width, heads, width if index % 2 else source_width)
            for index in range(num_layers)
        )
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, out_width)

    def forward(
        self, x: torch.Tensor, vl_embs: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Returns [B, T, out] from x [B, T, D], vl_embs [B, S, F], timestep i64[B]."""
        conditioning = self.timestep_encoder["timestep_embedder"](timestep)  # [B, D]
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, None if index % 2 else vl_embs, conditioning)
        # Shift comes first here and second in AdaLayerNorm: so are the weights stored.
        shift, scale = self.proj_out_1(functional.silu(conditioning))[:, None].chunk(2, dim=-1)
        x = functional.layer_norm(x, x.shape[-1:], eps=NORM_OUT_EPS) * (1 + scale) + shift
        return self.proj_out_2(x)
