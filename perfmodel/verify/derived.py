"""The collectives that perfmodel derives, and the same as a compiler runs them whose loops carry no partial sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

from perfmodel.graph import DTYPE_BYTES
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import LOCAL
from perfmodel.verify.collective import Collective
from perfmodel.work import Evaluator, Number

EAGER = "sums reduced where they arise"
WHY_EAGER = (
    "compilers reduce a partial sum in the op that makes it: in its type there, before it is added up or multiplied, "
    "and in every microbatch, since no loop carries a partial sum; perfmodel reduces what was accumulated, once per "
    "step, as trainers do"
)
KINDS = {"permute": "collective_permute"}
REDUCTIONS = ("all_reduce", "reduce_scatter")
SHRINKING = ("reduce", "dot_general")
"""Ops through which a partial sum passes and comes out smaller or larger."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a partial sum arose, and what became of it since.

    dtype:      its element type there
    trips:      how many such sums loops have added up
    elements:   how many of its elements became one, by adding up or in a matmul
    copy:       what went into the first such op
    multiplied: whether that was a matmul
    """

    dtype: str
    trips: float = 1.0
    elements: float = 1.0
    copy: int | None = None
    multiplied: bool = False


Origins: TypeAlias = Mapping[str, tuple[Origin, ...]]
"""By mesh axis that a value is a partial sum over."""


def derived(sharded: ShardedGraph, sizes: Mapping[str, Number], *, eager: bool = False) -> list[Collective]:
    """Derived collectives, labelled by phase; `eager` has every sum reduced where it arises."""
    walk = _Walk(sharded, sizes, eager)
    return [collective for collective in walk.nodes(sharded.nodes, 1.0) if collective.axes]


class _Walk:
    def __init__(self, sharded: ShardedGraph, sizes: Mapping[str, Number], eager: bool) -> None:
        self.sharded = sharded
        self.sizes = sizes
        self.evaluate = Evaluator(sizes)
        self.eager = eager
        self.origins: dict[int, Origins] = {}
        self.reduced: set[tuple[int, str]] = set()  # copies that went into matmuls, and axes they were reduced over
        self.stacked: set[int] = set()  # copies into which each trip of a loop writes its own part

    def dtype(self, copy: int) -> str:
        return self.sharded.graph.values[self.sharded.copies[copy].value].dtype

    def nodes(self, nodes: Sequence[LocalNode], times: float) -> Iterator[Collective]:
        for node in nodes:
            if isinstance(node, LocalLoop):
                trips = float(self.evaluate.term(node.trips))
                yield from self.nodes(node.body, times * trips)
                self.leave(node, trips)
            elif isinstance(node, Reshard):
                self.move(node)
                if node.kind not in LOCAL:
                    yield from self.collectives(node, times)
            else:
                self.compute(node)

    def compute(self, node: LocalOp) -> None:
        for result in node.results:
            self.pass_on(node, result)
        if node.op.kind == "dynamic_update_slice" and node.op.stepped:
            self.stacked.update(node.results)

    def pass_on(self, node: LocalOp, result: int) -> None:
        """A partial result is a sum that arose where the operands' did, or else here."""
        kind, here = node.op.kind, (Origin(self.dtype(result)),)
        known = [self.entering(copy, result, kind) for copy in node.operands if copy in self.origins]
        self.origins[result] = {
            axis: _together([each[axis] for each in known if axis in each], kind) or here
            for axis in self.sharded.copies[result].state.partial
        }

    def entering(self, operand: int, result: int, kind: str) -> Origins:
        """Origins of an operand as seen from the result."""
        ratio = self.ratio(operand, result) if kind in SHRINKING else 1.0
        if ratio == 1.0 and kind != "dot_general":
            return self.origins[operand]
        named = {
            axis: tuple(
                each if each.copy is not None else replace(each, copy=operand, multiplied=kind == "dot_general")
                for each in found
            )
            for axis, found in self.origins[operand].items()
        }
        return _shrunk(named, ratio)

    def move(self, node: Reshard) -> None:
        """What is still a partial sum behind a collective, a compiler has reduced before it."""
        left = self.sharded.copies[node.result].state.partial
        known = {axis: found for axis, found in self.origins.get(node.operand, {}).items() if axis in left}
        if known:
            self.origins[node.result] = _shrunk(known, self.ratio(node.operand, node.result))

    def ratio(self, before: int, after: int) -> float:
        """How many elements of one copy became one of another."""
        sizes = [self.evaluate.term(self.sharded.copies[copy].bytes) for copy in (before, after)]
        widths = [DTYPE_BYTES[self.dtype(copy)] for copy in (before, after)]
        return float(sizes[0]) / float(sizes[1]) * widths[1] / widths[0] if sizes[1] else 1.0

    def leave(self, loop: LocalLoop, trips: float) -> None:
        """What a loop leaves is what its trips yielded: side by side, or added up."""
        for inside, result in zip(loop.yields, loop.results, strict=True):
            if inside in self.origins:
                added = 1.0 if inside in self.stacked else trips
                self.origins[result] = {
                    axis: tuple(replace(each, trips=each.trips * added) for each in found)
                    for axis, found in self.origins[inside].items()
                }

    def collectives(self, node: Reshard, times: float) -> Iterator[Collective]:
        """A collective; if eager, one for each place where what it sums arose."""
        found = Collective(
            kind=KINDS.get(node.kind, node.kind),
            axes=tuple(axis for axis in node.axes if self.sizes[axis] > 1),
            dtype=self.dtype(node.operand),
            bytes=float(self.evaluate.term(node.bytes)),
            times=times,
            name=node.phase,
        )
        origins = self.origins.get(node.operand, {}) if self.eager and node.kind in REDUCTIONS else {}
        if unknown := tuple(axis for axis in found.axes if axis not in origins):
            yield replace(found, axes=unknown)
        for origin in dict.fromkeys(chain.from_iterable(origins.get(axis, ()) for axis in found.axes)):
            arose = [axis for axis in found.axes if origin in origins.get(axis, ())]
            if axes := tuple(axis for axis in arose if self.is_new(origin, axis)):
                yield _early(replace(found, axes=axes), origin)

    def is_new(self, origin: Origin, axis: str) -> bool:
        """Whether what went into a matmul has not been reduced yet, for another that it went into."""
        if origin.copy is None or not origin.multiplied:
            return True
        new = (origin.copy, axis) not in self.reduced
        self.reduced.add((origin.copy, axis))
        return new


def _shrunk(origins: Origins, ratio: float) -> Origins:
    """Origins of a sum with fewer elements, but for those that a compiler reduces where they came to be added up."""
    return {
        axis: tuple(each if each.copy is None else replace(each, elements=each.elements * ratio) for each in found)
        for axis, found in origins.items()
    }


def _together(origins: Sequence[tuple[Origin, ...]], kind: str) -> tuple[Origin, ...]:
    """Origins of a result; a compiler reduces summands of unlike sizes apart."""
    if kind not in ("add", "subtract"):
        return origins[0] if origins else ()
    found = dict.fromkeys(chain.from_iterable(origins))
    whole = [each for each in found if each.copy is None]
    return (*whole[:1], *(each for each in found if each.copy is not None))


def _early(late: Collective, origin: Origin) -> Collective:
    """A reduction run on each summand, in the type and of the size that it arose in."""
    ratio = origin.elements * DTYPE_BYTES[origin.dtype] / DTYPE_BYTES[late.dtype]
    return replace(late, dtype=origin.dtype, bytes=late.bytes * ratio, times=late.times * origin.trips)
