"""One U-Net skeleton; the block that fills it decides which denoiser it is.

Each level halves the image; skips carry every block's output across. A block is called as
`block(c_in, c_out, emb_dim)` and maps `(x (B, c_in, H, W), emb (B, emb_dim)) -> (B, c_out, H, W)`.
Source: Ronneberger et al. (2015) for the shape, Ho et al. (2020), appendix B, for diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ode import check_solver, integrate

NORM_GROUPS = 4


@dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is made of.

    Attributes:
        channels: of the image, in and out.
        size: the side of the images it is meant for; any other that fits the levels works too.
        widths: channels at each level, finest first; H and W must divide by 2 ** (levels - 1).
        depth: blocks a level, on the way down and again on the way up.
        attention: the levels (0 is the finest) that also attend over all pixels.
        block: "res" (the standard residual block) or "dynamic" (second-order ODE).
        method, steps: a dynamic block's solver, one of `ode.METHODS`, and its number of steps.
    """

    channels: int = 1
    size: int = 32
    widths: tuple[int, ...] = (32, 64)
    depth: int = 2
    attention: tuple[int, ...] = ()
    block: str = "res"
    method: str = "leapfrog"
    steps: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention", tuple(self.attention))
        check_solver(self.method, self.steps)
        if self.block not in BLOCKS:
            raise ValueError(f"unknown block {self.block!r}; choose from {', '.join(BLOCKS)}")
        if not self.widths or any(width < 1 or width % NORM_GROUPS for width in self.widths):
            raise ValueError(f"widths must be positive multiples of {NORM_GROUPS}, got {self.widths}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetConfig:
        """Rebuild a configuration from JSON; ValueError names a field that does not belong."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown U-Net setting {unknown[0]!r}; known are {', '.join(known)}")
        return cls(**values)

    to_dict = asdict


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
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.shortcut(x) + h


class DynamicBlock(nn.Module):
    r"""A second-order neural ODE: position and velocity of every pixel and channel, damped and driven.

    $x'(\tau) = v$ and $v'(\tau) = f(x, \tau, \mathrm{emb}) - \gamma v$ on $\tau \in [0, 1]$, with
    $v(0) = g(x(0))$. The force `f` has the residual block's two convolutions; one set of weights serves
    all depths and solver steps. Diffusion time enters `f` through `emb`; depth through a slope.
    """

    def __init__(self, c_in: int, c_out: int, emb_dim: int, *, method: str = "leapfrog", steps: int = 1) -> None:
        super().__init__()
        self.method, self.steps = method, steps
        self.enter = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.velocity = zeroed(nn.Conv2d(c_out, c_out, 1))
        self.norm1, self.conv1 = norm(c_out), conv3(c_out, c_out)
        self.film = nn.Linear(emb_dim, 2 * c_out)
        self.film_slope = nn.Parameter(torch.zeros(2 * c_out))
        self.norm2, self.conv2 = norm(c_out), zeroed(conv3(c_out, c_out))
        self.damping = nn.Parameter(torch.zeros(c_out))  # softplus makes it a rate, 0.69 at first

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, c_in, H, W), (B, emb_dim) -> (B, c_out, H, W): the position at tau = 1."""
        return self.flow(self.enter(x), emb)[0]

    def flow(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """Position and velocity at tau = 1, from the position at tau = 0."""
        gamma = F.softplus(self.damping)[:, None, None]
        film = self.film(emb)  # once a call: it does not change with depth

        def force(x: Tensor, tau: float | Tensor) -> Tensor:
            return self.force(x, film + tau * self.film_slope)

        return integrate(force, x, self.velocity(x), gamma, method=self.method, steps=self.steps)

    def force(self, x: Tensor, film: Tensor) -> Tensor:
        """The acceleration f, from the position and the scales and shifts (B, 2 c_out) of this moment."""
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual: Vaswani et al. (2017), equation 1."""

    def __init__(self, width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = max(1, width // head_width)
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
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class Level(nn.Module):
    """One resolution, on the way down or up: its blocks, its attention, the step to the next resolution."""

    def __init__(self, blocks: list[nn.Module], attention: nn.Module, resample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.attention, self.resample = nn.ModuleList(blocks), attention, resample


class UNet(nn.Module):
    """The skeleton: down through the levels, across the middle, and up again with the skips.

    Width changes between the levels; a block keeps it, except where a skip is merged.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, depth = config.widths, config.depth
        emb_dim = 4 * widths[0]  # as Ho et al. have it
        block = BLOCKS[config.block](config)

        def attend(level: int) -> nn.Module:
            return Attention(widths[level]) if level in config.attention else nn.Identity()

        self.embedding = TimeEmbedding(emb_dim)
        self.stem = conv3(config.channels, widths[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            coarser = widths[min(level + 1, len(widths) - 1)]
            last = level == len(widths) - 1
            down = [block(width, width, emb_dim) for _ in range(depth)]
            up = [block(2 * width, width, emb_dim) for _ in range(depth)]
            self.down.append(Level(down, attend(level), nn.Identity() if last else Downsample(width, coarser)))
            self.up.insert(0, Level(up, attend(level), nn.Identity() if last else Upsample(coarser, width)))
        self.middle = nn.ModuleList(block(widths[-1], widths[-1], emb_dim) for _ in range(2))
        self.middle_attention = attend(len(widths) - 1)
        self.head = nn.Sequential(norm(widths[0]), nn.SiLU(), zeroed(conv3(widths[0], config.channels)))
        # The same numbers, a tenth to a third faster on CPUs.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """A noisy image and its diffusion time to the network's prediction.

        Args:
            x: (B, C, H, W), with H and W divisible by 2 ** (levels - 1).
            t: (B,), in [0, 1].

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: on a shape that does not fit the configuration.
        """
        self.check_shape(x, t)
        emb = self.embedding(t.to(x.dtype))
        h, skips = self.stem(x), []
        for level in cast("list[Level]", self.down):
            for block in level.blocks:
                h = block(h, emb)
                skips.append(h)
            h = level.resample(level.attention(h))
        h = self.middle[1](self.middle_attention(self.middle[0](h, emb)), emb)
        for level in cast("list[Level]", self.up):
            h = level.resample(h)
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), emb)
            h = level.attention(h)
        return self.head(h)

    def check_shape(self, x: Tensor, t: Tensor) -> None:
        """Raise ValueError where an image or its times do not fit this network."""
        factor = 2 ** (len(self.config.widths) - 1)
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise ValueError(f"images must be (B, {self.config.channels}, H, W), got {tuple(x.shape)}")
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"image sides must divide by {factor} for {factor.bit_length()} levels, "
                             f"got {x.shape[2]}x{x.shape[3]}")  # fmt: skip
        if t.shape != x.shape[:1]:
            raise ValueError(f"one diffusion time per image: t must be ({x.shape[0]},), got {tuple(t.shape)}")


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


def _res(config: UNetConfig) -> Callable[[int, int, int], nn.Module]:
    return ResBlock


def _dynamic(config: UNetConfig) -> Callable[[int, int, int], nn.Module]:
    return lambda c_in, c_out, emb_dim: DynamicBlock(c_in, c_out, emb_dim, method=config.method, steps=config.steps)


BLOCKS = {"res": _res, "dynamic": _dynamic}
"""A block's name to a function of the configuration that returns `block(c_in, c_out, emb_dim)`."""
