r"""What a denoiser costs: parameters and FLOPs as formulas of widths, blocks, steps and image size.

A convolution of $k \times k$ from $a$ to $b$ channels has $k^2 a b + b$ parameters and takes $2 k^2 a b$
operations for each of its $n$ output pixels. The rest is bookkeeping, done once here for numbers and symbols
alike. Only what torch's counter counts is counted: convolutions, matrix products, attention.

$$\text{residual block: } 36\,w^2 n, \qquad \text{dynamic block, } S \text{ leapfrog steps: } (36\,S + 18)\,w^2 n.$$
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sympy
from sympy import Eq, Integer, symbols

from .derivation import Derivation, Part

WAVES = 64  # sines and cosines of the time embedding
Number = Any  # an int, or a SymPy expression for one

w, w_in, n, e, S = symbols("w w_in n e S", positive=True, integer=True)


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
    """The blocks' formulas, what tells them apart, and whole networks by sums."""
    return Derivation.of(
        "The price of a denoiser",
        "A leapfrog step costs what a residual block costs and no parameters; what the continuous U-Net saves it "
        "saves by having fewer and narrower blocks, each of which the solver may run several times.",
        _blocks(),
        _networks(),
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


def network(
    widths: Sequence[Number],
    size: Number,
    *,
    channels: Number = 1,
    depths: Sequence[Number],
    middle: Number = 2,
    attending: Sequence[int] = (),
    steps: Sequence[Number] | None = None,
    block: str | None = None,
) -> Cost:
    """A whole `UNet`, from what its configuration says.

    Args:
        widths, size, channels, middle: as there.
        depths, steps: blocks and solver steps, a number a level.
        attending: the levels with attention.
        block: a key of `BLOCKS`; by default "dynamic" where `steps` are given, else "res".
    """
    emb, last = 4 * widths[0], len(widths) - 1
    pixels = [(size / Integer(2) ** level) ** 2 for level in range(last + 1)]

    make = BLOCKS[block or ("res" if steps is None else "dynamic")]

    def filled(level: int, a: Number) -> Cost:
        return make(a, widths[level], pixels[level], emb, 1 if steps is None else steps[level])

    total = conv(WAVES, emb, 1, 1) + conv(emb, emb, 1, 1)  # the time's embedding
    total += conv(channels, widths[0], pixels[0]) + norm(widths[0]) + conv(widths[0], channels, pixels[0])
    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        total += filled(level, width).times(depth) + filled(level, 2 * width).times(depth)
        if level in attending and depth != 0:
            total += attention(width, pixels[level]).times(2)
        if level < last:
            coarser, there = widths[level + 1], pixels[level + 1]
            total += conv(4 * width, coarser, there, 1) + conv(coarser, width, there, 1)
    total += filled(last, widths[last]).times(middle)
    return total + (attention(widths[last], pixels[last]) if last in attending else Cost(0, 0))


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


def _networks() -> Part:
    """Two levels in symbols: quadratic in a common scale of the widths, FLOPs in the side, linear in the steps."""
    a, b, r, scale = symbols("w_0 w_1 r kappa", positive=True)
    whole, wider = (network((k * a, k * b), r, depths=(1, 1), steps=(S, S)) for k in (Integer(1), scale))
    flops = sympy.expand(whole.flops)
    identities = {
        "parameters don't depend on the image": whole.params.diff(r),
        "nor on the steps": whole.params.diff(S),
        "parameters are quadratic in the widths' scale": wider.params.diff(scale, 3),
        "FLOPs are, too": wider.flops.diff(scale, 3),
        "and quadratic in the side": flops.diff(r, 3),
        "and linear in the steps": flops.diff(S, 2),
    }
    return {"two levels, parameters": sympy.expand(whole.params), "two levels, FLOPs": flops}, identities
