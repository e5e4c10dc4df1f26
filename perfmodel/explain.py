"""What bounds a step, and what to change: neighbours of a layout and other machines, each priced again.

A neighbour has one axis smaller and another one larger, another microbatch, number of chunks, schedule, ZeRO stage, way
of sharding or recompute policy. Sizes are priced as one array; of choices that need the program sharded or traced again
only those are tried that could gain something: what a choice affects must take a share of the step, or the layout must
lack memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from perfmodel.errors import LayoutError
from perfmodel.estimate import ENGINES, LABELS, Estimate
from perfmodel.formulas.pipeline import SCHEDULES
from perfmodel.graph import Graph
from perfmodel.improved import improved
from perfmodel.layout import NUMBERS, RECOMPUTE, Layout
from perfmodel.machine import Machine
from perfmodel.neighbours import changed, difference, neighbours
from perfmodel.predict import predict
from perfmodel.rules import OUT_OF_MEMORY

LINES = 5
"""What is told: the bound, and changes that are unlike each other."""

WORTH = 0.01
"""Share of a step that is worth a line, and the effort to shard or trace a program again [1]."""

STEPS = 3
"""How often an axis is divided by its smallest factor for a layout to fit; once where it fits."""

FILLING = ("mb", "vpp", "schedule", "pp")
"""Kinds of change that fill a pipeline."""

Retrace: TypeAlias = Callable[[str], Graph | None]
"""The same program traced with another recompute policy, or None where it has no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A layout or a machine that was priced in place of the one at hand.

    kind:     what is changed, the same for changes that are alike: a key of the layout (of two axes the one that gives
              way), or a part of the machine
    what:     the change in words
    layout:   the layout that was priced
    imagined: whether it is the machine that differs
    saves:    share of the step time; below 0 it costs [1]
    """

    kind: str
    what: str
    layout: Layout
    imagined: bool
    saves: float
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a step takes as long as it does, and what would change that.

    share:   of the step that the bound takes [1]
    remedy:  the change that lessens the bound, if one does
    changes: those that save most, unlike each other; where the layout doesn't fit those that make it fit, the cheapest
             first; where nothing does, the legal layout that comes nearest
    largest: what holds most of the memory, and its share of what is needed
    """

    layout: Layout
    estimate: Estimate
    share: float
    remedy: Change | None
    changes: tuple[Change, ...]
    largest: tuple[str, float]


def explain(
    graph: Graph, layout: Layout, machine: Machine, *, estimate: Estimate | None = None, retrace: Retrace | None = None
) -> Explanation:
    """Explain one layout's estimate (worked out where it is not given).

    retrace: how to get the program with another recompute policy; without it, the policy stays.

    Raises LayoutError for arrays of layouts.
    """
    if any(np.ndim(getattr(layout, name)) for name in NUMBERS):
        raise LayoutError("layout: got arrays of layouts, expected one to explain: take one of them with at")
    layout = layout.settled()
    estimate = estimate or predict(graph, layout, machine)
    here = _Here(graph, layout, machine, estimate, retrace)
    changes = [*here.sizes(), *here.schedules(), *here.structures(), *here.policies(), *here.machines()]
    remedy = _remedy(estimate.bound, changes)
    telling = _telling(layout, estimate, [change for change in changes if change is not remedy])
    part, held = max(estimate.memory_parts.items(), key=lambda item: float(item[1]))
    return Explanation(
        layout=layout,
        estimate=estimate,
        share=_share(estimate),
        remedy=remedy and here.settled(remedy),
        changes=tuple(sorted(map(here.settled, telling), key=lambda change: -change.saves)),
        largest=(part, float(held) / float(estimate.memory_bytes)),
    )


def _share(estimate: Estimate) -> float:
    """Share of the step that its bound takes."""
    keys = {label: name for name, label in LABELS.items()}
    if estimate.bound in keys:
        return float(estimate.breakdown[keys[estimate.bound]]) / float(estimate.step_time_s)
    decided = (k.seconds for k in estimate.kernels if ENGINES[k.decides] == estimate.bound)
    return sum(map(float, decided)) / float(estimate.step_time_s)


def _remedy(bound: str, changes: Sequence[Change]) -> Change | None:
    """What lessens a bound: more of that engine or less of that wait; of a bubble, another way to fill the pipeline."""
    if bound == LABELS["bubble"]:
        filling = (c for c in changes if c.kind in FILLING and c.estimate.fits and c.saves > 0.0)
        return max(filling, key=lambda change: change.saves, default=None)
    return next((change for change in changes if change.imagined and change.kind == _kind_of(bound)), None)


def _kind_of(bound: str) -> str:
    """The kind of change that a bound asks of a machine: attention runs on the matrix engine too."""
    return ENGINES["tensor"] if bound == ENGINES["attention"] else bound


def _telling(layout: Layout, estimate: Estimate, changes: Sequence[Change]) -> tuple[Change, ...]:
    """The changes to tell: the best of each kind, as many as there are lines for beside that of the bound. Of layouts
    that fit where this one does not, those are alike that change the same.
    """
    legal = [change for change in changes if change.estimate.fits and not change.imagined]
    if not estimate.fits:
        found = _best_of_each(legal, lambda change: changed(layout, change.layout.settled()))
        return found[: LINES - 2] or tuple(_nearest(change for change in changes if not change.imagined))
    found = _best_of_each((c for c in changes if c.estimate.fits and c.saves >= WORTH), lambda change: change.kind)
    if all(change.imagined for change in found):
        found = (*found[: LINES - 2], *_best_of_each(legal, lambda change: change.kind)[:1])
    return found[: LINES - 1]


def _best_of_each(changes: Iterable[Change], kind: Callable[[Change], object]) -> tuple[Change, ...]:
    """The change of each kind that saves most, in that order."""
    best: dict[object, Change] = {}
    for change in sorted(changes, key=lambda change: -change.saves):
        best.setdefault(kind(change), change)
    return tuple(best.values())


def _nearest(neighbours: Iterable[Change]) -> Iterator[Change]:
    """The neighbour that breaks no rule but that of memory, and needs least."""
    lacking = [
        c for c in neighbours if not any(x for rule, x in c.estimate.violations.items() if rule != OUT_OF_MEMORY)
    ]
    if lacking:
        yield min(lacking, key=lambda change: float(change.estimate.memory_bytes))


class _Here:
    """Where we are: a layout of a graph on a machine, and its neighbours."""

    def __init__(
        self, graph: Graph, layout: Layout, machine: Machine, estimate: Estimate, retrace: Retrace | None
    ) -> None:
        self._graph, self._layout, self._machine = graph, layout, machine
        self._estimate, self._retrace = estimate, retrace

    def _change(self, kind: str, layout: Layout, estimate: Estimate, what: str = "") -> Change:
        before = float(self._estimate.step_time_s)
        return Change(
            kind=kind,
            what=what or difference(self._layout, layout),
            layout=layout,
            imagined=bool(what),
            saves=(before - float(estimate.step_time_s)) / before,
            estimate=estimate,
        )

    def settled(self, change: Change) -> Change:
        """A change without choices about axes of size 1, which a program sharded by itself may price a trifle lower or
        higher.
        """
        if change.layout.settled() == change.layout:
            return change
        return self._predicted(change.kind, change.layout.settled())

    def _share(self, *parts: str) -> float:
        spent = sum(float(self._estimate.breakdown[part]) for part in parts)
        return spent / float(self._estimate.step_time_s)

    def _matters(self, *parts: str) -> bool:
        """Whether it is worth the effort to change what only affects some parts of the step, and the memory."""
        return not self._estimate.fits or self._share(*parts) >= WORTH

    def sizes(self) -> Iterator[Change]:
        """Neighbours of the same structure, as one array."""
        found = neighbours(self._graph, self._layout, steps=1 if self._estimate.fits else STEPS)
        if not found:
            return
        columns: dict[str, Any] = {key: np.array([getattr(layout, key) for _, layout in found]) for key in NUMBERS}
        many = predict(self._graph, replace(found[0][1], **columns), self._machine)
        fits = np.broadcast_to(many.fits, (len(found),))
        worth = fits | (not self._estimate.fits)
        for i, (kind, layout) in enumerate(found):
            if worth[i]:
                yield self._change(kind, layout, many.at(i))

    def schedules(self) -> Iterator[Change]:
        """Other pipeline schedules."""
        for schedule in SCHEDULES if self._layout.pp > 1 else ():
            if schedule != self._layout.schedule:
                yield self._predicted("schedule", replace(self._layout, schedule=schedule))

    def structures(self) -> Iterator[Change]:
        """Other ways of sharding, each of which has the program sharded again."""
        layout = self._layout
        if self._matters("fsdp", "data") and (zero := self._other_stage()) is not None:
            yield self._predicted("zero", replace(layout, zero=zero))
        if layout.tp > 1 and not layout.sp and self._matters("tensor"):
            yield self._predicted("sp", replace(layout, sp=True))
        if layout.cp > 1 and self._matters("context"):
            yield self._predicted("ring", replace(layout, ring=not layout.ring))

    def _other_stage(self) -> int | None:
        """Less ZeRO where the layout fits, all of it where it does not."""
        layout = self._layout
        if layout.fsdp * layout.ep == 1:
            return None
        if self._estimate.fits:
            return {3: 1, 2: 1, 1: 0}.get(layout.zero)
        return 3 if layout.zero < 3 else None

    def policies(self) -> Iterator[Change]:
        """The next recompute policy: less of it where the layout fits, more where it does not."""
        step = -1 if self._estimate.fits else 1
        i = RECOMPUTE.index(self._layout.recompute) + step
        if self._retrace is not None and 0 <= i < len(RECOMPUTE) and self._matters("recompute"):
            layout = replace(self._layout, recompute=RECOMPUTE[i])
            if (graph := self._retrace(layout.recompute)) is not None:
                yield self._change("recompute", layout, predict(graph, layout, self._machine))

    def _predicted(self, kind: str, layout: Layout) -> Change:
        return self._change(kind, layout, predict(self._graph, layout, self._machine))

    def machines(self) -> Iterator[Change]:
        """Machines with more of one thing, where that could matter."""
        for better in improved(self._machine, self._estimate):
            estimate = predict(self._graph, self._layout, better.machine)
            yield self._change(better.part, self._layout, estimate, better.what)
