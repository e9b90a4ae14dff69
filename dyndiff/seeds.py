"""Randomness by name: what step 1,000 of a run draws does not depend on how the run got there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, or one per sample (see `per_sample`)."""


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose of one seeded run, such as `generator_for(0, "noise", step)`.

    The name is hashed: torch's CPU generator looks at the lowest 32 bits of a seed alone, so that
    arithmetic such as `(seed << 32) + step` would give every run the same noise.

    Raises:
        ValueError: if the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"a seed must not be negative, got {seed}")
    name = "/".join(map(str, (seed, *purpose)))
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def per_sample(seed: int, count: int) -> list[torch.Generator]:
    """One generator per sample, so that sample i is the same whatever else is in its batch.

    Args:
        seed: samples i of two runs with one seed are equal.
        count: how many.
    """
    return [generator_for(seed, "sample", i) for i in range(count)]


def noise_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise with `x`'s shape (B, C, H, W), device and dtype.

    Raises:
        ValueError: if there is a list of generators and it doesn't have one for each sample.
    """
    if generator is None:
        return torch.randn_like(x)
    if isinstance(generator, torch.Generator):
        return torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    if len(generator) != x.shape[0]:
        raise ValueError(f"one generator per sample is needed: got {len(generator)} for a batch of {x.shape[0]}")
    return torch.stack([torch.randn(x.shape[1:], generator=g, device=g.device) for g in generator]).to(x)
