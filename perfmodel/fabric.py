"""The fabric of a machine as a graph: chips, switches, and every directed link with its bandwidth and latency.

Built from the tiers of any machine. A torus or full tier links chips at the same place of the tiers inside; a switch
joins all chips below it by a port each. A switch that does not block stands for the whole Clos network that it is made
of, as long as packets spread over its paths.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.allocation import check_chips, slice_of
from perfmodel.errors import MachineError
from perfmodel.machine import Machine
from perfmodel.topology import Tier, closes

if TYPE_CHECKING:
    import networkx

Node: TypeAlias = int | tuple[str, int]
"""A chip by its number, or a switch by the name of its tier and its own number."""
Links: TypeAlias = Iterable[tuple[Node, Node, dict[str, Any]]]
Ids: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dim:
    """One dim of a tier.

    extent:    places that it has
    apart:     members from one place to the next: those of the dims inside
    places:    of them that are there
    bandwidth: of a member along it, in one direction of all its links together [B/s]
    below:     for the uplinks of a switch, that switch's dim
    """

    tier: Tier
    index: int
    extent: int
    apart: int
    places: int
    bandwidth: float
    below: Dim | None = None

    @property
    def ring(self) -> bool:
        """Whether its ends are joined."""
        return self.tier.kind == "torus" and self.places == self.extent and closes(self.tier, self.extent)

    @property
    def pooled(self) -> bool:
        """Whether the members below a place share uplinks of a leaf switch of their own."""
        return self.below is None and self.tier.oversubscription > 1.0

    def switch(self, member: Ids) -> Ids:
        """Numbers of the switches that members hang on; on rails, those of other places hang on others."""
        whole = member // (self.apart * self.extent)
        return whole * self.apart + member % self.apart if self.tier.rails else whole

    def climb(self, member: int) -> list[Node]:
        """Switches from a member up to this tier's."""
        inner = self.below.climb(member) if self.below else []
        leaf = [(_leaf(self.tier), member // self.apart)] if self.pooled else []
        return [*inner, *leaf, (self.tier.name, int(self.switch(np.asarray(member))))]


def _leaf(tier: Tier) -> str:
    return f"{tier.name} leaf"


def fabric(machine: Machine, chips: int) -> networkx.DiGraph:
    """The links between so many chips, as a `networkx.DiGraph`.

    A chip is a node with `kind`, `coordinates` (one for each dim, innermost first) and `ranks`; a switch is a node
    (tier, number). An edge has the `bandwidth` [B/s] and `latency` [s] of one direction, its `tier`, the `dim` of it,
    and the `step` along that: 1 or -1, or how many places a full tier's link goes on; up a switch 1 and down -1. What
    a job of a part of the machine does not get is left out. Raises MachineError as `check_chips` does.
    """
    graph = network(dims(slice_of(machine, check_chips(machine, chips)), chips), chips)
    share = machine.ranks_per_chip
    for chip in range(chips):
        graph.nodes[chip]["ranks"] = range(share * chip, share * (chip + 1))
    return graph


def dims(machine: Machine, chips: int) -> tuple[Dim, ...]:
    """Dims of the tiers outside of a chip, with the chips that are there."""
    return _dims(machine.tiers[_inside(machine) :], chips, machine.ranks_per_chip)


def chip_dims(machine: Machine) -> tuple[Dim, ...]:
    """Dims of the tiers inside of a chip, whose members are its ranks."""
    return _dims(machine.tiers[: _inside(machine)], machine.ranks_per_chip, 1)


def _inside(machine: Machine) -> int:
    """How many of the tiers are inside of a chip."""
    sizes = [1, *accumulate((math.prod(tier.extents) for tier in machine.tiers), operator.mul)]
    if machine.ranks_per_chip not in sizes:
        raise MachineError(
            f"{machine.name}: got {machine.ranks_per_chip} ranks on a chip, expected the extents of inner tiers to "
            f"multiply to them: mend chip.ranks or the extents"
        )
    return sizes.index(machine.ranks_per_chip)


def _dims(tiers: Iterable[Tier], members: int, share: int) -> tuple[Dim, ...]:
    laid: list[Dim] = []
    apart = 1
    for tier in tiers:
        for index, (extent, bandwidth) in enumerate(zip(tier.extents, tier.bandwidth, strict=True)):
            there = -(-members // apart)
            dim = Dim(
                tier=tier,
                index=index,
                extent=extent or there,
                apart=apart,
                places=min(extent or there, there),
                bandwidth=bandwidth * share,
                below=laid[-1] if tier.uplink else None,
            )
            laid.append(dim)
            apart *= dim.extent
    return tuple(laid)


def network(laid: Iterable[Dim], members: int) -> networkx.DiGraph:
    """The links between so many members along dims."""
    import networkx  # a slow import that pricing can do without

    graph = networkx.DiGraph()
    laid = tuple(laid)
    places = (
        np.stack([np.arange(members) // dim.apart % dim.extent for dim in laid], axis=1) if laid else [()] * members
    )
    graph.add_nodes_from(
        (member, {"kind": "chip", "coordinates": tuple(place)})
        for member, place in enumerate(np.asarray(places).tolist())
    )
    for dim in laid:
        if dim.places > 1:
            graph.add_edges_from(_switched(dim, members) if dim.tier.kind == "switch" else _direct(dim, members))
    for node in graph:
        if isinstance(node, tuple):
            graph.nodes[node].update(kind="switch")
    return graph


def _direct(dim: Dim, members: int) -> Links:
    """Links from member to member: of a torus to both neighbours, of a full tier to all."""
    steps = [1, -1] if dim.tier.kind == "torus" else range(1, dim.extent)
    wraps = dim.ring or dim.tier.kind == "full"
    if dim.extent == 2 and wraps:
        steps = [1]  # both neighbours are one
    source = np.arange(members)
    place = source // dim.apart % dim.extent
    for step in steps:
        there = place + step
        target = source + (there % dim.extent - place) * dim.apart
        kept = (target < members) & (wraps | ((there >= 0) & (there < dim.extent)))
        links = 2 if dim.tier.kind == "torus" and not (dim.extent == 2 and wraps) else len(steps)
        yield from _edges(source[kept].tolist(), target[kept].tolist(), dim, dim.bandwidth / links, step)


def _edges(
    sources: Iterable[Node],
    targets: Iterable[Node],
    dim: Dim,
    bandwidth: float,
    step: int,
    latency: float | None = None,
) -> Iterator[tuple[Node, Node, dict[str, Any]]]:
    data = {
        "bandwidth": bandwidth,
        "latency": dim.tier.latency if latency is None else latency,
        "tier": dim.tier.name,
        "dim": dim.index,
        "step": step,
    }
    return ((source, target, data) for source, target in zip(sources, targets, strict=True))


def _switched(dim: Dim, members: int) -> Links:
    """Links up to the switches of a dim and down again: ports of members, or uplinks of the switches below."""
    ids = np.arange(members)
    top = [(dim.tier.name, i) for i in dim.switch(ids).tolist()]
    if dim.below is not None:
        lower = [(dim.below.tier.name, i) for i in dim.below.switch(ids).tolist()]
        yield from _uplinks(lower, top, dim, (dim.tier.latency - dim.below.tier.latency) / 2)
    elif dim.pooled:
        leaf = [(_leaf(dim.tier), i) for i in (ids // dim.apart).tolist()]
        ports = dim.bandwidth * dim.tier.oversubscription
        yield from _both(ids.tolist(), leaf, dim, ports, dim.tier.latency / 4)
        yield from _uplinks(leaf, top, dim, dim.tier.latency / 4)
    else:
        yield from _both(ids.tolist(), top, dim, dim.bandwidth, dim.tier.latency / 2)


def _both(lower: list[Any], upper: list[Any], dim: Dim, bandwidth: float, latency: float) -> Links:
    yield from _edges(lower, upper, dim, bandwidth, 1, latency)
    yield from _edges(upper, lower, dim, bandwidth, -1, latency)


def _uplinks(lower: list[Any], upper: list[Any], dim: Dim, latency: float) -> Links:
    """Links of leaf switches, each with what its members together may send."""
    counts: dict[tuple[Node, Node], int] = {}
    for pair in zip(lower, upper, strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    for (low, high), count in counts.items():
        yield from _both([low], [high], dim, dim.bandwidth * count, max(latency, 0.0))
