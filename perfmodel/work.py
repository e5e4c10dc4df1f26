"""Amounts of work as monomials in the sizes that a layout chooses. Work adds; time does not.

Every local size is (a number at traced sizes) x (resized batch sizes) / (mesh-axis sizes): one coefficient and one
exponent per symbol. Structure is analysed once on symbols; numbers, or arrays of a million layouts, come last.

The batch of a microbatch is `mb` sequences for each rank that shares it, so what a rank does of it depends on `mb` and
not on how many share: in an open grid of layouts (each axis an array along a dim of its own) almost every amount is
an array along few dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Number: TypeAlias = float | Floats
T = TypeVar("T")

# Mesh axes as the assignment sees them: tp is two axes, one for key/value heads and one for the query heads per
# key/value head, so that tp may exceed the number of key/value heads (the second then replicates keys and values).
TP = ("tp_kv", "tp_q")
MESH = (*TP, "cp", "ep", "fsdp", "dp", "pp")
DATA = ("ep", "fsdp", "dp")
"""Mesh axes whose ranks share the batch."""

PER_RANK, MICROBATCH = "mb", "microbatch"
RESIZABLE: Mapping[str, tuple[str, ...]] = {"batch": (*DATA, PER_RANK), MICROBATCH: (MICROBATCH,)}
"""Axis names whose size is the layout's to choose: the symbols whose product it is."""

BATCHED = (PER_RANK, MICROBATCH)
VIRTUAL = "vpp"
"""Chunks of layers on each pipeline stage."""

SYMBOLS = (*MESH, VIRTUAL, *BATCHED)

Exponents: TypeAlias = tuple[int, ...]
Growth: TypeAlias = tuple[bool, ...]
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
    """Replace the traced size of a resizable factor by its symbols; other factors leave the term as it is."""
    if name is None or name not in RESIZABLE:
        return term
    return Term(term.coefficient / traced, term.exponents).times(RESIZABLE[name])


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


@cache
def growth(exponents: Exponents) -> Growth:
    """Whether a monomial grows with each of `BATCHED`."""
    return tuple(map(bool, exponents[-len(BATCHED) :]))


def by_growth(terms: Amount) -> dict[Growth, dict[Exponents, float]]:
    """An amount's terms of weights and of activations, apart: they depend on other sizes."""
    parts: dict[Growth, dict[Exponents, float]] = {}
    for exponents, coefficient in terms.items():
        parts.setdefault(growth(exponents), {})[exponents] = coefficient
    return parts


def symbols_of(amounts: Iterable[Amount]) -> list[str]:
    """Symbols that amounts depend on, in the order of `SYMBOLS`."""
    used = {i for terms in amounts for exponents in terms for i, exponent in enumerate(exponents) if exponent}
    return [SYMBOLS[i] for i in sorted(used)]


class Evaluator:
    """Turns terms and amounts into numbers for given sizes, computing each distinct monomial once.

    Products are taken factor by factor and sums term by term, so that a scalar and an element of an array go through
    the same operations in the same order and agree to the last bit.
    """

    def __init__(self, sizes: Mapping[str, Number]) -> None:
        self.sizes = {symbol: sizes[symbol] for symbol in SYMBOLS}
        self._monomials: dict[Exponents, Number] = {ONE: 1.0}

    def monomial(self, exponents: Exponents) -> Number:
        """Product of symbol ** exponent."""
        if exponents not in self._monomials:
            result: Number = 1.0
            for size, exponent in zip(self.sizes.values(), exponents, strict=True):
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


def largest(numbers: Sequence[Number]) -> Any:
    """Position of the largest number, the first of equal ones."""
    return np.argmax(np.stack(np.broadcast_arrays(*numbers)), axis=0)


class Late(Mapping[str, Number]):
    """Numbers by name, each worked out when it is asked for: a million layouts need few of them."""

    def __init__(self, names: Sequence[str], number: Callable[[str], Number]) -> None:
        self._names = names
        self._number = number

    def __getitem__(self, name: str) -> Number:
        if name not in self._names:
            raise KeyError(name)
        return self._number(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Again(Iterable[T]):
    """Items that are worked out each time that they are gone through."""

    def __init__(self, items: Callable[[], Iterator[T]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[T]:
        return self._items()


class Identity(Generic[T]):
    """Something frozen as a cache key: comparing it field by field would cost more than what is cached."""

    def __init__(self, it: T) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.it is other.it
