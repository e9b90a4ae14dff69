"""One U-Net skeleton; the block that fills it decides which denoiser it is.

Each level halves the image; skips carry every block's output across.
Source: Ronneberger et al. (2015) for the shape, Ho et al. (2020), appendix B, for diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
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
from .controls import FirstOrderBlock, ReleasedBlock, TiedBlock
from .ode import Solver


@dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is made of.

    Attributes:
        channels: of the image, in and out.
        size: the side of the images it is meant for; any other that fits the levels works too.
        widths: channels at each level, finest first; H and W must divide by 2 ** (levels - 1).
        depth: blocks at each level, on the way down and again on the way up; one number for all, or one
            for each. At a level without, the image passes.
        middle: blocks between the two ways, at the coarsest level.
        attention: the levels (0 is the finest) that also attend over all pixels.
        classes: 0, or how many classes of images the network is told apart by a label.
        block: a key of `BLOCKS`: "res" (the standard residual block), "dynamic" (second-order ODE), or one
            of the controls "tied", "first_order", "released".
        time: whether the network is told the diffusion time.
        method, gradient: of a block's solver, where it has one, one of `ode.METHODS` and `ode.GRADIENTS`.
        steps: of that solver; one number for all levels, or one for each.
    """

    channels: int = 1
    size: int = 32
    widths: tuple[int, ...] = (32, 64)
    depth: int | tuple[int, ...] = 2
    middle: int = 2
    attention: tuple[int, ...] = ()
    classes: int = 0
    time: bool = True
    block: str = "res"
    method: str = "leapfrog"
    steps: int | tuple[int, ...] = 1
    gradient: str = "backprop"

    def __post_init__(self) -> None:
        for name in ("widths", "attention", "depth", "steps"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, int) else tuple(value))
        for name, least in {"depth": 0, "steps": 1}.items():
            numbers = self._each_level(name)
            if len(numbers) != len(self.widths) or not all(isinstance(n, int) and n >= least for n in numbers):
                raise ValueError(f"{name} must be a whole number, at least {least}, or one for each of the "
                                 f"{len(self.widths)} levels, got {getattr(self, name)!r}")  # fmt: skip
        for level in range(len(self.widths)):
            self.solver(level)
        if self.block not in BLOCKS:
            raise ValueError(f"unknown block {self.block!r}; choose from {', '.join(BLOCKS)}")
        for name, least in {"channels": 1, "size": 1, "middle": 1, "classes": 0}.items():
            if not isinstance(value := getattr(self, name), int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
        if not set(self.attention) <= set(range(len(self.widths))):
            raise ValueError(f"attention must name levels from 0 to {len(self.widths) - 1}, got {self.attention}")
        if not self.widths or any(width < 1 or width % NORM_GROUPS for width in self.widths):
            raise ValueError(f"widths must be positive multiples of {NORM_GROUPS}, got {self.widths}")

    def _each_level(self, name: str) -> tuple[int, ...]:
        """One number a level, where one for all may have been given."""
        value: int | tuple[int, ...] = getattr(self, name)
        return (value,) * len(self.widths) if isinstance(value, int) else value

    @property
    def depths(self) -> tuple[int, ...]:
        """`depth`, one number a level."""
        return self._each_level("depth")

    def solver(self, level: int) -> Solver:
        """The solver of a level's blocks."""
        return Solver(self.method, self._each_level("steps")[level], self.gradient)

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
        widths, depths = config.widths, config.depths
        emb_dim = 4 * widths[0]  # as Ho et al. have it

        def blocks(level: int, count: int, c_in: int) -> list[nn.Module]:
            make = BLOCKS[config.block](config.solver(level))
            return [make(c_in, widths[level], emb_dim) for _ in range(count)]

        def attend(level: int, count: int) -> nn.Module:
            return Attention(widths[level]) if count and level in config.attention else nn.Identity()

        self.embedding = TimeEmbedding(emb_dim)
        self.classes = nn.Embedding(config.classes + 1, emb_dim) if config.classes else None  # the last: no class
        self.stem = conv3(config.channels, widths[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            coarser = widths[min(level + 1, len(widths) - 1)]
            last = level == len(widths) - 1
            shrink, grow = (
                (nn.Identity(), nn.Identity()) if last else (Downsample(width, coarser), Upsample(coarser, width))
            )
            self.down.append(Level(blocks(level, depth, width), attend(level, depth), shrink))
            self.up.insert(0, Level(blocks(level, depth, 2 * width), attend(level, depth), grow))
        self.middle = nn.ModuleList(blocks(len(widths) - 1, config.middle, widths[-1]))
        self.middle_attention = attend(len(widths) - 1, config.middle)
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
        emb = self.embedding(t if self.config.time else torch.zeros_like(t))
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
        for n, block in enumerate(self.middle):
            h = block(h, emb)
            if n == 0:
                h = self.middle_attention(h)
        for level in cast("list[Level]", self.up):
            h = level.resample(h)
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), emb)
            h = level.attention(h)
        return self.head(h)

    def set_solver(self, **changes: Any) -> None:
        """Give the blocks another solver, after training too: more steps, fewer, another method.

        Args:
            changes: to `method`, `steps` or `gradient` of the configuration.

        Raises:
            ValueError: on a value that the configuration doesn't allow, or another setting.
        """
        if other := sorted(set(changes) - {"method", "steps", "gradient"}):
            raise ValueError(f"a solver has a method, steps and a gradient, got {other[0]!r}")
        self.config = replace(self.config, **changes)
        last = len(self.config.widths) - 1
        levels = [(self.down[n], n) for n in range(last + 1)] + [(self.up[n], last - n) for n in range(last + 1)]
        for part, level in [*levels, (self.middle, last)]:
            for block in part.modules():
                if isinstance(block, DynamicBlock | TiedBlock | FirstOrderBlock | ReleasedBlock):
                    block.solver = self.config.solver(level)

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


BLOCKS: dict[str, Callable[[Solver], Callable[[int, int, int], nn.Module]]] = {
    "res": lambda solver: ResBlock,
    "dynamic": lambda solver: partial(DynamicBlock, solver=solver),
    "tied": lambda solver: partial(TiedBlock, solver=solver),
    "first_order": lambda solver: partial(FirstOrderBlock, solver=solver),
    "released": lambda solver: partial(ReleasedBlock, solver=solver),
}
"""A block's name to a function of the level's solver that returns `block(c_in, c_out, emb_dim)`."""
