"""Kernels or collectives in groups of those that depend on the same sizes, so that each group is priced on few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from perfmodel.work import Amount, growth, symbols_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alike(Generic[T]):
    """Kernels or collectives that depend on the same sizes, more or less, and the symbols of these."""

    items: Sequence[T]
    symbols: Sequence[str]


def grouped(items: Iterable[tuple[T, str, Sequence[Amount]]]) -> list[Alike[T]]:
    """Items by a label and by how the amounts that they depend on grow with the batch."""
    groups: dict[object, list[tuple[T, Sequence[Amount]]]] = {}
    for item, label, amounts in items:
        key = label, frozenset(growth(exponents) for terms in amounts for exponents in terms)
        groups.setdefault(key, []).append((item, amounts))
    return [
        Alike([item for item, _ in group], symbols_of(terms for _, amounts in group for terms in amounts))
        for group in groups.values()
    ]
