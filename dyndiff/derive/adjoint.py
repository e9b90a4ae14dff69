r"""Gradients through second-order dynamics: two costates that run backwards, and leapfrog's own, which are exact.

$$a = \frac{\partial L}{\partial x},\; b = \frac{\partial L}{\partial v}:\qquad a' = -f_x^\top b,\quad
b' = -a + \gamma b,\qquad \frac{dL}{d\theta} = \int_0^1 f_\theta^\top b\,d\tau,\quad
\frac{dL}{de} = \int_0^1 f_e^\top b\,d\tau$$

The embedding e needs an integral of its own: a solver that is not told of it leaves that out. Here x is one number.
Source: Chen et al. (2018), equations 4 and 5 and appendix B; Norcliffe et al. (2020), on the second-order adjoint.
The discrete adjoint is the chain rule through `ode.leapfrog`, as `ode.integrate` reverses it.
"""

from __future__ import annotations

import sympy
from sympy import Eq, Function, Integral, Matrix, Symbol, symbols

from . import leapfrog, second_order
from .derivation import Derivation, Part, entries
from .leapfrog import decay, gain, h
from .second_order import gamma, k, omega, p, q, tau

a_1, b_1, theta, f_0, f_x, f_theta, g_x = symbols("a_1 b_1 theta f_0 f_x f_theta g_x", real=True)
x, v, a, b = (Function(name)(tau) for name in "xvab")
by_x, by_theta, by_e = (Function(name)(tau) for name in ("f_x", "f_theta", "f_e"))  # f's slopes along the path

COSTATE = {a.diff(tau): -by_x * b, b.diff(tau): -a + gamma * b}
"""The costates' equations."""


def derive() -> Derivation:
    """The costates from a Lagrangian, the gradients that they give, a spring's in closed form, and leapfrog's."""
    return Derivation.of(
        "The adjoint of second-order dynamics",
        "The gradients by position and velocity obey an equation of their own, back from the loss; whatever enters the "
        "force has its gradient from the velocity's costate alone, an integral each, the embedding's among them; "
        "leapfrog's own gradients obey a leapfrog.",
        _lagrangian(),
        _gradients(),
        _spring(),
        _discrete(),
    )


def _lagrangian() -> Part:
    """L + the integral of a (v - x') + b (f - gamma v - v'): stationary in x(tau) and v(tau), and at the end."""
    f = Function("f")(x, tau, theta)
    density = a * (v - x.diff(tau)) + b * (f - gamma * v - v.diff(tau))
    of_x, of_v = (equation.lhs for equation in sympy.euler_equations(density, [x, v], tau))
    steps = {
        "Lagrangian": density,
        "a's equation": Eq(a.diff(tau), -f.diff(x) * b),
        "b's equation": Eq(b.diff(tau), COSTATE[b.diff(tau)]),
    }
    rates = {by_x: f.diff(x)}
    identities = {
        "stationary in x": of_x.subs(a.diff(tau), COSTATE[a.diff(tau)].subs(rates)),
        "stationary in v": of_v.subs(b.diff(tau), COSTATE[b.diff(tau)]),
        "a at the end": density.diff(x.diff(tau)) + a,  # L_x + density_x' = 0 there
        "b at the end": density.diff(v.diff(tau)) + b,
    }
    return steps, identities


def _gradients() -> Part:
    """As theta, e and gamma change, the path answers by dx and dv; the loss, by a dx + b dv at the end."""
    dx, dv = Function("dx")(tau), Function("dv")(tau)
    d_theta, d_e, d_gamma = symbols("dtheta de dgamma", real=True)
    push = by_theta * d_theta + by_e * d_e - v * d_gamma
    path = {dx.diff(tau): dv, dv.diff(tau): by_x * dx + push - gamma * dv}
    carried = sympy.expand((a * dx + b * dv).diff(tau).subs(path | COSTATE))
    shares = {name: by * b for name, by in (("weights", by_theta), ("embedding", by_e), ("damping", -v))}
    start = (a * dx + b * dv).subs(dv, g_x * dx)  # v(0) = g(x(0))
    steps: dict[str, sympy.Basic] = {
        f"gradient of the {name}": Integral(share, (tau, 0, 1)) for name, share in shares.items()
    }
    steps["gradient of the start"] = (a + g_x * b).subs(tau, 0)
    identities = {
        "nothing else changes the loss": carried - push * b,
        "the weights' share": carried.coeff(d_theta) - shares["weights"],
        "the embedding's share": carried.coeff(d_e) - shares["embedding"],
        "the damping's share": carried.coeff(d_gamma) - shares["damping"],
        "the start's share": start.diff(dx) - (a + g_x * b),
    }
    return steps, identities


def _spring() -> Part:
    """f = c - k x and L = x(1), underdamped: the costates are the flow's first row, and the gradients are integrals."""
    cosine, sine, spring = second_order.CASES["underdamped"]
    flow = second_order.flow(cosine, sine)
    costate = flow[0, :].subs(tau, 1 - tau)
    state = flow * Matrix([q, p])
    end = state[0].subs(tau, 1)
    shift = (1 - flow[0, 0].subs(tau, 1)) / k  # x(1)'s slope in c
    exact = {
        "k": end.diff(omega) / (2 * omega),  # omega^2 = k - gamma^2 / 4
        "gamma": end.diff(gamma) - gamma / (4 * omega) * end.diff(omega),
        "c": shift,
    }
    pushes = {"k": -state[0], "gamma": -state[1], "c": sympy.S.One}
    steps: dict[str, sympy.Basic] = {
        "a of a spring": Eq(a, costate[0]),
        "b of a spring": Eq(b, costate[1]),
    } | {f"x(1) by {name}": Eq(Symbol(f"dL/d{name}"), slope) for name, slope in exact.items()}
    identities = {
        "a's equation, spring": (costate[0].diff(tau) - k * costate[1]).subs(k, spring),
        "b's equation, spring": (costate[1].diff(tau) + costate[0] - gamma * costate[1]).subs(k, spring),
        "a(1) = 1": costate[0].subs(tau, 1) - 1,
        "b(1) = 0": costate[1].subs(tau, 1),
    }
    for name, push in pushes.items():
        integrand = sympy.expand(sympy.expand_trig(sympy.powsimp(sympy.expand(push * costate[1]))))
        error = sympy.integrate(integrand, (tau, 0, 1)) - exact[name]
        identities[f"the integral for {name}"] = sympy.expand(error.subs(k, spring).rewrite(sympy.exp))
    return steps, identities


def _discrete() -> Part:
    """A step's Jacobian, transposed: drift, kick, drift, of b by a and of a by b, back from the step's end."""
    here = leapfrog.x, leapfrog.v
    step = leapfrog.step(*here, tau, h).replace(leapfrog.f, lambda x, depth: f_0 + f_x * x + f_theta * theta)
    kick = b_1 + h / 2 * a_1  # a half drift
    before_a = a_1 + gain * f_x * kick
    before_b = decay * kick + h / 2 * before_a
    end = Matrix([a_1, b_1])
    share = gain * f_theta * kick
    steps = {
        "a before the step": Eq(Symbol("a_0"), before_a),
        "b before the step": Eq(Symbol("b_0"), before_b),
        "a step's gradient": share,
    }
    identities = {
        "the Jacobian transposed": entries(step.jacobian(here).T * end - Matrix([before_a, before_b])),
        "the weights' share of a step": (step.diff(theta).T * end)[0] - share,
        "a's equation in the limit": sympy.limit((a_1 - before_a) / h, h, 0) + f_x * b_1,
        "b's equation in the limit": sympy.limit((b_1 - before_b) / h, h, 0) + a_1 - gamma * b_1,
        "the integral in the limit": sympy.limit(share / h, h, 0) - f_theta * b_1,
    }
    return steps, identities
