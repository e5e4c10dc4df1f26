"""Which ops share a kernel, and what such a kernel still reads from and writes to memory.

Elementwise ops, their layout changes and the reductions that end them run as one kernel, as XLA-like compilers fuse
them; matmuls, marked kernels, sorts and scatters stand alone. A value that only lives inside a kernel costs nothing,
and a value that is cheap to compute is computed again in every kernel that reads it where that moves fewer bytes.
Arithmetic on single numbers, such as loop counters, takes no kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perfmodel.graph import Op, Work
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, ShardedGraph
from perfmodel.work import Amount, Term, amount, resized

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
SLICES = ("dynamic_slice", "gather")
VIEWS = ("dynamic_slice", "reshape", "transpose", "bitcast_convert")
REPEATED = (
    "abs add and bitcast_convert broadcast_in_dim ceil clamp compare concatenate convert divide dynamic_slice floor "
    "iota is_finite maximum minimum multiply negate not or pad reduce_precision reshape reverse select sign slice "
    "subtract transpose xor"
)
CHEAP = frozenset(REPEATED.split())
"""Ops that a compiler would rather repeat than store, as XLA's `InstructionFusion::IsExpensive` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Work of one kernel launch on each rank.

    flops:  FLOPs that the hardware executes, by (engine, element type) [FLOP]
    bytes:  traffic across the kernel's boundary [B]
    nodes:  positions of its ops in the region it belongs to, those repeated from other kernels left out
    inputs: copies from outside that it works on
    stored: copies that it writes to memory of their own (not those that alias a view or an updated buffer)
    """

    flops: Mapping[tuple[str, str], Amount]
    bytes: Amount
    phase: str
    label: str
    source: str
    nodes: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()


def fuse(sharded: ShardedGraph, region: Sequence[LocalNode], kept: Iterable[int]) -> list[Kernel]:
    """Kernels of one region (a loop body or the whole program); `kept` are the copies that live on after it."""
    draft = _Draft(sharded, region, kept)
    draft.repeat_cheap_ops()
    kernels = map(draft.kernel, draft.members)
    return [kernel for kernel in kernels if kernel and (kernel.bytes or kernel.flops)]


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
        return _kernel(self.sharded, ops, own, stored) if any(_is_tensor(self.sharded, c) for c in touched) else None


def _kernel(sharded: ShardedGraph, ops: Sequence[LocalOp], own: Mapping[int, LocalOp], needed: Sequence[int]) -> Kernel:
    flops: dict[tuple[str, str], list[Term]] = {}
    for local in ops:
        for engine, dtype, term in executed(sharded, local):
            flops.setdefault((engine, dtype), []).append(term)
    main = max(own.values(), key=lambda local: sum(work.flops for work in local.op.work))
    inside = {copy for local in ops for copy in local.results}
    inputs = {copy: None for local in ops for copy in local.operands if copy not in inside}
    view = all(_is_view(local.op) for local in ops)
    return Kernel(
        flops={key: amount(terms) for key, terms in flops.items()},
        bytes={} if view else amount([*_reads(sharded, ops), *_writes(sharded, ops, needed)]),
        phase=main.op.phase,
        label=main.op.kind,
        source=main.op.source,
        nodes=tuple(sorted(own)),
        inputs=tuple(inputs),
        stored=() if view else tuple(needed),
    )


def _is_view(op: Op) -> bool:
    """Whether an op by itself only renames memory: the consumer reads the original in place."""
    return op.kind in VIEWS and (op.kind != "dynamic_slice" or bool(op.stepped))


def executed(sharded: ShardedGraph, local: LocalOp) -> list[tuple[str, str, Term]]:
    """(engine, element type, FLOPs that one rank executes) of an op."""
    found = []
    for work in local.op.work:
        term = Term(work.flops * work.share)
        for i in work.over:
            factor = sharded.graph.factors[local.op.local[i]]
            term = resized(term.times(local.axes[i], -1), factor.name, factor.named_size)
        found.append((_engine(local.op, work), work.dtype, term))
    return found


def _engine(op: Op, work: Work) -> str:
    """The matrix engine reaches another share of its peak inside attention kernels: the softmax stands in its way."""
    return "attention" if work.engine == "tensor" and op.kind.startswith("perfmodel.attention") else work.engine


def _reads(sharded: ShardedGraph, ops: Sequence[LocalOp]) -> list[Term]:
    """What a kernel fetches: each outside value once, of sliced ones only the slice."""
    inside = {copy for local in ops for copy in local.results}
    whole: set[int] = set()
    terms = []
    for local in ops:
        for k, copy in enumerate(local.operands):
            if copy in inside or copy in sharded.free or copy in whole:
                continue
            if k == 0 and local.op.kind in SLICES:
                terms.append(sharded.copies[local.results[0]].bytes)
            elif k == 0 and local.op.kind == "scatter":
                terms.append(sharded.copies[local.operands[2]].bytes)
            elif not (k == 0 and local.op.kind == "dynamic_update_slice"):
                whole.add(copy)
    return terms + [sharded.copies[copy].bytes for copy in whole]


def _writes(sharded: ShardedGraph, ops: Sequence[LocalOp], needed: Sequence[int]) -> list[Term]:
    """What a kernel stores: results that someone outside needs; updates in place store the update only."""
    terms = []
    for local in ops:
        in_place = {"dynamic_update_slice": 1, "scatter": 2}.get(local.op.kind)
        for copy in local.results:
            if copy in needed:
                updated = in_place is not None and local.operands[0] not in sharded.free
                terms.append(sharded.copies[local.operands[in_place or 0] if updated else copy].bytes)
    return terms


def regions(sharded: ShardedGraph) -> list[tuple[tuple[LocalLoop, ...], Sequence[LocalNode], tuple[int, ...]]]:
    """Every region: (enclosing loops, its nodes, the copies that live on after it)."""
    found: list[tuple[tuple[LocalLoop, ...], Sequence[LocalNode], tuple[int, ...]]] = []

    def visit(loops: tuple[LocalLoop, ...], nodes: Sequence[LocalNode], kept: tuple[int, ...]) -> None:
        found.append((loops, nodes, kept))
        for node in nodes:
            if isinstance(node, LocalLoop):
                visit((*loops, node), node.body, node.yields)

    visit((), sharded.nodes, sharded.results)
    return found
