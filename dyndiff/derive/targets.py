r"""Three things that a network may predict, each of which gives the other two, and what their errors have to do.

$$x_t = \alpha x_0 + \sigma\epsilon,\quad v = \alpha\epsilon - \sigma x_0:\qquad
|\epsilon - \hat\epsilon|^2 = \mathrm{SNR}\,|x_0 - \hat x_0|^2,\quad
|v - \hat v|^2 = (\mathrm{SNR} + 1)\,|x_0 - \hat x_0|^2$$

With $\alpha = \cos\varphi$ and $\sigma = \sin\varphi$ it is a rotation, and $v = dx_t/d\varphi$. Source: Salimans
and Ho (2022), section 4 and appendix D.
"""

from __future__ import annotations

import sympy
from sympy import Eq, cos, sin, symbols

from .derivation import Derivation, Part

x0, eps, v, x_t, x0_hat = symbols("x_0 epsilon v x_t xhat_0", real=True)
alpha, sigma = symbols("alpha sigma", positive=True)
phi, step = symbols("varphi delta", real=True)

PRESERVING = {alpha: cos(phi), sigma: sin(phi)}
"""alpha^2 + sigma^2 = 1 as an angle: 0 is data, a right angle is noise."""


def derive() -> Derivation:
    """Conversions, their errors' ratios, and the rotation."""
    return Derivation.of(
        "What the network predicts",
        "With x_t in hand, noise, clean image and v are the same knowledge, their squared errors differ by factors of "
        "the signal-to-noise ratio alone, and v is the velocity of x_t along the angle whose cosine is alpha.",
        _conversions(),
        _errors(),
        _rotation(),
    )


def from_eps(e: sympy.Expr) -> sympy.Expr:
    """x_0, from the noise."""
    return (x_t - sigma * e) / alpha


def from_v(w: sympy.Expr) -> sympy.Expr:
    """x_0, from v."""
    return alpha * x_t - sigma * w


def _conversions() -> Part:
    """Two linear equations, the definitions of x_t and v, solved for what is not given."""
    mix = [Eq(x_t, alpha * x0 + sigma * eps), Eq(v, alpha * eps - sigma * x0)]
    given_eps = sympy.solve(mix, [x0, v], dict=True)[0]
    given_x0 = sympy.solve(mix, [eps, v], dict=True)[0]
    given_v = sympy.solve(mix, [x0, eps], dict=True)[0]
    answers = {
        "x_0 from eps": (x0, from_eps(eps), given_eps[x0]),
        "v from eps": (v, (eps - sigma * x_t) / alpha, given_eps[v]),
        "eps from x_0": (eps, (x_t - alpha * x0) / sigma, given_x0[eps]),
        "v from x_0": (v, (alpha * x_t - x0) / sigma, given_x0[v]),
        "x_0 from v": (x0, from_v(v), given_v[x0]),
        "eps from v": (eps, sigma * x_t + alpha * v, given_v[eps]),
    }
    steps = {name: Eq(symbol, written) for name, (symbol, written, _) in answers.items()}
    identities = {name: (written - solved).subs(PRESERVING) for name, (_, written, solved) in answers.items()}
    return steps, identities


def _errors() -> Part:
    """Both truth and estimate go with the same x_t, so that it drops out of the difference."""
    snr = (alpha / sigma) ** 2
    error = x0 - x0_hat
    eps_error = (x_t - alpha * x0) / sigma - (x_t - alpha * x0_hat) / sigma
    v_error = (alpha * x_t - x0) / sigma - (alpha * x_t - x0_hat) / sigma
    steps = {
        "SNR": Eq(sympy.Symbol("SNR"), snr),
        "eps loss over x_0 loss": snr,
        "v loss over x_0 loss": snr + 1,
        "v loss over eps loss": 1 + 1 / snr,
    }
    identities = {
        "eps loss": eps_error**2 - snr * error**2,
        "v loss": (v_error**2 - (snr + 1) * error**2).subs(PRESERVING),
        "v loss by eps": (v_error**2 - (1 + 1 / snr) * eps_error**2).subs(PRESERVING),
        "v loss is the sum": (v_error**2 - error**2 - eps_error**2).subs(PRESERVING),  # SNR + 1
    }
    return steps, identities


def _rotation() -> Part:
    """(x_t, v) is (x_0, eps), turned by phi; a step of DDIM turns back by delta."""
    state, velocity = cos(phi) * x0 + sin(phi) * eps, cos(phi) * eps - sin(phi) * x0
    turn = sympy.Matrix([[cos(phi), sin(phi)], [-sin(phi), cos(phi)]])
    back = cos(step) * x_t - sin(step) * v
    steps = {
        "x_t of the angle": Eq(x_t, state),
        "v of the angle": Eq(v, velocity),
        "turn": turn,
        "turned back": Eq(sympy.Function("x")(phi - step), back),
    }
    identities = {
        "v is the velocity": state.diff(phi) - velocity,
        "x_t turns": state.diff(phi, 2) + state,  # the acceleration points to the centre
        "lengths stay": state**2 + velocity**2 - x0**2 - eps**2,
        "the turn's first row": (turn * sympy.Matrix([x0, eps]))[0] - state,
        "the turn's second row": (turn * sympy.Matrix([x0, eps]))[1] - velocity,
        "a turn back is DDIM's step": back.subs({x_t: state, v: velocity}) - state.subs(phi, phi - step),
    }
    return steps, identities
