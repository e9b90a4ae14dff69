r"""Noise schedules: how much signal is left at diffusion time `t`.

$$q(x_t \mid x_0) = \mathcal N\bigl(\alpha(t)\,x_0,\; \sigma(t)^2 I\bigr),\qquad
\alpha^2 + \sigma^2 = 1,\qquad \lambda(t) = \log\frac{\alpha(t)^2}{\sigma(t)^2}.$$

Everything follows from one function, the log signal-to-noise ratio `log_snr(t)`.
Source: Ho et al. (2020), equations 2 and 4; Kingma et al. (2021), section 3.1.

A discrete chain of T steps is the continuous process seen at `t = i / T`: within a step the
noise is added at a constant rate, so both agree exactly wherever the chain is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


def expand(values: Tensor, x: Tensor) -> Tensor:
    """Give one number per sample the shape that multiplies a batch: the only broadcasting helper.

    Args:
        values: shape (B,) or (); any float dtype and device.
        x: shape (B, ...).

    Returns:
        `values` on `x`'s device and dtype, with shape (B, 1, ..., 1), or () where it was a scalar.

    Raises:
        ValueError: if `values` has neither shape () nor (B,).
    """
    values = values.to(device=x.device, dtype=x.dtype)
    if values.ndim == 0:
        return values
    if values.shape != x.shape[:1]:
        raise ValueError(f"one value per sample is needed: got {tuple(values.shape)} for a batch of {x.shape[0]}")
    return values.reshape(-1, *[1] * (x.ndim - 1))


class Moment(NamedTuple):
    """What a schedule says of one time, in Python's float64: `t.alpha` is $\\alpha_t$, `s.sigma` is $\\sigma_s$.

    Attributes:
        time: in [0, 1].
        alpha, sigma: the signal's scale and the noise's, in [0, 1].
        log_snr: +inf at time 0; -inf where there is no signal.
    """

    time: float
    alpha: float
    sigma: float
    log_snr: float


@dataclass(frozen=True)
class Schedule:
    """A variance-preserving noise schedule, made of the betas of its discrete chain.

    All methods take `t` in [0, 1] (0 is data, 1 is noise) with any shape, compute in float64 on the
    CPU (a time is a handful of numbers; some accelerators have no float64) and return float64.

    Attributes:
        betas: T numbers in (0, 1), the last one <= 1: the variance that each step of the chain adds
            (Ho et al., eq. 2). A last one of 1 leaves no signal.
        name: how `SCHEDULES` and a saved model call it.
    """

    betas: tuple[float, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.betas or not all(0.0 < beta < 1.0 for beta in self.betas[:-1]) or not 0.0 < self.betas[-1] <= 1.0:
            raise ValueError("betas must be one or more numbers in (0, 1); only the last may be 1")

    @property
    def steps(self) -> int:
        """T, the length of the discrete chain."""
        return len(self.betas)

    @cached_property
    def _log_decay(self) -> Tensor:
        """-log(alpha^2) at i / T for i = 0..T, shape (T + 1,): the noise rate, integrated."""
        betas = torch.tensor(self.betas, dtype=torch.float64)
        return torch.cat([torch.zeros(1, dtype=torch.float64), -torch.log1p(-betas).cumsum(0)])

    def log_snr(self, t: Tensor | float) -> Tensor:
        """The log signal-to-noise ratio, decreasing in `t`; +inf at t = 0, where there is no noise."""
        position = _times(t) * self.steps
        left = position.floor().long().clamp(0, self.steps - 1)
        part, rise = position - left, self._log_decay.diff()[left]
        # At a constant rate; but in a step that ends without signal, alpha^2 falls in a straight line.
        decay = self._log_decay[left] + torch.where(rise.isinf(), -torch.log1p(-part), rise * part)
        return -decay - (-(-decay).expm1()).log()  # -log(e^decay - 1), without its overflow

    def time_of(self, log_snr: Tensor | float) -> Tensor:
        """The inverse of `log_snr`: the time in [0, 1] at which it has this value (clamped to the ends)."""
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64, device="cpu")
        decay = torch.nn.functional.softplus(-log_snr, threshold=math.inf).clamp(max=float(self._log_decay[-1]))
        right = torch.searchsorted(self._log_decay, decay.contiguous()).clamp(1, self.steps)
        low, high = self._log_decay[right - 1], self._log_decay[right]
        part = torch.where(high.isinf(), -torch.expm1(low - decay), (decay - low) / (high - low))
        return (right - 1 + part) / self.steps

    def alpha(self, t: Tensor | float) -> Tensor:
        """The signal's scale, from 1 (data) to almost 0 (noise)."""
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        """The noise's standard deviation, from 0 (data) to almost 1 (noise)."""
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    def moments(self, ts: Tensor) -> list[Moment]:
        """Everything about each of some times, shape (N,), in one go."""
        ts = _times(ts)
        log_snr = self.log_snr(ts)
        columns = ts, torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt(), log_snr
        return [Moment(*row) for row in torch.stack(columns, dim=1).tolist()]

    def grid(self, steps: int, spacing: str = "time", start: float = 1.0) -> Tensor:
        """Times for a sampler, from `start` down to 0.

        Args:
            steps: how many steps, >= 1.
            spacing: what is uniform between the start and the chain's first step: "time"; "log_snr"; or
                "karras", the noise-to-signal ratio to the power 1 / 7 (Karras et al., 2022, equation
                5). The latter two then step from 1 / T to 0, and need a schedule that has signal at the
                start.
            start: the first time, above 1 / T, at most 1.

        Returns:
            Falling times, shape (steps + 1,).

        Raises:
            ValueError: on fewer than 1 step, an unknown spacing, or a start out of range.
        """
        if steps < 1:
            raise ValueError(f"sampling needs at least 1 step, got {steps}")
        if spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {spacing!r}; choose from {', '.join(SPACINGS)}")
        if not 1 / self.steps < start <= 1:
            raise ValueError(f"sampling starts at a time above {1 / self.steps:g} and at most 1, got {start}")
        if spacing == "time" or steps == 1:
            return torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        ends = self.log_snr(torch.tensor([start, 1 / self.steps], dtype=torch.float64))
        if not bool(ends.isfinite().all()):
            raise ValueError(f"the schedule {self.name!r} ends without signal: no grid of it is uniform in {spacing}")
        even = torch.linspace(0, 1, steps, dtype=torch.float64)
        if spacing == "karras":
            ratio = torch.exp(-ends / 14)  # (sigma / alpha)^(1 / 7)
            inner = self.time_of(-14 * torch.lerp(ratio[0], ratio[1], even).log())
        else:
            inner = self.time_of(torch.lerp(ends[0], ends[1], even))
        return torch.cat([inner, torch.zeros(1, dtype=torch.float64)])


SPACINGS = ("time", "log_snr", "karras")
"""What a sampler's times can be uniform in: see `Schedule.grid`."""


def _times(t: Tensor | float) -> Tensor:
    t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    if t.numel() and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"diffusion time lies in [0, 1], got values from {t.min():g} to {t.max():g}")
    return t


def linear(steps: int = 1000) -> Schedule:
    """Betas from 1e-4 to 0.02 in equal steps: the schedule of Ho et al. (2020), section 4.

    A chain of another length gets betas scaled by 1000 / `steps`, so that it ends equally noisy.
    """
    scale = 1000 / steps
    betas = torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64)
    return Schedule(tuple(betas.tolist()), "linear")


def cosine(steps: int = 1000) -> Schedule:
    """alpha^2 falls like a squared cosine: Nichol and Dhariwal (2021), equation 17, betas capped at 0.999."""
    return _from_alpha_bar(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, steps, "cosine")


def sigmoid(steps: int = 1000) -> Schedule:
    """alpha^2 falls like a sigmoid from -3 to 3: Jabri et al. (2022), section 2.3, betas capped at 0.999."""
    ends = [1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))]
    return _from_alpha_bar(lambda t: (ends[1] - 1 / (1 + math.exp(3 - 6 * t))) / (ends[1] - ends[0]), steps, "sigmoid")


def _from_alpha_bar(alpha_bar: Callable[[float], float], steps: int, name: str) -> Schedule:
    ratio = [alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
    return Schedule(tuple(min(1 - r, 0.999) for r in ratio), name)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and stretch alpha so that the last step is pure noise: Lin et al. (2024), algorithm 1.

    The first step stays as it is. At t = 1 there is no signal: an "eps" network can say nothing of x0
    there, so train such a schedule with "v" or "x0".
    """
    alpha = schedule.alpha(torch.linspace(0, 1, schedule.steps + 1, dtype=torch.float64))[1:]
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    kept = torch.cat([alpha[:1], alpha[1:] / alpha[:-1]]) ** 2
    return Schedule(tuple((1 - kept).tolist()), f"{schedule.name}-zero")


SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "linear-zero": lambda steps: zero_terminal_snr(linear(steps)),
    "cosine-zero": lambda steps: zero_terminal_snr(cosine(steps)),
    "sigmoid-zero": lambda steps: zero_terminal_snr(sigmoid(steps)),
}
"""A schedule's name to the function that makes it from the chain's length."""


def create_schedule(name: str, steps: int = 1000) -> Schedule:
    """A schedule by name.

    Raises:
        ValueError: on a name that is not in `SCHEDULES`, or a chain of fewer than 1 step.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose from {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"a chain needs at least 1 step, got {steps}")
    return SCHEDULES[name](steps)
