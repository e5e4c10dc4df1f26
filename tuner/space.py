"""The layouts of a search: every way to factor the ranks over mesh axes, every microbatch, every execution choice.

Structural choices (ZeRO stage, sequence parallelism, recompute policy) are few and listed; sizes are the rows of a
table. A choice that changes nothing is made once: ZeRO needs fsdp > 1 and sequence parallelism tp > 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel import Layout

AXES = ("tp", "pp", "cp", "fsdp", "dp")
SIZES = (*AXES, "mb", "global_batch")
"""Columns of a table of sizes, in the order in which a sampler chooses them."""

POLICIES = ("full", "selective", "none")
CHOICES: Mapping[str, tuple[Any, ...]] = {"zero": (0, 1, 2, 3), "sp": (False, True), "recompute": POLICIES}


@dataclass(frozen=True, kw_only=True)
class Space:
    """Layouts of `ranks` ranks for each of `global_batches` sequences per step.

    fixed:    layout keys that are given (`tp`, `mb`, `zero`, ...) and their values
    policies: recompute policies that the program can be traced with
    """

    ranks: int
    global_batches: tuple[int, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    policies: tuple[str, ...] = POLICIES

    @cached_property
    def tables(self) -> Mapping[str, tuple[Layout, NDArray[np.float64]]]:
        """By name, each combination of structural choices that has layouts, and their sizes [layout, column]."""
        choices = {**CHOICES, "recompute": self.policies}
        options = [(self.fixed[key],) if key in self.fixed else values for key, values in choices.items()]
        found = {}
        for values in product(*options):
            structure = Layout(**dict(zip(choices, values, strict=True)))
            rows = self._rows(structure)
            if len(rows):
                name = f"zero={structure.zero},sp={int(structure.sp)},recompute={structure.recompute}"
                found[name] = structure, rows[np.lexsort(rows.T[::-1])]
        return found

    def _rows(self, structure: Layout) -> NDArray[np.float64]:
        sizes = _factorizations(self.ranks, len(AXES))
        columns = dict(zip(AXES, sizes.T, strict=True))
        keep = np.ones(len(sizes), dtype=np.bool_)
        for axis in AXES:
            keep &= columns[axis] == self.fixed.get(axis, columns[axis])
        if "zero" not in self.fixed:
            keep &= (columns["fsdp"] > 1) == (structure.zero > 0)
        if "sp" not in self.fixed:
            keep &= (columns["tp"] > 1) | (not structure.sp)
        return np.concatenate([self._microbatched(sizes[keep], batch) for batch in self.global_batches])

    def _microbatched(self, sizes: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
        """Rows of `sizes` with each microbatch size that divides their share of the batch (1 where nothing does)."""
        data = sizes[:, AXES.index("fsdp")] * sizes[:, AXES.index("dp")]
        blocks = [np.empty((0, len(SIZES)))]
        for ranks in np.unique(data):
            share = batch / ranks
            options = _divisors(int(share)) if share == int(share) else [1]
            options = [self.fixed["mb"]] if "mb" in self.fixed else options
            rows = sizes[data == ranks]
            blocks += [np.column_stack([rows, np.full((len(rows), 2), (mb, batch))]) for mb in options]
        return np.concatenate(blocks)

    def decode(self, choices: str, quantiles: Mapping[str, float]) -> Layout:
        """The layout at a point of the unit cube: each size in turn is the given quantile of those still possible.

        Every point is a layout, and points drawn evenly are layouts drawn evenly.
        """
        structure, rows = self.tables[choices]
        for column, name in enumerate(SIZES):
            row = min(int(quantiles[name] * len(rows)), len(rows) - 1)
            rows = rows[rows[:, column] == rows[row, column]]
        return layouts_of(structure, rows).at(0)

    def encode(self, layout: Layout) -> tuple[str, dict[str, float]]:
        """A point that `decode` turns into `layout`."""
        choices = f"zero={layout.zero},sp={int(layout.sp)},recompute={layout.recompute}"
        _, rows = self.tables[choices]
        quantiles = {}
        for column, name in enumerate(SIZES):
            matching = np.flatnonzero(rows[:, column] == getattr(layout, name))
            quantiles[name] = float((matching[0] + matching[-1] + 1) / (2 * len(rows)))
            rows = rows[matching]
        return choices, quantiles


def layouts_of(structure: Layout, rows: NDArray[np.float64]) -> Layout:
    """Rows of a table as layouts."""
    sizes: dict[str, Any] = dict(zip(SIZES, rows.T, strict=True))
    return replace(structure, **sizes)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _factorizations(n: int, parts: int) -> NDArray[np.float64]:
    """Every ordered way to write n as a product of `parts` whole numbers [way, part]."""
    rows = np.array([[n]])
    for _ in range(parts - 1):
        last = rows[:, -1]
        blocks = []
        for d in _divisors(n):
            fits = last % d == 0
            blocks.append(np.column_stack([rows[fits, :-1], np.full(np.count_nonzero(fits), d), last[fits] // d]))
        rows = np.concatenate(blocks)
    return rows.astype(np.float64)
