"""A derivation: what is shown, the results on the way there, and equalities that anyone can check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy

Part = tuple[dict[str, sympy.Basic], dict[str, sympy.Expr]]
"""A piece of a derivation: its steps and its identities."""


@dataclass(frozen=True)
class Derivation:
    """A statement with its steps, and the equalities that prove it.

    Attributes:
        title: a few words, for a heading.
        statement: what is shown, in one sentence.
        steps: named results in the order of the argument, expressions or equations to display.
        identities: named expressions, left side minus right side; each must simplify to 0.
    """

    title: str
    statement: str
    steps: dict[str, sympy.Basic]
    identities: dict[str, sympy.Expr]

    @classmethod
    def of(cls, title: str, statement: str, *parts: Part) -> Derivation:
        """A derivation out of its pieces, in order.

        Raises:
            ValueError: if two steps, or two identities, have one name.
        """
        steps, identities = ([item for part in parts for item in part[i].items()] for i in (0, 1))
        for named in (steps, identities):
            if len(dict(named)) != len(named):
                raise ValueError(f"{title!r} uses a name twice among {', '.join(name for name, _ in named)}")
        return cls(title, statement, dict(steps), dict(identities))

    def check(self) -> None:
        """Simplify every identity.

        Raises:
            ValueError: naming the first identity that does not vanish, or if there is none to check.
        """
        if not self.identities:
            raise ValueError(f"{self.title!r} has no identity to check")
        for name, difference in self.identities.items():
            left = sympy.simplify(difference)
            if left != 0:
                raise ValueError(f"{self.title!r}: the identity {name!r} does not vanish, what is left is {left}")

    def function(self, step: str, *names: str) -> Callable[..., Any]:
        """A step as a function of numbers: an equation's right side, a series' terms, a matrix's rows.

        Args:
            step: a key of `steps`.
            names: its symbols' names, in the order in which the function is to take their values.

        Raises:
            ValueError: on an unknown step, or if the names leave out a symbol that the step has.
        """
        if step not in self.steps:
            raise ValueError(f"unknown step {step!r}; choose from {', '.join(self.steps)}")
        expression = self.steps[step]
        if isinstance(expression, sympy.Equality):
            expression = expression.rhs
        expression = expression.removeO() if isinstance(expression, sympy.Expr) else expression
        known = {symbol.name: symbol for symbol in expression.free_symbols}
        if not set(known) <= set(names):
            raise ValueError(f"{step!r} is a function of {', '.join(sorted(known))}, got {', '.join(names)}")
        body = expression.tolist() if isinstance(expression, sympy.MatrixBase) else expression
        return sympy.lambdify([known.get(name, sympy.Symbol(name)) for name in names], body, modules="math")


def entries(matrix: sympy.Matrix) -> sympy.Expr:
    """A matrix in one expression, each entry beside symbols of its own: it vanishes if and only if all entries do."""
    row, column = (sympy.Matrix(sympy.symbols(f"{name}_1:{n + 1}")) for name, n in zip("rc", matrix.shape, strict=True))
    return (row.T * matrix * column)[0]
