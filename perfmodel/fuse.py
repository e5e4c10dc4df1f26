"""What runs in each kernel, and what it still moves.

A value that only lives inside a kernel costs nothing, and a value that is cheap to compute is computed again in every
kernel that reads it where that moves fewer bytes. Arithmetic on single numbers, such as loop counters, takes no kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from perfmodel.graph import Op
from perfmodel.group import EPILOGUED, HEAVY, fusible, grouped, is_tensor
from perfmodel.kernel import SLICES, Kernel, kernel_of
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, ShardedGraph
from perfmodel.work import Identity

REPEATED = (
    "abs add and bitcast_convert broadcast_in_dim ceil chlo.square clamp compare concatenate convert divide "
    "dynamic_slice floor iota is_finite maximum minimum multiply negate not or pad reduce_precision reshape reverse "
    "select sign slice subtract transpose xor"
)
CHEAP = frozenset(REPEATED.split())
"""Ops that a compiler would rather repeat than store, as XLA's `InstructionFusion::IsExpensive` has it."""


def fuse(
    sharded: ShardedGraph, region: Sequence[LocalNode], kept: Iterable[int], *, epilogues: bool = True
) -> list[Kernel]:
    """Kernels of one region (a loop body or the whole program); `kept` are the copies that live on after it."""
    draft = _Draft(sharded, region, kept, EPILOGUED if epilogues else ())
    draft.repeat_cheap_ops()
    made = map(draft.kernel, draft.members)
    return [kernel for kernel in made if kernel and (kernel.bytes or kernel.flops)]


def kernels(sharded: ShardedGraph, region: Sequence[LocalNode], *, epilogues: bool = True) -> Sequence[Kernel]:
    """Kernels of one of the `regions` of a sharded graph, fused once for all who ask for them in turn."""
    return _kernels(Identity(sharded), epilogues)[id(region)]


@lru_cache(maxsize=2)
def _kernels(key: Identity[ShardedGraph], epilogues: bool) -> Mapping[int, Sequence[Kernel]]:
    return {id(nodes): fuse(key.it, nodes, kept, epilogues=epilogues) for _, nodes, kept in regions(key.it)}


class _Draft:
    """Kernels in the making: which ops are in each (`members`), and which kernels read each copy (`readers`)."""

    def __init__(
        self, sharded: ShardedGraph, region: Sequence[LocalNode], kept: Iterable[int], epilogued: Collection[str]
    ) -> None:
        self.sharded = sharded
        self.region = region
        self.group = grouped(sharded, region, epilogued)
        self.maker = {copy: i for i, node in enumerate(region) for copy in node.results}
        self.users: dict[int, set[int]] = {}
        self.members: dict[int, list[int]] = {}
        self.readers: dict[int, set[int]] = {}
        for i, group in self.group.items():
            self.members.setdefault(group, []).append(i)
        for i, node in enumerate(region):
            for copy in node.operands:
                self.users.setdefault(copy, set()).add(i)
                self.readers.setdefault(copy, set()).add(self.group.get(i, -1 - i))
        for copy in kept:
            self.readers.setdefault(copy, set()).add(len(region))

    def op(self, i: int) -> Op:
        """The op at a position that belongs to a kernel."""
        node = self.region[i]
        assert isinstance(node, LocalOp)
        return node.op

    def elsewhere(self, copy: int) -> set[int]:
        """Readers of a copy other than the kernel that makes it."""
        return self.readers.get(copy, set()) - {self.group.get(self.maker.get(copy, -1), -1)}

    def repeat_cheap_ops(self) -> None:
        """Where it moves fewer bytes, let readers in other kernels compute a value again from what made it, or the only
        one compute it at all.
        """
        for i, group in self.group.items():
            for copy in self.region[i].results:
                alone = len(self.readers.get(copy, ())) == 1 and group not in self.readers[copy]
                if is_tensor(self.sharded, copy) and (self._is_cheap(i) or (alone and self._is_movable(i))):
                    self._repeat(copy)

    def _is_cheap(self, i: int) -> bool:
        return self.op(i).kind in CHEAP

    def _is_movable(self, i: int) -> bool:
        """Whether an op computes each element from those of its operands."""
        op = self.op(i)
        return fusible(op) and op.kind not in HEAVY and op.kind != "dynamic_update_slice"

    def _repeat(self, copy: int) -> None:
        outside = self.elsewhere(copy)
        if not outside or not all(self._works_on(copy, group) for group in outside):
            return
        ops, sources = self._recipe(copy)
        fetches = {source: len(outside - self.readers[source]) + (not self._stored(source)) for source in sources}
        fetched = sum(sources[source] * count for source, count in fetches.items())
        if fetched >= self._bytes(copy) * (1 + len(outside)):
            return
        self.readers[copy] -= outside
        for source in sources:
            self.readers[source].update(outside)
        for group in outside:
            self.members[group] = sorted({*self.members[group], *ops})

    def _works_on(self, copy: int, group: int) -> bool:
        """Whether a kernel reads a copy in ops that others may be fused with."""
        members = self.members.get(group, ())
        readers = [op for i in members if copy in self.region[i].operands for op in [self.op(i)]]
        return bool(readers) and all(map(fusible, readers))

    def _stored(self, copy: int) -> bool:
        """Whether a copy is in memory: made by no op of this region, by one that cannot be fused, or read elsewhere."""
        return self.maker.get(copy) not in self.group or bool(self.elsewhere(copy))

    def _recipe(self, copy: int) -> tuple[set[int], dict[int, float]]:
        """Ops that make a copy from values in memory (or worth putting there), and the bytes to fetch of each."""
        ops: set[int] = set()
        sources: dict[int, float] = {}
        wanted = [copy]
        while wanted:
            i = self.maker[wanted.pop()]
            ops.add(i)
            for k, operand in enumerate(self.region[i].operands):
                if operand in self.sharded.free:
                    continue
                if self._stored(operand) or not self._comes_along(operand, ops):
                    sliced = k == 0 and self.op(i).kind in SLICES
                    sources[operand] = self._bytes(self.region[i].results[0] if sliced else operand)
                else:
                    wanted.append(operand)
        return ops, sources

    def _comes_along(self, copy: int, ops: set[int]) -> bool:
        """Whether who computes `ops` computes a value that they read as well."""
        i = self.maker[copy]
        return self._is_cheap(i) or (self._is_movable(i) and self.users[copy] <= ops)

    def _bytes(self, copy: int) -> float:
        return self.sharded.graph.bytes(self.sharded.copies[copy].value)

    def kernel(self, group: int) -> Kernel | None:
        """One kernel, without the ops that nobody needs any more; None if no tensor is left in it."""
        ops: list[LocalOp] = []
        own: dict[int, LocalOp] = {}
        stored: list[int] = []
        wanted: set[int] = set()
        for i in reversed(self.members[group]):
            node = self.region[i]
            assert isinstance(node, LocalOp)
            needed = [c for c in node.results if self.elsewhere(c)] if self.group[i] == group else []
            if needed or wanted.intersection(node.results):
                wanted.update(node.operands)
                ops.insert(0, node)
                stored[:0] = needed
                if self.group[i] == group:
                    own[i] = node
        touched = (copy for local in own.values() for copy in (*local.operands, *local.results))
        if not any(is_tensor(self.sharded, copy) for copy in touched):
            return None
        return kernel_of(self.sharded, ops, own, stored, by_element=fusible)


Region: TypeAlias = tuple[tuple[LocalLoop, ...], Sequence[LocalNode], tuple[int, ...]]
"""Enclosing loops, nodes, and the copies that live on after them."""


def regions(sharded: ShardedGraph) -> list[Region]:
    """The whole program and every loop body in it."""
    return list(_regions((), sharded.nodes, sharded.results))


def _regions(loops: tuple[LocalLoop, ...], nodes: Sequence[LocalNode], kept: tuple[int, ...]) -> Iterator[Region]:
    yield loops, nodes, kept
    for node in nodes:
        if isinstance(node, LocalLoop):
            yield from _regions((*loops, node), node.body, node.yields)
