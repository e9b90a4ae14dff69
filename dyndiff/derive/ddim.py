r"""DDIM as an exponential integrator, and the order of three samplers of the probability-flow ODE.

$$\frac{x_s}{\sigma_s} = \frac{x_t}{\sigma_t} + \int_{\ell_t}^{\ell_s} e^{\ell}\,\hat x_0(\ell)\,d\ell,
\qquad \ell = \log\frac{\alpha}{\sigma} = \tfrac12\lambda,\quad h = \ell_s - \ell_t$$

DDIM holds $\hat x_0$ still in the integral, DPM-Solver++ 2M extrapolates it along a line; Heun averages the
noise at both ends. Source: Song et al. (2021, DDIM), equation 12; Lu et al. (2022, DPM-Solver++), proposition
4.1 and algorithm 2; Karras et al. (2022), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
from sympy import Eq, O, exp, log, sqrt, symbols

from .derivation import Derivation, Part

x_t, x0, eps, before, ell, ell_t, ell_s = symbols("x_t x_0 epsilon x_0p ell ell_t ell_s", real=True)
alpha_s, alpha_t, sigma_s, sigma_t = symbols("alpha_s alpha_t sigma_s sigma_t", positive=True)
h, h_before, k, q = symbols("h h_p k q", positive=True)
d, f_0, f_1, f_2 = symbols("d f_0 f_1 f_2", real=True)

LOCAL = f_1 * h**2 / 2, (f_1 + (2 + 3 * q) * f_2) * h**3 / 12
"""The leading error of a step of DDIM and of 2M in x / sigma, f_1 and f_2 the estimate's derivatives in ell."""

HALF_LOG_SNR = {alpha_s: sigma_s * exp(ell_s), alpha_t: sigma_t * exp(ell_t)}
"""alpha / sigma = exp(ell), by definition."""

ddim = alpha_s * x0 + sigma_s * (x_t - alpha_t * x0) / sigma_t  # as `samplers.ddim` has it, at eta = 0
dpmpp_2m = sigma_s / sigma_t * x_t - alpha_s * (exp(-h) - 1) * (x0 + (x0 - before) * h / (2 * h_before))


def derive() -> Derivation:
    """The variation of constants, where DDIM is exact, and local errors for Gaussian data in powers of h."""
    return Derivation.of(
        "DDIM and the order of the ODE's samplers",
        "DDIM solves the flow's linear part exactly and errs by what the estimate of x_0 changes within a step: O(h^2) "
        "a step, order 1; DPM-Solver++ 2M, and Heun for Gaussian data, err by O(h^3) a step, order 2.",
        _variation_of_constants(),
        _exact(),
        _any_estimate(),
        _gaussian(),
        _heun(),
    )


def _variation_of_constants() -> Part:
    alpha, sigma = 1 / sqrt(1 + exp(-2 * ell)), 1 / sqrt(1 + exp(2 * ell))
    rho = log(1 + exp(-2 * ell))  # -log alpha^2
    x, estimate = sympy.Function("x")(ell), sympy.Function("xhat_0")(ell)
    noise = (x - alpha * estimate) / sigma
    velocity = rho.diff(ell) * (-x / 2 + noise / (2 * sigma))  # the flow, by the chain rule from the clock rho
    scaled = (x / sigma).diff(ell).subs(x.diff(ell), velocity)
    steps = {"scaled flow": Eq(sympy.Derivative(x / sympy.Symbol("sigma"), ell), exp(ell) * estimate)}
    identities = {
        "the flow of x / sigma": scaled - exp(ell) * estimate,
        "alpha over sigma is exp(ell)": alpha / sigma - exp(ell),
    }
    return steps, identities


def _exact() -> Part:
    """Solve the flow where x_0, or where the noise, stays what it was at t."""
    u, y, w = sympy.Function("u"), sympy.Function("y"), sympy.Symbol("sigmatilde", positive=True)
    still_x0 = sympy.dsolve(Eq(u(ell).diff(ell), exp(ell) * x0), ics={u(ell_t): x_t / sigma_t}).rhs
    ratio_s, ratio_t = sigma_s / alpha_s, sigma_t / alpha_t
    still_eps = sympy.dsolve(Eq(y(w).diff(w), eps), ics={y(ratio_t): x_t / alpha_t}).rhs
    by_eps = ddim.subs(x0, (x_t - sigma_t * eps) / alpha_t)
    of_2m = dpmpp_2m.subs({before: x0, h: ell_s - ell_t})  # x_0 still: nothing to extrapolate
    steps = {"ddim": Eq(sympy.Symbol("x_s"), ddim), "dpmpp_2m": Eq(sympy.Symbol("x_s"), dpmpp_2m)}
    identities = {
        "DDIM is exact for constant x_0": (sigma_s * still_x0.subs(ell, ell_s) - ddim).subs(HALF_LOG_SNR),
        "DDIM is exact for constant eps": alpha_s * still_eps.subs(w, ratio_s) - by_eps,
        "DPM-Solver++ begins with DDIM": (of_2m - ddim).subs(HALF_LOG_SNR),
    }
    return steps, identities


def scaled_path(d: sympy.Expr) -> sympy.Expr:
    """x / sigma a distance d in ell from t, over x_t / sigma_t: data N(0, c^2), k = c^2 SNR(t), on the exact flow."""
    return sqrt((1 + k * exp(2 * d)) / (1 + k))


def scaled_estimate(d: sympy.Expr) -> sympy.Expr:
    """exp(ell_t) E[x_0 | x] there, over x_t / sigma_t."""
    return k * exp(d) / (1 + k * exp(2 * d)) * scaled_path(d)


def factors(estimate: Callable[[sympy.Expr], sympy.Expr]) -> tuple[sympy.Expr, sympy.Expr]:
    """What a step of DDIM and one of 2M, the step before having been q h long, make of x_t / sigma_t = 1."""
    now = estimate(sympy.S.Zero)
    return 1 + (exp(h) - 1) * now, 1 + (exp(h) - 1) * (now + (now - estimate(-q * h)) / (2 * q))


def taylor(expression: sympy.Expr, order: int) -> sympy.Expr:
    """The terms below h^order."""
    return sympy.Add(*(expression.diff(h, n).subs(h, 0) / sympy.factorial(n) * h**n for n in range(order)))


def _any_estimate() -> Part:
    """The estimate along the path is f(d) = f_0 + f_1 d + f_2 d^2 / 2 + ..., whatever the data and the network."""

    def estimate(u: sympy.Expr) -> sympy.Expr:
        return f_0 + f_1 * u + f_2 * u**2 / 2

    exact = 1 + sympy.integrate(sympy.expand(exp(d) * estimate(d)), (d, 0, h))
    first, second = factors(estimate)
    steps = {"DDIM local error": LOCAL[0] + O(h**3), "2M local error": LOCAL[1] + O(h**4)}
    identities = {
        "DDIM's local error": taylor(exact - first, 3) - LOCAL[0],
        "2M's local error": taylor(exact - second, 4) - LOCAL[1],
    }
    return steps, identities


def _gaussian() -> Part:
    """The same in closed form; a mean of the data shifts the path, and errs in nothing."""
    first, second = factors(scaled_estimate)
    rates = {f_1: scaled_estimate(d).diff(d).subs(d, 0), f_2: scaled_estimate(d).diff(d, 2).subs(d, 0)}
    leading = k / (2 * (1 + k) ** 2) * h**2, k * (1 + q - k - 2 * k * q) / (4 * (1 + k) ** 3) * h**3
    steps = {
        "exact factor": scaled_path(h),
        "DDIM factor": first,
        "2M factor": second,
        "DDIM local error, Gaussian": leading[0] + O(h**3),
        "2M local error, Gaussian": leading[1] + O(h**4),
    }
    identities = {
        "the path solves the flow": scaled_path(d).diff(d) - exp(d) * scaled_estimate(d),
        "DDIM's local error, Gaussian": taylor(scaled_path(h) - first, 3) - leading[0],
        "2M's local error, Gaussian": taylor(scaled_path(h) - second, 4) - leading[1],
        "DDIM's by the estimate's change": LOCAL[0].subs(rates) - leading[0],
        "2M's by the estimate's change": LOCAL[1].subs(rates) - leading[1],
    }
    return steps, identities


def _heun() -> Part:
    """In x / alpha over its value at t, against the noise-to-signal ratio over its value at t, exp(-h)."""
    ratio = exp(-h)
    slope = 1 / (1 + k)  # eps at t, for the Gaussian
    guess = 1 + (ratio - 1) * slope
    exact = sqrt((k + ratio**2) / (k + 1))
    factor = 1 + (ratio - 1) * (slope + guess * ratio / (k + ratio**2)) / 2
    leading = -k / (2 * (1 + k) ** 3) * h**3
    steps = {"exact factor of x / alpha": exact, "Heun factor": factor, "Heun local error": leading + O(h**4)}
    return steps, {"Heun's local error": taylor(exact - factor, 4) - leading}
