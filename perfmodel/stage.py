"""Which pipeline stage runs an op, once the layers of a loop are spread over stages.

Ops inside a loop over pipelined layers run on every stage. Around such loops, what comes before the first belongs to
the first stage (the embedding), what lies between the first and the last to the last stage (head and loss); whatever
is computed from those alone (gradients and optimizer state of the same weights) stays with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from perfmodel.shard import LocalLoop, LocalNode, ShardedGraph

Stages: TypeAlias = frozenset[str]
EVERY: Stages = frozenset()
FIRST: Stages = frozenset({"first"})
LAST: Stages = frozenset({"last"})


class StageMap:
    """Stages of every node (`of_node`) and of every value (`of_value`); the empty set means every stage."""

    def __init__(self, sharded: ShardedGraph) -> None:
        self._sharded = sharded
        self._nodes: dict[int, Stages] = {}
        self._values: dict[int, Stages] = {}
        self._visit(sharded.nodes, EVERY, pipelined=False)

    def of_node(self, node: LocalNode) -> Stages:
        """Stages that run a node of the sharded graph."""
        return self._nodes[id(node)]

    def of_copy(self, copy: int) -> Stages:
        """Stages that hold a copy."""
        entry = self._sharded.copies[copy]
        return EVERY if "pp" in entry.state.axes else self._values.get(entry.value, EVERY)

    def _value(self, copy: int) -> int:
        return self._sharded.copies[copy].value

    def _visit(self, nodes: Sequence[LocalNode], default: Stages, *, pipelined: bool) -> None:
        loops = [i for i, node in enumerate(nodes) if isinstance(node, LocalLoop) and "pp" in node.axes]
        for i, node in enumerate(nodes):
            place = default
            if loops and not pipelined:
                place = FIRST if i < loops[0] else LAST if i < loops[-1] else EVERY
            stages = EVERY if pipelined else self._stages(node, place, after=bool(loops) and i > loops[-1])
            self._nodes[id(node)] = stages
            if isinstance(node, LocalLoop):
                self._enter(node, stages, pipelined=pipelined or "pp" in node.axes)
            elif stages:
                for copy in (*node.operands, *node.results):
                    self._mark(copy, stages)

    def _stages(self, node: LocalNode, place: Stages, *, after: bool) -> Stages:
        copies = (*node.operands, *node.results)
        if any("pp" in self._sharded.copies[copy].state.axes for copy in copies):
            return EVERY
        if place:
            return place
        inherited = frozenset().union(
            *(self._values.get(self._value(c), EVERY) for c in node.operands if self._sharded.copies[c].state.dims)
        )
        return inherited or (FIRST if after else EVERY)

    def _mark(self, copy: int, stages: Stages) -> None:
        if self._sharded.copies[copy].state.dims:
            value = self._value(copy)
            self._values[value] = self._values.get(value, EVERY) | stages

    def _enter(self, loop: LocalLoop, stages: Stages, *, pipelined: bool) -> None:
        outer = (loop.operands, loop.parameters, loop.yields, loop.results)
        slots = list(zip(*outer, strict=True))
        for operand, parameter, _, _ in slots:
            self._mark(parameter, self._values.get(self._value(operand), EVERY))
        self._visit(loop.body, stages, pipelined=pipelined)
        for operand, parameter, left, result in slots:
            reached = self._values.get(self._value(parameter), EVERY) | self._values.get(self._value(left), EVERY)
            if reached and not pipelined:
                self._mark(operand, reached)
                self._mark(result, reached)
