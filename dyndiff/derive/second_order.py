r"""Motion with inertia: a second-order equation as a system of first order, and its exact flow for a linear force.

$$x'' = f - \gamma x' \iff \begin{pmatrix} x \\ v \end{pmatrix}' = \begin{pmatrix} v \\ f - \gamma v \end{pmatrix},
\qquad e^{A\tau} = e^{-\gamma\tau/2}\bigl(C(\tau)\,I + S(\tau)\,(A + \tfrac{\gamma}{2} I)\bigr)$$

with A the matrix of f = -k x, and (C, S) = (cos, sin / omega), (cosh, sinh / kappa) or (1, tau). Start: position q,
velocity p. Source: Norcliffe et al. (2020), equation 3, and Dupont et al. (2019), section 3, on paths that may
not cross; Hairer, Lubich and Wanner (2006), section I.1, for the oscillator.
"""

from __future__ import annotations

import sympy
from sympy import Eq, Integral, Matrix, cos, cosh, exp, pi, sin, sinh, symbols

from .derivation import Derivation, Part, entries

tau, q, p, c, s, r = symbols("tau q p c s r", real=True)
k, gamma, omega, kappa = symbols("k gamma omega kappa", positive=True)

A = Matrix([[0, 1], [-k, -gamma]])  # of (x, v), x counted from where it can rest, c / k

CASES = {
    "underdamped": (cos(omega * tau), sin(omega * tau) / omega, gamma**2 / 4 + omega**2),
    "overdamped": (cosh(kappa * tau), sinh(kappa * tau) / kappa, gamma**2 / 4 - kappa**2),
    "critically damped": (sympy.S.One, tau, gamma**2 / 4),
}
"""C and S, and the k that makes them so."""


def derive() -> Derivation:
    """The system, its three exact flows, what damping takes, and why positions may cross."""
    return Derivation.of(
        "Second-order dynamics",
        "Position and velocity together follow a first-order flow that damping contracts at one rate everywhere; the "
        "position alone may turn round, as half a period of an oscillator maps x to -x, which no first-order "
        "equation in x does.",
        _system(),
        _oscillator(),
        _energy(),
        _crossing(),
        _monotone(),
    )


def flow(cosine: sympy.Expr, sine: sympy.Expr) -> Matrix:
    """exp(A tau), by C and S."""
    return exp(-gamma * tau / 2) * (cosine * sympy.eye(2) + sine * (A + gamma / 2 * sympy.eye(2)))


def _system() -> Part:
    """With v = x'; the field's divergence is the rate at which its flow changes volumes in (x, v)."""
    x, v, f = sympy.Symbol("x"), sympy.Symbol("v"), sympy.Function("f")
    field = Matrix([v, f(x, tau) - gamma * v])
    divergence = field[0].diff(x) + field[1].diff(v)
    identities = {
        "the divergence is -gamma": divergence + gamma,  # for any force
        "the matrix is the linear field's": entries(field.subs(f(x, tau), c - k * x).jacobian([x, v]) - A),
    }
    return {"field": field, "matrix": A, "divergence": divergence}, identities


def _oscillator() -> Part:
    """Cayley and Hamilton: (A + gamma/2)^2 is a number times I, so that two functions of tau make the exponential."""
    centred = A + gamma / 2 * sympy.eye(2)
    steps: dict[str, sympy.Basic] = {
        "frequency": Eq(omega, sympy.sqrt(k - gamma**2 / 4)),
        "rate": Eq(kappa, sympy.sqrt(gamma**2 / 4 - k)),
    }
    identities = {"the square is a number": entries(centred**2 - (gamma**2 / 4 - k) * sympy.eye(2))}
    for name, (cosine, sine, spring) in CASES.items():
        matrix = flow(cosine, sine)
        state = Matrix([c / k, 0]) + matrix * Matrix([q - c / k, p])
        steps[f"x, {name}"] = Eq(sympy.Function("x")(tau), state[0])
        steps[f"v, {name}"] = Eq(sympy.Function("v")(tau), state[1])
        exact, at = matrix.subs(k, spring), state.subs(k, spring)
        identities |= {
            f"the flow's equation, {name}": entries(exact.diff(tau) - A.subs(k, spring) * exact),
            f"it starts from here, {name}": entries(exact.subs(tau, 0) - sympy.eye(2)),
            f"the driven equation, {name}": at[1].diff(tau) - c + spring * at[0] + gamma * at[1],
            f"volumes shrink at the rate gamma, {name}": exact.det() - exp(-gamma * tau),
        }
    return steps, identities


def _energy() -> Part:
    """A force with a potential U, at one depth: whatever U is, only damping changes v^2/2 + U."""
    x, v, potential = sympy.Symbol("x"), sympy.Symbol("v"), sympy.Function("U")
    energy = v**2 / 2 + potential(x)
    change = energy.diff(x) * v + energy.diff(v) * (-potential(x).diff(x) - gamma * v)
    spring = v**2 / 2 + k * x**2 / 2
    steps = {
        "energy": Eq(sympy.Symbol("E"), spring),
        "energy's change": Eq(sympy.Symbol("E'"), -gamma * v**2),
    }
    identities = {
        "the energy's change": change + gamma * v**2,
        "of a spring": spring.diff(x) * v + spring.diff(v) * (-k * x - gamma * v) + gamma * v**2,
        "it falls no faster than exp(-2 gamma tau)": change + 2 * gamma * energy - 2 * gamma * potential(x),  # U >= 0
    }
    return steps, identities


def _crossing() -> Part:
    """Where position starts with velocity s q, the slope of x(1) against q takes either sign."""
    matrix = flow(*CASES["underdamped"][:2]).subs(tau, 1)
    slope = matrix[0, 0] + s * matrix[0, 1]
    half = matrix.subs(omega, pi)
    free = sympy.limit(slope.subs(gamma, 0), omega, 0)
    steps = {
        "slope": slope,
        "half a period": half.subs(k, gamma**2 / 4 + pi**2).applyfunc(sympy.simplify),
        "slope without a force": free,  # below 0 where s < -1: the velocity alone makes paths cross
    }
    identities = {
        "half a period turns x round": entries(half + exp(-gamma / 2) * sympy.eye(2)),
        "undamped, x becomes -x": half[0, 0].subs(gamma, 0) + 1,
        "without a force": free - (1 + s),
    }
    return steps, identities


def _monotone() -> Part:
    """x' = f(x, tau) in one dimension: the slope of x(tau) against q is an exponential, so that order is kept for ever.

    (In two dimensions a rotation makes -x; but there, too, no two paths meet.)
    """
    path, f, u, y = sympy.Function("x")(tau, q), sympy.Function("f"), sympy.Symbol("u"), sympy.Symbol("y")
    growth = f(y, tau).diff(y).subs(y, path)  # f_x along the path
    slope = exp(Integral(growth.subs(tau, u), (u, 0, tau)))
    logistic = q / (q + (1 - q) * exp(-r * tau))  # of f = r x (1 - x)
    spread = exp(-r * tau) / (q + (1 - q) * exp(-r * tau)) ** 2
    steps = {"first-order slope": slope, "logistic x": logistic, "logistic slope": spread}
    identities = {
        "the slope's equation": f(path, tau).diff(q) - growth * path.diff(q),
        "its solution": slope.diff(tau) - growth * slope,
        "logistic motion": logistic.diff(tau) - r * logistic * (1 - logistic),
        "its slope": logistic.diff(q) - spread,
        "its slope's growth": spread.diff(tau) / spread - r * (1 - 2 * logistic),
        "its slope starts from 1": spread.subs(tau, 0) - 1,
    }
    return steps, identities
