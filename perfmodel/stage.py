"""Which pipeline stage runs an op, once the layers of a loop are spread over stages.

Ops inside a loop over pipelined layers run on every stage. Around such loops, what comes before the first belongs to
the first stage (the embedding), what lies between the first and the last to the last stage (head and loss); whatever
is computed from those alone (gradients of the same weights) stays with them, and so does whatever only they read (the
optimizer's state, the targets).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

from perfmodel.sharded import LocalLoop, LocalNode, ShardedGraph
from perfmodel.work import Identity

Stages: TypeAlias = frozenset[str]
EVERY: Stages = frozenset()
FIRST: Stages = frozenset({"first"})
LAST: Stages = frozenset({"last"})


def runs_on(stages: Stages, view: str) -> bool:
    """Whether what runs on `stages` runs on the stage called `view`: an end of the pipeline, a stage in the middle, or
    the `only` one, which runs everything.
    """
    return view == "only" or not stages or view in stages


class StageMap:
    """Stages of every node (`of_node`) and of every copy (`of_copy`); the empty set means every stage, as for copies
    stacked over the layers of all.
    """

    def __init__(self, sharded: ShardedGraph) -> None:
        self._sharded = sharded
        self._stacked = {i for i, entry in enumerate(sharded.copies) if "pp" in entry.state.axes}
        self._nodes: dict[int, Stages] = {}
        self._values: dict[int, Stages] = {}
        self._visit(sharded.nodes, EVERY, pipelined=False)

    def of_node(self, node: LocalNode) -> Stages:
        """Stages that run a node of the sharded graph."""
        return self._nodes[id(node)]

    def of_copy(self, copy: int) -> Stages:
        """Stages that hold a copy."""
        return EVERY if copy in self._stacked else self._values.get(self._value(copy), EVERY)

    def of_kernel(self, nodes: Sequence[LocalNode]) -> Stages:
        """Stages that run ops fused into one kernel."""
        return together(self._nodes[id(node)] for node in nodes)

    def _value(self, copy: int) -> int:
        return self._sharded.copies[copy].value

    def _visit(self, nodes: Sequence[LocalNode], default: Stages, *, pipelined: bool) -> None:
        loops = [i for i, node in enumerate(nodes) if _is_pipelined(node)]
        placed = dict(self._values)  # stages of values as far as what makes them tells
        for i, node in enumerate(nodes):
            place = default
            if loops and not pipelined:
                place = FIRST if i < loops[0] else LAST if i < loops[-1] else EVERY
            stages = EVERY if pipelined else self._stages(node, placed, place, after=bool(loops) and i > loops[-1])
            self._nodes[id(node)] = stages
            if isinstance(node, LocalLoop):
                self._enter(node, stages, placed, pipelined=pipelined or "pp" in node.axes)
            elif stages:
                for copy in (*node.operands, *node.results):
                    self._mark(placed, copy, stages)
        if not pipelined:
            self._place_by_use(nodes, loops)
        for node in nodes:
            if not isinstance(node, LocalLoop) and self._nodes[id(node)]:
                for copy in (*node.operands, *node.results):
                    self._mark(self._values, copy, self._nodes[id(node)])

    def _stages(self, node: LocalNode, placed: dict[int, Stages], place: Stages, *, after: bool) -> Stages:
        if self._spans(node):
            return EVERY
        if place:
            return place
        inherited = frozenset().union(
            *(placed.get(self._value(c), EVERY) for c in node.operands if self._sharded.copies[c].state.dims)
        )
        return inherited or (FIRST if after else EVERY)

    def _spans(self, node: LocalNode) -> bool:
        """Whether a node handles values that are stacked over the layers of all stages."""
        return not self._stacked.isdisjoint((*node.operands, *node.results))

    def _place_by_use(self, nodes: Sequence[LocalNode], loops: Sequence[int]) -> None:
        """Move ops that nothing else places to the stages that read their results."""
        uses: dict[int, list[Stages]] = {}
        for i, node in reversed(list(enumerate(nodes))):
            found = [stages for copy in node.results for stages in uses.get(copy, ())]
            movable = not isinstance(node, LocalLoop) and not self._spans(node)
            if movable and found and (not self._nodes[id(node)] or (loops and i < loops[0])):
                self._nodes[id(node)] = together(found)
            for k, copy in enumerate(node.operands):
                uses.setdefault(copy, []).append(self._use(node, k, first=bool(loops) and i == loops[0]))

    def _use(self, node: LocalNode, k: int, *, first: bool) -> Stages:
        """Stages on which a node reads its k-th operand."""
        if not isinstance(node, LocalLoop):
            return self._nodes[id(node)]
        if "pp" not in node.axes:
            return self.of_copy(node.parameters[k])
        if node.parameters[k] == node.yields[k]:
            return EVERY
        return FIRST if first else LAST

    def _mark(self, values: dict[int, Stages], copy: int, stages: Stages) -> None:
        if self._sharded.copies[copy].state.dims:
            value = self._value(copy)
            values[value] = values.get(value, EVERY) | stages

    def _enter(self, loop: LocalLoop, stages: Stages, placed: dict[int, Stages], *, pipelined: bool) -> None:
        slots = list(zip(loop.operands, loop.parameters, loop.yields, loop.results, strict=True))
        for operand, parameter, _, _ in slots:
            self._mark(self._values, parameter, placed.get(self._value(operand), EVERY))
        self._visit(loop.body, stages, pipelined=pipelined)
        for operand, parameter, left, result in slots:
            reached = self._values.get(self._value(parameter), EVERY) | self._values.get(self._value(left), EVERY)
            if reached and not pipelined:
                for values in (placed, self._values):
                    self._mark(values, operand, reached)
                    self._mark(values, result, reached)


def stage_map(sharded: ShardedGraph) -> StageMap:
    """The stages of a sharded graph, worked out once for all who ask for them in turn."""
    return _stage_map(Identity(sharded))


@lru_cache(maxsize=1)
def _stage_map(key: Identity[ShardedGraph]) -> StageMap:
    return StageMap(key.it)


def together(stages: Iterable[Stages]) -> Stages:
    """Stages on which any of several things happens."""
    each = list(stages)
    return frozenset().union(*each) if all(each) else EVERY


def _is_pipelined(node: LocalNode) -> bool:
    return isinstance(node, LocalLoop) and "pp" in node.axes
