r"""What a perfect network would answer: the posterior mean, in closed form, for data that we know.

$$x_0^*(x_t, t) = \mathbb E[x_0 \mid x_t] = \frac{\int x_0\, \mathcal N(x_t; \alpha x_0, \sigma^2)\, p(x_0)\, dx_0}
{\int \mathcal N(x_t; \alpha x_0, \sigma^2)\, p(x_0)\, dx_0}$$

It minimises every form of the denoising loss, so it is the yardstick of the samplers' tests. Source:
Robbins (1956); Karras et al. (2022), appendix B.3, for a finite data set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .denoiser import Denoise
from .schedules import Schedule, expand


def ideal_gaussian(schedule: Schedule, mean: Tensor | float, std: Tensor | float) -> Denoise:
    """The ideal denoiser of independent Gaussian pixels: linear in x.

    Args:
        mean, std: of the data, numbers or shapes that broadcast against (B, C, H, W); std > 0.

    Returns:
        `(x (B, C, H, W), t (B,)) -> x0`.
    """
    mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, std))

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        centre, variance = mean.to(x), (std**2).to(x)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return centre + gain * (x - alpha * centre)

    return denoise


def gaussian_flow(
    schedule: Schedule, mean: Tensor | float, std: Tensor | float, x: Tensor, t: float, s: float
) -> Tensor:
    """Where the probability-flow ODE takes x from time t to time s, for Gaussian data, exactly.

    A Gaussian's flow keeps every pixel at the same quantile: standardise at t, unstandardise at s.
    """
    mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, std))
    spread = [(schedule.alpha(u) ** 2 * std**2 + schedule.sigma(u) ** 2).sqrt() for u in (t, s)]
    centre = [(schedule.alpha(u) * mean).to(x) for u in (t, s)]
    return centre[1] + (x - centre[0]) * (spread[1] / spread[0]).to(x)


def ideal_mixture(schedule: Schedule, weights: Tensor, means: Tensor, std: float) -> Denoise:
    """The ideal denoiser of a mixture of K isotropic Gaussians of one width.

    Args:
        weights: shape (K,), positive, of sum 1.
        means: shape (K, C, H, W).
        std: the width of each, >= 0; 0 puts all the data at the means.

    Returns:
        `(x (B, C, H, W), t (B,)) -> x0`: each component's answer, weighted by how likely it is at x.

    Raises:
        ValueError: if the weights don't match the means, or are no probabilities.
    """
    if weights.shape != means.shape[:1] or bool((weights <= 0).any()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(f"weights must be {len(means)} positive numbers of sum 1, got {weights.tolist()}")

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        likely = component_posterior(schedule, weights, means, std, x, t)  # (B, K)
        centre = (likely.to(x) @ means.to(x).flatten(1)).reshape(x.shape)  # (B, C, H, W): the means, weighted
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return centre + gain * (x - alpha * centre)

    return denoise


def component_posterior(schedule: Schedule, weights: Tensor, means: Tensor, std: float, x: Tensor, t: Tensor) -> Tensor:
    """How likely each component is to have made x at time t: (B, C, H, W), (B,) -> (B, K), rows of sum 1."""
    return mixture_log_density(schedule, weights, means, std, x, t)[1].softmax(dim=1)


def mixture_log_density(
    schedule: Schedule, weights: Tensor, means: Tensor, std: float, x: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The noised mixture's log p_t(x), in nats, shape (B,), and each component's share of it, (B, K)."""
    alpha, sigma = schedule.alpha(t).to(x), schedule.sigma(t).to(x)  # (B,)
    variance = (alpha**2 * std**2 + sigma**2)[:, None]  # (B, 1)
    difference = x.flatten(1)[:, None] - alpha[:, None, None] * means.to(x).flatten(1)  # (B, K, D)
    squared = difference.square().sum(-1)
    joint = weights.to(x).log() - squared / (2 * variance) - 0.5 * x[0].numel() * torch.log(2 * math.pi * variance)
    return joint.logsumexp(dim=1), joint


def ideal_dataset(schedule: Schedule, images: Tensor) -> Denoise:
    """The ideal denoiser of a finite data set: a softmax over its N images, (N, C, H, W) in [-1, 1].

    It can draw nothing but the training images: what a network that fits its loss perfectly would do.
    """
    return ideal_mixture(schedule, torch.full((len(images),), 1 / len(images)), images, 0.0)
