r"""Samplers: from noise to images, one step at a time.

Every sampler is a generator with one signature,

    sampler(denoise, schedule, x, ts, *, generator) -> Iterator[Step],

and knows the network only through `denoise(x_t, t) -> x0`. Each moves from time t to an earlier s with
what $q(x_s \mid x_t, x_0)$ or a deterministic path allows; progress bars, pictures and early stops
are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise, Denoiser
from .schedules import Schedule
from .seeds import generator_for

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, or one per sample (see `per_sample`)."""


class Step(NamedTuple):
    """Where a sampler has arrived.

    Attributes:
        t: the diffusion time reached, in [0, 1].
        x: the state at that time, shape (B, C, H, W).
        x0: the estimate of the clean images that the step was made with, same shape.
    """

    t: float
    x: Tensor
    x0: Tensor


@torch.no_grad()
def ancestral(
    denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, *, generator: Generators = None
) -> Iterator[Step]:
    r"""The reverse chain of the DDPM: Ho et al. (2020), algorithm 2, on any grid of times.

    From t to s it draws from the posterior $q(x_s \mid x_t, x_0)$ (their equations 6 and 7) with the
    denoiser's estimate in the place of $x_0$.

    Args:
        denoise: `(x_t (B, C, H, W), t (B,)) -> x0`.
        schedule: the one that the denoiser was trained with.
        x: noise at time `ts[0]`, shape (B, C, H, W).
        ts: falling times in [0, 1], shape (N + 1,), N >= 1.
        generator: the source of the noise; a list gives each sample its own.

    Yields:
        N steps; the last one's `x` is the sample.

    Raises:
        ValueError: if the times don't fall or leave [0, 1].
    """
    for t, s in _pairs(ts):
        x0 = denoise(x, _fill(t, x))
        alpha_s, sigma_s, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.sigma(t)
        added = -torch.expm1(schedule.log_snr(t) - schedule.log_snr(s))  # the noise of s -> t, over sigma_t^2
        alpha_ts = schedule.alpha(t) / alpha_s
        mean = alpha_ts * (sigma_s / sigma_t) ** 2 * x + alpha_s * added * x0
        x = mean + sigma_s * added.sqrt() * noise_like(x, generator) if s > 0 else mean
        yield Step(float(s), x, x0)


@torch.no_grad()
def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    *,
    generator: Generators = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    r"""Implicit models: Song et al. (2021), equation 12. First order in the step, deterministic at eta = 0.

    The estimate of the noise points the way: $x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,
    \epsilon + \varsigma z$ with $\varsigma = \eta$ times the ancestral standard deviation (equation 16).

    Args:
        denoise, schedule, x, ts, generator: as for `ancestral`.
        eta: 0 draws no noise; 1 is `ancestral`.

    Yields:
        N steps; the last one's `x` is the sample.

    Raises:
        ValueError: if the times don't fall or leave [0, 1], or eta is outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    for t, s in _pairs(ts):
        x0 = denoise(x, _fill(t, x))
        eps = (x - schedule.alpha(t) * x0) / schedule.sigma(t)
        sigma_s = schedule.sigma(s)
        added = -torch.expm1(schedule.log_snr(t) - schedule.log_snr(s))
        fresh = eta * sigma_s * added.sqrt()
        x = schedule.alpha(s) * x0 + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * eps
        if eta > 0 and s > 0:
            x = x + fresh * noise_like(x, generator)
        yield Step(float(s), x, x0)


Sampler = Callable[..., Iterator[Step]]

SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral, "ddim": ddim}


def sample(
    denoiser: Denoiser,
    count: int,
    *,
    size: int | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    batch_size: int = 500,
    progress: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Draw images from a model, in batches, each image from a seed of its own.

    Args:
        denoiser: the model, on the device that is to do the work.
        count: how many images, >= 1.
        size: their side in pixels; the one that the network is meant for if not given.
        sampler: a key of `SAMPLERS`.
        steps: network calls an image, >= 1, at times spread uniformly.
        seed: image i of two calls with one seed is the same, whatever the count and the batch size.
        batch_size: images at a time, >= 1.
        progress: called after each step with the number of images in the batch.

    Returns:
        (count, C, size, size) in about [-1, 1], on the CPU.

    Raises:
        ValueError: on an unknown sampler, or a count, step or batch size below 1.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    ts, config = denoiser.schedule.grid(steps), denoiser.net.config
    shape = (config.channels, size or config.size, size or config.size)
    device = next(denoiser.parameters()).device
    generators, images = per_sample(seed, count), []
    for start in range(0, count, batch_size):
        own = generators[start : start + batch_size]
        x = noise_like(torch.empty(len(own), *shape, device=device), own)
        for step in SAMPLERS[sampler](denoiser, denoiser.schedule, x, ts, generator=own):
            x = step.x
            progress(len(own))
        images.append(x.cpu())
    return torch.cat(images)


def clamped(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keep a denoiser's estimates in the images' range, as Ho et al.'s released sampler does."""
    return lambda x, t: denoise(x, t).clamp(low, high)


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


def _pairs(ts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps (t, s) of a grid, checked before the first one is made."""
    ts = torch.as_tensor(ts, dtype=torch.float64, device="cpu")
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"a grid of times needs at least two of them in one dimension, got shape {tuple(ts.shape)}")
    if not bool((ts.diff() < 0).all()) or ts[0] > 1 or ts[-1] < 0:
        raise ValueError("a sampler's times must fall strictly and lie in [0, 1]")
    return pairwise(ts)


def _fill(t: Tensor, x: Tensor) -> Tensor:
    return t.to(dtype=torch.float32).expand(x.shape[0])
