"""Seconds of collectives on a machine: those of a layer that travel together, each by where in the step it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from perfmodel.alike import Alike, grouped
from perfmodel.costs import CollectiveCost, Place, add, place_of
from perfmodel.machine import Machine
from perfmodel.network import Network
from perfmodel.plan import Plan, Traffic
from perfmodel.rows import Kinds, Table
from perfmodel.work import MESH, MICROBATCH, TP, Amount, Evaluator, Number, Term, amount

Bundle: TypeAlias = tuple[Traffic, ...]
"""Collectives of one kind over the same axes in one body of a loop, which a framework may combine into fewer."""

COMBINED = ("fsdp",)
"""Classes of collectives whose operands are there together: weights, and gradients of weights."""


def bundled(plan: Plan) -> list[Alike[Bundle]]:
    """Collectives of a plan, those together that may be combined, in groups of those that depend on the same sizes."""
    return grouped((bundle, bundle[0].axes[-1], _needs(bundle)) for bundle in _bundles(plan))


def _bundles(plan: Plan) -> list[Bundle]:
    """Collectives of a plan, those together that may be combined."""
    found: dict[object, list[Traffic]] = {}
    for t in plan.traffics:
        key = (t.kind, t.axes, t.trips, t.phase, t.repeated, t.stages) if _combinable(t) else id(t)
        found.setdefault(key, []).append(t)
    return [tuple(bundle) for bundle in found.values()]


def _combinable(t: Traffic) -> bool:
    return t.klass in COMBINED and t.kind != "permute"


def _needs(bundle: Bundle) -> list[Amount]:
    """What the time of a bundle depends on."""
    each = (amounts for t in bundle for amounts in (amount([t.bytes]), t.times))
    return [*each, amount([bundle[0].trips]), _apart(bundle[0].axes)]


def _message_bytes(bundle: Bundle, evaluate: Evaluator, combine: float) -> list[Number]:
    """Bytes of the message that each collective of a bundle travels in: that of all of them together, cut into messages
    of `combine` bytes at most, but into no more than there are collectives.
    """
    own = [evaluate.term(t.bytes) for t in bundle]
    if not combine or not _combinable(bundle[0]):
        return own
    runs = [evaluate.amount(t.times) / evaluate.term(t.trips) for t in bundle]
    total = sum(size * times for size, times in zip(own, runs, strict=True))
    messages = np.clip(np.ceil(total / combine), 1.0, sum(runs))
    return [total / messages] * len(bundle)


def _apart(axes: Sequence[str]) -> Amount:
    """What tells how far apart the ranks along mesh axes lie: the axes up to the outermost one."""
    return amount([Term(1.0).times(MESH[: MESH.index(axes[-1]) + 1])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Haul:
    """Equal collectives as priced: bytes and seconds of each, the bound of each, how many at a time, and which share of
    a message each is, for each kind of layout.
    """

    traffic: Traffic
    kinds: Kinds
    bytes: Number
    each: Number
    bound: Number
    times: Number
    share: Number

    @property
    def calls(self) -> Number:
        """Messages at a time; none among single ranks."""
        several = self.kinds.evaluate.term(Term(1.0).times(self.traffic.axes)) > 1.0
        calls: Number = self.kinds.spread(self.times * self.share * several)
        return calls

    def cost(self, sizes: Mapping[str, Number]) -> CollectiveCost:
        """What all of them in a step cost."""
        t, spread = self.traffic, self.kinds.spread
        runs = sizes[MICROBATCH] if t.repeated else 1.0
        spans: dict[str, Number] = {}
        for axis in t.axes:
            name = "tp" if axis in TP else axis
            spans[name] = spans.get(name, 1.0) * sizes[axis]
        return CollectiveCost(
            kind=t.kind,
            axis="+".join(spans),
            klass=t.klass,
            sizes=spans,
            bytes=spread(self.bytes),
            count=spread(self.times) * runs,
            seconds=spread(self.times * self.each) * runs,
            optimum=spread(self.times * self.bound) * runs,
        )


@dataclass(frozen=True, slots=True)
class Hauled:
    """Collectives of a step: seconds by place, and each of them by the identity of its traffic."""

    seconds: Mapping[Place, Number]
    hauls: Mapping[int, Haul]

    def calls(self) -> dict[Place, Number]:
        """Messages by place."""
        calls: dict[Place, Number] = {}
        for haul in self.hauls.values():
            add(calls, place_of(haul.traffic), haul.calls)
        return calls


def price_traffic(groups: Sequence[Alike[Bundle]], table: Table, machine: Machine) -> Hauled:
    """Seconds of the collectives of a plan, as `bundled`."""
    communication: dict[Place, Number] = {}
    hauls: dict[int, Haul] = {}
    networks: dict[Kinds, Network] = {}
    for alike in groups:
        kinds = table.kinds(alike.symbols)
        evaluate = kinds.evaluate
        network = networks.setdefault(kinds, Network(kinds.sizes, machine))
        here: dict[Place, Number] = {}
        for bundle in alike.items:
            cost = network.cost(bundle[0].kind, bundle[0].axes)
            for t, message in zip(bundle, _message_bytes(bundle, evaluate, machine.framework.combine), strict=True):
                size, times = evaluate.term(t.bytes), evaluate.amount(t.times)
                share = size / message
                each, bound = cost.seconds(message) * share, cost.optimum(message) * share
                add(here, place_of(t), times * each)
                hauls[id(t)] = Haul(
                    traffic=t, kinds=kinds, bytes=size, each=each, bound=bound, times=times, share=share
                )
        for place, value in here.items():
            add(communication, place, kinds.spread(value))
    return Hauled(communication, hauls)
