"""What collectives over several mesh axes cost on a machine, the axes laid on its fabric innermost first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from perfmodel.collective import AxisCost, axis_cost
from perfmodel.machine import Machine
from perfmodel.rows import Table
from perfmodel.work import MESH, Number


class Network:
    """Costs of collectives over sets of mesh axes, each computed once per layout array."""

    def __init__(self, sizes: Mapping[str, Number], machine: Machine) -> None:
        self._machine = machine
        self._sizes = sizes
        self._known: dict[tuple[str, tuple[str, ...]], AxisCost] = {}
        self._along: dict[tuple[str, tuple[str, ...]], AxisCost] = {}

    def cost(self, kind: str, axes: tuple[str, ...]) -> AxisCost:
        """Cost of a collective over `axes` (innermost first)."""
        if (kind, axes) not in self._known:
            self._known[kind, axes] = self._over(kind, _runs(axes))
        return self._known[kind, axes]

    def _over(self, kind: str, runs: Sequence[tuple[str, ...]]) -> AxisCost:
        """Axes that are not neighbours communicate one after the other, the inner ones reducing the bytes."""
        total: AxisCost | None = None
        inner: Number = 1.0
        for run in runs:
            cost = self._run(kind, run)
            cost = cost if kind == "all_to_all" or run is runs[0] else cost.shrunk(inner)
            total = cost if total is None else total + cost
            inner = inner * self._size(run)
        assert total is not None
        return total

    def _run(self, kind: str, run: tuple[str, ...]) -> AxisCost:
        """Cost along neighbouring axes."""
        if (kind, run) not in self._along:
            table = Table({"size": self._size(run), "stride": self._size(MESH[: MESH.index(run[0])])})
            kinds = table.kinds(("size", "stride"))
            cost = axis_cost(kind, kinds.sizes["size"], kinds.sizes["stride"], self._machine)
            self._along[kind, run] = cost.mapped(kinds.spread)
        return self._along[kind, run]

    def _size(self, axes: Sequence[str]) -> Number:
        return math.prod(self._sizes[axis] for axis in axes)


def _runs(axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Neighbouring mesh axes joined: together they are one larger axis."""
    runs: list[tuple[str, ...]] = []
    for axis in axes:
        if runs and MESH.index(runs[-1][-1]) + 1 == MESH.index(axis):
            runs[-1] = (*runs[-1], axis)
        else:
            runs.append((axis,))
    return runs
