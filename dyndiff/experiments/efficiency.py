"""Costs of named networks, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..presets import create_model
from ..profile import Profile, profile


def profile_presets(
    presets: Sequence[str],
    size: int | None = None,
    batch_size: int = 1,
    repeats: int = 30,
    *,
    device: str = "cpu",
    compiled: bool = False,
    reversible: bool = False,
    steps: int | None = None,
) -> list[Profile]:
    """Profile presets on random images of their own size, or of `size` pixels a side.

    Args:
        presets: the networks' names.
        size, batch_size: of the images.
        repeats, compiled: as in `profile`.
        device: where to measure, such as "cuda".
        reversible: let dynamic blocks find their gradient by reversal.
        steps: of the dynamic blocks' solver, in place of their own.

    Raises:
        ValueError: on an unknown preset, a size that its levels don't divide, a number out of range, or a
            device that is not there.
    """
    if not presets:
        raise ValueError("name at least one preset to profile")
    if batch_size < 1 or (size is not None and size < 1):
        raise ValueError(f"batch size and image size must be at least 1, got {batch_size} and {size}")
    if device != "cpu" and not torch.accelerator.is_available():
        raise ValueError(f"no device {device!r} here; measure on cpu")
    nets = {name: create_model(name).eval().to(device) for name in presets}
    for net in nets.values():
        changes = {"gradient": "reversible"} if reversible else {}
        net.set_solver(**changes, **({} if steps is None else {"steps": steps}))
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, net in nets.items():
        shape = (batch_size, net.config.channels, size or net.config.size, size or net.config.size)
        x, t = torch.randn(shape, generator=generator), torch.rand(batch_size, generator=generator)
        net.check_shape(x, t)
        inputs[name] = x.to(device), t.to(device)
    return profile(nets, inputs, repeats, compiled=compiled)
