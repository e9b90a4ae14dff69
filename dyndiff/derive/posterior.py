r"""The reverse step, if the clean image were known: complete the square in x_s.

$$q(x_s \mid x_t, x_0) \propto q(x_t \mid x_s)\, q(x_s \mid x_0) = \mathcal N\Bigl(
\frac{\alpha_t}{\alpha_s}\frac{\sigma_s^2}{\sigma_t^2}\,x_t + \alpha_s\,a\,x_0,\; \sigma_s^2\,a\Bigr),\qquad
a = 1 - \frac{\mathrm{SNR}(t)}{\mathrm{SNR}(s)}$$

for any s < t; for neighbours in the chain it is Ho et al. (2020), equations 6 and 7. Source also: Kingma et
al. (2021), appendix A; Ho et al., section 3.2, for the two variances.
"""

from __future__ import annotations

import sympy
from sympy import Eq, sqrt, symbols

from .derivation import Derivation, Part

x0, x_s, x_t, eps = symbols("x_0 x_s x_t epsilon", real=True)
alpha_s, alpha_t, sigma_s, sigma_t, c = symbols("alpha_s alpha_t sigma_s sigma_t c", positive=True)
bar_s, beta = symbols("alphabar_s beta", positive=True)

alpha_ts = alpha_t / alpha_s  # what the forward process keeps of x_s
variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2  # what it adds: the variances of x_t must agree
added = 1 - (alpha_t * sigma_s) ** 2 / (alpha_s * sigma_t) ** 2  # as a share of sigma_t^2
mean = alpha_ts * sigma_s**2 / sigma_t**2 * x_t + alpha_s * added * x0  # of the posterior, as `samplers` has it
variance = sigma_s**2 * added

NEIGHBOURS = {
    alpha_s: sqrt(bar_s),
    alpha_t: sqrt(bar_s * (1 - beta)),
    sigma_s: sqrt(1 - bar_s),
    sigma_t: sqrt(1 - bar_s * (1 - beta)),
}
"""Two times of the chain, one step apart, in the letters of Ho et al."""


def derive() -> Derivation:
    """Mean and variance by completing the square, the same for neighbours, and the two variances as limits."""
    return Derivation.of(
        "The reverse step given the clean image",
        "Given x_t and x_0, the less noisy x_s is Gaussian, with a mean linear in both; given x_t alone, for Gaussian "
        "data, its variance runs from the posterior's (data a point) to the forward step's (data white noise).",
        _square(),
        _neighbours(),
        _two_variances(),
    )


def _square() -> Part:
    exponent = -((x_t - alpha_ts * x_s) ** 2) / (2 * variance_ts) - (x_s - alpha_s * x0) ** 2 / (2 * sigma_s**2)
    curve = sympy.Poly(sympy.expand(exponent), x_s)  # -x_s^2 / (2 variance) + x_s mean / variance + ...
    found_variance = sympy.factor(-1 / (2 * curve.coeff_monomial(x_s**2)))
    found_mean = sympy.factor(found_variance * curve.coeff_monomial(x_s))
    rest = exponent + (x_s - mean) ** 2 / (2 * variance)
    steps = {
        "exponent": exponent,
        "mean": Eq(sympy.Symbol("mu"), mean),
        "variance": Eq(sympy.Symbol("varsigma") ** 2, variance),
        "added": Eq(sympy.Symbol("a"), added),
        "weight of x_t": mean.coeff(x_t),
        "weight of x_0": mean.coeff(x0),
    }
    identities = {
        "mean": found_mean - mean,
        "variance": found_variance - variance,
        "added": variance_ts - sigma_t**2 * added,
        "the rest is q(x_t | x_0)": rest + (x_t - alpha_t * x0) ** 2 / (2 * sigma_t**2),  # x_s is gone from it
        "the constants match": variance * sigma_t**2 - variance_ts * sigma_s**2,  # so that all integrate to 1
    }
    return steps, identities


def _neighbours() -> Part:
    bar_t = bar_s * (1 - beta)
    beta_tilde = (1 - bar_s) / (1 - bar_t) * beta
    of_x0, of_x_t = sqrt(bar_s) * beta / (1 - bar_t), sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t)
    chain = mean.subs(NEIGHBOURS)
    by_noise = chain.subs(x0, (x_t - sqrt(1 - bar_t) * eps) / sqrt(bar_t))  # x_0 in terms of the noise
    equation_11 = (x_t - beta / sqrt(1 - bar_t) * eps) / sqrt(1 - beta)
    steps = {
        "beta-tilde": Eq(sympy.Symbol("betatilde"), beta_tilde),
        "mean of neighbours": Eq(sympy.Symbol("mutilde"), of_x0 * x0 + of_x_t * x_t),
        "mean by the noise": Eq(sympy.Symbol("mutilde"), equation_11),
    }
    identities = {
        "equation 7, variance": variance.subs(NEIGHBOURS) - beta_tilde,
        "equation 7, weight of x_0": chain.diff(x0) - of_x0,
        "equation 7, weight of x_t": chain.diff(x_t) - of_x_t,
        "equation 11": by_noise - equation_11,
        "the forward step's variance is beta": variance_ts.subs(NEIGHBOURS) - beta,
    }
    return steps, identities


def _two_variances() -> Part:
    """Data N(m, c^2): the variance of x_s given x_t alone, by two ways that must agree."""
    marginal_s, marginal_t = (alpha_s * c) ** 2 + sigma_s**2, (alpha_t * c) ** 2 + sigma_t**2
    of_x0 = c**2 * sigma_t**2 / marginal_t  # the variance of x_0 given x_t
    total = variance + mean.coeff(x0) ** 2 * of_x0  # of x_s: within the posteriors, and between their means
    jointly = marginal_s - (alpha_ts * marginal_s) ** 2 / marginal_t  # x_t = alpha_ts x_s + noise, regressed
    preserving = {sigma_s: sqrt(1 - alpha_s**2), sigma_t: sqrt(1 - alpha_t**2)}
    large = sigma_t**2 * added
    V = sympy.Function("V")
    steps = {
        "variance given x_t alone": Eq(V(c), total),
        "small": Eq(V(0), variance),
        "large": Eq(V(1), large),
    }
    identities = {
        "both ways agree": total - jointly,
        "data a point": sympy.limit(total, c, 0) - variance,
        "data white noise": (total.subs(c, 1) - large).subs(preserving),
        "large is the forward step's": large - variance_ts,
    }
    return steps, identities
