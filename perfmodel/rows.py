"""Rows of a table that are alike in some columns: what depends on these alone is worked out for one row of each kind.

A table of layouts repeats itself: ten thousand rows hold a hundred pairs of sizes of two axes. One layout repeats
nothing, and an open grid says by its shape what depends on what, so these are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.work import Amount, Evaluator, Floats, Growth, Number, by_growth

Codes: TypeAlias = NDArray[np.intp]

DIRECT = 2**20
"""Whole numbers below are counted in an array of that size at most; others are sorted, which takes no more memory than
there are rows.
"""


@dataclass(frozen=True, slots=True)
class Numbering:
    """Kinds of rows numbered from 0: the number of each row, and a row of each number."""

    of_row: Codes
    row_of: Codes


class Kinds:
    """What is known of each kind of row; without a numbering every row is its own kind.

    sizes: the sizes of each kind, as far as kinds differ in them
    """

    def __init__(self, sizes: Mapping[str, Number], numbering: Numbering | None = None) -> None:
        self.sizes = sizes
        self._numbering = numbering

    @cached_property
    def evaluate(self) -> Evaluator:
        """Turns terms into numbers of each kind."""
        return Evaluator(self.sizes)

    def spread(self, number: Any) -> Any:
        """The number of each row, given that of each kind."""
        if self._numbering is None or not np.ndim(number):
            return number
        return np.take(number, self._numbering.of_row)


class Table:
    """Sizes by symbol; the arrays among them are the columns of a table where they are equally long."""

    def __init__(self, sizes: Mapping[str, Number]) -> None:
        self._sizes = sizes
        arrays = {name: size for name, size in sizes.items() if isinstance(size, np.ndarray) and size.ndim}
        lengths = {size.shape for size in arrays.values()}
        self._columns = arrays if len(lengths) == 1 and all(size.ndim == 1 for size in arrays.values()) else {}
        self._numberings: dict[tuple[str, ...], Numbering] = {}
        self._kinds: dict[tuple[str, ...], Kinds] = {}

    def kinds(self, names: Iterable[str]) -> Kinds:
        """Rows told apart by the columns `names` only."""
        columns = tuple(sorted(set(names) & self._columns.keys()))
        if columns not in self._kinds:
            self._kinds[columns] = self._told_apart(columns)
        return self._kinds[columns]

    def _told_apart(self, columns: tuple[str, ...]) -> Kinds:
        if not columns:
            return Kinds(self._sizes)
        numbering = self._numbering(columns)
        if 2 * len(numbering.row_of) > len(numbering.of_row):  # too few are alike to be worth it
            return self.kinds(())
        few = {name: self._columns[name][numbering.row_of] for name in columns}
        return Kinds({**self._sizes, **few}, numbering)

    def _numbering(self, columns: tuple[str, ...]) -> Numbering:
        if columns not in self._numberings:
            *others, last = columns
            numbering = number(self._columns[last]) if not others else self._joined(tuple(others), last)
            self._numberings[columns] = numbering
        return self._numberings[columns]

    def _joined(self, others: tuple[str, ...], last: str) -> Numbering:
        inner, outer = self._numbering(others), self._numbering((last,))
        if len(outer.row_of) == 1:
            return inner
        codes = inner.of_row * len(outer.row_of) + outer.of_row
        pairs = len(inner.row_of) * len(outer.row_of)
        return _count(codes, pairs) if pairs <= DIRECT else _sort(codes)


class Parts:
    """Turns amounts into numbers, those of weights and of activations apart: they repeat in other rows of a table.

    symbols: what the terms of each growth depend on
    """

    def __init__(self, table: Table, symbols: Mapping[Growth, Sequence[str]]) -> None:
        self._kinds = {growth: table.kinds(names) for growth, names in symbols.items()}

    def amount(self, terms: Amount) -> Number:
        """The sum of an amount's terms."""
        total: Number = 0.0
        for growth, part in by_growth(terms).items():
            kinds = self._kinds[growth]
            total = total + kinds.spread(kinds.evaluate.amount(part))
        return total


def number(column: Floats) -> Numbering:
    """Distinct values of an array, numbered."""
    if column.min() >= 0.0 and column.max() < DIRECT:
        whole = column.astype(np.intp)
        if np.array_equal(whole, column):
            return _count(whole, int(column.max()) + 1)
    return _sort(column)


def _sort(column: Floats | Codes) -> Numbering:
    """Number distinct values of any size."""
    _, rows, kinds = np.unique(column, return_index=True, return_inverse=True)
    return Numbering(kinds, rows)


def _count(codes: Codes, bound: int) -> Numbering:
    """Number the codes that occur among those below `bound`."""
    row_of = np.full(bound, -1, dtype=np.intp)
    row_of[codes] = np.arange(len(codes))
    occur = np.flatnonzero(row_of >= 0)
    number_of = np.empty(bound, dtype=np.intp)
    number_of[occur] = np.arange(len(occur))
    return Numbering(number_of[codes], row_of[occur])
