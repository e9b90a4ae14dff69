"""Using a sampler: images from a model, and what can be put around a denoiser before it samples.

A denoiser is a function `(x_t, t) -> x0`; conditioning it is another function around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoise, Denoiser
from .flow import pf_ode
from .samplers import Step, ancestral, ddim, dpmpp_2m, euler_maruyama, heun
from .seeds import generator_for, noise_like, per_sample

Sampler = Callable[..., Iterator[Step]]

SAMPLERS: dict[str, Sampler] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler_maruyama": euler_maruyama,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "pf_ode": pf_ode,
}
"""A sampler's name to the generator."""

ORDERS = {"ancestral": 1, "ddim": 1, "euler_maruyama": 1, "heun": 2, "dpmpp_2m": 2, "pf_ode": 4}
"""The power of the step that the error falls with: strong order for the stochastic ones; RK4 for `pf_ode`."""


def sample(
    denoiser: Denoiser,
    count: int,
    *,
    size: int | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    spacing: str = "time",
    start: float = 1.0,
    seed: int = 0,
    batch_size: int = 500,
    labels: Tensor | None = None,
    guidance: float = 1.0,
    progress: Callable[[int], object] = lambda images: None,
    **options: Any,
) -> Tensor:
    """Draw images from a model, in batches, each image from a seed of its own.

    Args:
        denoiser: the model, on the device that is to do the work.
        count: how many images, >= 1.
        size: their side in pixels; the one that the network is meant for if not given.
        sampler: a key of `SAMPLERS`.
        steps: steps of the sampler, >= 1.
        spacing: of their times, one of `schedules.SPACINGS`.
        start: the first of them, at which the state is taken for pure noise; 1, or a little less.
        seed: image i of two calls with one seed is the same, whatever the count and the batch size.
        batch_size: images at a time, >= 1.
        labels: classes of the images, int64 of shape (count,), for a class-conditional model.
        guidance: how far to go beyond the class-conditional answer; see `guided`.
        progress: called after each step with the number of images in the batch.
        options: of the sampler, such as `eta` for "ddim".

    Returns:
        (count, C, size, size) in about [-1, 1], on the CPU.

    Raises:
        ValueError: on an unknown sampler or spacing, a start out of range, a count, step or batch size
            below 1, or labels that don't match the count or the model.
    """
    check_settings(sampler, count, steps, seed, batch_size)
    if labels is not None and labels.shape != (count,):
        raise ValueError(f"one label per image: labels must be ({count},), got {tuple(labels.shape)}")
    ts, config = denoiser.schedule.grid(steps, spacing, start), denoiser.net.config
    side = config.size if size is None else size
    if side < 1:
        raise ValueError(f"an image's size must be at least 1, got {side}")
    shape = (config.channels, side, side)
    device = next(denoiser.parameters()).device
    generators, images = per_sample(seed, count), []
    for first in range(0, count, batch_size):
        batch = slice(first, first + batch_size)
        own = generators[batch]
        denoise: Denoise = denoiser if labels is None else guided(denoiser, labels[batch], guidance)
        x = noise_like(torch.empty(len(own), *shape, device=device), own)
        for step in SAMPLERS[sampler](denoise, denoiser.schedule, x, ts, generator=own, **options):
            x = step.x
            progress(len(own))
        images.append(x.cpu())
    return torch.cat(images)


def check_settings(sampler: str, count: int, steps: int, seed: int = 0, batch_size: int = 1) -> None:
    """Raise ValueError where `sample` would, before work that would be lost."""
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, got {steps}")
    generator_for(seed)


def clamped(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keep a denoiser's estimates in the images' range, as Ho et al.'s released sampler does."""
    return lambda x, t: denoise(x, t).clamp(low, high)


def guided(denoiser: Denoiser, labels: Tensor, scale: float = 1.0) -> Denoise:
    """Classifier-free guidance: Ho and Salimans (2022), equation 6.

    Args:
        denoiser: of a class-conditional network.
        labels: the class of each image, int64 of shape (B,).
        scale: 0 forgets the class, 1 is the class-conditional model, more exaggerates what sets the
            class apart, at the price of variety. Scales other than 0 and 1 cost two network calls.

    Returns:
        `(x (B, C, H, W), t (B,)) -> x0`.

    Raises:
        ValueError: if the network was not trained with classes, or a label is not one of them.
    """
    nothing = torch.full_like(labels, denoiser.net.config.classes)  # the label of no class

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        if scale == 1:
            return denoiser(x, t, labels)
        free = denoiser(x, t, nothing)
        return free if scale == 0 else free + scale * (denoiser(x, t, labels) - free)

    denoiser.net.check_labels(labels)
    return denoise


def inpainting(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Hold part of an image fixed: the estimate is replaced by the truth wherever that is known.

    Args:
        denoise: any denoiser.
        known: the image, (C, H, W) or (B, C, H, W).
        mask: 1 where it is known, 0 where it is to be made up; broadcasts against `known`.
    """
    return lambda x, t: torch.lerp(denoise(x, t), known.to(x), mask.to(x))


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From latent a (weight 0) to b (weight 1) along the sphere, where noise lives: Shoemake (1985).

    Args:
        a, b: shape (B, C, H, W).
        weight: in [0, 1].
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = cosine.acos().clamp(min=1e-6).reshape(-1, *[1] * (a.ndim - 1))
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
