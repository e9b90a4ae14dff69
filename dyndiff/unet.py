"""One U-Net skeleton; the block that fills it decides which denoiser it is.

Each level halves the image; skips carry every block's output across.
Source: Ronneberger et al. (2015) for the shape, Ho et al. (2020), appendix B, for diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from .blocks import (
    NORM_GROUPS,
    Attention,
    Downsample,
    DynamicBlock,
    ResBlock,
    TimeEmbedding,
    Upsample,
    conv3,
    norm,
    zeroed,
)
from .ode import check_solver


@dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is made of.

    Attributes:
        channels: of the image, in and out.
        size: the side of the images it is meant for; any other that fits the levels works too.
        widths: channels at each level, finest first; H and W must divide by 2 ** (levels - 1).
        depth: blocks a level, on the way down and again on the way up.
        attention: the levels (0 is the finest) that also attend over all pixels.
        classes: 0, or how many classes of images the network is told apart by a label.
        block: "res" (the standard residual block) or "dynamic" (second-order ODE).
        method, steps: a dynamic block's solver, one of `ode.METHODS`, and its number of steps.
    """

    channels: int = 1
    size: int = 32
    widths: tuple[int, ...] = (32, 64)
    depth: int = 2
    attention: tuple[int, ...] = ()
    classes: int = 0
    block: str = "res"
    method: str = "leapfrog"
    steps: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention", tuple(self.attention))
        check_solver(self.method, self.steps)
        if self.block not in BLOCKS:
            raise ValueError(f"unknown block {self.block!r}; choose from {', '.join(BLOCKS)}")
        for name in ("channels", "size", "depth"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
        if not isinstance(self.classes, int) or self.classes < 0:
            raise ValueError(f"classes must be a whole number, at least 0, got {self.classes!r}")
        if not set(self.attention) <= set(range(len(self.widths))):
            raise ValueError(f"attention must name levels from 0 to {len(self.widths) - 1}, got {self.attention}")
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
        self.classes = nn.Embedding(config.classes + 1, emb_dim) if config.classes else None  # the last: no class
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

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """A noisy image and its diffusion time to the network's prediction.

        Args:
            x: (B, C, H, W), with H and W divisible by 2 ** (levels - 1).
            t: (B,), in [0, 1].
            labels: (B,) int64, for a network with classes; `classes` itself, or none, stands for no class.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: on a shape that does not fit the configuration.
        """
        self.check_shape(x, t)
        emb = self.embedding(t)
        if self.classes is not None:
            labels = torch.full_like(t, self.config.classes, dtype=torch.long) if labels is None else labels
            emb = emb + self.classes(labels.to(x.device))
        elif labels is not None:
            raise ValueError("this network was made without classes: it takes no labels")
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

    def check_labels(self, labels: Tensor) -> None:
        """Raise ValueError unless labels (B,) are classes of this network."""
        classes = self.config.classes
        if not classes:
            raise ValueError("this network was made without classes: it takes no labels")
        if bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())} to {int(labels.max())}")


def _res(config: UNetConfig) -> Callable[[int, int, int], nn.Module]:
    return ResBlock


def _dynamic(config: UNetConfig) -> Callable[[int, int, int], nn.Module]:
    return lambda c_in, c_out, emb_dim: DynamicBlock(c_in, c_out, emb_dim, method=config.method, steps=config.steps)


BLOCKS = {"res": _res, "dynamic": _dynamic}
"""A block's name to a function of the configuration that returns `block(c_in, c_out, emb_dim)`."""
