r"""Damped leapfrog as `ode.leapfrog` has it, drift, kick, drift: what it keeps exactly, how it errs, where it breaks.

$$x_{1/2} = x + \tfrac h2 v,\qquad v_1 = d\,v + g\,f(x_{1/2}, \tau + \tfrac h2),\qquad x_1 = x_{1/2} + \tfrac h2 v_1,
\qquad d = e^{-\gamma h},\quad g = \frac{1 - e^{-\gamma h}}{\gamma}$$

For f = -k x a step is a matrix. Source: Hairer, Lubich and Wanner (2006), section I.1.4 and chapters II, V, VI, IX.
"""

from __future__ import annotations

import sympy
from sympy import Eq, Matrix, O, acos, cos, exp, pi, sin, sqrt, symbols, tanh

from .derivation import Derivation, Part, entries

tau, x, v, h, f_0, f_x, f_t, f_xx, f_xt, f_tt = symbols("tau x v h f_0 f_x f_t f_xx f_xt f_tt", real=True)
k, gamma, theta, n, y = symbols("k gamma theta n y", positive=True)
f = sympy.Function("f")

decay, gain = exp(-gamma * h), (1 - exp(-gamma * h)) / gamma  # what a kick leaves of v, and adds of f

MODIFIED = 1 / (1 - h**2 * k / 4)  # by what the spring is stiffer in the energy that undamped leapfrog keeps


def derive() -> Derivation:
    """A step and its Jacobian, the step undone, local errors, stability, and what the undamped step conserves."""
    return Derivation.of(
        "Damped leapfrog",
        "A step can be undone exactly and shrinks volumes exactly as the flow does, whatever the force; it errs by "
        "O(h^3), order 2; against a spring it is stable while h^2 k < 4, damped a little longer, and undamped it "
        "conserves an energy whose spring is a little stiffer.",
        _volume(),
        _reversible(),
        _order(),
        _stability(),
        _undamped(),
    )


def step(x: sympy.Expr, v: sympy.Expr, start: sympy.Expr, length: sympy.Expr) -> Matrix:
    """Position and velocity after a step from the depth `start`, for the force f(x, tau)."""
    middle = sympy.expand(x + length / 2 * v)
    kicked = decay.subs(h, length) * v + gain.subs(h, length) * f(middle, sympy.expand(start + length / 2))
    return Matrix([middle + length / 2 * kicked, kicked])


def matrix(decay: sympy.Expr, gain: sympy.Expr) -> Matrix:
    """The same for f = -k x: three shears and scalings, multiplied."""
    drift = Matrix([[1, h / 2], [0, 1]])
    return drift * Matrix([[1, 0], [-k * gain, decay]]) * drift


def _volume() -> Part:
    """The Jacobian's determinant is the kick's alone: the drifts shear."""
    damped, undamped = matrix(decay, gain), matrix(sympy.S.One, h)
    spring = step(x, v, tau, h).replace(f, lambda position, depth: -k * position)
    steps = {"step": step(x, v, tau, h), "matrix": damped, "undamped matrix": undamped}
    identities = {
        "the matrix is the spring's step": entries(spring.jacobian([x, v]) - damped),
        "no damping": sympy.limit(gain, gamma, 0) - h,
        "determinant of the matrix": damped.det() - decay,
        "determinant for any force": step(x, v, tau, h).jacobian([x, v]).doit().det() - decay,
    }
    return steps, identities


def _reversible() -> Part:
    """A step of -h from where the step of h has arrived, at the depth tau + h."""
    there = step(x, v, tau, h)
    back = step(there[0], there[1], tau + h, -h)
    inverse = matrix(decay, gain).subs(h, -h)
    identities = {
        "back again, for any force": entries(back - Matrix([x, v])),
        "the matrix's inverse": entries(matrix(decay, gain) * inverse - sympy.eye(2)),
    }
    return {"inverse": inverse}, identities


def _order() -> Part:
    """The force as a power series about x = 0 and tau = 0; the flow's Taylor series by derivatives along its field."""

    def force(x: sympy.Expr, t: sympy.Expr) -> sympy.Expr:
        return f_0 + f_x * x + f_t * t + f_xx * x**2 / 2 + f_xt * x * t + f_tt * t**2 / 2

    jerk, bend = f_x * v + f_t, f_xx * v**2 + 2 * f_xt * v + f_tt  # f's derivatives along a straight line
    push = f_0 - gamma * v
    leading = -(jerk - gamma * push) / 12, (bend + 4 * f_x * push + 2 * gamma * jerk) / 24
    here, moved = {x: 0, tau: 0}, step(x, v, tau, h).replace(f, force).subs({x: 0, tau: 0})
    identities = {}
    for name, coordinate, stepped, error in zip("xv", (x, v), moved, leading, strict=True):
        rate: sympy.Expr = coordinate
        for i in range(4):
            lacking = rate.subs(here) - stepped.diff(h, i).subs(h, 0)
            identities[f"{name}'s terms of h^{i}"] = sympy.expand(lacking - (6 * error if i == 3 else 0))
            rate = rate.diff(x) * v + rate.diff(v) * (force(x, tau) - gamma * v) + rate.diff(tau)
    steps = {"x's local error": leading[0] * h**3 + O(h**4), "v's local error": leading[1] * h**3 + O(h**4)}
    return steps, identities


def _stability() -> Part:
    """Both eigenvalues stay within the unit circle while 1 - tr + det and 1 + tr + det are positive, and det <= 1."""
    damped, undamped = matrix(decay, gain), matrix(sympy.S.One, h).trace()
    limit = 4 * y / tanh(y)  # of h^2 k, with y = gamma h / 2
    steps = {
        "undamped limit": Eq(h**2 * k, 4),
        "damped trace": damped.trace(),
        "damped limit": Eq(h**2 * k, limit),
        "damped limit, series": 4 + 4 * y**2 / 3 + O(y**4),
    }
    identities = {
        "undamped, 4 - tr^2": 4 - undamped**2 - h**2 * k * (4 - h**2 * k),
        "damped, 1 - tr + det": 1 - damped.trace() + damped.det() - k * h * gain,  # positive for every k
        "damped, 1 + tr + det": 1 + damped.trace() + damped.det() - 2 * (1 + decay) + k * h * gain,
        "it is 0 at the limit": (2 * (1 + decay) - limit / h * gain).subs(gamma, 2 * y / h).rewrite(exp),
        "the limit with little damping": sympy.series(limit, y, 0, 4).removeO() - (4 + 4 * y**2 / 3),
    }
    return steps, identities


def _undamped() -> Part:
    """The step turns (x, v) by theta on an ellipse: along it, the energy of a slightly stiffer spring is constant."""
    step = matrix(sympy.S.One, h)
    arrived = step * Matrix([x, v])
    kept = v**2 / 2 + k * x**2 / 2 * MODIFIED
    spring = {k: (2 * sin(theta / 2) / h) ** 2}
    width = h * cos(theta / 2) / (2 * sin(theta / 2))  # of x over v; its square is (1 - h^2 k / 4) / k
    faster = sqrt(k) * (1 + h**2 * k / 24)  # theta / h
    half = (2 * n * sin(pi / (2 * n))) ** 2  # theta = pi / n, h = 1 / n

    def turned(angle: sympy.Expr) -> Matrix:
        return Matrix([[cos(angle), width * sin(angle)], [-sin(angle) / width, cos(angle)]])

    steps = {
        "modified energy": Eq(sympy.Symbol("Htilde"), kept),
        "angle of a step": Eq(theta, acos(1 - h**2 * k / 2)),
        "n steps": turned(n * theta),
        "leapfrog's frequency": faster + O(h**4),
        "k that turns x round": Eq(k, half),  # n steps map x to -x; a single one with k = 4
    }
    identities = {
        "the modified energy is conserved": kept.subs({x: arrived[0], v: arrived[1]}, simultaneous=True) - kept,
        "its spring is stiffer": sympy.series(MODIFIED, h, 0, 4).removeO() - (1 + h**2 * k / 4),
        "one step": entries(step.subs(spring) - turned(theta)),
        "one step more": entries(turned(theta) * turned(n * theta) - turned((n + 1) * theta)),
        "its width is that energy's": (width**2 - 1 / (k * MODIFIED)).subs(spring),
        "its frequency": sympy.series(cos(h * faster), h, 0, 6).removeO() - step[0, 0],
        "x turned round": step[0, 0].subs({k: half, h: 1 / n}) - cos(pi / n),
    }
    return steps, identities
