"""The layouts of a search: every way to factor the ranks over mesh axes, every microbatch, every execution choice.

Structural choices (ZeRO stage, sequence parallelism, recompute policy) are few and listed; sizes are the rows of a
table. A choice that changes nothing is made once: ZeRO needs fsdp or ep > 1, sequence parallelism tp > 1, a ring
cp > 1, experts over more than ep tp or cp > 1, virtual stages, a pipeline schedule and a cut of the layers pp > 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel import Layout, LayoutError

AXES = ("tp", "pp", "cp", "ep", "fsdp", "dp")
DATA = ("ep", "fsdp", "dp")
"""Axes whose ranks share the batch."""

SIZES = (*AXES, "vpp", "mb", "global_batch")
"""Columns of a table of sizes, in the order in which a sampler chooses them."""

POLICIES = ("full", "selective", "none")
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "zero": (0, 1, 2, 3),
    "sp": (False, True),
    "ring": (False,),
    "experts": ("ep",),
    "recompute": POLICIES,
    "schedule": ("1f1b",),
    "cut": ("even",),
    "offload": (False,),
}
"""Values of structural choices that are tried where none is given, what changes nothing first."""

NEEDS = {"sp": ("tp",), "ring": ("cp",), "experts": ("tp", "cp"), "schedule": ("pp",), "cut": ("pp",)}
"""Structural choices that change nothing where all of some axes have one rank."""

CHUNK = 65_536
"""Layouts handed out in one array: enough that they have much in common, few enough to stay near the processor."""


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

    def table(self, experts: int = 1, layers: int = 1) -> Table:
        """Every layout of a program with so many experts and layers; raises LayoutError where the fixed keys leave
        none.
        """
        sizes = _factorizations(self.ranks, len(AXES))
        sizes = sizes[experts % sizes[:, AXES.index("ep")] == 0]
        found = {}
        for choices in product(*(self._options(key) for key in CHOICES)):
            structure = Layout(**dict(zip(CHOICES, choices, strict=True)))
            rows = self._rows(structure, sizes, layers)
            if len(rows):
                found[_name(structure)] = structure, rows[np.lexsort(rows.T[::-1])]
        if not found:
            fixed = ",".join(f"{key}={value}" for key, value in self.fixed.items())
            raise LayoutError(
                f"layout: got {fixed}, with which there is no layout of {self.ranks} ranks and global batch "
                f"{', '.join(map(str, self.global_batches))}, expected sizes that divide these"
                f"{f', and ep the {experts} experts' if 'ep' in self.fixed else ''}: fix other values"
            )
        return Table(found)

    def _options(self, key: str) -> tuple[Any, ...]:
        """Values of a structural choice; a given one stands beside what it is where it changes nothing."""
        if key == "recompute":
            return (self.fixed[key],) if key in self.fixed else self.policies
        if key == "offload":
            return (self.fixed.get(key, False),)
        return tuple(dict.fromkeys((CHOICES[key][0], self.fixed[key]))) if key in self.fixed else CHOICES[key]

    def _rows(self, structure: Layout, sizes: NDArray[np.float64], layers: int) -> NDArray[np.float64]:
        columns = dict(zip(AXES, sizes.T, strict=True))
        keep = np.ones(len(sizes), dtype=np.bool_)
        for axis in AXES:
            keep &= columns[axis] == self.fixed.get(axis, columns[axis])
        keep &= (columns["fsdp"] * columns["ep"] > 1) == (structure.zero > 0)
        for choice, axes in NEEDS.items():
            off = CHOICES[choice][0]
            chosen = getattr(structure, choice) != off
            matters = np.any([columns[axis] > 1 for axis in axes], axis=0)
            keep &= matters | (not chosen)
            if self.fixed.get(choice, off) != off:
                keep &= matters == chosen
        staged = self._staged(sizes[keep], structure, layers)
        return np.concatenate([self._microbatched(staged, batch) for batch in self.global_batches])

    def _staged(self, sizes: NDArray[np.float64], structure: Layout, layers: int) -> NDArray[np.float64]:
        """Rows of `sizes` with each number of virtual stages that the layers of a full stage can be cut into."""
        stages = sizes[:, AXES.index("pp")]
        blocks = [np.empty((0, len(AXES) + 1))]
        for pp in np.unique(stages):
            cut = pp > 1 and structure.schedule == CHOICES["schedule"][0]
            options = _divisors(math.ceil(layers / pp)) if cut else [1]
            if "vpp" in self.fixed:
                options = [vpp for vpp in options if vpp == self.fixed["vpp"] or pp == 1]
            rows = sizes[stages == pp]
            blocks += [np.column_stack([rows, np.full(len(rows), vpp)]) for vpp in options]
        return np.concatenate(blocks)

    def _microbatched(self, sizes: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
        """Rows of `sizes` with each microbatch size that divides their share of the batch (1 where nothing does)."""
        data = sizes[:, [AXES.index(axis) for axis in DATA]].prod(axis=1)
        blocks = [np.empty((0, len(SIZES)))]
        for ranks in np.unique(data):
            share, rest = divmod(batch, int(ranks))
            options = [1] if rest else _divisors(share)
            if "mb" in self.fixed:
                options = [mb for mb in options if mb == self.fixed["mb"]]
            rows = sizes[data == ranks]
            blocks += [np.column_stack([rows, np.full((len(rows), 2), (mb, batch))]) for mb in options]
        return np.concatenate(blocks)


@dataclass(frozen=True)
class Table:
    """Layouts by their structural choices: a layout that has these, and the sizes that go with it [layout, column]."""

    rows: Mapping[str, tuple[Layout, NDArray[np.float64]]]

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.rows.values())

    def chunks(self) -> Iterator[tuple[str, Layout]]:
        """Arrays of layouts with the name of their structural choices; those of one name follow in order."""
        for name, (structure, rows) in self.rows.items():
            for start in range(0, len(rows), CHUNK):
                yield name, _layouts(structure, rows[start : start + CHUNK])

    def where(self, masks: Mapping[str, NDArray[np.bool_]]) -> Table:
        """The layouts for which a mask is true, one mask of all rows for each name."""
        kept = {name: (structure, rows[masks[name]]) for name, (structure, rows) in self.rows.items()}
        return Table({name: (structure, rows) for name, (structure, rows) in kept.items() if len(rows)})

    def decode(self, choices: str, quantiles: Mapping[str, float]) -> Layout:
        """The layout at a point of the unit cube: each size in turn is the given quantile of those still possible.

        Every point is a layout, and points drawn evenly are layouts drawn evenly.
        """
        structure, rows = self.rows[choices]
        for column, name in enumerate(SIZES):
            row = min(int(quantiles[name] * len(rows)), len(rows) - 1)
            rows = rows[rows[:, column] == rows[row, column]]
        return _layouts(structure, rows).at(0)

    def encode(self, layout: Layout) -> tuple[str, dict[str, float]]:
        """A point that `decode` turns into `layout`."""
        choices = _name(layout)
        _, rows = self.rows[choices]
        quantiles = {}
        for column, name in enumerate(SIZES):
            matching = np.flatnonzero(rows[:, column] == getattr(layout, name))
            quantiles[name] = float((matching[0] + matching[-1] + 1) / (2 * len(rows)))
            rows = rows[matching]
        return choices, quantiles


def _name(layout: Layout) -> str:
    """The structural choices of a layout."""
    ring = ",ring=1" if layout.ring else ""
    experts = f",experts={layout.experts}" if layout.experts != CHOICES["experts"][0] else ""
    schedule = f",schedule={layout.schedule}" if layout.schedule != CHOICES["schedule"][0] else ""
    cut = f",cut={layout.cut}" if layout.cut != CHOICES["cut"][0] else ""
    offload = ",offload=1" if layout.offload else ""
    choices = f"zero={layout.zero},sp={int(layout.sp)}{ring}{experts},recompute={layout.recompute}"
    return f"{choices}{schedule}{cut}{offload}"


def _layouts(structure: Layout, rows: NDArray[np.float64]) -> Layout:
    """Rows of a table as layouts."""
    sizes: dict[str, Any] = dict(zip(SIZES, np.ascontiguousarray(rows.T), strict=True))
    return replace(structure, **sizes)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
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
