"""What a U-Net is built from: the residual block, the dynamic block, attention, the embedding of time.

A block is called as `block(c_in, c_out, emb_dim)` and maps
`(x (B, c_in, H, W), emb (B, emb_dim)) -> (B, c_out, H, W)`. Both kinds have the same two convolutions; the
residual block adds their output once, the dynamic block takes it for a force and lets time pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ode import Solution, Solver, integrate

NORM_GROUPS = 4
"""Channels are normalised in this many groups, so that widths are multiples of it."""


class ResBlock(nn.Module):
    """Norm, activation, convolution, twice, around a shortcut; diffusion time scales and shifts between."""

    def __init__(self, c_in: int, c_out: int, emb_dim: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), conv3(c_in, c_out)
        self.film = nn.Linear(emb_dim, 2 * c_out)
        self.norm2, self.conv2 = norm(c_out), zeroed(conv3(c_out, c_out))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, c_in, H, W), (B, emb_dim) -> (B, c_out, H, W)."""
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)  # one pass over memory, where * and + take two
        return self.shortcut(x) + self.conv2(F.silu(h))


class Force(nn.Module):
    """The force of a dynamic block: the residual block's two convolutions, scaled and shifted between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(width), conv3(width, width)
        self.norm2, self.conv2 = norm(width), zeroed(conv3(width, width))

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """(B, C, H, W), scales and shifts (B, 2 C) -> (B, C, H, W)."""
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))


PULL = 4 * math.log(2)
"""How strong forces are: one leapfrog step at the first damping, from rest, moves the position by a residual
block's addition. Weaker ones learn more slowly."""


class DynamicBlock(nn.Module):
    r"""A second-order neural ODE: position and velocity of every pixel and channel, damped and driven.

    $x'(\tau) = v$ and $v'(\tau) = f(x, \tau, \mathrm{emb}) - \gamma v$ on $\tau \in [0, 1]$; position and
    velocity start from what enters the block. One set of weights serves all depths and solver steps.
    Diffusion time enters `f` through `emb`; depth through a slope.
    """

    def __init__(self, c_in: int, c_out: int, emb_dim: int, *, solver: Solver | None = None) -> None:
        super().__init__()
        self.solver = solver or Solver()
        self.position = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.velocity = nn.Sequential(norm(c_in), nn.SiLU(), zeroed(conv3(c_in, c_out)))
        self.force = Force(c_out)
        self.film = nn.Linear(emb_dim, 2 * c_out)
        self.film_slope = nn.Parameter(torch.zeros(2 * c_out))
        self.damping = nn.Parameter(torch.zeros(c_out))  # softplus makes it a rate, log 2 at first

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, c_in, H, W), (B, emb_dim) -> (B, c_out, H, W): the position at tau = 1."""
        return self.flow(x, emb).x

    def flow(self, x: Tensor, emb: Tensor) -> Solution:
        """Position and velocity at tau = 1, from what enters, (B, c_in, H, W)."""
        gamma = F.softplus(self.damping)[:, None, None]
        film = self.film(emb)  # once a call: it does not change with depth

        def force(x: Tensor, tau: float | Tensor) -> Tensor:
            return PULL * self.force(x, film + tau * self.film_slope)

        uses = (film, self.film_slope, *self.force.parameters())
        return integrate(force, self.position(x), self.velocity(x), gamma, self.solver, uses)


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual: Vaswani et al. (2017), equation 1."""

    def __init__(self, width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, width // head_width), 0, -1) if width % n == 0)
        self.norm = norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(self.norm(x)).flatten(2)  # (B, 3C, HW)
        q, k, v = qkv.unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)  # each (B, heads, HW, C/heads)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)  # (B, heads, C/heads, HW)
        return x + self.out(h.reshape_as(x))


class TimeEmbedding(nn.Module):
    """Diffusion time as sines and cosines of many periods, then a small network: Vaswani et al. (2017), 3.5."""

    def __init__(self, emb_dim: int, waves: int = 64) -> None:
        super().__init__()
        self.waves = waves
        self.mlp = nn.Sequential(nn.Linear(waves, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        """(B,) times in [0, 1] -> (B, emb_dim)."""
        half = self.waves // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device))
        angles = 1000 * t[:, None] * frequencies  # (B, waves / 2); 1000 t is the chain's step in Ho et al.
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


class Downsample(nn.Sequential):
    """Halve H and W: each 2x2 square of pixels becomes channels, then a 1x1 convolution mixes them."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(4 * c_in, c_out, 1))


class Upsample(nn.Sequential):
    """Double H and W: a 1x1 convolution, then each pixel is repeated."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, 1), nn.Upsample(scale_factor=2, mode="nearest"))


def norm(width: int) -> nn.Module:
    """Normalise groups of channels: Wu and He (2018)."""
    return nn.GroupNorm(NORM_GROUPS, width)


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps H and W."""
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a layer at zero, so that a new block passes its input on unchanged."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
