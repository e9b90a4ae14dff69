r"""What a denoiser costs: parameters and FLOPs as formulas of widths, blocks, steps and image size.

$$\text{network} = \text{embedding} + \text{first and last convolution} + \sum_{\text{levels}} (\text{blocks} +
\text{attention} + \text{resampling}) + \text{middle}.$$
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Integer, symbols

from .blocks import BLOCKS, Cost, Number, S, attention, conv, norm
from .derivation import Derivation, Part

WAVES = 64  # sines and cosines of the time embedding


def derive() -> Derivation:
    """Two levels in symbols, and how their sums grow."""
    return Derivation.of(
        "The price of a denoiser",
        "Parameters and FLOPs are quadratic in the widths, FLOPs in the image's side too and linear in the steps, "
        "of which parameters know nothing.",
        _networks(),
    )


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
