r"""How likely a model finds an image, in bits per dimension: the bound, term by term, and the flow's likelihood.

$$-\log p(x_0) \le \underbrace{D_{KL}(q(x_T|x_0)\,\|\,p(x_T))}_{\text{prior}}
+ \sum_{i=2}^{T} \underbrace{D_{KL}(q(x_{i-1}|x_i,x_0)\,\|\,p(x_{i-1}|x_i))}_{L_{i-1}}
\underbrace{- \log p(x_0|x_1)}_{\text{decoder}}$$

Source: Ho et al. (2020), equations 5 and 13; Kingma et al. (2021), equation 13, for L as a difference of
signal-to-noise ratios; Song et al. (2021, SDE), appendix D.2, for the likelihood of the flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoise, perturb
from .schedules import Schedule
from .seeds import Generators, noise_like

BIN = 1 / 127.5
"""The distance between neighbouring byte values in [-1, 1]."""


@dataclass(frozen=True)
class Bound:
    """The variational bound of a batch, in bits per dimension, term by term.

    Attributes:
        prior: how far the last step of the chain is from pure noise, shape (B,).
        steps: L_{i-1} for i = T..2 of the grid used, shape (B, N - 1), from noise to data.
        decoder: the cost of the exact byte values given the first step, shape (B,).
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound: the sum of all terms, shape (B,)."""
        return self.prior + self.steps.sum(1) + self.decoder


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    *,
    generator: Generators = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> Bound:
    """The full bound over the chain's T steps, one draw of the noise for each.

    Both Gaussians of a step have the posterior's own variance (the smaller of Ho et al.'s two), so
    that their divergence is a squared difference of means.

    Args:
        denoise: `(x_t (B, C, H, W), t (B,)) -> x0`.
        x0: byte images as floats in [-1, 1], shape (B, C, H, W).
        generator: of the noise.
        progress: called with 1 after each network call.

    Returns:
        A `Bound` in bits per dimension.
    """
    count = x0[0].numel() * math.log(2)  # nats of an image to bits of a dimension
    ts = schedule.grid(schedule.steps)
    alpha, sigma = schedule.alpha(ts[0]), schedule.sigma(ts[0])
    prior = 0.5 * ((alpha * x0) ** 2 + sigma**2 - 1 - torch.log(sigma**2)).flatten(1).sum(1) / count
    steps = []
    for i, t in enumerate(ts[:-1]):
        times = t.expand(len(x0))
        x0_hat = denoise(perturb(schedule, x0, times, noise_like(x0, generator)), times)
        progress(1)
        if i == schedule.steps - 1:
            decoder = -_decoder_log_prob(x0, x0_hat, schedule.sigma(t)) / count
            break
        snr_gain = schedule.log_snr(ts[i + 1]).exp() - schedule.log_snr(t).exp()
        steps.append(0.5 * snr_gain * (x0 - x0_hat).square().flatten(1).sum(1) / count)
    each = torch.stack(steps, 1) if steps else x0.new_zeros(len(x0), 0)
    return Bound(prior, each, decoder)


def _decoder_log_prob(x0: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Byte images' log p(x0 | x_1): a Gaussian's mass in each byte's bin, the end bins open (Ho et al., eq. 13).

    A byte's probability is taken for at least 1e-12, as Ho et al.'s released code does: one that the model
    all but rules out costs at most 40 bits, and there the sum is no longer strictly a bound.
    """
    normal = torch.distributions.Normal(mean.double(), sigma.to(mean.device))
    above = torch.where(x0 > 1 - BIN / 2, 1.0, normal.cdf(x0.double() + BIN / 2))
    below = torch.where(x0 < -1 + BIN / 2, 0.0, normal.cdf(x0.double() - BIN / 2))
    return (above - below).clamp(min=1e-12).log().flatten(1).sum(1).to(x0)
