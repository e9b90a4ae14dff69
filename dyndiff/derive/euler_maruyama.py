r"""Euler-Maruyama on the reverse SDE: why its strong order is 1 here, and not the usual 1/2.

$$x_s = x_t + h\bigl(\tfrac12 x_t + \nabla \log p_t(x_t)\bigr) + \sqrt h\,z,\qquad h = \rho_t - \rho_s,\quad
\rho = -\log\alpha^2$$

Against the exact step for data $\mathcal N(m, c^2)$, with the deviation $x - \alpha m$ and $V = \mathrm{Var}(x_t)$.
A method whose step errs by $O(h^2)$ in the mean, and by $O(h^{3/2})$ in root mean square, has strong order 1.
Source: Song et al. (2021, SDE), equation 6; Kloeden and Platen (1992), sections 10.2
and 10.3; Milstein (1995), theorem 1.1.
"""

from __future__ import annotations

import sympy
from sympy import Eq, O, Rational, exp, oo, pi, sqrt, symbols

from .derivation import Derivation, Part

x, z = symbols("x z", real=True)
V, h, u, b, theta = symbols("V h u b theta", positive=True)

RATE = Rational(1, 2) - 1 / V  # of the reverse drift at t: x/2 + score, the score being -(x - alpha m) / V


def derive() -> Derivation:
    """The exact reverse step, and Euler-Maruyama's errors against it, in the mean and in the noise."""
    return Derivation.of(
        "Euler-Maruyama has strong order 1",
        "As the noise does not depend on x, a step's noise lacks no term of O(h), which would leave order 1/2: what it "
        "lacks is O(h^(3/2)) with mean zero, and the mean errs by O(h^2), which together make strong order 1.",
        _exact_step(),
        _mean(),
        _noise(),
        _accumulated(),
        _multiplicative(),
    )


def variance_at(elapsed: sympy.Expr) -> sympy.Expr:
    """Var(x) a time `elapsed` closer to the data: its excess over 1 goes with alpha^2."""
    return 1 + (V - 1) * exp(elapsed)


def propagator(start: sympy.Expr, end: sympy.Expr) -> sympy.Expr:
    """By what the exact reverse SDE multiplies a deviation between two times, both counted from t towards the data."""
    return exp(-(end - start) / 2) * variance_at(end) / variance_at(start)


def _exact_step() -> Part:
    """The linear SDE, dx = (1/2 - 1/Var) x du + dW, solved: the Gaussian that regressing x_s on x_t gives as well."""
    factor, kept = propagator(sympy.S.Zero, h), exp(-h / 2)  # kept: alpha_t / alpha_s
    spread = (1 - exp(-h)) * variance_at(h) / V
    rate = Rational(1, 2) - 1 / variance_at(h)
    steps = {"exact factor": factor, "exact variance": spread}
    identities = {
        "the factor's equation": factor.diff(h) - rate * factor,
        "the variance's equation": spread.diff(h) - 2 * rate * spread - 1,  # Ito
        "the variance starts from 0": spread.subs(h, 0),
        "the factor by regression": factor - kept * variance_at(h) / V,
        "the variance by regression": spread - (variance_at(h) - (kept * variance_at(h)) ** 2 / V),
    }
    return steps, identities


def _mean() -> Part:
    euler = 1 + h * RATE
    error = propagator(sympy.S.Zero, h) - euler
    steps = {"Euler-Maruyama factor": euler, "the mean's error": h**2 / 8 + O(h**3)}
    identities = {
        "the mean's error": sympy.limit(error / h**2, h, 0) - Rational(1, 8),  # whatever V is
        "the mean's error in full": error - (exp(h / 2) - 1 - h / 2 - (exp(h / 2) - exp(-h / 2) - h) / V),
    }
    return steps, identities


def _noise() -> Part:
    """The exact step weighs dW at u by the propagator from u to h, Euler-Maruyama by 1."""
    lacking = propagator(theta * h, h) - 1  # u = theta h
    at_first = lacking.subs(h, 0) + h * lacking.diff(h).subs(h, 0)
    squared = h * sympy.integrate(sympy.expand(at_first**2), (theta, 0, 1))  # Ito's isometry
    leading = RATE**2 * h**3 / 3
    steps = {
        "the noise's mean square error": leading + O(h**4),
        "the noise's error": Eq(sympy.Symbol("rms"), sympy.Abs(RATE) * h ** Rational(3, 2) / sqrt(3)),
    }
    return steps, {"the noise's error": squared - leading}


def _accumulated() -> Part:
    """White-noise data, V = 1, after so many steps that the start is forgotten: E |exact - Euler-Maruyama|^2.

    Both multiply and add, the same Brownian path: each second moment is a geometric series.
    """
    exact, euler = exp(-h / 2), 1 - h / 2
    shared = sympy.integrate(exp(-(h - u) / 2), (u, 0, h))  # what the two noises of a step have in common
    squares = (1 - exp(-h)) / (1 - exact**2), h / (1 - euler**2)
    error = squares[0] + squares[1] - 2 * shared / (1 - exact * euler)
    leading = Rational(5, 96) * h**2
    steps = {
        "variance of Euler-Maruyama's samples": squares[1],
        "accumulated mean square error": leading + O(h**3),
    }
    identities = {
        "order 1 after many steps": sympy.series(error, h, 0, 3).removeO() - leading,
        "the samples' variance": squares[1] - 1 / (1 - h / 4),  # 1 would be right: weak order 1
    }
    return steps, identities


def _multiplicative() -> Part:
    """The contrast: dx = b x dW, whose noise depends on x. There a step lacks b^2 x (dW^2 - h) / 2, which is O(h)."""
    density = exp(-(z**2) / 2) / sqrt(2 * pi)
    known = sympy.integrate(exp(u * z) * density, (z, -oo, oo))  # E exp(u z); its derivative is E z exp(u z)
    step = b * sqrt(h)  # b dW = step z; exact: x exp(step z - step^2 / 2), Euler-Maruyama: x (1 + step z)
    exact, euler = exp(-(step**2)) * known.subs(u, 2 * step), 1 + step**2  # mean squares, over x^2
    product = exp(-(step**2) / 2) * (known + step * known.diff(u)).subs(u, step)
    squared = exp(b**2 * h) - 1 - b**2 * h
    steps = {
        "multiplicative noise's error": Eq(sympy.Symbol("rms"), sqrt(squared)),
        "multiplicative noise's mean square error": b**4 * h**2 / 2 + O(h**3),
    }
    identities = {
        "multiplicative noise's error": exact + euler - 2 * product - squared,
        "its order is 1/2": sympy.limit(squared / h**2, h, 0) - b**4 / 2,
    }
    return steps, identities
