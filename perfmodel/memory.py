"""Peak bytes on a rank, by last use: what is kept for the whole step, what waits for the backward pass, what is live.

Structure first: the live bytes at every point of the program, as monomials, pruned to the points that no other point
exceeds; numbers, for one layout or a million, come last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perfmodel.cut import Cut
from perfmodel.formulas.pipeline import SCHEDULES, in_flight
from perfmodel.lifetime import Lifetimes, Lives
from perfmodel.rows import Parts, Table
from perfmodel.sharded import Copy, LocalLoop, LocalNode, ShardedGraph
from perfmodel.stage import StageMap, stage_map
from perfmodel.work import (
    MICROBATCH,
    VIRTUAL,
    Amount,
    Evaluator,
    Exponents,
    Floats,
    Growth,
    Late,
    Number,
    Term,
    amount,
    by_growth,
    symbols_of,
)

ONLY, FIRST, MIDDLE, LAST = "only", "first", "middle", "last"
"""Views of a pipeline: its single stage (pp = 1), its first stage, the second, its last stage."""

NO_LAYERS = 1e-300
"""Share of a stage without layers: bytes of so few are none, without a division by zero."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest of some sums: what they all hold, and what each of those that may be the largest holds beyond."""

    common: Amount
    beyond: tuple[Amount, ...]

    @classmethod
    def of(cls, monomials: Sequence[Exponents], points: Floats) -> Peak:
        """Of sums by their coefficients [sum, monomial], without those that another exceeds in every monomial."""
        best = _undominated(points)
        common = best.min(axis=0) if len(best) else np.zeros(len(monomials))
        return cls(_amount(monomials, common), tuple(_amount(monomials, rest) for rest in best - common))

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
    stages, lifetimes = stage_map(sharded), Lifetimes(sharded)
    views = {view: _Liveness(sharded, lifetimes, stages, view) for view in (ONLY, FIRST, MIDDLE, LAST)}
    return MemoryPlan(stages={view: liveness.residents() for view, liveness in views.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes on the fullest rank, and what they are; parts are worked out when asked for."""

    total: Number
    parts: Mapping[str, Number]


def memory_use(
    plan: MemoryPlan,
    sizes: Mapping[str, Number],
    reserve: float,
    schedule: str = SCHEDULES[0],
    cut: Cut | None = None,
    elsewhere: Collection[str] = (),
) -> MemoryUse:
    """Peak bytes per rank for given axis sizes, pipeline schedule and cut of the layers, by default an even one,
    without what is kept of roles `elsewhere`.
    """
    microbatches = np.maximum(sizes[MICROBATCH], 1.0)
    first_keeps, second_keeps, last_keeps = in_flight(schedule, sizes["pp"], microbatches, sizes[VIRTUAL])
    keeps = {ONLY: 1.0, FIRST: first_keeps, MIDDLE: second_keeps, LAST: last_keeps}
    uses = {
        view: {
            **_stage_use(plan.stages[view], parts, keeps[view], microbatches),
            **dict.fromkeys(elsewhere, 0.0),
            "runtime": reserve,
        }
        for view, parts in parts_of_stages(plan, Evaluator(sizes).sizes, cut).items()
    }
    totals = {view: _total(parts.values()) for view, parts in uses.items()}
    pipelined, first = np.asarray(sizes["pp"]) > 1.0, totals[FIRST] >= totals[LAST]
    end = np.where(first, totals[FIRST], totals[LAST])
    between = cut is not None and MIDDLE in uses and cut.fuller_between & (totals[MIDDLE] > end)

    def fullest(views: Mapping[str, Number]) -> Number:
        end = np.where(first, views[FIRST], views[LAST])
        return np.where(pipelined, np.where(between, views[MIDDLE], end) if MIDDLE in views else end, views[ONLY])

    def part(name: str) -> Number:
        return fullest({view: parts[name] for view, parts in uses.items()})

    return MemoryUse(total=fullest(totals), parts=Late(list(uses[ONLY]), part))


def parts_of_stages(plan: MemoryPlan, sizes: Mapping[str, Number], cut: Cut | None) -> dict[str, Parts]:
    """What evaluates amounts on the stages of each view: a stage with half of the layers of an even cut has those of
    one in twice as many stages.

    In an even cut no stage between the ends holds more than the first.
    """
    even = Parts(Table(sizes), plan.symbols)
    if cut is None or cut.is_even:
        return dict.fromkeys((ONLY, FIRST, LAST), even)
    stages = {view: sizes["pp"] / np.maximum(cut.share(view), NO_LAYERS) for view in (FIRST, MIDDLE, LAST)}
    return {ONLY: even, **{view: Parts(Table({**sizes, "pp": pp}), plan.symbols) for view, pp in stages.items()}}


def _total(parts: Iterable[Number]) -> Number:
    total: Number = 0.0
    for part in parts:
        total = total + part
    return total


def _stage_use(residents: Residents, evaluate: Parts, in_flight: Number, microbatches: Number) -> dict[str, Number]:
    """Bytes of one stage by what holds them; microbatches in flight beyond the one at work add what they saved.

    A loop over a single microbatch is none: compilers drop it, and gradients are summed up nowhere while it is at work.
    """
    kept = {role: evaluate.amount(each) for role, each in residents.kept.items()}
    gradients, saved = evaluate.amount(residents.gradients), evaluate.amount(residents.saved)
    sums = gradients * (np.asarray(microbatches) > 1.0)
    repeated = residents.repeated.bytes(evaluate) - (gradients - sums) + saved * (in_flight - 1.0)
    live = np.maximum(np.maximum(repeated, residents.once.bytes(evaluate)), sums + saved * in_flight)
    activations = saved * in_flight
    gradients = np.minimum(gradients, live - activations)
    return {**kept, "gradients": gradients, "activations": activations, "working set": live - gradients - activations}


class _Liveness:
    """What one stage holds; live bytes are rows over monomials, which `columns` numbers."""

    def __init__(self, sharded: ShardedGraph, lifetimes: Lifetimes, stages: StageMap, view: str) -> None:
        self.sharded = sharded
        self.lifetimes = lifetimes
        self.stages = stages
        self.view = view
        self.columns = {e: k for k, e in enumerate({_held(copy).exponents: None for copy in sharded.copies})}
        self.gradients: list[Term] = []
        self.saved: list[Term] = []
        self.repeated: list[Floats] = []

    def residents(self) -> Residents:
        graph = self.sharded.graph
        kept: dict[str, list[Term]] = {"parameters": [], "optimizer": [], "inputs": []}
        for parameter, copy in zip(graph.parameters, self.sharded.parameters, strict=True):
            role = parameter.role if parameter.role in kept else "inputs"
            kept[role].extend(self.held([copy]))
        nothing = np.zeros(len(self.columns))
        once = self.region(self.sharded.nodes, self.sharded.parameters, self.sharded.results, nothing)
        return Residents(
            kept={role: amount(terms) for role, terms in kept.items()},
            gradients=amount(self.gradients),
            saved=amount(self.saved),
            repeated=Peak.of(list(self.columns), np.concatenate([once[:0], *self.repeated])),
            once=Peak.of(list(self.columns), once),
        )

    def holds(self, copy: int) -> bool:
        """Whether this stage holds a copy."""
        stages = self.stages.of_copy(copy)
        return self.view == ONLY or not stages or self.view in stages

    def held(self, copies: Iterable[int]) -> list[Term]:
        """Bytes of the copies that this stage holds."""
        return [_held(self.sharded.copies[copy]) for copy in copies if self.holds(copy)]

    def region(
        self, nodes: Sequence[LocalNode], parameters: Sequence[int], kept: Sequence[int], outside: Floats
    ) -> Floats:
        """Live bytes wherever they may be most in a region, `outside` included; those of a microbatch go to
        `self.repeated`.
        """
        lives = self.lifetimes.of(nodes, parameters, kept)
        self._note_saved(nodes, lives)
        live = outside + self._live(lives, len(nodes))
        points = [live[np.unique(lives.born)] if len(lives.born) else outside[np.newaxis]]
        for i, node in enumerate(nodes):
            if isinstance(node, LocalLoop):
                inside = self.region(node.body, node.parameters, node.yields, live[i])
                if node.repeats:
                    self.gradients.extend(self.held(c for c in lives.copies if c in node.results))
                    self.repeated.append(inside)
                else:
                    points.append(inside)
        return _undominated(np.concatenate(points))

    def _live(self, lives: Lives, length: int) -> Floats:
        """Bytes in memory while each node runs [node, monomial]."""
        change = np.zeros((length + 2, len(self.columns)))
        mine = np.array([self.holds(copy) for copy in lives.copies], dtype=np.bool_)
        terms = self.held(lives.copies)
        columns = np.array([self.columns[term.exponents] for term in terms], dtype=np.intp)
        sizes = np.array([term.coefficient for term in terms])
        np.add.at(change.reshape(-1), lives.born[mine] * len(self.columns) + columns, sizes)
        np.add.at(change.reshape(-1), (lives.last[mine] + 1) * len(self.columns) + columns, -sizes)
        return np.cumsum(change, axis=0)[:length]

    def _note_saved(self, nodes: Sequence[LocalNode], lives: Lives) -> None:
        """Values that wait between the first and the last loop over layers, that is for the backward pass."""
        loops = [i for i, node in enumerate(nodes) if isinstance(node, LocalLoop) and node.axes]
        if len(loops) > 1:
            waiting = (lives.born <= loops[0]) & (lives.last >= loops[-1])
            self.saved.extend(self.held(lives.copies[k] for k in np.flatnonzero(waiting)))


def _held(copy: Copy) -> Term:
    """Bytes of a copy that memory holds."""
    return copy.held or copy.bytes


def _amount(monomials: Sequence[Exponents], coefficients: Floats) -> Amount:
    return {e: c for e, c in zip(monomials, coefficients.tolist(), strict=True) if c > 0.0}


def _undominated(points: Floats) -> Floats:
    """Points [point, monomial] that no other point exceeds in every monomial; only these can be the peak."""
    left = np.argsort(-points.sum(axis=1), kind="stable")
    best = []
    while len(left):
        best.append(left[0])
        left = left[(points[left] > points[left[0]]).any(axis=1)]
    return points[best]
