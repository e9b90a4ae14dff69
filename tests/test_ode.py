"""The solvers: reversible where promised, of the order they claim, at the price they claim."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from dyndiff.ode import METHODS, integrate, leapfrog

ORDERS = {"leapfrog": 2, "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
CALLS = {"leapfrog": 1, "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


def state(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random position and velocity in float64."""
    return tuple(torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def rate(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def wavy(x: torch.Tensor, tau: float | torch.Tensor) -> torch.Tensor:
    """A force that is neither linear nor the same at all depths, and mixes the pixels."""
    return torch.sin(3 * x) + (1 + tau) * x.roll(1, -1).tanh() - tau**2


def test_every_method_is_listed():
    assert set(METHODS) == set(ORDERS) == set(CALLS)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("gamma", [0.0, 0.7, 5.0])
def test_leapfrog_forward_then_back_returns_the_input(gamma, steps):
    x, v = state(3, 2, 4, 4)
    there = leapfrog(wavy, x, v, rate(gamma), 0.0, 1.0, steps)
    back = leapfrog(wavy, *there, rate(gamma), 1.0, 0.0, steps)
    torch.testing.assert_close(back, (x, v), atol=1e-12, rtol=0)


def driven_oscillator(tau: float) -> tuple[float, float]:
    """x'' = -w^2 x + cos(n tau) - g x' from x(0) = 1, v(0) = 0, solved by hand: w = 4, g = 1.2, n = 3."""
    w, g, n = 4.0, 1.2, 3.0
    size = (w**2 - n**2) ** 2 + (g * n) ** 2
    a, b = (w**2 - n**2) / size, g * n / size  # the particular solution, a cos(n tau) + b sin(n tau)
    k = math.sqrt(w**2 - g**2 / 4)
    c, s = 1 - a, ((1 - a) * g / 2 - b * n) / k  # the homogeneous one, fitted to the start
    decay = math.exp(-g / 2 * tau)
    cos, sin = math.cos(k * tau), math.sin(k * tau)
    x = decay * (c * cos + s * sin) + a * math.cos(n * tau) + b * math.sin(n * tau)
    v = decay * ((s * k - c * g / 2) * cos - (c * k + s * g / 2) * sin)
    return x, v + n * (b * math.cos(n * tau) - a * math.sin(n * tau))


def slope(steps: list[int], errors: list[float]) -> float:
    """The order of convergence: how fast log error falls with log steps, by least squares."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    return float(-((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("method", METHODS)
def test_error_falls_with_the_methods_order(method):
    steps, errors = [32, 64, 128, 256], []
    exact = torch.tensor(driven_oscillator(1.0), dtype=torch.float64)
    for n in steps:
        x, v = rate(1.0), rate(0.0)
        end = integrate(lambda x, tau: -16 * x + math.cos(3 * tau), x, v, rate(1.2), method=method, steps=n)
        errors.append(float((torch.cat(end) - exact).norm()))
    assert slope(steps, errors) == pytest.approx(ORDERS[method], abs=0.15)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_force_is_evaluated_as_often_as_documented(method, steps):
    calls = []

    def force(x, tau):
        calls.append(float(tau))
        return -x

    integrate(force, *state(2, 1, 2, 2), rate(0.5), method=method, steps=steps)
    assert len(calls) == CALLS[method] * steps
    assert all(0 <= tau <= 1 for tau in calls)


@pytest.mark.parametrize("steps", [1, 4])
def test_leapfrog_damps_a_free_velocity_exactly(steps):
    x, v = state(2, 1, 2, 2)
    _, end = leapfrog(lambda x, tau: torch.zeros_like(x), x, v, rate(2.5), 0.0, 1.0, steps)
    torch.testing.assert_close(end, math.exp(-2.5) * v, atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_no_damping_is_finite_with_finite_gradients(method):
    x, v, gamma = (value.requires_grad_() for value in (*state(2, 1, 3, 3), rate(0.0)))
    end = torch.cat(integrate(wavy, x, v, gamma, method=method, steps=2))
    gradients = torch.autograd.grad(end.square().sum(), (x, v, gamma))
    assert all(value.isfinite().all() and value.abs().sum() > 0 for value in (end, *gradients))


def test_no_damping_is_the_limit_of_little_damping():
    """Across the switch to a series at gamma h = 1e-4, too."""
    x, v = state(2, 1, 3, 3)
    none = torch.cat(leapfrog(wavy, x, v, rate(0.0), 0.0, 1.0, 1))
    for gamma in (1e-10, 0.9999e-4, 1.0001e-4):
        little = torch.cat(leapfrog(wavy, x, v, rate(gamma), 0.0, 1.0, 1))
        assert 0 < (little - none).abs().max() < 10 * gamma


def test_series_and_quotient_meet():
    """The kick on either side of the switch at 1e-4 differs by the change in gamma and nothing more."""
    x, v = rate(0.0), rate(0.0)
    low, high = (leapfrog(lambda x, tau: rate(1.0), x, v, rate(g), 0.0, 1.0, 1)[1] for g in (0.99999e-4, 1.00001e-4))
    assert float(low - high) == pytest.approx(0.5 * 2e-9, abs=1e-12)


def test_damping_is_one_rate_per_channel():
    """gamma (C, 1, 1) acts as each channel's own rate does."""
    x, v = state(2, 3, 2, 2)
    gamma = rate(0.1, 1.0, 4.0)[:, None, None]
    together = torch.cat(leapfrog(wavy, x, v, gamma, 0.0, 1.0, 3), dim=1)
    apart = [leapfrog(wavy, x[:, [i]], v[:, [i]], gamma[i], 0.0, 1.0, 3) for i in range(3)]
    torch.testing.assert_close(together, torch.cat([x for x, _ in apart] + [v for _, v in apart], dim=1))


@pytest.mark.parametrize("damping", [0.0, 0.8])
def test_gradients_through_leapfrog_are_right(damping):
    x, v = state(1, 2, 2, 2)
    weight = torch.linspace(-1, 1, 2, dtype=torch.float64)

    def end(x, v, gamma, weight):
        return leapfrog(lambda x, tau: (weight[:, None, None] * x + tau).sin(), x, v, gamma, 0.0, 1.0, 3)

    inputs = (x, v, rate(damping), weight)
    assert gradcheck(end, tuple(value.requires_grad_() for value in inputs))


@pytest.mark.parametrize("method", ["dopri5", "verlet", ""])
def test_unknown_method_lists_the_known(method):
    with pytest.raises(ValueError, match=f"'{method}'.*{', '.join(METHODS)}"):
        integrate(wavy, *state(1, 1, 2, 2), rate(0.0), method=method)


@pytest.mark.parametrize("steps", [0, -1])
@pytest.mark.parametrize("method", METHODS)
def test_a_solver_needs_a_step(method, steps):
    with pytest.raises(ValueError, match=f"at least 1 step, got {steps}"):
        integrate(wavy, *state(1, 1, 2, 2), rate(0.0), method=method, steps=steps)
