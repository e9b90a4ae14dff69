"""Costs of named networks, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..presets import create_model
from ..profile import Profile, profile


def profile_presets(presets: Sequence[str], size: int | None, batch_size: int, repeats: int) -> list[Profile]:
    """Profile presets on random images of their own size, or of `size` pixels a side.

    Raises:
        ValueError: on an unknown preset, a size that its levels don't divide, or a number out of range.
    """
    if not presets:
        raise ValueError("name at least one preset to profile")
    if batch_size < 1 or (size is not None and size < 1):
        raise ValueError(f"batch size and image size must be at least 1, got {batch_size} and {size}")
    nets = {name: create_model(name).eval() for name in presets}
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, net in nets.items():
        shape = (batch_size, net.config.channels, size or net.config.size, size or net.config.size)
        inputs[name] = torch.randn(shape, generator=generator), torch.rand(batch_size, generator=generator)
        net.check_shape(*inputs[name])
    return profile(nets, inputs, repeats)
