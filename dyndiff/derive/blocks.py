r"""What a block costs: parameters and FLOPs as formulas of width, pixels and steps.

A convolution of $k \times k$ from $a$ to $b$ channels has $k^2 a b + b$ parameters and takes $2 k^2 a b$
operations for each of its $n$ output pixels. The rest is bookkeeping, done once here for numbers and symbols
alike. Only what torch's counter counts is counted: convolutions, matrix products, attention.

$$\text{residual block: } 36\,w^2 n, \qquad \text{dynamic block, } S \text{ leapfrog steps: } (36\,S + 18)\,w^2 n.$$
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import sympy
from sympy import Eq, symbols

from .derivation import Derivation, Part

Number = Any  # an int, or a SymPy expression for one

w, n, e, S = symbols("w n e S", positive=True, integer=True)


class Cost(NamedTuple):
    """Parameters, and FLOPs for one image."""

    params: Number
    flops: Number

    def __add__(self, other: tuple[Number, ...]) -> Cost:
        return Cost(self.params + other[0], self.flops + other[1])

    def times(self, count: Number, *, shared: bool = False) -> Cost:
        """So many of it; where weights are shared, one of it run so many times."""
        return Cost(self.params if shared else self.params * count, self.flops * count)


def derive() -> Derivation:
    """The blocks' formulas, and what tells them apart."""
    return Derivation.of(
        "The price of a block",
        "A leapfrog step costs what a residual block costs and no parameters, and the block itself a map more: "
        "what is saved is saved by having fewer and narrower blocks.",
        _blocks(),
    )


def conv(a: Number, b: Number, pixels: Number, k: int = 3) -> Cost:
    """A convolution with bias, or with k = 1 and one pixel a linear layer."""
    return Cost(k * k * a * b + b, 2 * k * k * a * b * pixels)


def norm(width: Number) -> Cost:
    """A scale and a shift a channel; its arithmetic is not counted."""
    return Cost(2 * width, 0)


def enter(a: Number, b: Number, pixels: Number) -> Cost:
    """What passes by: a 1x1 convolution where the width changes."""
    return Cost(0, 0) if a == b else conv(a, b, pixels, 1)


def residual(a: Number, b: Number, pixels: Number, emb: Number) -> Cost:
    """`ResBlock`: two convolutions, scales and shifts between, and a shortcut."""
    changed = norm(a) + conv(a, b, pixels) + conv(emb, 2 * b, 1, 1) + norm(b) + conv(b, b, pixels)
    return changed + enter(a, b, pixels)


def force(width: Number, pixels: Number) -> Cost:
    """`Force`: one evaluation."""
    return norm(width) + conv(width, width, pixels) + norm(width) + conv(width, width, pixels)


def dynamic(a: Number, b: Number, pixels: Number, emb: Number, steps: Number = 1) -> Cost:
    """`DynamicBlock` with leapfrog: its start and speed, scales and shifts with their slope, damping, force."""
    start = enter(a, b, pixels) + norm(a) + conv(a, b, pixels)
    return start + conv(emb, 2 * b, 1, 1) + (2 * b, 0) + (b, 0) + force(b, pixels).times(steps, shared=True)


def tied(a: Number, b: Number, pixels: Number, emb: Number, steps: Number = 1) -> Cost:
    """`TiedBlock`: scales and shifts, and a force, once a step."""
    return enter(a, b, pixels) + conv(emb, 2 * b, 1, 1) + force(b, pixels).times(steps, shared=True)


def first_order(a: Number, b: Number, pixels: Number, emb: Number, steps: Number = 1) -> Cost:
    """`FirstOrderBlock` with Euler's method: a tied block with a slope."""
    return tied(a, b, pixels, emb, steps) + Cost(2 * b, 0)


def released(a: Number, b: Number, pixels: Number, emb: Number, steps: Number = 1) -> Cost:
    """`ReleasedBlock` with RK4, four evaluations a step, and without the embedding."""
    return enter(a, b, pixels) + force(b, pixels).times(4 * steps, shared=True)


BLOCKS: dict[str, Callable[..., Cost]] = {
    "res": lambda a, b, pixels, emb, steps: residual(a, b, pixels, emb),
    "dynamic": dynamic,
    "tied": tied,
    "first_order": first_order,
    "released": released,
}
"""A block's name, as in `UNetConfig`, to its cost."""


def attention(width: Number, pixels: Number) -> Cost:
    """`Attention`: queries, keys and values, all pairs of pixels twice, and the way out."""
    return norm(width) + conv(width, 3 * width, pixels, 1) + (0, 4 * pixels**2 * width) + conv(width, width, pixels, 1)


def _blocks() -> Part:
    """Both blocks at one width, and the price of a step."""
    standard, ours = residual(w, w, n, e), dynamic(w, w, n, e, S)
    step = ours.flops - ours.flops.subs(S, S - 1)
    steps = {
        "residual block, parameters": Eq(symbols("P_res"), sympy.expand(standard.params)),
        "residual block, FLOPs": Eq(symbols("F_res"), sympy.expand(standard.flops)),
        "dynamic block, parameters": Eq(symbols("P_dyn"), sympy.expand(ours.params)),
        "dynamic block, FLOPs": Eq(symbols("F_dyn"), sympy.expand(ours.flops)),
    }
    velocity = norm(w) + conv(w, w, n)
    identities = {
        "a step more costs one force": step - force(w, n).flops,
        "a step more costs no parameters": ours.params.diff(S),
        "a residual block costs one force and the embedding": standard.flops - force(w, n).flops - 4 * e * w,
        "with one step, the difference is the velocity's map": ours.flops.subs(S, 1) - standard.flops - velocity.flops,
        "and its parameters, the slope and the damping": ours.params - standard.params - velocity.params - 3 * w,
    }
    return steps, identities
