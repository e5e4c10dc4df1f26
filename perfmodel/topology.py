"""How a mesh axis lies on the fabric: ranks of a group along each dim, how far apart, and the links that it has.

The fabric is a list of tiers, innermost first; a torus tier has several dims. An axis of `size` ranks whose
neighbours are `stride` ranks apart spreads over the dims in order: dim k, which ends after reach_k ranks, takes
clip(reach_k / stride, 1, size) ranks in all. All groups of an axis communicate at once, so a group that covers part of
a torus dim has neither the links between groups nor those that it shares.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.formulas import collectives as formulas
from perfmodel.work import Number

if TYPE_CHECKING:
    from perfmodel.machine import Machine

Curve: TypeAlias = tuple[tuple[float, float], ...]
"""Points (size [B], share [1]), to be interpolated in the logarithms of both; no points: a share of 1."""

RING_OF_FOUR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One way of running collectives on a tier.

    name:       how it goes about it; more words after that tell variants apart
    latency:    of a step [s]
    efficiency: share of the bandwidth that large messages reach, by the kinds of collective that it serves
    inner:      of a step inside the tiers below, of an algorithm that goes through all their ranks [s]
    base:       of a collective, whatever its steps [s]
    copy:       of passing each byte through memory, beside the wire [s/B]
    curve:      how much of that share messages of a size reach
    up_to:      the largest collective that the runtime runs by it; infinity: wherever it is the fastest [B]
    """

    name: str
    latency: float
    efficiency: Mapping[str, float]
    inner: float = 0.0
    base: float = 0.0
    copy: float = 0.0
    curve: Curve = ()
    up_to: float = math.inf

    @property
    def way(self) -> str:
        """The name without what tells variants apart."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of the fabric.

    kind:       "torus" (each dim a ring, both directions usable), "switch" or "full" (a link between any two; one dim)
    extents:    ranks or inner tiers along each dim; 0 in the outermost switch means any number
    bandwidth:  of one rank along each dim, in one direction of all its links together [B/s]
    relay:      bandwidth of one rank when the tier passes on what an outer tier brings in, where that is more than
                it reaches on its own [B/s]
    latency:    of a permute [s]
    wrap:       extent from which a torus dim closes to a ring; shorter ones are lines
    together:   whether a dim closes only where all of them do
    folded:     whether two axes that share a ring of four both have their neighbours side by side, as groups of the
                runtime need not be contiguous
    shapes:     extents that a job may have which does not get all of a torus
    oversubscription: by how much the ports of the tier's members exceed `bandwidth` [1]
    uplink:     whether what it carries goes through the ports of the switch below, as in a fat tree
    rails:      whether only members at the same place of the tiers below share a switch
    """

    name: str
    kind: str
    extents: tuple[int, ...]
    bandwidth: tuple[float, ...]
    relay: float
    latency: float
    algorithms: tuple[Algorithm, ...]
    wrap: int = 0
    together: bool = False
    folded: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    oversubscription: float = 1.0
    uplink: bool = False
    rails: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A group along one dim of a tier.

    ranks: of the group along the dim [1]
    apart: places from one to the next [1]
    extent: places of the dim; infinity where it is a line, whose ends nothing joins [1]
    lane:  bandwidth along the dim that a rank has while every group of the axis is at work [B/s]
    """

    ranks: Number
    apart: Number
    extent: float
    bandwidth: float
    lane: Number


def closes(tier: Tier, extent: int) -> bool:
    """Whether a torus dim of so many members is a ring."""
    return (min(tier.extents) if tier.together else extent) >= tier.wrap


def places(tiers: Sequence[Tier]) -> list[tuple[str, int]]:
    """Each bounded dim of the fabric: the name of its tier, and the ranks that it and those inside it hold [1]."""
    extents = [(tier.name, extent) for tier in tiers for extent in tier.extents]
    held = accumulate((extent or 1 for _, extent in extents), operator.mul)
    return [(name, ranks) for (name, extent), ranks in zip(extents, held, strict=True) if extent > 1]


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


def spans(size: Number, stride: Number, tiers: Sequence[Tier]) -> list[list[Span]]:
    """A group of ranks on every dim of every tier; `size` and `stride` in ranks, scalars or arrays."""
    rows = zip(tiers, split_group(size, stride, tiers), hops(stride, tiers), strict=True)
    return [
        [_span(tier, n, s, k, b) for n, s, k, b in zip(parts, apart, tier.extents, tier.bandwidth, strict=True)]
        for tier, parts, apart in rows
    ]


def _span(tier: Tier, ranks: Number, apart: Number, extent: int, bandwidth: float) -> Span:
    if tier.folded and extent == RING_OF_FOUR:
        apart = np.where(ranks * apart > extent - 0.5, np.minimum(apart, 1.0), apart)
    places = extent if closes(tier, extent) else math.inf
    lane = _lane(tier, ranks, apart, places, bandwidth)
    return Span(ranks=ranks, apart=apart, extent=places, bandwidth=bandwidth, lane=lane)


def _lane(tier: Tier, ranks: Number, apart: Number, extent: float, bandwidth: float) -> Number:
    if tier.kind == "switch":
        return bandwidth
    if tier.kind == "full":
        return formulas.full_mesh_bandwidth(ranks, extent, bandwidth)
    return formulas.ring_bandwidth(ranks, apart, extent, bandwidth)


def unsupported_group(axis: str, size: Number, machine: Machine) -> NDArray[np.bool_]:
    """Mask of group sizes that the machine's runtime refuses for a mesh axis."""
    supported = np.asarray(machine.group_sizes[axis], dtype=np.float64)
    return ~np.isin(np.asarray(size, dtype=np.float64), supported)
