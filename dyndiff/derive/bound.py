r"""The variational bound's terms: what a step of the chain costs, and which weight L_simple drops.

$$L_{t \to s} = D_{KL}\bigl(q(x_s \mid x_t, x_0)\,\|\,p(x_s \mid x_t)\bigr)
= \tfrac12\bigl(\mathrm{SNR}(s) - \mathrm{SNR}(t)\bigr)\,|x_0 - \hat x_0|^2
= \frac{\beta^2}{2\varsigma^2 (1-\beta)(1-\bar\alpha_t)}\,|\epsilon - \hat\epsilon|^2$$

for both Gaussians of the posterior's variance, and the second form between neighbours in the chain.
Source: Kingma et al. (2021), equation 13; Ho et al. (2020), equations 5, 12, 13 and 14.
"""

from __future__ import annotations

import sympy
from sympy import Eq, Rational, erf, exp, log, oo, pi, sqrt, symbols

from . import posterior
from .derivation import Derivation, Part
from .posterior import NEIGHBOURS, alpha_s, alpha_t, bar_s, beta, sigma_s, sigma_t, x0

x0_hat, eps, eps_hat, z, x, mu, nu = symbols("xhat_0 epsilon epsilonhat z x mu nu", real=True)
sigma, kappa, spread, alpha, h, delta = symbols("sigma kappa varsigma alpha h delta", positive=True)

snr_s, snr_t = (alpha_s / sigma_s) ** 2, (alpha_t / sigma_t) ** 2
WEIGHT = (snr_s - snr_t) / 2  # of |x_0 - x0_hat|^2, in nats


def derive() -> Derivation:
    """The divergence of two Gaussians, a step's cost in x_0 and in noise, the prior's and the decoder's."""
    return Derivation.of(
        "The variational bound",
        "A step's cost is half the signal-to-noise ratio that it gains times the squared error of x_0; the same cost "
        "in the noise's error carries a weight, and L_simple is what is left when that weight is dropped.",
        _divergence(),
        _step(),
        _dropped_weight(),
        _prior(),
        _decoder(),
    )


def divergence(mu: sympy.Expr, sigma: sympy.Expr, nu: sympy.Expr, kappa: sympy.Expr) -> sympy.Expr:
    """D_KL(N(mu, sigma^2) || N(nu, kappa^2)) in nats."""
    return log(kappa / sigma) + (sigma**2 + (mu - nu) ** 2) / (2 * kappa**2) - Rational(1, 2)


def _divergence() -> Part:
    """By its definition: the mean of log q - log p under q, where x = mu + sigma z."""
    ratio = log(kappa / sigma) - z**2 / 2 + (mu + sigma * z - nu) ** 2 / (2 * kappa**2)
    normal = exp(-(z**2) / 2) / sqrt(2 * pi)
    powers = sympy.Poly(ratio, z).terms()
    defined = sympy.Add(*(factor * sympy.integrate(z**n * normal, (z, -oo, oo)) for (n,), factor in powers))
    equal = (mu - nu) ** 2 / (2 * sigma**2)
    name = sympy.Symbol("D_KL")
    steps = {
        "divergence": Eq(name, divergence(mu, sigma, nu, kappa)),
        "divergence, equal variances": Eq(name, equal),
    }
    identities = {
        "divergence": sympy.expand(defined - divergence(mu, sigma, nu, kappa)),
        "divergence, equal variances": divergence(mu, sigma, nu, sigma) - equal,
    }
    return steps, identities


def _step() -> Part:
    """The two means differ in x_0 alone, the model having put its estimate in its place."""
    gap = posterior.mean - posterior.mean.subs(x0, x0_hat)
    cost = gap**2 / (2 * posterior.variance)
    in_x0 = WEIGHT * (x0 - x0_hat) ** 2
    noise_to_x0 = {x0: -sigma_t / alpha_t * eps, x0_hat: -sigma_t / alpha_t * eps_hat}  # up to x_t, which both share
    bar_t = bar_s * (1 - beta)
    ho = beta**2 / (2 * spread**2 * (1 - beta) * (1 - bar_t))
    by_noise = ho.subs(spread, sqrt(beta * (1 - bar_s) / (1 - bar_t)))  # the variance beta-tilde
    steps = {
        "weight of x_0": WEIGHT,
        "L by x_0": Eq(sympy.Symbol("L"), in_x0),
        "weight of eps": by_noise,
        "L by eps": Eq(sympy.Symbol("L"), ho * (eps - eps_hat) ** 2),
    }
    identities = {
        "Kingma's equation 13": cost - in_x0,
        "Ho's equation 12": in_x0.subs(noise_to_x0).subs(NEIGHBOURS) - by_noise * (eps - eps_hat) ** 2,
    }
    return steps, identities


def _dropped_weight() -> Part:
    """L_simple sums |eps - eps_hat|^2 evenly: what it leaves out depends on the step's length in log-SNR alone."""
    dropped = WEIGHT / snr_t  # |x_0 - x0_hat|^2 = |eps - eps_hat|^2 / SNR(t)
    longer = (exp(h) - 1) / 2  # h, the log-SNR that the step gains
    steps = {
        "dropped weight": dropped,
        "dropped weight of h": longer,
        "short steps": sympy.series(longer, h, 0, 3),
    }
    identities = {
        "the weight is in h alone": dropped.subs(alpha_s, alpha_t * sigma_s / sigma_t * exp(h / 2)) - longer,
        "the continuous bound weighs by the log-SNR's speed": sympy.limit(longer / h, h, 0) - Rational(1, 2),
    }
    return steps, identities


def _prior() -> Part:
    cost = ((alpha * x0) ** 2 + sigma**2 - 1 - log(sigma**2)) / 2
    steps = {"prior": Eq(sympy.Symbol("L_T"), cost)}
    return steps, {"prior": divergence(alpha * x0, sigma, sympy.S.Zero, sympy.S.One) - cost}


def _decoder() -> Part:
    """A byte's probability is the Gaussian's mass over its bin; the first and the last bin have no outer end."""
    density = exp(-((x - mu) ** 2) / (2 * sigma**2)) / (sqrt(2 * pi) * sigma)
    up_to = (1 + erf((x - mu) / (sqrt(2) * sigma))) / 2
    mass = up_to.subs(x, x0 + delta) - up_to.subs(x, x0 - delta)
    edges = [-1 + Rational(2 * i + 1, 255) for i in range(255)]  # halfway between the bytes' values
    below = [up_to.subs(x, edge) for edge in edges]
    bins = [below[0], *(b - a for a, b in zip(below, below[1:], strict=False)), 1 - below[-1]]
    steps = {
        "up to x": Eq(sympy.Function("Phi")(x), up_to),
        "decoder": Eq(sympy.Symbol("p(x_0|x_1)"), mass),
        "first byte": below[0],
        "last byte": bins[-1],
    }
    identities = {
        "its slope is the density": up_to.diff(x) - density,
        "it starts from 0": sympy.limit(up_to.subs(x, mu + sigma * z), z, -oo),
        "all 256 bytes make 1": sympy.Add(*bins) - 1,
    }
    return steps, identities
