r"""Second-order dynamics in depth: a damped oscillator's motion from `tau = 0` to `tau = 1`.

$$\frac{dx}{d\tau} = v, \qquad \frac{dv}{d\tau} = f(x, \tau) - \gamma v .$$

`tau` is depth inside one block of a network. It has nothing to do with diffusion time `t`.
Source: Norcliffe et al. (2020), SONODE, equation 3, with the velocity's damping written out.

Three ways to the gradient: "backprop" through the solver's own steps, exact, with a memory that grows
with their number; "reversible", exact too, which walks leapfrog back and forgets the path; "adjoint",
which solves another ODE backwards (Chen et al., 2018, algorithm 1) and is as exact as that solution.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Force = Callable[[Tensor, float | Tensor], Tensor]
"""`(x (B, C, H, W), tau) -> (B, C, H, W)`: the acceleration that the state feels, damping aside."""

State = tuple[Tensor, ...]
Field = Callable[..., State]
"""`(tau, *state) -> their slopes`: any system of first order, such as `(tau, x, v) -> (v, a)`."""

FIXED = {"leapfrog": 1, "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Methods of a fixed number of steps, and their evaluations a step. `leapfrog` is our own (torchdiffeq has none)."""

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""Methods of torchdiffeq that choose their steps themselves."""

METHODS = (*FIXED, *ADAPTIVE)
GRADIENTS = ("backprop", "adjoint", "reversible")


@dataclass(frozen=True)
class Solver:
    """How to walk from tau = 0 to tau = 1, and how to come back for the gradient.

    An adaptive method takes one error norm over the batch, so that a sample's result depends on the
    samples beside it, by about the tolerance: choosing one warns.

    Attributes:
        method: one of `METHODS`.
        steps: equal steps of a method in `FIXED`, >= 1.
        gradient: one of `GRADIENTS`; "reversible" needs leapfrog, "adjoint" any other.
        tolerance: relative and absolute, of an adaptive method.

    Raises:
        ValueError: on an unknown name, fewer than 1 step, a tolerance that is not positive, or a
            gradient that the method doesn't have.
    """

    method: str = "leapfrog"
    steps: int = 1
    gradient: str = "backprop"
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown solver method {self.method!r}; choose from {', '.join(METHODS)}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"a solver needs at least 1 step, got {self.steps}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"unknown gradient {self.gradient!r}; choose from {', '.join(GRADIENTS)}")
        if self.gradient != "backprop" and (self.gradient == "reversible") != (self.method == "leapfrog"):
            raise ValueError(f"the {self.gradient!r} gradient does not go with the method {self.method!r}: "
                             "leapfrog alone can be reversed, and needs no adjoint")  # fmt: skip
        if not self.tolerance > 0:
            raise ValueError(f"a solver's tolerance must be positive, got {self.tolerance}")
        if self.method in ADAPTIVE:
            warnings.warn(f"{self.method} adapts its steps to the whole batch: "
                          "a sample's result depends on the samples beside it", stacklevel=3)  # fmt: skip


class Solution(NamedTuple):
    """Where the motion has arrived.

    Attributes:
        x, v: position and velocity at tau = 1.
        evaluations: how often the force was asked.
    """

    x: Tensor
    v: Tensor
    evaluations: int


def integrate(
    force: Force, x: Tensor, v: Tensor, gamma: Tensor, solver: Solver | None = None, parameters: Sequence[Tensor] = ()
) -> Solution:
    """Move position and velocity from tau = 0 to tau = 1.

    Args:
        force: the undamped acceleration, `(x, tau) -> (B, C, H, W)`.
        x: initial position, shape (B, C, H, W).
        v: initial velocity, same shape.
        gamma: damping rate, >= 0, per unit of tau; broadcasts against `x`.
        solver: one step of leapfrog if not given.
        parameters: all other tensors that the force uses and that want a gradient: weights, and the
            embedding. Backprop finds them by itself; the other two give no gradient to what is not here.

    Returns:
        Position, velocity and the number of evaluations.
    """
    solver = solver or Solver()
    if solver.method != "leapfrog":

        def field(tau: Tensor, x: Tensor, v: Tensor) -> State:
            return v, force(x, tau) - gamma * v

        (x, v), evaluations = solve(field, (x, v), solver, (gamma, *parameters))
        return Solution(x, v, evaluations)
    if solver.gradient == "reversible":
        x, v = _Reversible.apply(force, solver.steps, x, v, gamma, *parameters)
    else:
        x, v = leapfrog(force, x, v, gamma, 0.0, 1.0, solver.steps)
    return Solution(x, v, solver.steps)


def solve(field: Field, state: State, solver: Solver, parameters: Sequence[Tensor] = ()) -> tuple[State, int]:
    """Any system of first order from tau = 0 to tau = 1, by a method of torchdiffeq.

    Args:
        field: `(tau, *state) -> slopes`, a tuple like the state.
        state: tensors of any shapes.
        solver: of any method but leapfrog.
        parameters: as in `integrate`.

    Returns:
        The state at tau = 1, and the number of evaluations.

    Raises:
        ValueError: if the solver is leapfrog, which needs to know position from velocity.
    """
    from torchdiffeq import odeint, odeint_adjoint  # it imports scipy: a quarter of a second that leapfrog saves

    if solver.method == "leapfrog":
        raise ValueError("leapfrog moves a position and a velocity: call integrate")
    evaluations = 0

    def counted(tau: Tensor, state: State) -> State:
        nonlocal evaluations
        evaluations += 1
        return field(tau, *state)

    def even(func: Any, state: Any, ends: Tensor) -> Tensor:
        return torch.linspace(float(ends[0]), float(ends[-1]), solver.steps + 1, dtype=ends.dtype, device=ends.device)

    how: dict[str, Any] = {"method": solver.method, "rtol": solver.tolerance, "atol": solver.tolerance}
    if solver.method in FIXED:
        how["options"] = {"grid_constructor": even}
    ends = torch.tensor([0.0, 1.0], dtype=state[0].dtype, device=state[0].device)
    if solver.gradient == "adjoint":
        wanted = tuple(parameter for parameter in parameters if parameter.requires_grad)
        path = odeint_adjoint(counted, state, ends, adjoint_params=wanted, **how)
    else:
        path = odeint(counted, state, ends, **how)
    return tuple(values[-1] for values in path), evaluations


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
    decay, gain = _kick(gamma, h)
    for n in range(steps):
        x = torch.add(x, v, alpha=0.5 * h)  # one pass over memory, where x + 0.5 * h * v takes two
        v = decay * v + gain * force(x, start + (n + 0.5) * h)
        x = torch.add(x, v, alpha=0.5 * h)
    return x, v


class _Reversible(torch.autograd.Function):
    """Leapfrog whose backward pass walks the path again, from its end: nothing in between is stored."""

    @staticmethod
    def forward(ctx: Any, force: Force, steps: int, x: Tensor, v: Tensor, gamma: Tensor, *parameters: Tensor) -> State:
        x, v = leapfrog(force, x, v, gamma, 0.0, 1.0, steps)
        ctx.force, ctx.steps = force, steps
        ctx.save_for_backward(x, v, gamma, *parameters)
        return x, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *end: Tensor) -> tuple[Tensor | None, ...]:
        x, v, *rest = ctx.saved_tensors
        grad_x, grad_v = end
        h, wanted = 1 / ctx.steps, [tensor for tensor in rest if tensor.requires_grad]
        totals = [torch.zeros_like(tensor) for tensor in wanted]
        for n in reversed(range(ctx.steps)):
            x = x - 0.5 * h * v  # at the middle of the step, where the kick was
            with torch.enable_grad():
                middle = x.detach().requires_grad_()
                decay, gain = _kick(rest[0], h)
                push = gain * ctx.force(middle, (n + 0.5) * h)
                v = ((v - push) / decay).detach()  # the velocity before the kick
                kicked = decay * v + push
            kick = grad_v + 0.5 * h * grad_x  # what the loss feels of the velocity after the kick
            pulled, *parts = torch.autograd.grad(kicked, (middle, *wanted), kick, allow_unused=True)
            del kicked, push
            for total, part in zip(totals, parts, strict=True):
                if part is not None:
                    total.add_(part)
            grad_x = grad_x if pulled is None else grad_x + pulled  # None: the force ignores the position
            grad_v = decay.detach() * kick + 0.5 * h * grad_x
            x = x - 0.5 * h * v
        found = iter(totals)
        return None, None, grad_x, grad_v, *(next(found) if tensor.requires_grad else None for tensor in rest)


def _kick(gamma: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """What a kick of length h leaves of the velocity, and what it adds of the force."""
    return torch.exp(-gamma * h), h * _phi(-gamma * h)


def _phi(z: Tensor) -> Tensor:
    """(e^z - 1) / z, with its limit 1 at z = 0, where the quotient is 0 / 0."""
    small = z.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2 + z * z / 6, torch.expm1(safe) / safe)
