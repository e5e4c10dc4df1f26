"""Which ops share a kernel.

Elementwise ops, their layout changes and the reductions that end them run as one kernel, as XLA-like compilers fuse
them; marked kernels, sorts and scatters stand alone. A matmul works on its result before it writes it: elementwise ops
behind it are of its kernel, down to the place in a stack that a loop writes it to. Reductions are not, nor is what
makes its operands.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from perfmodel.graph import Op
from perfmodel.sharded import LocalNode, LocalOp, ShardedGraph

ALONE = frozenset(
    {
        "dot_general",
        "convolution",
        "chlo.ragged_dot",
        "sort",
        "chlo.top_k",
        "scatter",
        "select_and_scatter",
        "reduce_window",
        "rng_bit_generator",
    }
)
EPILOGUED = frozenset({"dot_general", "convolution"})
"""Matmuls whose kernel may work on its result before it writes it."""

HEAVY = frozenset({"reduce", "gather"})
"""Fusible ops that no matmul's kernel takes in."""


def grouped(
    sharded: ShardedGraph, region: Sequence[LocalNode], epilogued: Collection[str] = EPILOGUED
) -> dict[int, int]:
    """Kernel id of each op of a region that is not free, by position; `epilogued` are the kinds of matmuls whose kernel
    works on its result.
    """
    return _Grouping(sharded, region, epilogued).kernels()


def fusible(op: Op) -> bool:
    """Whether an op may share a kernel with others that are no matmul."""
    return op.kind not in ALONE and not op.kind.startswith("perfmodel.")


def is_tensor(sharded: ShardedGraph, copy: int) -> bool:
    """Whether a copy is more than a single number."""
    return bool(sharded.copies[copy].state.dims)


@dataclass(slots=True, eq=False)
class _Group:
    """Ops that share a kernel, by position, and the level on which it runs.

    matmul: whether one of them is a matmul
    light:  whether a matmul's kernel may take them all in
    read:   whether another group reads their results already, so that the level must stay
    """

    level: int
    ops: list[int]
    matmul: bool = False
    light: bool = False
    read: bool = False


class _Grouping:
    """Groups of the ops of a region: connected fusible ops on one level, or a matmul with what it has for an epilogue.

    A group reads groups of lower levels only, so no kernel can depend on itself: a level ends where a value must be
    complete (behind a matmul for those not of its kernel, a reduction, a collective or a loop). One that no other
    group reads yet may run later, on a higher level.
    """

    def __init__(self, sharded: ShardedGraph, region: Sequence[LocalNode], epilogued: Collection[str]) -> None:
        self._sharded = sharded
        self._epilogued = epilogued
        self._region = region
        self._group: dict[int, _Group] = {}
        producer: dict[int, int] = {}
        for i, node in enumerate(region):
            self._add(i, node, [(c, producer[c]) for c in node.operands if c in producer and c not in sharded.free])
            producer.update(dict.fromkeys(node.results, i))

    def kernels(self) -> dict[int, int]:
        """Kernel id of each op that is not free."""
        return {
            i: group.ops[0]
            for i, group in self._group.items()
            if isinstance(node := self._region[i], LocalOp) and not self._sharded.free.issuperset(node.results)
        }

    def _add(self, i: int, node: LocalNode, feeds: Sequence[tuple[int, int]]) -> None:
        if not isinstance(node, LocalOp) or not fusible(node.op):
            level = max((self._group[p].level + 1 for _, p in feeds), default=0)
            self._group[i] = _Group(level, [i], matmul=isinstance(node, LocalOp) and node.op.kind in self._epilogued)
        elif not self._join_matmul(i, node, feeds):
            self._join_level(i, node, feeds)
        for _, p in feeds:
            self._group[p].read |= self._group[p] is not self._group[i]

    def _join_level(self, i: int, node: LocalOp, feeds: Sequence[tuple[int, int]]) -> None:
        """Put an op into one kernel with all that feeds it on its level."""
        level = max((self._group[p].level + self._completes(p) for _, p in feeds), default=0)
        self._group[i] = _Group(level, [i], light=node.op.kind not in HEAVY)
        for copy, p in feeds:
            if self._group[p].level == level and not self._completes(p) and is_tensor(self._sharded, copy):
                self._merge(self._group[p], self._group[i])

    def _join_matmul(self, i: int, node: LocalOp, feeds: Sequence[tuple[int, int]]) -> bool:
        """Put an op into the kernel of the last matmul among its feeds that may wait for the others, if there is one.
        What only this op reads comes along.
        """
        for _, last in sorted(feeds, key=lambda feed: feed[1], reverse=True):
            home = self._group[last]
            if not home.matmul or not self._is_epilogue(node, home, feeds):
                continue
            others = [(c, p) for c, p in feeds if self._group[p] is not home]
            level = max([home.level, *(self._earliest(c, p) for c, p in others)])
            if level > home.level and home.read:
                continue
            home.level = level
            self._group[i] = home
            home.ops.append(i)
            for group in [self._group[p] for c, p in others if self._comes_along(c, p)]:
                self._merge(group, home)
            return True
        return False

    def _is_epilogue(self, node: LocalOp, home: _Group, feeds: Sequence[tuple[int, int]]) -> bool:
        """Whether an op makes one element of each that a matmul's kernel holds, or writes these into a buffer."""
        if node.op.kind in HEAVY:
            return False
        held = {copy for copy, p in feeds if self._group[p] is home}
        if node.op.kind == "dynamic_update_slice":
            return held == {node.operands[1]}
        return len({self._elements(copy) for copy in (*held, *node.results)}) == 1

    def _elements(self, copy: int) -> float:
        return self._sharded.graph.elements(self._sharded.copies[copy].value)

    def _comes_along(self, copy: int, p: int) -> bool:
        group = self._group[p]
        return group.light and not group.read and is_tensor(self._sharded, copy)

    def _earliest(self, copy: int, p: int) -> int:
        """The lowest level of a matmul's kernel that reads a copy or makes it itself."""
        waits = self._completes(p) or (is_tensor(self._sharded, copy) and not self._comes_along(copy, p))
        return self._group[p].level + waits

    def _completes(self, p: int) -> bool:
        """Whether consumers in other groups must wait for all of a node's result."""
        node = self._region[p]
        if not isinstance(node, LocalOp) or not fusible(node.op):
            return True
        return self._group[p].matmul or node.op.kind == "reduce"

    def _merge(self, a: _Group, b: _Group) -> None:
        """Make one group of two, on the higher level."""
        if a is b:
            return
        small, large = sorted((a, b), key=lambda group: len(group.ops))
        for i in small.ops:
            self._group[i] = large
        large.ops.extend(small.ops)
        large.level = max(a.level, b.level)
        large.matmul = a.matmul or b.matmul
        large.light = a.light and b.light
        large.read = a.read or b.read
