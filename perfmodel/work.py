"""Amounts of work as monomials in the sizes that a layout chooses. Work adds; time does not.

Every local size is (a number at traced sizes) x (resized batch sizes) / (mesh-axis sizes): one coefficient and one
exponent per symbol. Structure is analysed once on symbols; numbers, or arrays of a million layouts, come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
MICROBATCH = "microbatch"
RESIZABLE = ("batch", MICROBATCH)
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
        """The term multiplied by each symbol to `power`."""
        exponents = list(self.exponents)
        for symbol in symbols:
            exponents[SYMBOLS.index(symbol)] += power
        return Term(self.coefficient, tuple(exponents))


def resized(term: Term, name: str | None, traced: int) -> Term:
    """Replace the traced size of a resizable factor by its symbol; other factors leave the term as it is."""
    if name not in RESIZABLE:
        return term
    return Term(term.coefficient / traced, term.exponents).times((name,))


Amount: TypeAlias = Mapping[Exponents, float]
"""A sum of terms: coefficient by exponents."""


def amount(terms: Iterable[Term]) -> dict[Exponents, float]:
    """Add terms up."""
    total: dict[Exponents, float] = {}
    for term in terms:
        total[term.exponents] = total.get(term.exponents, 0.0) + term.coefficient
    return total


def plus(a: Amount, b: Amount) -> dict[Exponents, float]:
    """The sum of two amounts."""
    return amount(Term(c, e) for each in (a, b) for e, c in each.items())


class Evaluator:
    """Turns terms and amounts into numbers for given sizes, computing each distinct monomial once.

    Products are taken factor by factor and sums term by term, so that a scalar and an element of an array go through
    the same operations in the same order and agree to the last bit.
    """

    def __init__(self, sizes: Mapping[str, Number]) -> None:
        self._sizes = [sizes[symbol] for symbol in SYMBOLS]
        self._monomials: dict[Exponents, Number] = {ONE: 1.0}

    def monomial(self, exponents: Exponents) -> Number:
        """Product of symbol ** exponent."""
        if exponents not in self._monomials:
            result: Number = 1.0
            for size, exponent in zip(self._sizes, exponents, strict=True):
                for _ in range(abs(exponent)):
                    result = result * size if exponent > 0 else result / size
            self._monomials[exponents] = result
        return self._monomials[exponents]

    def term(self, term: Term) -> Number:
        """The number, or array, that a term stands for."""
        return term.coefficient * self.monomial(term.exponents)

    def amount(self, terms: Amount) -> Number:
        """The sum of an amount's terms."""
        total: Number = 0.0
        for exponents, coefficient in terms.items():
            total = total + coefficient * self.monomial(exponents)
        return total
