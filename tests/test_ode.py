"""The solvers: reversible where promised, of the order they claim, at the price they claim."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from dyndiff.ode import ADAPTIVE, FIXED, GRADIENTS, METHODS, Solver, integrate, leapfrog, solve

ORDERS = {"leapfrog": 2, "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


def state(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random position and velocity in float64."""
    return tuple(torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def rate(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def wavy(x: torch.Tensor, tau: float | torch.Tensor) -> torch.Tensor:
    """A force that is neither linear nor the same at all depths, and mixes the pixels."""
    return torch.sin(3 * x) + (1 + tau) * x.roll(1, -1).tanh() - tau**2


def test_every_method_is_listed():
    assert set(FIXED) == set(ORDERS)
    assert set(METHODS) == {*FIXED, *ADAPTIVE}


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


@pytest.mark.parametrize("method", FIXED)
def test_error_falls_with_the_methods_order(method):
    steps, errors = [32, 64, 128, 256], []
    exact = torch.tensor(driven_oscillator(1.0), dtype=torch.float64)
    for n in steps:
        x, v = rate(1.0), rate(0.0)
        end = integrate(lambda x, tau: -16 * x + math.cos(3 * tau), x, v, rate(1.2), Solver(method, n))
        errors.append(float((torch.cat(end[:2]) - exact).norm()))
    assert slope(steps, errors) == pytest.approx(ORDERS[method], abs=0.15)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", FIXED)
def test_force_is_evaluated_as_often_as_documented(method, steps):
    calls = []

    def force(x, tau):
        calls.append(float(tau))
        return -x

    solution = integrate(force, *state(2, 1, 2, 2), rate(0.5), Solver(method, steps))
    assert solution.evaluations == len(calls) == FIXED[method] * steps
    assert all(0 <= tau <= 1 for tau in calls)


@pytest.mark.parametrize("steps", [1, 4])
def test_leapfrog_damps_a_free_velocity_exactly(steps):
    x, v = state(2, 1, 2, 2)
    _, end = leapfrog(lambda x, tau: torch.zeros_like(x), x, v, rate(2.5), 0.0, 1.0, steps)
    torch.testing.assert_close(end, math.exp(-2.5) * v, atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("method", FIXED)
def test_no_damping_is_finite_with_finite_gradients(method):
    x, v, gamma = (value.requires_grad_() for value in (*state(2, 1, 3, 3), rate(0.0)))
    end = torch.cat(integrate(wavy, x, v, gamma, Solver(method, 2))[:2])
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


class Weighted:
    """A force with a weight and an embedding, which it closes over as a block's does."""

    def __init__(self, *, embedding_of=lambda seed: seed):
        self.seed = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
        self.weight = torch.randn(
            3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6)
        ).requires_grad_()
        self.gamma = rate(0.1, 0.6, 2.0)[:, None, None].requires_grad_()
        self.embedding = embedding_of(self.seed)  # not a leaf, as an embedding's never is

    def __call__(self, x, tau):
        mixed = torch.einsum("ij,bjhw->bihw", self.weight, x)
        return torch.tanh(mixed + self.embedding[:, :, None, None] * (1 + tau)) - tau * x

    def gradients(self, solver):
        """Of a loss that sees position and velocity: to x, v, damping, weight and the embedding's own source."""
        x, v = (value.requires_grad_() for value in state(2, 3, 4, 4))
        end = integrate(self, x, v, self.gamma, solver, (self.weight, self.embedding))
        loss = end.x.square().sum() + (end.x * end.v).sin().sum()
        return torch.autograd.grad(loss, (x, v, self.gamma, self.weight, self.seed))


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_reversing_leapfrog_gives_the_gradient_of_backprop(steps):
    expected, found = (
        Weighted(embedding_of=torch.sin).gradients(Solver("leapfrog", steps, gradient))
        for gradient in ("backprop", "reversible")
    )
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_the_adjoint_gives_the_gradient_of_backprop_up_to_the_solvers_error():
    """The embedding's gradient too, which torchdiffeq leaves out of what it is not told of."""
    expected = Weighted(embedding_of=torch.sin).gradients(Solver("rk4", 40))
    found = Weighted(embedding_of=torch.sin).gradients(Solver("rk4", 40, "adjoint"))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert all(value.abs().sum() > 0 for value in found)
    with pytest.warns(UserWarning, match="the samples beside it"):
        adaptive = Weighted(embedding_of=torch.sin).gradients(Solver("dopri5", gradient="adjoint", tolerance=1e-9))
    torch.testing.assert_close(adaptive, expected, atol=1e-5, rtol=1e-5)


def test_adjoint_and_reversal_give_no_gradient_to_what_they_are_not_told_of():
    """The trap, kept in view: a parameter left out has no gradient, and nothing says so."""
    for solver in (Solver("rk4", 4, "adjoint"), Solver("leapfrog", 4, "reversible")):
        force = Weighted()
        x, v = (value.requires_grad_() for value in state(2, 3, 4, 4))
        end = integrate(force, x, v, force.gamma, solver, (force.weight,))
        assert torch.autograd.grad(end.x.sum(), force.seed, allow_unused=True) == (None,)


def test_gradcheck_of_the_reversed_leapfrog():
    force = Weighted()

    def end(x, v, gamma, weight, embedding):
        force.weight, force.embedding = weight, embedding
        return integrate(force, x, v, gamma, Solver("leapfrog", 3, "reversible"), (weight, embedding))[:2]

    x, v = state(2, 3, 2, 2)
    assert gradcheck(end, tuple(value.requires_grad_() for value in (x, v, force.gamma, force.weight, force.seed)))


def test_reversal_serves_a_force_that_ignores_its_position():
    x, v = (value.requires_grad_() for value in state(1, 1, 2, 2))
    push = rate(0.3).requires_grad_()
    end = integrate(lambda x, tau: push * torch.ones_like(x), x, v, rate(0.0), Solver(gradient="reversible"), (push,))
    gradients = torch.autograd.grad(end.x.sum(), (x, v, push))
    torch.testing.assert_close(gradients, (torch.ones_like(x), torch.ones_like(v), rate(2.0)))  # 4 pixels x 1 / 2


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_warn_meet_their_tolerance_and_count(method):
    calls, exact = [], driven_oscillator(1.0)[0]

    def force(x, tau):
        calls.append(tau)
        return -16 * x + torch.cos(3 * tau)

    with pytest.warns(UserWarning, match=f"{method} adapts its steps to the whole batch"):
        solver = Solver(method, tolerance=1e-6)
    solution = integrate(force, rate(1.0), rate(0.0), rate(1.2), solver)
    assert float(solution.x) == pytest.approx(exact, abs=2e-4)
    assert solution.evaluations == len(calls) > 5


@pytest.mark.filterwarnings("ignore:.*adapts its steps")
def test_batch_mates_matter_to_an_adaptive_method_alone():
    x, v = state(4, 1, 3, 3)
    for method, same in {"leapfrog": True, "rk4": True, "dopri5": False}.items():
        solver = Solver(method, steps=4, tolerance=1e-3)
        crowd = integrate(lambda x, tau: -9 * torch.sin(3 * x), x, v, rate(0.1), solver).x[:1]
        alone = integrate(lambda x, tau: -9 * torch.sin(3 * x), x[:1], v[:1], rate(0.1), solver).x
        assert torch.equal(crowd, alone) == same


def test_a_first_order_system_is_solved_too():
    (x, y), evaluations = solve(lambda tau, x, y: (-y, x), (rate(1.0), rate(0.0)), Solver("rk4", 20))
    assert (float(x), float(y)) == pytest.approx((math.cos(1), math.sin(1)), abs=1e-6)
    assert evaluations == 80
    with pytest.raises(ValueError, match="a position and a velocity"):
        solve(lambda tau, x: (x,), (rate(1.0),), Solver())


@pytest.mark.parametrize("method", ["verlet", ""])
def test_unknown_method_lists_the_known(method):
    with pytest.raises(ValueError, match=f"'{method}'.*{', '.join(METHODS)}"):
        Solver(method)


@pytest.mark.parametrize("steps", [0, -1, 1.5])
@pytest.mark.parametrize("method", FIXED)
def test_a_solver_needs_a_step(method, steps):
    with pytest.raises(ValueError, match=f"at least 1 step, got {steps}"):
        Solver(method, steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient": "magic"}, f"'magic'; choose from {', '.join(GRADIENTS)}"),
        ({"gradient": "adjoint"}, "'adjoint' gradient does not go with the method 'leapfrog'"),
        ({"method": "rk4", "gradient": "reversible"}, "'reversible' gradient does not go with the method 'rk4'"),
        ({"tolerance": 0.0}, "positive, got 0.0"),
        ({"tolerance": math.nan}, "positive, got nan"),
    ],
    ids=str,
)
def test_a_solver_refuses_what_does_not_exist(settings, message):
    with pytest.raises(ValueError, match=message):
        Solver(**settings)
