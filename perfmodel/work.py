"""Amounts of work as monomials in the sizes that a layout chooses. Work adds; time does not.

Every local size is (a number at traced sizes) x (resized batch sizes) / (mesh-axis sizes): one coefficient and one
exponent per symbol. Structure is analysed once on symbols; numbers, or arrays of a million layouts, come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Number: TypeAlias = float | Floats

# Mesh axes as the assignment sees them: tp is two axes, one for key/value heads and one for the query heads per
# key/value head, so that tp may exceed the number of key/value heads (the second then replicates keys and values).
TP = ("tp_kv", "tp_q")
MESH = (*TP, "cp", "fsdp", "dp", "pp")
RESIZABLE = ("batch", "microbatch")
SYMBOLS = (*MESH, *RESIZABLE)

Exponents: TypeAlias = tuple[int, ...]
ONE: Exponents = (0,) * len(SYMBOLS)


@dataclass(frozen=True, slots=True)
class Term:
    """`coefficient` x product of symbol ** exponent."""

    coefficient: float
    exponents: Exponents = ONE

    def __mul__(self, other: Term) -> Term:
        exponents = tuple(a + b for a, b in zip(self.exponents, other.exponents, strict=True))
        return Term(self.coefficient * other.coefficient, exponents)

    def times(self, symbols: Iterable[str], power: int = 1) -> Term:
        """This term multiplied by each symbol to `power`."""
        exponents = list(self.exponents)
        for symbol in symbols:
            exponents[SYMBOLS.index(symbol)] += power
        return Term(self.coefficient, tuple(exponents))

    def value(self, sizes: Mapping[str, Number]) -> Number:
        """The number, or array, that the term stands for."""
        result: Number = self.coefficient
        for symbol, exponent in zip(SYMBOLS, self.exponents, strict=True):
            if exponent:
                result = result * sizes[symbol] ** float(exponent)
        return result


Amount: TypeAlias = Mapping[Exponents, float]
"""A sum of terms: coefficient by exponents."""


def amount(terms: Iterable[Term]) -> dict[Exponents, float]:
    """Add terms up."""
    total: dict[Exponents, float] = {}
    for term in terms:
        total[term.exponents] = total.get(term.exponents, 0.0) + term.coefficient
    return total


class Basis:
    """The distinct monomials of a graph, so that many amounts are evaluated by one matrix product.

    Amounts are rows of coefficients; `powers(sizes)` gives the value of each monomial per layout.
    """

    def __init__(self) -> None:
        self._columns: dict[Exponents, int] = {}

    def column(self, exponents: Exponents) -> int:
        """Position of a monomial; a new one is added."""
        return self._columns.setdefault(exponents, len(self._columns))

    def add(self, amounts: Iterable[Amount]) -> None:
        """Make room for every monomial of `amounts`."""
        for each in amounts:
            for exponents in each:
                self.column(exponents)

    def rows(self, amounts: Sequence[Amount]) -> Floats:
        """Coefficients [amount, monomial]; every monomial must have been added before."""
        matrix = np.zeros((len(amounts), len(self._columns)))
        for i, each in enumerate(amounts):
            for exponents, coefficient in each.items():
                matrix[i, self._columns[exponents]] += coefficient
        return matrix

    def powers(self, sizes: Mapping[str, Number]) -> Floats:
        """Value of each monomial [monomial, layout]; scalars count as one layout."""
        columns = [np.atleast_1d(np.asarray(Term(1.0, e).value(sizes), dtype=np.float64)) for e in self._columns]
        count = max((c.size for c in columns), default=1)
        return np.stack([np.broadcast_to(c, (count,)) for c in columns]) if columns else np.ones((0, count))
