r"""Samplers: from noise to images, one step at a time.

Every sampler is a generator with one signature,

    sampler(denoise, schedule, x, ts, *, generator) -> Iterator[Step],

and knows the network only through `denoise(x_t, t) -> x0`. Each moves from time t to an earlier s; how
it bridges the gap is all that tells them apart. Progress bars, pictures and early stops are the
caller's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise
from .grids import falling
from .schedules import Moment, Schedule
from .seeds import Generators, noise_like


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
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    *,
    generator: Generators = None,
    variance: str = "small",
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
        variance: "small", the posterior's own, right if all the data were one image; or "large", the
            forward step's, right if the data were white noise (their section 3.2).

    Yields:
        N steps; the last one's `x` is the sample.

    Raises:
        ValueError: if the times don't fall or leave [0, 1], on another variance, or where the denoiser
            returns another shape or numbers that are not finite, naming the step.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"unknown variance {variance!r}; choose from small, large")
    for t, s in falling(schedule, ts):
        x0 = estimate(denoise, x, t)
        added = _added(t, s)
        mean = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2 * x + s.alpha * added * x0
        spread = (s.sigma if variance == "small" else t.sigma) * math.sqrt(added)
        x = mean + spread * noise_like(x, generator) if s.time > 0 else mean
        yield Step(s.time, x, x0)


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
        ValueError: as for `ancestral`, and if eta is outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    for t, s in falling(schedule, ts):
        x0 = estimate(denoise, x, t)
        fresh = eta * s.sigma * math.sqrt(_added(t, s))
        x = s.alpha * x0 + math.sqrt(max(0.0, s.sigma**2 - fresh**2)) * eps_of(x, x0, t)
        if eta > 0 and s.time > 0:
            x = x + fresh * noise_like(x, generator)
        yield Step(s.time, x, x0)


@torch.no_grad()
def euler_maruyama(
    denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, *, generator: Generators = None
) -> Iterator[Step]:
    r"""Euler-Maruyama on the reverse SDE: Song et al. (2021, SDE), equation 6.

    On the clock $\rho = -\log\alpha^2$, on which noise arrives at the constant rate 1, the reverse SDE is
    $dx = -\bigl(\tfrac12 x + \nabla\log p_t(x)\bigr)\,d\rho + d\bar w$, the score being
    $-\epsilon/\sigma$. The noise does not depend on x, so that the strong order is 1.

    Args, Yields and Raises: as for `ancestral`; also a ValueError at a time without any signal.
    """
    for t, s in falling(schedule, ts):
        needs_signal(schedule, t)
        x0 = estimate(denoise, x, t)
        elapsed = 2 * math.log(s.alpha / t.alpha)  # of rho
        score = -eps_of(x, x0, t) / t.sigma
        mean = x + elapsed * (0.5 * x + score)
        x = mean + math.sqrt(elapsed) * noise_like(x, generator) if s.time > 0 else mean
        yield Step(s.time, x, x0)


@torch.no_grad()
def heun(
    denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, *, generator: Generators = None
) -> Iterator[Step]:
    r"""Heun's method on the probability-flow ODE: Karras et al. (2022), algorithm 1. Second order, two calls a step.

    In $y = x / \alpha$ and $\tilde\sigma = \sigma / \alpha$ the flow is $dy / d\tilde\sigma = \epsilon$; the
    slope is the mean of those at both ends, but for a last step to t = 0, which is Euler's.

    Under a schedule that ends almost without signal (cosine) y is huge at t = 1 and the first steps are
    lost on it: start the grid at t = 0.95 or so (chapter 4 measures it). The same holds for `pf_ode`.

    Args, Yields and Raises: as for `ancestral`, and a ValueError at a time without any signal; no noise
    is drawn.
    """
    for t, s in falling(schedule, ts):
        needs_signal(schedule, t)
        x0 = estimate(denoise, x, t)
        slope = eps = eps_of(x, x0, t)
        if s.time > 0:
            guess = s.alpha * x0 + s.sigma * eps  # Euler's step, which is DDIM's
            slope = 0.5 * (eps + eps_of(guess, estimate(denoise, guess, s), s))
        x = _along(x, slope, t, s)
        yield Step(s.time, x, x0)


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, *, generator: Generators = None
) -> Iterator[Step]:
    r"""DPM-Solver++ 2M: Lu et al. (2022), algorithm 2. Second order, one call a step.

    The linear part of the flow is solved exactly; $x_0$ is extrapolated from this step and the one
    before, on the clock $\tfrac12\log\mathrm{SNR}$. The first step, and one to t = 0, are DDIM's.

    Args, Yields and Raises: as for `ancestral`; no noise is drawn.
    """
    before: tuple[Tensor, float] | None = None  # the last step's x0, and its length
    for t, s in falling(schedule, ts):
        x0 = estimate(denoise, x, t)
        h = 0.5 * (s.log_snr - t.log_snr)
        ahead = x0
        if before is not None and math.isfinite(before[1]) and math.isfinite(h):
            ahead = x0 + (x0 - before[0]) * (h / (2 * before[1]))
        x = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * ahead
        before = x0, h
        yield Step(s.time, x, x0)


def estimate(denoise: Denoise, x: Tensor, t: Moment) -> Tensor:
    """Ask the denoiser, and make sure of its answer."""
    x0 = denoise(x, torch.full(x.shape[:1], t.time, dtype=torch.promote_types(x.dtype, torch.float32)))
    if x0.shape != x.shape:
        raise ValueError(f"the denoiser returned shape {tuple(x0.shape)} for images of shape {tuple(x.shape)}")
    if not bool(x0.isfinite().all()):
        raise ValueError(f"the denoiser returned numbers that are not finite, in the step at t = {t.time:g}")
    return x0


def needs_signal(schedule: Schedule, t: Moment) -> None:
    """Raise ValueError at a time when alpha is 0, where x / alpha and the reverse SDE have no value."""
    if not t.alpha > 0:
        raise ValueError(
            f"the schedule {schedule.name!r} has no signal at t = {t.time:g}, where this sampler has no value; "
            "take ancestral, ddim or dpmpp_2m, or start later"
        )


def eps_of(x: Tensor, x0: Tensor, t: Moment) -> Tensor:
    """The noise in x at time t > 0, if x0 is the image under it."""
    return (x - t.alpha * x0) / t.sigma


def _added(t: Moment, s: Moment) -> float:
    """The variance of the noise that the forward process adds from s to t, as a share of sigma_t^2."""
    return -math.expm1(t.log_snr - s.log_snr)


def _along(x: Tensor, slope: Tensor, t: Moment, s: Moment) -> Tensor:
    r"""Follow $dy/d\tilde\sigma$ = slope in a straight line from t to s, in x."""
    scale = s.alpha / t.alpha
    return scale * x + (s.sigma - scale * t.sigma) * slope
