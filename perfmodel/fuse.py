"""Which ops share a kernel, and what such a kernel still reads from and writes to memory.

Elementwise ops, their layout changes and the reductions that end them run as one kernel, as XLA-like compilers fuse
them; matmuls, marked kernels, sorts and scatters stand alone. A value that only lives inside a kernel costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perfmodel.graph import Op, Work
from perfmodel.shard import LocalLoop, LocalNode, LocalOp, ShardedGraph
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Work of one kernel launch on each rank.

    flops:  FLOPs that the hardware executes, by (engine, element type) [FLOP]
    bytes:  traffic across the kernel's boundary [B]
    nodes:  positions of its ops in the region it belongs to
    stored: copies that it writes to memory of their own (not those that alias a view or an updated buffer)
    """

    flops: Mapping[tuple[str, str], Amount]
    bytes: Amount
    phase: str
    label: str
    source: str
    nodes: tuple[int, ...]
    stored: tuple[int, ...] = ()


def fuse(sharded: ShardedGraph, region: Sequence[LocalNode], kept: Iterable[int]) -> list[Kernel]:
    """Kernels of one region (a loop body or the whole program); `kept` are the copies that live on after it."""
    groups = _groups(sharded, region)
    readers: dict[int, set[int]] = {}
    for i, node in enumerate(region):
        for copy in node.operands:
            readers.setdefault(copy, set()).add(groups.get(i, -1 - i))
    for copy in kept:
        readers.setdefault(copy, set()).add(len(region))
    members: dict[int, list[int]] = {}
    for i, group in groups.items():
        members.setdefault(group, []).append(i)
    kernels = [_kernel(sharded, region, nodes, group, readers) for group, nodes in members.items()]
    return [kernel for kernel in kernels if kernel.bytes or kernel.flops]


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


def _kernel(
    sharded: ShardedGraph,
    region: Sequence[LocalNode],
    nodes: Sequence[int],
    group: int,
    readers: Mapping[int, set[int]],
) -> Kernel:
    ops = [node for node in (region[i] for i in nodes) if isinstance(node, LocalOp)]
    flops: dict[tuple[str, str], list[Term]] = {}
    for local in ops:
        for engine, dtype, term in executed(sharded, local):
            flops.setdefault((engine, dtype), []).append(term)
    main = max(ops, key=lambda local: sum(work.flops for work in local.op.work))
    needed = [copy for local in ops for copy in local.results if readers.get(copy, set()) - {group}]
    view = all(_is_view(local.op) for local in ops)
    return Kernel(
        flops={key: amount(terms) for key, terms in flops.items()},
        bytes={} if view else amount([*_reads(sharded, ops), *_writes(sharded, ops, needed)]),
        phase=main.op.phase,
        label=main.op.kind,
        source=main.op.source,
        nodes=tuple(nodes),
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
            term = resized(term.times(local.axes[i], -1), factor.name, factor.size)
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
