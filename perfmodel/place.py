"""A mesh laid on a fabric: which ranks each axis joins, over which links, and what axes leave to each other.

The first axis lies innermost, as in a layout. Closed forms (`perfmodel.topology`) price millions of layouts; this
walks the links of one mesh on the graph, and says what the runtime refuses and how axes at work together share links.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from perfmodel.allocation import check_chips, slice_of
from perfmodel.errors import LayoutError
from perfmodel.fabric import Dim, Node, chip_dims, dims, fabric, network
from perfmodel.machine import Machine
from perfmodel.mesh import Mesh
from perfmodel.topology import RING_OF_FOUR

Link: TypeAlias = tuple[Any, ...]
"""An edge of the fabric's graph, or ("inside", *edge) between the ranks of every chip."""
Digits: TypeAlias = tuple[int, int, int]
"""Places of a dim that the axes inside take, that an axis takes, and that there are."""

FOLDED = (0, 3, 1, 2)
"""Places on a ring of four of (inner, outer) = (0,0), (1,0), (0,1), (1,1): both are side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Along:
    """An axis along one dim of the fabric.

    ranks:  of a group along it [1]
    hops:   places from one to the next [1]
    closed: whether the last is as near to the first
    lines:  places of the groups that share one line of the dim, in order
    lane:   bandwidth of a rank along it while every group of the axis is at work [B/s]
    share:  of what the dim has [1]
    """

    tier: str
    dim: int
    ranks: int
    hops: int
    closed: bool
    lines: tuple[tuple[int, ...], ...]
    lane: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedAxis:
    """One axis: its groups, by the ranks of the machine that they sit on, and how often they use each link."""

    size: int
    stride: int
    groups: tuple[tuple[int, ...], ...]
    along: tuple[Along, ...]
    loads: Mapping[Link, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A mesh on a machine.

    seats:  ranks of the machine that the mesh's ranks sit on
    faults: what the hardware or its runtime refuses, one line each; empty: nothing
    """

    mesh: Mesh
    seats: tuple[int, ...]
    axes: Mapping[str, PlacedAxis]
    faults: tuple[str, ...]

    def share(self, axis: str, *others: str) -> float:
        """What an axis keeps of its bandwidth while others communicate too, links being shared by the message."""
        mine, theirs = self.axes[axis].loads, [self.axes[other].loads for other in others]
        return min((n / (n + sum(other.get(link, 0) for other in theirs)) for link, n in mine.items()), default=1.0)


def placements(mesh: Mesh, machine: Machine) -> Iterator[Placed]:
    """Every order of a mesh's axes, laid contiguously and, where that differs, folded."""
    for axes in itertools.permutations(mesh.sizes):
        ordered = Mesh({axis: mesh.sizes[axis] for axis in axes})
        plain, folded = place(ordered, machine, contiguous=True), place(ordered, machine)
        yield plain
        if folded.seats != plain.seats:
            yield folded


def place(mesh: Mesh, machine: Machine, *, contiguous: bool = False) -> Placed:
    """Lay a mesh on a machine, its first axis innermost.

    Where two axes share a ring of four and the runtime lets groups be folded, one gets places 0+3 and 1+2, unless
    `contiguous`. Raises MachineError where the machine does not have so many chips for a job, and LayoutError where
    the ranks are no whole number of chips.
    """
    laid = _Laid(mesh, machine, contiguous=contiguous)
    seats = laid.seats()
    axes, faults = {}, []
    for axis, size in mesh.sizes.items():
        stride = mesh.stride(axis)
        groups = tuple(tuple(seats[rank] for rank in group) for group in mesh.groups(axis))
        gaps = laid.gaps(axis)
        along, loads = ((), {}) if gaps else laid.walk(axis)
        faults += [*_size_faults(axis, size, machine), *gaps, *_far_faults(axis, along, machine)]
        axes[axis] = PlacedAxis(size=size, stride=stride, groups=groups, along=along, loads=loads)
    return Placed(mesh=mesh, seats=seats, axes=axes, faults=tuple(faults))


def _size_faults(axis: str, size: int, machine: Machine) -> list[str]:
    supported = machine.group_sizes.get(axis, (size,))
    if size in supported:
        return []
    sizes = ", ".join(map(str, supported))
    return [f"{axis}: got groups of {size} ranks, expected {sizes} ({machine.title}): change {axis}"]


def _far_faults(axis: str, along: Sequence[Along], machine: Machine) -> list[str]:
    """A runtime that folds groups does so because it joins only neighbours."""
    folding = {tier.name for tier in machine.tiers if tier.folded}
    return [
        f"{axis}: got neighbours {each.hops} places apart on {each.tier}, expected them side by side: fold the groups, "
        f"or change the order or the sizes of the axes"
        for each in along
        if each.tier in folding and each.hops > 1
    ]


class _Laid:
    """A mesh in the mixed radix of a machine's dims: those inside a chip, whose members are ranks, then the others."""

    def __init__(self, mesh: Mesh, machine: Machine, *, contiguous: bool) -> None:
        self.mesh = mesh
        self.share = share = min(machine.ranks_per_chip, mesh.ranks)
        if mesh.ranks % share:
            raise LayoutError(f"mesh: got {mesh.ranks} ranks, expected a multiple of {share}: fill the chips")
        self.chips = mesh.ranks // share
        check_chips(machine, self.chips)
        self.machine = slice_of(machine, mesh.ranks)
        self.inside, self.outside = chip_dims(self.machine), dims(self.machine, self.chips)
        self.folded = [dim for dim in self.outside if not contiguous and self._folds(dim)]
        self._graphs: dict[bool, Any] = {}

    def graph(self, *, inside: bool) -> Any:
        """The links between the ranks of a chip, or between chips; built once."""
        if inside not in self._graphs:
            self._graphs[inside] = network(self.inside, self.share) if inside else fabric(self.machine, self.chips)
        return self._graphs[inside]

    def _reach(self, dim: Dim) -> int:
        """Ranks within a place of a dim."""
        return dim.apart * (1 if dim in self.inside else self.share)

    def _folds(self, dim: Dim) -> bool:
        """Whether two axes share a ring of four whose groups may be folded."""
        halves = 2 * self._reach(dim) in {self.mesh.stride(axis) for axis in self.mesh.sizes}
        return dim.tier.folded and dim.ring and dim.extent == RING_OF_FOUR and halves

    def seats(self) -> tuple[int, ...]:
        """Ranks of the machine that the mesh's ranks sit on."""
        ranks = np.arange(self.mesh.ranks)
        seats = ranks.copy()
        for dim in self.folded:
            place = ranks // self._reach(dim) % dim.extent
            seats += (np.array(FOLDED)[place] - place) * self._reach(dim)
        return tuple(seats.tolist())

    def _digits(self, axis: str, dim: Dim) -> tuple[float, float]:
        """Places of a dim that the axes inside of an axis take, and those including it."""
        reach, stride = self._reach(dim), self.mesh.stride(axis)
        lower, upper = (min(max(n / reach, 1.0), dim.places) for n in (stride, stride * self.mesh.sizes[axis]))
        return lower, upper

    def gaps(self, axis: str) -> list[str]:
        """Dims that the groups of an axis do not divide evenly."""
        groups = f"{axis}: got groups of {self.mesh.sizes[axis]} ranks, {self.mesh.stride(axis)} apart"
        uneven = [
            dim
            for dim in (*self.inside, *self.outside)
            for lower, upper in [self._digits(axis, dim)]
            if upper % lower or lower % 1 or dim.places % upper
        ]
        remedy = f"change {axis} or the axes inside it"
        return [
            f"{groups}, expected them to divide the {dim.places} places of {dim.tier.name}: {remedy}" for dim in uneven
        ]

    def walk(self, axis: str) -> tuple[tuple[Along, ...], dict[Link, int]]:
        """An axis along every dim that it spans, and how many ranks use each link."""
        along: list[Along] = []
        loads: Counter[Link] = Counter()
        rooms = ((self.inside, self.share, 1, ("inside",)), (self.outside, self.chips, self.share, ()))
        for room, members, weight, prefix in rooms:
            for dim in room:
                if len(lines := self._lines(axis, dim)) < dim.places:
                    found, used = _along(self.graph(inside=bool(prefix)), dim, lines, members, weight)
                    along.append(found)
                    loads.update({(*prefix, *link): n for link, n in used.items()})
        return tuple(along), dict(loads)

    def _lines(self, axis: str, dim: Dim) -> list[tuple[int, ...]]:
        """Places of the groups on one line of a dim, along the axis."""
        lower, upper = map(int, self._digits(axis, dim))
        seat = FOLDED if dim in self.folded else range(dim.places)
        return [
            tuple(seat[i] for i in range(start, start + upper, lower))
            for block in range(0, dim.places, upper)
            for start in range(block, block + lower)
        ]


def _along(
    graph: Any, dim: Dim, lines: Sequence[tuple[int, ...]], members: int, weight: int
) -> tuple[Along, dict[Link, int]]:
    """Send from each member of each group to its neighbours, on all lines at once, and see what each link carries."""
    ordered = [_around(line, dim) for line in lines]
    routes: dict[int, list[list[Link]]] = {}
    for origin in (member for member in range(members) if member // dim.apart % dim.extent == 0):
        for places, _, closed in ordered:
            for start, end, step in _sends(places, dim, closed=closed):
                links = _route(dim, origin + start * dim.apart, origin + end * dim.apart, step)
                routes.setdefault(origin + end * dim.apart, []).append(links)
    used = Counter(link for inbound in routes.values() for links in inbound for link in links)
    rate = {link: graph.edges[link]["bandwidth"] / (n * weight) for link, n in used.items()}
    lane = min(sum(min(rate[link] for link in links) for links in inbound) for inbound in routes.values())
    places, hops, closed = ordered[0]
    found = Along(
        tier=dim.tier.name,
        dim=dim.index,
        ranks=len(places),
        hops=hops,
        closed=closed,
        lines=tuple(places for places, _, _ in ordered),
        lane=lane,
        share=lane * weight / dim.bandwidth,
    )
    return found, {link: n * weight for link, n in used.items()}


def _around(line: tuple[int, ...], dim: Dim) -> tuple[tuple[int, ...], int, bool]:
    """Places in order from the end of the widest gap, the hops between them, and whether they go all around."""
    if dim.tier.kind != "torus":
        return line, 1, True
    places = sorted(line)
    ends = [*places[1:], places[0] + (dim.extent if dim.ring else 10 * dim.extent)]
    gaps = [end - start for start, end in zip(places, ends, strict=True)]
    widest = len(gaps) - 1 - gaps[::-1].index(max(gaps))
    between = gaps[widest + 1 :] + gaps[:widest]
    return tuple(places[widest + 1 :] + places[: widest + 1]), max(between), max(gaps) == max(between)


def _sends(places: tuple[int, ...], dim: Dim, *, closed: bool) -> Iterator[tuple[int, int, int]]:
    """(from, to, direction) of what members of a group send at once: on a torus to both neighbours, to all where each
    has a link to each, and one message at a time into a switch.
    """
    following = (*places[1:], *places[: int(closed)])
    if dim.tier.kind == "full":
        yield from ((start, end, 1) for start, end in itertools.permutations(places, 2))
    elif dim.tier.kind == "switch":
        yield from ((start, end, 1) for start, end in zip(places, following, strict=True))
    else:
        for start, end in zip(places, following, strict=False):
            yield start, end, 1
            yield end, start, -1


def _route(dim: Dim, start: int, end: int, step: int) -> list[Link]:
    """Links from a member to another of the same line."""
    nodes: list[Node] = [start]
    if dim.tier.kind == "torus":
        while nodes[-1] != end:
            nodes.append(_next(dim, nodes[-1], step))
    elif dim.tier.kind == "full":
        nodes.append(end)
    else:
        nodes += [*dim.climb(start), *dim.climb(end)[-2::-1], end]
    return list(itertools.pairwise(nodes))


def _next(dim: Dim, member: Any, step: int) -> int:
    place = member // dim.apart % dim.extent
    return int(member + ((place + step) % dim.extent - place) * dim.apart)
