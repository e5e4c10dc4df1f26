"""Peak bytes on a rank, by last use: what is kept for the whole step, what waits for the backward pass, what is live.

Structure first: the live bytes at every point of the program, as monomials, pruned to the points that no other point
exceeds; numbers, for one layout or a million, come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from perfmodel.fuse import Kernel, fuse
from perfmodel.rows import Parts, Table
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.stage import StageMap
from perfmodel.state import LOCAL
from perfmodel.work import Amount, Evaluator, Growth, Late, Number, Term, amount, by_growth, plus, symbols_of

ONLY, FIRST, LAST = "only", "first", "last"
"""Views of a pipeline: its single stage (pp = 1), its first stage, its last stage."""

Births: TypeAlias = Mapping[int, Sequence[int]]
"""Copies that get memory of their own, by position of the node that makes them."""

LastUses: TypeAlias = Mapping[int, int]
"""Position where each copy, or another name for its memory, is needed for the last time."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest of some sums: what they all hold, and what each of those that may be the largest holds beyond."""

    common: Amount
    beyond: tuple[Amount, ...]

    @classmethod
    def of(cls, points: Sequence[Amount]) -> Peak:
        """Without the points that another exceeds in every monomial."""
        points = _undominated(points)
        held = set.intersection(*map(set, points)) if points else set()
        common = {e: min(point[e] for point in points) for e in points[0] if e in held} if points else {}
        rests = ({e: c - common.get(e, 0.0) for e, c in point.items()} for point in points)
        return cls(common, tuple({e: c for e, c in rest.items() if c > 0.0} for rest in rests))

    def bytes(self, evaluate: Parts | Evaluator) -> Number:
        """The largest sum [B]."""
        peak: Number = 0.0
        for rest in self.beyond:
            peak = np.maximum(peak, evaluate.amount(rest))
        return evaluate.amount(self.common) + peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Residents:
    """Bytes that one stage keeps: by role for the whole step, saved activations of one microbatch in flight, and the
    most that is live (gradients and saved activations included) inside the loop over microbatches (`repeated`) and
    outside (`once`).
    """

    kept: Mapping[str, Amount]
    gradients: Amount
    saved: Amount
    repeated: Peak
    once: Peak

    def amounts(self) -> Iterator[Amount]:
        """All of them."""
        yield from (*self.kept.values(), self.gradients, self.saved)
        for peak in (self.repeated, self.once):
            yield from (peak.common, *peak.beyond)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Residents of each stage view."""

    stages: Mapping[str, Residents]

    @cached_property
    def symbols(self) -> dict[Growth, list[str]]:
        """What weights and activations depend on."""
        parts: dict[Growth, list[Amount]] = {}
        for terms in (terms for residents in self.stages.values() for terms in residents.amounts()):
            for growth, part in by_growth(terms).items():
                parts.setdefault(growth, []).append(part)
        return {growth: symbols_of(found) for growth, found in parts.items()}


def plan_memory(sharded: ShardedGraph) -> MemoryPlan:
    """Find what each stage holds, and when most of it is live."""
    stages, lifetimes = StageMap(sharded), _Lifetimes(sharded)
    views = {view: _Liveness(sharded, lifetimes, stages, view) for view in (ONLY, FIRST, LAST)}
    return MemoryPlan(stages={view: liveness.residents() for view, liveness in views.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes on the fullest rank, and what they are; parts are worked out when asked for."""

    total: Number
    parts: Mapping[str, Number]


def memory_use(plan: MemoryPlan, sizes: Mapping[str, Number], reserve: float) -> MemoryUse:
    """Peak bytes per rank for given axis sizes; 1F1B keeps up to `pp` microbatches in flight on the first stage."""
    evaluate = Parts(Table(Evaluator(sizes).sizes), plan.symbols)
    in_flight = np.minimum(sizes["pp"], np.maximum(sizes["microbatch"], 1.0))
    uses = {
        view: {**_stage_use(plan.stages[view], evaluate, in_flight if view == FIRST else 1.0), "runtime": reserve}
        for view in (ONLY, FIRST, LAST)
    }
    totals = {view: _total(parts.values()) for view, parts in uses.items()}
    pipelined, first = np.asarray(sizes["pp"]) > 1.0, totals[FIRST] >= totals[LAST]

    def fullest(views: Mapping[str, Number]) -> Number:
        return np.where(pipelined, np.where(first, views[FIRST], views[LAST]), views[ONLY])

    def part(name: str) -> Number:
        return fullest({view: parts[name] for view, parts in uses.items()})

    return MemoryUse(total=fullest(totals), parts=Late(list(uses[ONLY]), part))


def _total(parts: Iterable[Number]) -> Number:
    total: Number = 0.0
    for part in parts:
        total = total + part
    return total


def _stage_use(residents: Residents, evaluate: Parts, in_flight: Number) -> dict[str, Number]:
    """Bytes of one stage by what holds them; microbatches in flight beyond the one at work add what they saved."""
    kept = {role: evaluate.amount(each) for role, each in residents.kept.items()}
    gradients, saved = evaluate.amount(residents.gradients), evaluate.amount(residents.saved)
    waiting = gradients + saved * in_flight
    repeated = residents.repeated.bytes(evaluate) + saved * (in_flight - 1.0)
    live = np.maximum(np.maximum(repeated, residents.once.bytes(evaluate)), waiting)
    return {**kept, "gradients": gradients, "activations": saved * in_flight, "working set": live - waiting}


class _Lifetimes:
    """When copies get memory of their own and when it is needed for the last time; the same for every stage."""

    def __init__(self, sharded: ShardedGraph) -> None:
        self._sharded = sharded
        self._known: dict[int, tuple[Births, LastUses]] = {}

    def of(self, nodes: Sequence[LocalNode], parameters: Sequence[int], kept: Sequence[int]) -> tuple[Births, LastUses]:
        """Births and last uses in a region of the sharded graph, worked out once."""
        if id(nodes) not in self._known:
            kernels = fuse(self._sharded, nodes, kept)
            births = self._births(nodes, kernels, parameters, kept)
            self._known[id(nodes)] = births, self._last_uses(nodes, kernels, kept)
        return self._known[id(nodes)]

    def _births(
        self, nodes: Sequence[LocalNode], kernels: Sequence[Kernel], parameters: Sequence[int], kept: Sequence[int]
    ) -> dict[int, list[int]]:
        """Copies that get memory of their own at each node."""
        updated = self._updated(parameters, kept)
        births: dict[int, list[int]] = {}
        maker = {copy: i for i, node in enumerate(nodes) for copy in node.results}
        for kernel in kernels:
            for copy in kernel.stored:
                if copy not in updated and not self._alias(nodes[maker[copy]]):
                    births.setdefault(maker[copy], []).append(copy)
        for i, node in enumerate(nodes):
            if isinstance(node, Reshard) and node.kind not in LOCAL and node.result not in updated:
                births.setdefault(i, []).append(node.result)
            elif isinstance(node, LocalLoop):
                births.setdefault(i, []).extend(
                    result
                    for parameter, left, result in zip(node.parameters, node.yields, node.results, strict=True)
                    if parameter != left
                )
        return births

    def _last_uses(self, nodes: Sequence[LocalNode], kernels: Sequence[Kernel], kept: Sequence[int]) -> dict[int, int]:
        """Position where each copy, or another name for its memory, is needed for the last time."""
        maker = {copy: i for i, node in enumerate(nodes) for copy in node.results}
        stored = {copy for kernel in kernels for copy in kernel.stored}
        last = dict(maker)

        def use(copy: int, i: int) -> None:
            last[copy] = max(last.get(copy, i), i)
            if copy in maker:
                node = nodes[maker[copy]]
                if self._alias(node) or (isinstance(node, LocalOp) and copy not in stored):  # a view
                    for operand in node.operands[:1]:
                        use(operand, i)

        for kernel in kernels:
            for copy in kernel.inputs:
                use(copy, max(kernel.nodes))
        for i, node in enumerate(nodes):
            if not isinstance(node, LocalOp):
                for copy in node.operands:
                    use(copy, i)
        for copy in kept:
            use(copy, len(nodes))
        return last

    def _alias(self, node: LocalNode) -> bool:
        """Whether a node's result takes the place of its first operand in memory."""
        if isinstance(node, Reshard):
            return node.kind in LOCAL
        updates = isinstance(node, LocalOp) and node.op.kind == "dynamic_update_slice"
        return updates and node.operands[0] not in self._sharded.free

    def _updated(self, parameters: Sequence[int], kept: Sequence[int]) -> set[int]:
        """Kept copies that take over the buffer of a parameter of the same form."""
        graph = self._sharded.graph
        copies = self._sharded.copies
        if parameters is self._sharded.parameters:
            buffers = {p.alias: c for p, c in zip(graph.parameters, parameters, strict=True) if p.alias is not None}
        else:
            buffers = dict(enumerate(parameters))
        return {
            copy
            for k, copy in enumerate(kept)
            if k in buffers and copies[buffers[k]].bytes == copies[copy].bytes and copy != buffers[k]
        }


class _Liveness:
    def __init__(self, sharded: ShardedGraph, lifetimes: _Lifetimes, stages: StageMap, view: str) -> None:
        self.sharded = sharded
        self.lifetimes = lifetimes
        self.stages = stages
        self.view = view
        self.gradients: list[Term] = []
        self.saved: list[Term] = []
        self.repeated: list[Amount] = []

    def residents(self) -> Residents:
        graph = self.sharded.graph
        kept: dict[str, list[Term]] = {"parameters": [], "optimizer": [], "inputs": []}
        for parameter, copy in zip(graph.parameters, self.sharded.parameters, strict=True):
            role = parameter.role if parameter.role in kept else "inputs"
            kept[role].extend(self.held(copy))
        once = self.region(self.sharded.nodes, self.sharded.parameters, self.sharded.results, {})
        return Residents(
            kept={role: amount(terms) for role, terms in kept.items()},
            gradients=amount(self.gradients),
            saved=amount(self.saved),
            repeated=Peak.of(self.repeated),
            once=Peak.of(once),
        )

    def held(self, copy: int) -> list[Term]:
        """Bytes of a copy if this stage holds it."""
        stages = self.stages.of_copy(copy)
        mine = self.view == ONLY or not stages or self.view in stages
        entry = self.sharded.copies[copy]
        return [entry.held or entry.bytes] if mine else []

    def region(
        self, nodes: Sequence[LocalNode], parameters: Sequence[int], kept: Sequence[int], outside: Amount
    ) -> list[Amount]:
        """Live bytes at each node of a region, `outside` included; those of a microbatch go to `self.repeated`."""
        births, last = self.lifetimes.of(nodes, parameters, kept)
        self._note_saved(nodes, births, last)
        points: list[Amount] = []
        live: dict[int, Term] = {}
        for i, node in enumerate(nodes):
            live.update({copy: term for copy in births.get(i, ()) for term in self.held(copy)})
            here = plus(outside, amount(live.values()))
            if isinstance(node, LocalLoop):
                inside = self.region(node.body, node.parameters, node.yields, here)
                if node.repeats:
                    self.gradients.extend(t for c in births.get(i, ()) if c in node.results for t in self.held(c))
                    self.repeated.extend(inside)
                else:
                    points.extend(inside)
            points.append(here)
            live = {copy: term for copy, term in live.items() if last.get(copy, -1) > i}
        return points

    def _note_saved(self, nodes: Sequence[LocalNode], births: Births, last: LastUses) -> None:
        """Values that wait between the first and the last loop over layers, that is for the backward pass."""
        loops = [i for i, node in enumerate(nodes) if isinstance(node, LocalLoop) and node.axes]
        if len(loops) < 2:
            return
        for i, copies in births.items():
            if i <= loops[0]:
                for copy in copies:
                    if last.get(copy, -1) >= loops[-1]:
                        self.saved.extend(self.held(copy))


def _undominated(points: Sequence[Amount]) -> tuple[Amount, ...]:
    """Points that no other point exceeds in every monomial; only these can be the peak."""
    columns = {e: i for i, e in enumerate(dict.fromkeys(e for point in points for e in point))}
    rows = np.zeros((len(points), len(columns)))
    for i, point in enumerate(points):
        for exponents, coefficient in point.items():
            rows[i, columns[exponents]] = coefficient
    best: list[int] = []
    for i in np.argsort(-rows.sum(axis=1), kind="stable"):
        if not any((rows[i] <= rows[j]).all() for j in best):
            best.append(int(i))
    return tuple(points[i] for i in best)
