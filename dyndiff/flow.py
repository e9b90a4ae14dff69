r"""The probability-flow ODE: the deterministic path between data and noise, both ways, and its likelihood.

$$\frac{dy}{d\lambda} = -\tfrac12\,\tilde\sigma\,\epsilon(x, t),\qquad y = \frac{x}{\alpha},\quad
\tilde\sigma = \frac{\sigma}{\alpha} = e^{-\lambda/2}$$

For any density's score it has the same marginals as the diffusion. Source: Song et al. (2021, SDE),
equation 13; the change of variables is that of Karras et al. (2022), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .denoiser import Denoise
from .grids import monotone
from .samplers import Step, eps_of, estimate, needs_signal
from .schedules import Moment, Schedule
from .seeds import Generators, noise_like


@torch.no_grad()
def pf_ode(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    *,
    generator: Generators = None,
    method: str = "rk4",
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Iterator[Step]:
    r"""The probability-flow ODE by any of torchdiffeq's methods: Song et al. (2021, SDE), equation 13.

    In $y = x/\alpha$ on the clock $\lambda$ (log-SNR): $dy/d\lambda = -\tfrac12\tilde\sigma\,\epsilon$. A
    fixed-step method makes one step from each time of the grid to the next, an adaptive one
    ("dopri5") as many as its tolerances ask for. A last step to t = 0 is DDIM's.

    An adaptive method takes one error norm over the whole batch: there, a sample depends a little on
    the samples beside it, by about the tolerance.

    Args:
        denoise, schedule, x, ts, generator: as for `ancestral`; no noise is drawn. The times may also
            rise: from data (t > 0) to noise.
        method: a method of torchdiffeq.
        rtol, atol: tolerances of an adaptive method.

    Yields:
        N steps; each one's `x0` is the estimate at its start.

    Raises:
        ValueError: as for `ancestral`, and on a method that torchdiffeq doesn't have.
    """
    from torchdiffeq import odeint
    from torchdiffeq._impl.odeint import SOLVERS

    if method not in SOLVERS:
        raise ValueError(f"unknown method {method!r}; torchdiffeq has {', '.join(SOLVERS)}")

    estimates: list[Tensor] = []

    def slope(log_snr: Tensor, y: Tensor) -> Tensor:
        at = _moment(schedule, log_snr)
        state = at.alpha * y
        estimates.append(estimate(denoise, state, at))
        return -0.5 * at.sigma / at.alpha * eps_of(state, estimates[-1], at)

    for t, s in monotone(schedule, ts):
        needs_signal(schedule, t)
        estimates.clear()
        if s.time > 0:
            ends = torch.tensor([t.log_snr, s.log_snr], dtype=torch.float64, device=x.device)
            y = odeint(slope, x / t.alpha, ends, method=method, rtol=rtol, atol=atol)
            x, x0 = s.alpha * y[-1], estimates[0]
        else:
            x = x0 = estimate(denoise, x, t)
        yield Step(s.time, x, x0)


def _moment(schedule: Schedule, log_snr: Tensor) -> Moment:
    """When the log-SNR, a scalar, has this value."""
    return schedule.moments(schedule.time_of(log_snr).reshape(1))[0]


def encode(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    steps: int = 50,
    method: str = "rk4",
    *,
    generator: Generators = None,
) -> Tensor:
    """Data to noise along the probability-flow ODE: Song et al. (2021, SDE), section 4.3.

    The path begins at the chain's first step, after its noise: without it, directions in which the
    images never vary would arrive quieter than noise is. `decode` goes back along the same path, up to
    the solver's error and that first noise.

    Args:
        x0: images in [-1, 1], shape (B, C, H, W).
        steps: of the solver, uniform in the log-SNR.
        method: of torchdiffeq.
        generator: of the first step's noise; a list gives each image its own.

    Returns:
        The latent x at t = 1, shape (B, C, H, W).
    """
    ts = schedule.grid(steps, "log_snr")[:-1].flip(0)
    x = schedule.alpha(ts[0]) * x0 + schedule.sigma(ts[0]) * noise_like(x0, generator)
    for step in pf_ode(denoise, schedule, x, ts, method=method):
        x = step.x
    return x


def decode(denoise: Denoise, schedule: Schedule, x: Tensor, steps: int = 50, method: str = "rk4") -> Tensor:
    """Noise to data along the same path: `encode`'s inverse."""
    for step in pf_ode(denoise, schedule, x, schedule.grid(steps, "log_snr"), method=method):
        x = step.x
    return x


def log_likelihood(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    *,
    steps: int = 50,
    method: str = "rk4",
    generator: Generators = None,
) -> Tensor:
    r"""How likely the flow finds images: the instantaneous change of variables, Chen et al. (2018), theorem 1.

    $\log p(y_0) = \log p(y_1) + \int \operatorname{div}\frac{dy}{d\lambda}\,d\lambda$ along the path from data
    to noise. The divergence is Hutchinson's estimate with one probe of random signs for the whole path
    (Song et al., 2021, SDE, appendix D.2): unbiased, and exact where pixels don't interact.

    Args:
        denoise: differentiable in x.
        x0: images in [-1, 1], shape (B, C, H, W); the path begins at the chain's first step.
        steps: of the solver, uniform in the log-SNR.
        method: of torchdiffeq.
        generator: of the signs.

    Returns:
        log p in nats, as a density over R^(C H W), shape (B,).
    """
    from torchdiffeq import odeint

    signs = torch.where(noise_like(x0, generator) > 0, 1.0, -1.0).to(x0)
    ends = schedule.log_snr(schedule.grid(steps, "log_snr")[:-1].flip(0))

    def field(log_snr: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        at = _moment(schedule, log_snr)
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            x = at.alpha * y
            slope = -0.5 * at.sigma / at.alpha * eps_of(x, estimate(denoise, x, at), at)
            (pulled,) = torch.autograd.grad(slope, y, signs)
        return slope.detach(), (pulled * signs).flatten(1).sum(1)

    with torch.no_grad():
        y, gain = odeint(field, (x0, x0.new_zeros(len(x0))), ends.to(x0), method=method)
        latent, count = schedule.alpha(1.0) * y[-1], x0[0].numel()
        normal = -0.5 * (latent.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return normal + count * schedule.alpha(1.0).log() + gain[-1]
