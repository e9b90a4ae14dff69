"""Randomness by name: what step 1,000 of a run draws does not depend on how the run got there."""

from __future__ import annotations

import hashlib

import torch


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
