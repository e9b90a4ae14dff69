"""The book's derivations, by SymPy: each ends in equalities that simplify to 0 and in numbers that the library uses.

`DERIVATIONS["posterior"]()` derives; its module is imported then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

from .derivation import Derivation

NAMES = (
    *("forward", "posterior", "bound", "targets", "flow", "ddim", "euler_maruyama"),  # diffusion, on the clock t
    *("second_order", "leapfrog", "adjoint", "lipschitz"),  # a dynamic block's depth, on the clock tau
    *("blocks", "costs"),  # what it is paid with
)


def _derive(name: str) -> Derivation:
    derivation: Derivation = import_module(f".{name}", __name__).derive()
    return derivation


DERIVATIONS: dict[str, Callable[[], Derivation]] = {name: partial(_derive, name) for name in NAMES}
"""A derivation's name, which is its module's, to the function that makes it, in the book's order."""

__all__ = ["DERIVATIONS", "Derivation"]
