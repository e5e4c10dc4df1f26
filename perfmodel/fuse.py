"""Which ops share a kernel.

Elementwise ops, their layout changes and the reductions that end them run as one kernel, as XLA-like compilers fuse
them; matmuls, marked kernels, sorts and scatters stand alone. A value that only lives inside a kernel costs nothing,
and a value that is cheap to compute is computed again in every kernel that reads it where that moves fewer bytes.
Arithmetic on single numbers, such as loop counters, takes no kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from perfmodel.graph import Op
from perfmodel.kernel import SLICES, Kernel, kernel_of
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, ShardedGraph
from perfmodel.work import Identity

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
REPEATED = (
    "abs add and bitcast_convert broadcast_in_dim ceil clamp compare concatenate convert divide dynamic_slice floor "
    "iota is_finite maximum minimum multiply negate not or pad reduce_precision reshape reverse select sign slice "
    "subtract transpose xor"
)
CHEAP = frozenset(REPEATED.split())
"""Ops that a compiler would rather repeat than store, as XLA's `InstructionFusion::IsExpensive` has it."""


def fuse(sharded: ShardedGraph, region: Sequence[LocalNode], kept: Iterable[int]) -> list[Kernel]:
    """Kernels of one region (a loop body or the whole program); `kept` are the copies that live on after it."""
    draft = _Draft(sharded, region, kept)
    draft.repeat_cheap_ops()
    made = map(draft.kernel, draft.members)
    return [kernel for kernel in made if kernel and (kernel.bytes or kernel.flops)]


def kernels(sharded: ShardedGraph, region: Sequence[LocalNode]) -> Sequence[Kernel]:
    """Kernels of one of the `regions` of a sharded graph, fused once for all who ask for them in turn."""
    return _kernels(Identity(sharded))[id(region)]


@lru_cache(maxsize=1)
def _kernels(key: Identity[ShardedGraph]) -> Mapping[int, Sequence[Kernel]]:
    return {id(nodes): fuse(key.it, nodes, kept) for _, nodes, kept in regions(key.it)}


def _fusible(op: Op) -> bool:
    return op.kind not in ALONE and not op.kind.startswith("perfmodel.")


def _groups(sharded: ShardedGraph, region: Sequence[LocalNode]) -> dict[int, int]:
    """Kernel id of each op: connected fusible ops on one level. A level ends where a value must be complete (behind
    a matmul, a reduction, a collective or a loop), so no kernel can depend on itself.
    """
    producer: dict[int, int] = {}
    level: dict[int, int] = {}
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, node in enumerate(region):
        feeds = [(c, producer[c]) for c in node.operands if c in producer and c not in sharded.free]
        fusible = isinstance(node, LocalOp) and _fusible(node.op)
        level[i] = max((level[p] + (not fusible or _completes(region[p])) for _, p in feeds), default=0)
        producer.update(dict.fromkeys(node.results, i))
        if not isinstance(node, LocalOp) or all(c in sharded.free for c in node.results):
            continue
        parent[i] = i
        if not fusible:
            continue
        for copy, p in feeds:
            if p in parent and level[p] == level[i] and not _completes(region[p]) and _is_tensor(sharded, copy):
                parent[root(p)] = root(i)
    return {i: root(i) for i in parent}


def _completes(node: LocalNode) -> bool:
    """Whether consumers must wait for all of a node's result."""
    return not isinstance(node, LocalOp) or not _fusible(node.op) or node.op.kind == "reduce"


def _is_tensor(sharded: ShardedGraph, copy: int) -> bool:
    return bool(sharded.copies[copy].state.dims)


class _Draft:
    """Kernels in the making: which ops are in each (`members`), and which kernels read each copy (`readers`)."""

    def __init__(self, sharded: ShardedGraph, region: Sequence[LocalNode], kept: Iterable[int]) -> None:
        self.sharded = sharded
        self.region = region
        self.group = _groups(sharded, region)
        self.maker = {copy: i for i, node in enumerate(region) for copy in node.results}
        self.members: dict[int, list[int]] = {}
        self.readers: dict[int, set[int]] = {}
        for i, group in self.group.items():
            self.members.setdefault(group, []).append(i)
        for i, node in enumerate(region):
            for copy in node.operands:
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
        """Where it moves fewer bytes, let readers in other kernels compute a value again from what made it."""
        for i in self.group:
            if self.op(i).kind in CHEAP:
                for copy in self.region[i].results:
                    if _is_tensor(self.sharded, copy):
                        self._repeat(copy)

    def _repeat(self, copy: int) -> None:
        outside = self.elsewhere(copy)
        if not outside or not all(map(self._takes_more, outside)):
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

    def _takes_more(self, group: int) -> bool:
        """Whether ops may be added to a kernel."""
        return any(_fusible(self.op(i)) for i in self.members.get(group, ()))

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
                if self._stored(operand) or self.op(self.maker[operand]).kind not in CHEAP:
                    sliced = k == 0 and self.op(i).kind in SLICES
                    sources[operand] = self._bytes(self.region[i].results[0] if sliced else operand)
                else:
                    wanted.append(operand)
        return ops, sources

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
        return kernel_of(self.sharded, ops, own, stored) if any(_is_tensor(self.sharded, c) for c in touched) else None


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
