r"""The forward process in one go: any number of noising steps is one Gaussian.

$$x_i = \sqrt{1-\beta_i}\,x_{i-1} + \sqrt{\beta_i}\,z_i \;\Rightarrow\;
q(x_i \mid x_0) = \mathcal N\bigl(\sqrt{\bar\alpha_i}\,x_0,\; (1-\bar\alpha_i) I\bigr),\qquad
\bar\alpha_i = \prod_{j \le i} (1-\beta_j) = \alpha^2$$

Between the chain's times the noise arrives at a constant rate, $\alpha^2 = e^{-\rho}$ with $\rho$ linear.
Source: Ho et al. (2020), equations 2 and 4; Song et al. (2021, SDE), equations 11 and 29.
"""

from __future__ import annotations

import sympy
from sympy import Eq, exp, log, sqrt, symbols

from .derivation import Derivation, Part

x0, eps = symbols("x_0 epsilon", real=True)
bar, beta, rho, rate, u, h = symbols("alphabar beta rho r u h", positive=True)
t = sympy.Symbol("t", real=True)

STEPS = 4
"""The length of the chain that is multiplied out."""


def derive() -> Derivation:
    """The closed form by induction and multiplied out, the signal-to-noise ratio, and the process between the steps."""
    return Derivation.of(
        "The forward process in closed form",
        "Any number of noising steps adds up to one Gaussian, whose mean keeps the square root of the product of all "
        "1 - beta and whose variance is what is missing from 1; the process in continuous time passes through it.",
        _induction(),
        _chain(),
        _signal_to_noise(),
        _within_a_step(),
        _any_rate(),
    )


def noised(x: sympy.Expr, beta: sympy.Expr, z: sympy.Expr) -> sympy.Expr:
    """One step of the chain: Ho et al., equation 2."""
    return sqrt(1 - beta) * x + sqrt(beta) * z


def moments(x: sympy.Expr, noises: list[sympy.Symbol]) -> tuple[sympy.Expr, sympy.Expr]:
    """The factor of x_0, and the variance: independent noises add in squares."""
    x = sympy.expand(x)
    return x.coeff(x0), sum((x.coeff(z) ** 2 for z in noises), sympy.S.Zero)


def _induction() -> Part:
    z = sympy.Symbol("z", real=True)
    before = sqrt(bar) * x0 + sqrt(1 - bar) * eps  # the induction's hypothesis
    after = noised(before, beta, z)
    factor, variance = moments(after, [eps, z])
    kept = bar * (1 - beta)  # what alpha-bar is after the step
    steps = {
        "one step more": Eq(sympy.Symbol("x_i"), after),
        "induction mean": Eq(sympy.Symbol("E x_i"), factor * x0),
        "induction variance": Eq(sympy.Symbol("Var x_i"), variance),
    }
    return steps, {"induction mean": factor - sqrt(kept), "induction variance": variance - (1 - kept)}


def _chain() -> Part:
    betas = symbols(f"beta_1:{STEPS + 1}", positive=True)
    noises = list(symbols(f"z_1:{STEPS + 1}", real=True))
    x: sympy.Expr = x0
    for b, z in zip(betas, noises, strict=True):
        x = noised(x, b, z)
    factor, variance = moments(x, noises)
    kept = sympy.prod(1 - b for b in betas)
    steps = {
        "alpha": Eq(sympy.Symbol("alpha"), factor),
        "sigma": Eq(sympy.Symbol("sigma"), sqrt(1 - kept)),
        "chain variance": variance,
    }
    # a product of roots against a root: both are positive, so that their squares decide
    return steps, {"chain mean": factor**2 - kept, "chain variance": sympy.expand(variance - (1 - kept))}


def _signal_to_noise() -> Part:
    snr = bar / (1 - bar)
    lam = sympy.Symbol("lambda", real=True)
    steps = {
        "SNR": Eq(sympy.Symbol("SNR"), snr),
        "log_snr": Eq(lam, log(snr)),
        "log_snr of rho": Eq(lam, -log(exp(rho) - 1)),
    }
    identities = {
        "SNR of rho": snr.subs(bar, exp(-rho)) - exp(-log(exp(rho) - 1)),  # how `Schedule.log_snr` computes it
        "alpha^2 is the sigmoid": sympy.solve(Eq(snr, exp(lam)), bar)[0] - 1 / (1 + exp(-lam)),
    }
    return steps, identities


def _within_a_step() -> Part:
    """dx = -r/2 x du + sqrt(r) dW, u from 0 to 1 over the step: the mean's and the variance's equations, solved."""
    m, V = sympy.Function("m"), sympy.Function("V")
    mean = sympy.dsolve(Eq(m(u).diff(u), -rate / 2 * m(u)), ics={m(0): 1}).rhs
    variance = sympy.dsolve(Eq(V(u).diff(u), -rate * V(u) + rate), ics={V(0): 0}).rhs
    whole = {u: 1, rate: -log(1 - beta)}
    later = {u: 1 - u}  # the rest of the step
    steps = {"mean within a step": Eq(m(u), mean), "variance within a step": Eq(V(u), variance)}
    identities = {
        "a whole step's mean": mean.subs(whole) - sqrt(1 - beta),
        "a whole step's variance": variance.subs(whole) - beta,
        "two parts make the step's variance": mean.subs(later) ** 2 * variance
        + variance.subs(later)
        - variance.subs(u, 1),
        "the chain's drift": sympy.limit((sqrt(1 - rate * h) - 1) / h, h, 0) + rate / 2,  # beta = r h, h to 0
    }
    return steps, identities


def _any_rate() -> Part:
    grown = sympy.Function("rho")(t)  # the rate, integrated
    alpha, variance = exp(-grown / 2), 1 - exp(-grown)
    steps = {
        "alpha of rho": Eq(sympy.Symbol("alpha"), alpha),
        "sigma^2 of rho": Eq(sympy.Symbol("sigma") ** 2, variance),
    }
    speed = grown.diff(t)
    identities = {
        "the mean's equation": alpha.diff(t) + speed / 2 * alpha,
        "the variance's equation": variance.diff(t) + speed * variance - speed,
        "alpha^2 + sigma^2 = 1": alpha**2 + variance - 1,
    }
    return steps, identities
