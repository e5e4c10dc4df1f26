"""What a collective over a mesh axis costs: which algorithm each tier runs, its phases, and the bound of the links.

A collective runs tier by tier, the inner ones shrinking the bytes that the outer ones carry, and its phases are
pipelined with a given depth. On each tier the runtime takes the algorithm that the machine file gives for the size of
the collective, or else the one that makes the whole collective the fastest.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from perfmodel.formulas import collectives as formulas
from perfmodel.machine import Machine
from perfmodel.topology import Algorithm, Curve, Span, Tier, spans
from perfmodel.work import Number

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute", "broadcast")
STEPS: Mapping[str, Callable[[Number], Number]] = {
    "ring": formulas.ring_steps,
    "recursive": formulas.recursive_steps,
    "tree": formulas.recursive_steps,
    "mesh": formulas.mesh_steps,
}
FLAT: Mapping[str, Callable[[Number, Number], tuple[Number, Number]]] = {
    "flat_ring": lambda n, m: (formulas.ring_steps(n), formulas.flat_ring_inner_steps(n, m)),
    "pairwise": lambda n, m: (formulas.pairwise_steps(n, m), formulas.pairwise_inner_steps(n, m)),
}
"""Algorithms that go through all ranks of the tiers below as well: one ring of all of them, or messages to each."""
HALVES = ("reduce_scatter", "all_gather")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One algorithm on one tier: its latency [s], and wire time per byte that the tier carries [s/B]."""

    latency: Number
    per_byte: Number
    curve: Curve = ()
    up_to: float = np.inf

    def wire(self, size: Number) -> Number:
        """Seconds on the wire for a size [B]."""
        return size * self.per_byte / share_at(self.curve, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What one tier does of a collective: it carries a `share` of the bytes, by one of its options (those with the
    lowest limits last), and through the ports of the phase before if it is an `uplink`.
    """

    options: tuple[Option, ...]
    share: Number
    uplink: bool = False

    def ways(self, size: Number) -> list[tuple[Number, Number]]:
        """(latency, wire time) of each option that is left to choose for a collective of `size` bytes [s]: up to the
        limit of one that has a limit, that one.
        """
        carried = size * self.share
        last = self.options[0].up_to
        ways = [(option.latency, option.wire(carried)) for option in self.options if option.up_to == last]
        for option in self.options[len(ways) :]:
            taken, wire = size <= option.up_to, option.wire(carried)
            ways = [(np.where(taken, option.latency, a), np.where(taken, wire, b)) for a, b in ways]
        return ways


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisCost:
    """Seconds of a collective over an axis as a function of its bytes.

    runs:  phases that are pipelined with each other, in runs that follow one another
    bound: seconds per byte below which no algorithm gets on the links that the groups have [s/B]
    """

    runs: tuple[tuple[Phase, ...], ...]
    bound: Number
    depth: float

    def __add__(self, other: AxisCost) -> AxisCost:
        """One collective after another."""
        return AxisCost(runs=self.runs + other.runs, bound=self.bound + other.bound, depth=self.depth)

    def shrunk(self, factor: Number) -> AxisCost:
        """The same collective on 1/factor of the bytes."""
        return self._changed(lambda share: share / factor, lambda x: x, lambda bound: bound / factor)

    def mapped(self, change: Callable[[Number], Number]) -> AxisCost:
        """The same collective, its numbers passed through a function."""
        return self._changed(change, change, change)

    def _changed(self, share: _Change, cost: _Change, bound: _Change) -> AxisCost:
        def phase(old: Phase) -> Phase:
            options = (
                Option(latency=cost(o.latency), per_byte=cost(o.per_byte), curve=o.curve, up_to=o.up_to)
                for o in old.options
            )
            return Phase(options=tuple(options), share=share(old.share), uplink=old.uplink)

        runs = tuple(tuple(phase(old) for old in run) for run in self.runs)
        return AxisCost(runs=runs, bound=bound(self.bound), depth=self.depth)

    def seconds(self, size: Number) -> Number:
        """Time for `size` bytes, by the options that are fastest together: what one adds depends on the others [s]."""
        total: Number = 0.0
        for run in self.runs:
            ways = itertools.product(*(phase.ways(size) for phase in run))
            total = total + reduce(np.minimum, (self._pipelined(run, taken) for taken in ways))
        return total

    def _pipelined(self, run: Sequence[Phase], taken: Sequence[tuple[Number, Number]]) -> Number:
        """Time of phases with the given (latency, wire time) each: the longest, and part of the others [s]."""
        total: Number = 0.0
        longest: Number = 0.0
        wires: Number = 0.0
        port: Number = 0.0
        for phase, (latency, wire) in zip(run, taken, strict=True):
            port = port + wire if phase.uplink else wire
            total, wires, longest = total + latency, wires + wire, np.maximum(longest, port)
        return total + longest + (wires - longest) / self.depth

    def optimum(self, size: Number) -> Number:
        """Time below which no algorithm gets, latency aside [s]."""
        return size * self.bound


_Change = Callable[[Number], Number]


def share_at(curve: Curve, size: Number) -> Number:
    """A curve at a size, interpolated in the logarithms of both and level beyond its ends; 1 without points.

    A share that rises no faster than the size leaves more bytes never faster than fewer.
    """
    if not curve:
        return 1.0
    sizes, shares = zip(*curve, strict=True)
    share: Number = np.exp(np.interp(np.log(np.maximum(size, 1.0)), np.log(sizes), np.log(shares)))
    return share


def axis_cost(kind: str, size: Number, stride: Number, machine: Machine) -> AxisCost:
    """Cost of a collective over a mesh axis; `size` and `stride` in ranks, scalars or arrays."""
    size, stride = np.asarray(size, dtype=np.float64), np.asarray(stride, dtype=np.float64)
    rows = spans(size, stride, machine.tiers)
    bound = _bound(kind, size, rows, machine.tiers)
    if kind != "permute":
        phases = _phases(kind, rows, machine.tiers)
    else:
        shift = _shift(rows, machine.tiers)
        phases = [Phase(options=(shift,), share=1.0)]
        bound = np.minimum(bound, shift.per_byte)  # it may go round a ring the other way, through links of no group
    return AxisCost(runs=(tuple(phases),), bound=bound, depth=machine.pipeline_depth)


def collective_seconds(kind: str, bytes: Number, size: Number, stride: Number, machine: Machine) -> Number:
    """Time of one collective [s]; all arguments broadcast."""
    return axis_cost(kind, size, stride, machine).seconds(bytes)


# -- phases -------------------------------------------------------------------------------------------------------


def _phases(kind: str, rows: Sequence[Sequence[Span]], tiers: Sequence[Tier]) -> list[Phase]:
    sizes = [math.prod([span.ranks for span in row]) for row in rows]
    inside = [1.0, *itertools.accumulate(sizes, operator.mul)]
    phases = []
    for i, (tier, row) in enumerate(zip(tiers, rows, strict=True)):
        within = Within(inside=inside[i], beyond=math.prod(sizes[i + 1 :]))
        options = [found for a in tier.algorithms if (found := _option(kind, a, row, tier, within)) is not None]
        share = 1.0 if kind == "all_to_all" else 1.0 / inside[i]
        options.sort(key=lambda option: option.up_to, reverse=True)
        phases.append(Phase(options=tuple(options), share=share, uplink=tier.uplink))
    return phases


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """Where a tier stands in a group: ranks inside each of its members, and how often the group repeats beyond."""

    inside: Number
    beyond: Number


def _option(kind: str, algorithm: Algorithm, row: Sequence[Span], tier: Tier, within: Within) -> Option | None:
    """An algorithm for a kind of collective, or None if it does not serve it; an all-reduce is its two halves where
    nothing is said of it, and a broadcast reaches what an all-gather does.
    """
    halved = kind == "all_reduce" and kind not in algorithm.efficiency
    halves = HALVES if halved else (kind,)
    if not all(_efficiency_of(half) in algorithm.efficiency for half in halves):
        return None
    twice = 2.0 if kind == "all_reduce" else 1.0
    members = math.prod([span.ranks for span in row])
    some = np.minimum(members - 1.0, 1.0)
    if algorithm.way in FLAT:
        across, inner = FLAT[algorithm.way](members, within.inside)
    else:
        across, inner = sum([STEPS[algorithm.way](span.ranks) for span in row]), 0.0
    wires = [_wire(half, row, tier, algorithm, within) for half in halves]
    return Option(
        latency=twice * (algorithm.latency * across + algorithm.inner * inner) + algorithm.base * some,
        per_byte=sum(wires) * (1.0 if halved else twice) + twice * algorithm.copy * some,
        curve=algorithm.curve,
        up_to=algorithm.up_to,
    )


def _efficiency_of(kind: str) -> str:
    return "all_gather" if kind == "broadcast" else kind


def _wire(kind: str, row: Sequence[Span], tier: Tier, algorithm: Algorithm, within: Within) -> Number:
    """Seconds per byte of one tier. A torus uses the links of all the dims that the group spans; inside a larger
    group a tier may relay faster than it runs collectives of its own. Direct messages share the links of a torus as
    those of an all-to-all do.
    """
    efficiency = algorithm.efficiency[_efficiency_of(kind)]
    if tier.kind == "torus" and (kind == "all_to_all" or algorithm.way == "mesh"):
        return _exchange(row, efficiency)
    lanes = _rings(row) if algorithm.way == "ring" and tier.kind == "torus" else _lanes(row)
    own = np.where(math.prod([span.ranks for span in row]) > 1.0, lanes, min(tier.bandwidth)) * efficiency
    reached = np.where(within.beyond > 1.0, np.maximum(own, tier.relay), own)
    members = math.prod([span.ranks for span in row])
    if kind == "broadcast":
        return formulas.permute_seconds_per_byte(members, reached)
    if kind == "all_to_all":
        return formulas.all_to_all_switch_seconds_per_byte(members, reached)
    if algorithm.way == "flat_ring":
        return formulas.flat_ring_seconds_per_byte(members, within.inside, reached)
    if algorithm.way == "tree":
        return formulas.tree_seconds_per_byte(members, reached)
    return formulas.gather_seconds_per_byte(members, reached)


def _exchange(row: Sequence[Span], efficiency: float) -> Number:
    """Seconds per byte of an all-to-all on a torus: its slowest dim."""
    slowest: Number = 0.0
    for span in row:
        slowest = np.maximum(slowest, formulas.all_to_all_ring_seconds_per_byte(span.ranks, span.lane * efficiency))
    return slowest


def _lanes(row: Sequence[Span]) -> Number:
    """Bandwidth of a rank along all the dims of a tier that the group spans [B/s]."""
    return sum([np.where(span.ranks > 1.0, span.lane, 0.0) for span in row])


def _rings(row: Sequence[Span]) -> Number:
    """Bandwidth of a rank in the rings that lie side by side: one for each dim that the group goes all around; a group
    that also reaches into another dim is a longer ring, not a second one. Of lines, the best [B/s].
    """
    rings: Number = 0.0
    best: Number = 0.0
    for span in row:
        lane = np.where(span.ranks > 1.0, span.lane, 0.0)
        rings = rings + np.where(span.ranks * span.apart > span.extent - 0.5, lane, 0.0)
        best = np.maximum(best, lane)
    return np.maximum(rings, best)


def _shift(rows: Sequence[Sequence[Span]], tiers: Sequence[Tier]) -> Option:
    """A send to the next rank along the axis: the slowest tier that some neighbours are apart by."""
    latency: Number = 0.0
    per_byte: Number = 0.0
    for tier, row in zip(tiers, rows, strict=True):
        for span in row:
            per_byte = np.maximum(per_byte, _send(span, tier))
            latency = np.maximum(latency, tier.latency * np.minimum(span.ranks - 1.0, 1.0))
    return Option(latency=latency, per_byte=per_byte)


def _send(span: Span, tier: Tier) -> Number:
    """Seconds per byte of a send to the next rank along a dim."""
    if tier.kind == "torus":
        return formulas.permute_ring_seconds_per_byte(span.ranks, span.apart, span.extent, span.bandwidth)
    links = span.extent - 1 if tier.kind == "full" else 1
    return formulas.permute_seconds_per_byte(span.ranks, span.bandwidth / max(links, 1))


# -- bound --------------------------------------------------------------------------------------------------------


def _bound(kind: str, size: Number, rows: Sequence[Sequence[Span]], tiers: Sequence[Tier]) -> Number:
    """Seconds per byte that no algorithm beats: what must cross the links around each part of the fabric, through all
    the links that leave it; for an all-to-all, also what the middle of each torus dim must carry. (Where a switch
    joins both halves, its ports carry no less of that than of what leaves the torus.)
    """
    lanes = [_lanes(row) for row in rows]
    twice = 2.0 if kind == "all_reduce" else 1.0
    worst: Number = 0.0
    inside: Number = 1.0
    for i, row in enumerate(rows):
        out = _out(i, lanes, tiers)
        crossing = (size - inside) / size if kind not in ("permute", "broadcast") else np.minimum(size - inside, 1.0)
        shared = 1.0 if kind == "all_to_all" else inside
        with np.errstate(divide="ignore", invalid="ignore"):
            worst = np.maximum(worst, np.where(out > 0.0, twice * crossing / (shared * out), 0.0))
        if kind == "all_to_all" and tiers[i].kind == "torus":
            worst = np.maximum(worst, np.where(_joined(i, lanes, tiers) > 0.0, 0.0, _exchange(row, 1.0)))
        inside = inside * math.prod([span.ranks for span in row])
    return worst


def _out(i: int, lanes: Sequence[Number], tiers: Sequence[Tier]) -> Number:
    """Bandwidth of a rank out of a member of tier i: of that tier, and of the ports into the tiers beyond that the
    group spans; the uplinks of a switch are reached through its ports [B/s].
    """
    out: Number = 0.0
    for chain in _chains(tiers):
        beyond = [j for j in chain if j >= i]
        if beyond:
            first = tiers[beyond[0]]
            ports = first.oversubscription if beyond[0] > i else 1.0
            lane = np.where(lanes[beyond[0]] > 0.0, lanes[beyond[0]], sum(first.bandwidth))
            out = out + np.where(sum([lanes[j] for j in beyond]) > 0.0, lane * ports, 0.0)
    return out


def _joined(i: int, lanes: Sequence[Number], tiers: Sequence[Tier]) -> Number:
    """Bandwidth of a rank into switches beyond tier i that join all places of it [B/s]."""
    return sum([lanes[j] for j in range(i + 1, len(tiers)) if tiers[j].kind == "switch" and not tiers[j].rails])


def _chains(tiers: Sequence[Tier]) -> list[list[int]]:
    """Tiers that share ports: a switch and its uplinks."""
    chains: list[list[int]] = []
    for i, tier in enumerate(tiers):
        if tier.uplink:
            chains[-1].append(i)
        else:
            chains.append([i])
    return chains
