r"""Second-order dynamics in depth: a damped oscillator's motion from `tau = 0` to `tau = 1`.

$$\frac{dx}{d\tau} = v, \qquad \frac{dv}{d\tau} = f(x, \tau) - \gamma v .$$

`tau` is depth inside one block of a network. It has nothing to do with diffusion time `t`.
Source: Norcliffe et al. (2020), SONODE, equation 3, with the velocity's damping written out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Force = Callable[[Tensor, float | Tensor], Tensor]
"""`(x (B, C, H, W), tau) -> (B, C, H, W)`: the acceleration that the state feels, damping aside."""

METHODS = ("leapfrog", "euler", "midpoint", "heun2", "heun3", "rk4")
"""`leapfrog` is our own (torchdiffeq has none); the others are torchdiffeq's fixed-step methods.

Fixed steps only: an adaptive solver takes one error norm over the batch, so that a sample's result
would depend on the samples beside it.
"""


def integrate(
    force: Force, x: Tensor, v: Tensor, gamma: Tensor, *, method: str = "leapfrog", steps: int = 1
) -> tuple[Tensor, Tensor]:
    """Move position and velocity from tau = 0 to tau = 1.

    Args:
        force: the undamped acceleration, `(x, tau) -> (B, C, H, W)`.
        x: initial position, shape (B, C, H, W).
        v: initial velocity, same shape.
        gamma: damping rate, >= 0, per unit of tau; broadcasts against `x`.
        method: one of `METHODS`.
        steps: equal solver steps, >= 1. Evaluations of `force`: one a step for leapfrog, one for
            euler, two for midpoint and heun2, three for heun3, four for rk4.

    Returns:
        Position and velocity at tau = 1.

    Raises:
        ValueError: on an unknown method or fewer than 1 step.
    """
    check_solver(method, steps)
    if method == "leapfrog":
        return leapfrog(force, x, v, gamma, 0.0, 1.0, steps)

    from torchdiffeq import odeint  # it imports scipy: a quarter of a second that leapfrog need not wait for

    def field(tau: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        position, velocity = state
        return velocity, force(position, tau) - gamma * velocity

    depth = torch.linspace(0, 1, steps + 1, dtype=x.dtype, device=x.device)
    positions, velocities = odeint(field, (x, v), depth, method=method)
    return positions[-1], velocities[-1]


def leapfrog(
    force: Force, x: Tensor, v: Tensor, gamma: Tensor, start: float, end: float, steps: int
) -> tuple[Tensor, Tensor]:
    r"""Damped leapfrog: drift half a step, kick, drift half a step. Second order, one force a step.

    The kick solves $dv/d\tau = f - \gamma v$ exactly with $f$ held at the midpoint:
    $v \leftarrow e^{-\gamma h} v + \frac{1 - e^{-\gamma h}}{\gamma} f$. Each of the three moves can be
    undone, so `leapfrog(..., start=end, end=start)` retraces the path exactly, without storing it.

    Args:
        force, x, v, gamma: as in `integrate`.
        start, end: depths tau; `end < start` runs backwards.
        steps: equal steps between them, >= 1.
    """
    h = (end - start) / steps
    decay = torch.exp(-gamma * h)
    gain = h * _phi(-gamma * h)
    for n in range(steps):
        x = x + 0.5 * h * v
        v = decay * v + gain * force(x, start + (n + 0.5) * h)
        x = x + 0.5 * h * v
    return x, v


def _phi(z: Tensor) -> Tensor:
    """(e^z - 1) / z, with its limit 1 at z = 0, where the quotient is 0 / 0."""
    small = z.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2 + z * z / 6, torch.expm1(safe) / safe)


def check_solver(method: str, steps: int) -> None:
    """Raise ValueError unless `method` is one of `METHODS` and `steps` is at least 1."""
    if method not in METHODS:
        raise ValueError(f"unknown solver method {method!r}; choose from {', '.join(METHODS)}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"a solver needs at least 1 step, got {steps}")
