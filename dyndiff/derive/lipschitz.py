r"""How far a dynamic block can move two inputs apart: Gronwall's bound, and the force that attains it.

$$|f(x) - f(y)| \le L\,|x - y| \;\Rightarrow\; N(\tau) \le e^{\lambda\tau} N(0),\qquad
N^2 = L\,|\delta x|^2 + |\delta v|^2,\quad \lambda = \sqrt{L + \tfrac{\gamma^2}{4}} - \tfrac{\gamma}{2}$$

and |delta x| alone stays below the solution of u'' = L u - gamma u'. Here u = |delta x| and w = |delta v|; L has to
hold where the paths run, as a network with normalisation has no constant that holds everywhere.
Source: Hairer, Norsett and Wanner (1993), section I.10 (differential inequalities, the logarithmic norm); for
leapfrog, Hairer, Lubich and Wanner (2006), section I.1.4.
"""

from __future__ import annotations

import sympy
from sympy import Eq, Matrix, O, acosh, asinh, cosh, exp, sinh, sqrt, symbols

from . import leapfrog, second_order
from .derivation import Derivation, Part, entries
from .leapfrog import h
from .second_order import gamma, k, kappa, tau

L, G, u, w, theta, n, s = symbols("L G u w theta n s", positive=True)

RATE = sqrt(L + gamma**2 / 4) - gamma / 2  # lambda


def derive() -> Derivation:
    """The norm's growth, the worst motion in closed form, the forces that reach it, and the same for leapfrog."""
    return Derivation.of(
        "The Lipschitz constant of a dynamic block",
        "Two states part no faster than at the rate lambda <= sqrt(L), and two positions no further than the solution "
        "of u'' = L u - gamma u', cosh(sqrt(L)) without damping; the force L x gets there, the force -L x never parts "
        "them, and n steps of leapfrog have a bound of the same form.",
        _norm(),
        _worst(),
        _attained(),
        _discrete(),
    )


def _norm() -> Part:
    """By Cauchy and Schwarz (N^2)' / 2 <= L u w + w (L u - gamma w), and that is lambda N^2 less a square."""
    fastest = L * u * w + w * (L * u - gamma * w)
    gap = (RATE + gamma) * (w - RATE * u) ** 2
    steps = {
        "norm": Eq(sympy.Symbol("N"), sqrt(L * u**2 + w**2)),
        "rate": Eq(sympy.Symbol("lambda"), RATE),
        "gap": gap,
        "Gronwall's bound": exp(RATE),
    }
    identities = {
        "what lambda is": sympy.expand(RATE * (RATE + gamma)) - L,
        "the gap is a square": sympy.expand(RATE * (L * u**2 + w**2) - fastest - gap),
        "undamped": RATE.subs(gamma, 0) - sqrt(L),
        "damping lowers it": RATE.diff(gamma) + RATE / (2 * sqrt(L + gamma**2 / 4)),
    }
    return steps, identities


def _worst() -> Part:
    """u <= u(0) + int w and w <= e^(-gamma tau) w(0) + int e^(-gamma (tau - r)) L u dr: with "=", u is the largest.

    (Nothing on the right is negative, so that larger u and w make it larger.)
    """
    flow = second_order.flow(cosh(kappa * tau), sinh(kappa * tau) / kappa).subs(k, -L)
    worst = flow * Matrix([1, G])  # u(0) = 1, and w(0) = G for v(0) = g(x(0)) with the Lipschitz constant G
    at = worst.subs(L, kappa**2 - gamma**2 / 4)
    end = worst[0].subs(tau, 1)
    steps = {
        "kappa": Eq(kappa, sqrt(L + gamma**2 / 4)),
        "u": Eq(sympy.Function("u")(tau), worst[0].subs(G, 0)),
        "block's bound": end,
        "undamped bound": cosh(sqrt(L)),
    }
    identities = {
        "the worst u": at[0].diff(tau) - at[1],
        "the worst w": (exp(gamma * tau) * at[1]).diff(tau) - exp(gamma * tau) * (kappa**2 - gamma**2 / 4) * at[0],
        "it starts from 1": at[0].subs(tau, 0) - 1,
        "it starts with G": at[1].subs(tau, 0) - G,
        "its equation": at[0].diff(tau, 2) + gamma * at[0].diff(tau) - (kappa**2 - gamma**2 / 4) * at[0],
        "undamped, from rest": end.subs({G: 0, gamma: 0, kappa: sqrt(L)}) - cosh(sqrt(L)),
    }
    return steps, identities


def _attained() -> Part:
    """Two states of the force L x, and of -L x, whose Lipschitz constant is the same."""
    x, v = symbols("x v", real=True)
    path = exp(RATE * tau)
    speed = path.diff(tau)
    grown = (L * path**2 + speed**2) / (L + RATE**2)
    pulled = (L * x**2 + v**2).diff(x) * v + (L * x**2 + v**2).diff(v) * (-L * x - gamma * v)
    steps = {"fastest motion": path, "change for -L x": pulled}
    identities = {
        "it is a motion of L x": sympy.expand((speed.diff(tau) - L * path + gamma * speed) / path),
        "its norm grows by exp(lambda tau)": grown - exp(2 * RATE * tau),
        "-L x never parts two states": pulled + 2 * gamma * v**2,
    }
    return steps, identities


def _discrete() -> Part:
    """A step's bound is the step of L x, whose entries are positive; n steps, as the flow, have a C and an S.

    With s = gamma h / 2 the step is exp(-s) (cosh(theta) + turn), and turn^2 = sinh(theta)^2.
    """
    step = leapfrog.matrix(leapfrog.decay, leapfrog.gain).subs(k, -L)
    of_theta = {L: 2 * s * (cosh(theta) - cosh(s)) / (h**2 * sinh(s)), gamma: 2 * s / h}
    even = exp(s) * step.subs(of_theta)  # its determinant is 1
    turn = (even - cosh(theta) * sympy.eye(2)).applyfunc(lambda entry: sympy.simplify(entry.rewrite(exp)))
    many = exp(-n * s) * (cosh(n * theta) + sinh(s) * sinh(n * theta) / sinh(theta))
    undamped = cosh(2 * n * asinh(sqrt(L) / (2 * n)))  # below cosh(sqrt(L)), as asinh(y) < y
    one = leapfrog.matrix(sympy.S.One, h).subs(k, -L)
    steps = {
        "theta": Eq(theta, acosh(cosh(s) + L * h**2 * sinh(s) / (2 * s))),
        "discrete bound": Eq(sympy.Symbol("u_n"), many),
        "undamped discrete bound": Eq(sympy.Symbol("u_n"), undamped),
        "few steps": sqrt(L) * (1 - L / (24 * n**2)) + O(1 / n**4, (n, sympy.oo)),
    }
    identities = {
        "theta": (even.trace() - 2 * cosh(theta)).rewrite(exp),
        "the square is a number": sympy.expand(entries(turn**2 - sinh(theta) ** 2 * sympy.eye(2)).rewrite(exp)),
        "one step": turn[0, 0] - sinh(s),
        "one step more, C": cosh(n * theta) * cosh(theta) + sinh(n * theta) * sinh(theta) - cosh((n + 1) * theta),
        "one step more, S": sinh(n * theta) * cosh(theta) + cosh(n * theta) * sinh(theta) - sinh((n + 1) * theta),
        "undamped, a step": one[0, 0] - cosh(2 * asinh(sqrt(L) * h / 2)),
        # w = sqrt(L) / n
        "undamped, many steps": sympy.series(2 * asinh(w / 2), w, 0, 5).removeO() - w * (1 - w**2 / 24),
    }
    return steps, identities
