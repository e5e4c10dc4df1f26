"""How a mesh axis lies on the fabric, and what a collective over it costs.

The fabric is a list of tiers, innermost first; a torus tier has several dims. An axis of `size` ranks whose
neighbours are `stride` ranks apart spreads over the dims in order: dim k, which ends after reach_k ranks, takes
clip(reach_k / stride, 1, size) ranks in all. A collective runs dim by dim, the inner ones shrinking the bytes that
the outer ones carry; its phases are pipelined with a given depth. All groups of an axis communicate at once, so a
group that covers part of a torus dim has neither the links between groups nor those that it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfmodel.formulas import collectives as formulas
from perfmodel.work import Number

if TYPE_CHECKING:
    from perfmodel.machine import Machine

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute")
STEPS = {"ring": formulas.ring_steps, "recursive": formulas.recursive_steps}


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One way of running a collective on a tier: what a step costs, and the share of bandwidth reached by kind."""

    name: str
    latency: float
    efficiency: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of the fabric.

    kind:       "torus" (each dim a ring, both directions usable) or "switch" (one dim)
    extents:    ranks or inner tiers along each dim; 0 in the outermost switch means any number
    bandwidth:  of one rank along each dim, in one direction of all its links together [B/s]
    relay:      bandwidth of one rank when the tier passes on what an outer tier brings in, where that is more than
                it reaches on its own [B/s]
    latency:    of a permute [s]
    """

    name: str
    kind: str
    extents: tuple[int, ...]
    bandwidth: tuple[float, ...]
    relay: float
    latency: float
    algorithms: tuple[Algorithm, ...]


@dataclass(frozen=True, slots=True)
class AxisCost:
    """Seconds of a collective over an axis as a function of its bytes: the faster of the runtime's algorithms.

    Each alternative is (latency [s], seconds per byte [s/B]).
    """

    alternatives: tuple[tuple[Number, Number], ...]

    def __add__(self, other: AxisCost) -> AxisCost:
        """One collective after another, both by the same algorithm."""
        count = max(len(self.alternatives), len(other.alternatives))
        mine, theirs = (cost.alternatives * (count // len(cost.alternatives)) for cost in (self, other))
        return AxisCost(tuple((a[0] + b[0], a[1] + b[1]) for a, b in zip(mine, theirs, strict=True)))

    def shrunk(self, factor: Number) -> AxisCost:
        """The same collective on 1/factor of the bytes."""
        return AxisCost(tuple((latency, per_byte / factor) for latency, per_byte in self.alternatives))

    def mapped(self, change: Callable[[Number], Number]) -> AxisCost:
        """The same collective, its numbers passed through a function."""
        return AxisCost(tuple((change(latency), change(per_byte)) for latency, per_byte in self.alternatives))

    def seconds(self, size: Number) -> Number:
        """Time for `size` bytes [s]."""
        (latency, per_byte), *others = self.alternatives
        best = latency + size * per_byte
        for latency, per_byte in others:
            best = np.minimum(best, latency + size * per_byte)
        return best


def split_group(size: Number, stride: Number, tiers: Sequence[Tier]) -> list[list[Number]]:
    """Ranks of a group along each dim of each tier; their product is `size` [1]."""
    reach, before = 1.0, 1.0 * size / size
    parts: list[list[Number]] = []
    for tier in tiers:
        row: list[Number] = []
        for extent in tier.extents:
            reach = reach * extent if extent else np.inf
            here = np.clip(reach / stride, 1.0, size)
            row.append(here / before)
            before = here
        parts.append(row)
    return parts


def hops(stride: Number, tiers: Sequence[Tier]) -> list[list[Number]]:
    """Places along each dim of each tier from a rank of a group to the next, where the group spans the dim [1]."""
    reach: Number = 1.0
    apart: list[list[Number]] = []
    for tier in tiers:
        row: list[Number] = []
        for extent in tier.extents:
            row.append(np.maximum(stride / reach, 1.0))
            reach = reach * extent if extent else np.inf
        apart.append(row)
    return apart


def axis_cost(kind: str, size: Number, stride: Number, machine: Machine) -> AxisCost:
    """Cost of a collective over a mesh axis; `size` and `stride` in ranks, scalars or arrays."""
    size, stride = np.asarray(size, dtype=np.float64), np.asarray(stride, dtype=np.float64)
    dims = _dims(size, stride, machine.tiers)
    if kind == "permute":
        return AxisCost((_permute(dims, machine.tiers),))
    if kind == "all_reduce":
        halves = [AxisCost(_alternatives(half, dims, machine)) for half in ("reduce_scatter", "all_gather")]
        return halves[0] + halves[1]
    return AxisCost(_alternatives(kind, dims, machine))


def collective_seconds(kind: str, bytes: Number, size: Number, stride: Number, machine: Machine) -> Number:
    """Time of one collective [s]; all arguments broadcast."""
    return axis_cost(kind, size, stride, machine).seconds(bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dim:
    """A group along one dim: ranks, places from one to the next, the dim's ranks and bandwidth."""

    ranks: Number
    apart: Number
    extent: int
    bandwidth: float


def _dims(size: Number, stride: Number, tiers: Sequence[Tier]) -> list[list[_Dim]]:
    rows = zip(tiers, split_group(size, stride, tiers), hops(stride, tiers), strict=True)
    return [
        [
            _Dim(ranks=n, apart=s, extent=k, bandwidth=b)
            for n, s, k, b in zip(parts, apart, tier.extents, tier.bandwidth, strict=True)
        ]
        for tier, parts, apart in rows
    ]


def _alternatives(kind: str, dims: Sequence[Sequence[_Dim]], machine: Machine) -> tuple[tuple[Number, Number], ...]:
    count = max(len(tier.algorithms) for tier in machine.tiers)
    return tuple(_alternative(kind, i, dims, machine) for i in range(count))


def _alternative(kind: str, choice: int, dims: Sequence[Sequence[_Dim]], machine: Machine) -> tuple[Number, Number]:
    """(latency, seconds per byte) when every tier runs its `choice`-th algorithm (or its last)."""
    latency: Number = 0.0
    total: Number = 0.0
    longest: Number = 0.0
    inner: Number = 1.0
    outside = _outside(dims)
    for tier, row, beyond in zip(machine.tiers, dims, outside, strict=True):
        algorithm = tier.algorithms[min(choice, len(tier.algorithms) - 1)]
        latency = latency + algorithm.latency * sum(STEPS[algorithm.name](dim.ranks) for dim in row)
        phase = _wire(kind, row, tier, algorithm.efficiency[kind], beyond)
        phase = phase if kind == "all_to_all" else phase / inner
        total, longest = total + phase, np.maximum(longest, phase)
        for dim in row:
            inner = inner * dim.ranks
    return latency, longest + (total - longest) / machine.pipeline_depth


def _outside(dims: Sequence[Sequence[_Dim]]) -> list[Number]:
    """How many times the group repeats beyond each tier."""
    beyond: list[Number] = []
    product: Number = 1.0
    for row in reversed(dims):
        beyond.append(product)
        for dim in row:
            product = product * dim.ranks
    return beyond[::-1]


def _wire(kind: str, row: Sequence[_Dim], tier: Tier, efficiency: float, beyond: Number) -> Number:
    """Seconds per byte of one tier. A torus uses the links of all the dims that the group spans; inside a larger
    group a tier may relay faster than it runs collectives of its own.
    """
    lanes = [_lane(dim, tier) for dim in row]
    if kind == "all_to_all" and tier.kind == "torus":
        slowest: Number = 0.0
        for dim, lane in zip(row, lanes, strict=True):
            slowest = np.maximum(slowest, formulas.all_to_all_ring_seconds_per_byte(dim.ranks, lane * efficiency))
        return slowest
    ranks: Number = 1.0
    bandwidth: Number = 0.0
    for dim, lane in zip(row, lanes, strict=True):
        ranks = ranks * dim.ranks
        bandwidth = bandwidth + np.where(dim.ranks > 1.0, lane, 0.0)
    own = np.where(ranks > 1.0, bandwidth, min(tier.bandwidth)) * efficiency
    reached = np.where(beyond > 1.0, np.maximum(own, tier.relay), own)
    per_byte = {
        "all_gather": formulas.gather_seconds_per_byte,
        "reduce_scatter": formulas.gather_seconds_per_byte,
        "all_to_all": formulas.all_to_all_switch_seconds_per_byte,
    }
    return per_byte[kind](ranks, reached)


def _lane(dim: _Dim, tier: Tier) -> Number:
    """Bandwidth along a dim that a rank has while every group of the mesh axis is at work."""
    if tier.kind == "switch":
        return dim.bandwidth
    return formulas.ring_bandwidth(dim.ranks, dim.apart, dim.extent, dim.bandwidth)


def _permute(dims: Sequence[Sequence[_Dim]], tiers: Sequence[Tier]) -> tuple[Number, Number]:
    """A send to the next rank along the axis: the slowest tier that some neighbours are apart by."""
    latency: Number = 0.0
    per_byte: Number = 0.0
    for tier, row in zip(tiers, dims, strict=True):
        for dim in row:
            per_byte = np.maximum(per_byte, _shift(dim, tier))
            latency = np.maximum(latency, tier.latency * np.minimum(dim.ranks - 1.0, 1.0))
    return latency, per_byte


def _shift(dim: _Dim, tier: Tier) -> Number:
    """Seconds per byte of a send to the next rank along a dim."""
    if tier.kind == "switch":
        return formulas.permute_seconds_per_byte(dim.ranks, dim.bandwidth)
    return formulas.permute_ring_seconds_per_byte(dim.ranks, dim.apart, dim.extent, dim.bandwidth)


def unsupported_group(axis: str, size: Number, machine: Machine) -> NDArray[np.bool_]:
    """Mask of group sizes that the machine's runtime refuses for a mesh axis."""
    supported = np.asarray(machine.group_sizes[axis], dtype=np.float64)
    return ~np.isin(np.asarray(size, dtype=np.float64), supported)
