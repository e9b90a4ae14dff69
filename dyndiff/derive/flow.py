r"""From the SDE to the probability-flow ODE: many processes, the same marginals.

$$dx = f\,dt + g\,dW,\qquad \partial_t p = -\partial_x(f p) + \tfrac12 g^2\,\partial_x^2 p
= -\partial_x\bigl[(f - \tfrac12 g^2\,\partial_x \log p)\,p\bigr]$$

for any density p, so that an ODE moves it as the noise does. Here $f = -\tfrac12 x$ and $g = 1$ on the clock
$\rho = -\log\alpha^2$. Source: Song et al. (2021, SDE), equations 6, 11 and 13; Anderson (1982).
"""

from __future__ import annotations

import sympy
from sympy import Eq, exp, log, pi, sqrt, symbols

from .derivation import Derivation, Part

x, m, start, m_1, m_2 = symbols("x m x_t m_1 m_2", real=True)
c, rho, weight, alpha_s, alpha_t = symbols("c rho w alpha_s alpha_t", positive=True)
eta, t = symbols("eta t", real=True)

alpha, variance = exp(-rho / 2), 1 - exp(-rho)
"""The signal's scale and the noise's variance, sigma^2, on the clock rho."""


def derive() -> Derivation:
    """The two equations agree for any density; Gaussians and mixtures solve them; the Gaussian's flow map."""
    return Derivation.of(
        "The probability-flow ODE",
        "Half of the score, taken off the drift, moves any density exactly as the noise does; for Gaussian data the "
        "paths are known: each keeps its distance from the mean in standard deviations.",
        _any_density(),
        _gaussian(),
        _mixture(),
        _flow_map(),
        _tweedie(),
        _straightened(),
    )


def fokker_planck(p: sympy.Expr, drift: sympy.Expr, squared: sympy.Expr) -> sympy.Expr:
    """The rate at which drift and noise, of the strength g^2, change the density p of x."""
    return -(drift * p).diff(x) + squared / 2 * p.diff(x, 2)


def normal(mean: sympy.Expr, variance: sympy.Expr) -> sympy.Expr:
    """The density of x under N(mean, variance)."""
    return exp(-((x - mean) ** 2) / (2 * variance)) / sqrt(2 * pi * variance)


def _any_density() -> Part:
    """Also with noise eta g on the way back: eta = 0 is the ODE, eta = 1 the reverse SDE."""
    p, f, g = sympy.Function("p")(x, t), sympy.Function("f")(x, t), sympy.Function("g")(t)
    score = p.diff(x) / p
    velocity = f - g**2 / 2 * score
    forward = fokker_planck(p, f, g**2)
    backward = -(f - (1 + eta**2) / 2 * g**2 * score)  # as time runs back
    steps = {
        "Fokker-Planck": Eq(p.diff(t), forward),
        "velocity": Eq(sympy.Symbol("u"), velocity),
        "drift back": Eq(sympy.Symbol("fbar"), backward),
    }
    identities = {
        "the ODE moves p as the SDE does": forward - fokker_planck(p, velocity, sympy.S.Zero),
        "whatever the noise on the way back": forward + fokker_planck(p, backward, (eta * g) ** 2),
    }
    return steps, identities


def _gaussian() -> Part:
    p = normal(alpha * m, (alpha * c) ** 2 + variance)
    residual = p.diff(rho) - fokker_planck(p, -x / 2, sympy.S.One)
    return {"Gaussian": Eq(sympy.Symbol("p"), p)}, {"Gaussian solves Fokker-Planck": residual / p}


def mixture(spread: sympy.Expr) -> list[sympy.Expr]:
    """Two Gaussians of one width, each with its weight."""
    return [weight * normal(alpha * m_1, spread), (1 - weight) * normal(alpha * m_2, spread)]


def by_component(name: str, residual: sympy.Expr) -> dict[str, sympy.Expr]:
    """What is linear in the weight vanishes for every weight if it does for 0 and for 1: a Gaussian each, taken off."""
    spread = (alpha * c) ** 2 + variance
    return {
        f"{name}, linear in the weight": residual.diff(weight, 2),
        f"{name}, first component": residual.subs(weight, 1) / normal(alpha * m_1, spread),
        f"{name}, second component": residual.subs(weight, 0) / normal(alpha * m_2, spread),
    }


def _mixture() -> Part:
    p = sympy.Add(*mixture((alpha * c) ** 2 + variance))
    residual = p.diff(rho) - fokker_planck(p, -x / 2, sympy.S.One)
    return {"mixture": Eq(sympy.Symbol("p"), p)}, by_component("mixture solves Fokker-Planck", residual)


def _flow_map() -> Part:
    """`ideal.gaussian_flow`: standardise at t, unstandardise at s. Its velocity is the ODE's."""
    spread_s, spread_t = (sqrt((a * c) ** 2 + 1 - a**2) for a in (alpha_s, alpha_t))
    arrived = alpha_s * m + (start - alpha_t * m) * spread_s / spread_t
    path = arrived.subs(alpha_s, alpha)
    score = -(x - alpha * m) / ((alpha * c) ** 2 + variance)
    velocity = -x / 2 - score / 2
    steps = {
        "Gaussian score": score,
        "Gaussian velocity": Eq(x.diff(rho, evaluate=False), velocity),
        "flow map": Eq(sympy.Symbol("x_s"), arrived),
    }
    identities = {
        "it starts at x_t": arrived.subs(alpha_s, alpha_t) - start,
        "it solves the ODE": path.diff(rho) - velocity.subs(x, path),
    }
    return steps, identities


def _tweedie() -> Part:
    """The posterior mean of x_0 by the score: x_t = alpha x_0 + sigma eps, and the score is -E[eps | x_t] / sigma."""
    spread = (alpha * c) ** 2 + variance
    gain = alpha * c**2 / spread
    score = -(x - alpha * m) / spread
    p_1, p_2 = mixture(spread)
    p, centred = p_1 + p_2, p_1 * m_1 + p_2 * m_2
    centre = centred / p  # the means, by how likely each is at x
    of_mixture = (x * p + variance * p.diff(x)) / alpha - centred - gain * (x * p - alpha * centred)  # times p
    steps = {
        "x_0 of a Gaussian": Eq(sympy.Symbol("xhat_0"), m + gain * (x - alpha * m)),
        "x_0 of a mixture": Eq(sympy.Symbol("xhat_0"), centre + gain * (x - alpha * centre)),
    }
    identities = {"x_0 by the score, Gaussian": (x + variance * score) / alpha - m - gain * (x - alpha * m)}
    return steps, identities | by_component("x_0 by the score, mixture", of_mixture)


def _straightened() -> Part:
    """In y = x / alpha against sigma / alpha, the velocity is eps: what `heun` steps along, and `pf_ode` in log-SNR."""
    eps = sympy.Symbol("epsilon", real=True)
    velocity = -x / 2 + eps / (2 * sqrt(variance))  # dx / drho, -x/2 - score/2
    of_y = velocity / alpha + x / (2 * alpha)  # dy / drho, by the product rule
    ratio = sqrt(exp(rho) - 1)  # sigma / alpha
    log_snr = -log(exp(rho) - 1)
    steps = {"slope": Eq(sympy.Symbol("dy/dsigmatilde"), eps)}
    identities = {
        "the slope is eps": of_y / ratio.diff(rho) - eps,
        "the slope in log-SNR": of_y / log_snr.diff(rho) + ratio / 2 * eps,
    }
    return steps, identities
