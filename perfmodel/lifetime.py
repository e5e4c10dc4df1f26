"""When values need memory: which copies of a sharded graph get memory of their own, from where on, and until when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.fuse import kernels
from perfmodel.kernel import Kernel
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import LOCAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """The copies of a region that get memory of their own, the position of the node that makes each (`born`), and of
    the one that needs it, or another name for its memory, for the last time (`last`).
    """

    copies: tuple[int, ...]
    born: NDArray[np.intp]
    last: NDArray[np.intp]


class Lifetimes:
    """Lives in the regions of a sharded graph; the same for every stage."""

    def __init__(self, sharded: ShardedGraph) -> None:
        self._sharded = sharded
        self._known: dict[int, Lives] = {}

    def of(self, nodes: Sequence[LocalNode], parameters: Sequence[int], kept: Sequence[int]) -> Lives:
        """Lives in a region of the sharded graph, worked out once."""
        if id(nodes) not in self._known:
            fused = kernels(self._sharded, nodes)
            originals = self._originals(nodes, fused)
            last = self._last_uses(nodes, fused, kept, originals)
            born = {copy: i for i, copy in self._births(nodes, fused, self._updated(parameters, kept))}
            last = {copy: max(i, last.get(copy, i)) for copy, i in born.items()}
            last |= self._taken_over(fused, originals, born, last)
            self._known[id(nodes)] = Lives(
                copies=tuple(born),
                born=np.array(list(born.values()), dtype=np.intp),
                last=np.array(list(last.values()), dtype=np.intp),
            )
        return self._known[id(nodes)]

    def _births(
        self, nodes: Sequence[LocalNode], fused: Sequence[Kernel], updated: set[int]
    ) -> Iterator[tuple[int, int]]:
        """Copies that get memory of their own, each behind the position of the node that makes it."""
        maker = {copy: i for i, node in enumerate(nodes) for copy in node.results}
        for kernel in fused:
            for copy in kernel.stored:
                if copy not in updated and not self._alias(nodes[maker[copy]]):
                    yield maker[copy], copy
        for i, node in enumerate(nodes):
            if isinstance(node, Reshard) and node.kind not in LOCAL and node.result not in updated:
                yield i, node.result
            elif isinstance(node, LocalLoop):
                for parameter, left, result in zip(node.parameters, node.yields, node.results, strict=True):
                    if parameter != left:
                        yield i, result

    def _originals(self, nodes: Sequence[LocalNode], fused: Sequence[Kernel]) -> dict[int, int]:
        """What each copy that is another name for memory was before, in the order in which they get their names."""
        stored = {copy for kernel in fused for copy in kernel.stored}
        return {
            copy: node.operands[0]
            for node in nodes
            for copy in node.results
            if node.operands and (self._alias(node) or (isinstance(node, LocalOp) and copy not in stored))  # a view
        }

    def _last_uses(
        self,
        nodes: Sequence[LocalNode],
        fused: Sequence[Kernel],
        kept: Sequence[int],
        originals: dict[int, int],
    ) -> dict[int, int]:
        """Position where each copy that is needed, or another name for its memory, is needed for the last time."""
        last = dict.fromkeys(kept, len(nodes))

        def use(copy: int, i: int) -> None:
            last[copy] = max(last.get(copy, i), i)

        for kernel in fused:
            for copy in kernel.inputs:
                use(copy, max(kernel.nodes))
        for i, node in enumerate(nodes):
            if not isinstance(node, LocalOp):
                for copy in node.operands:
                    use(copy, i)
        for copy, original in reversed(originals.items()):  # every use of another name is known before its original's
            if copy in last:
                use(original, last[copy])
        return last

    def _taken_over(
        self,
        fused: Sequence[Kernel],
        originals: Mapping[int, int],
        born: Mapping[int, int],
        last: Mapping[int, int],
    ) -> dict[int, int]:
        """Position before which a kernel's result takes over the memory of each input that it is the last to need."""
        copies = self._sharded.copies
        ends: dict[int, int] = {}
        for kernel in fused:
            for copy, inputs in kernel.overwrites.items():
                for buffer in (_original(each, originals) for each in inputs):
                    mine = buffer in born and buffer not in ends and copies[buffer].bytes == copies[copy].bytes
                    if mine and copy in born and born[buffer] < born[copy] and last[buffer] <= max(kernel.nodes):
                        ends[buffer] = born[copy] - 1
                        break
        return ends

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


def _original(copy: int, originals: Mapping[int, int]) -> int:
    """The copy whose memory another one names."""
    while copy in originals:
        copy = originals[copy]
    return copy
