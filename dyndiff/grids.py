"""A sampler's times, walked two by two: `for t, s in falling(schedule, ts)` goes from t to the earlier s."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .schedules import Moment, Schedule


def falling(schedule: Schedule, ts: Tensor) -> Iterator[tuple[Moment, Moment]]:
    """The steps (t, s) of a grid of falling times in [0, 1], checked before the first one is made."""
    ts = _checked_grid(ts)
    if not bool((ts.diff() < 0).all()):
        raise ValueError("a sampler's times must fall strictly")
    return pairwise(schedule.moments(ts))


def monotone(schedule: Schedule, ts: Tensor) -> Iterator[tuple[Moment, Moment]]:
    """Like `falling`, for a sampler that may also go from data (t > 0) to noise along rising times."""
    ts = _checked_grid(ts)
    if not bool((ts.diff() > 0).all()):
        return falling(schedule, ts)
    if ts[0] == 0:
        raise ValueError("rising times must begin above 0, where the log-SNR is finite")
    return pairwise(schedule.moments(ts))


def _checked_grid(ts: Tensor) -> Tensor:
    ts = torch.as_tensor(ts, dtype=torch.float64, device="cpu")
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"a grid of times needs at least two of them in one dimension, got shape {tuple(ts.shape)}")
    if not bool(((ts >= 0) & (ts <= 1)).all()):
        raise ValueError(f"a sampler's times must lie in [0, 1], got {ts.min():g} to {ts.max():g}")
    return ts
