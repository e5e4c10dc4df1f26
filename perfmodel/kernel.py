"""What one kernel launch executes, and what it still reads from and writes to memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from perfmodel.engine import Matmul, attended, executed, matmul, moved_bytes, row_bytes
from perfmodel.graph import Dims, Graph, Op
from perfmodel.sharded import LocalOp, ShardedGraph
from perfmodel.work import Amount, Term, amount

SLICES = ("dynamic_slice", "gather")
"""Ops that fetch only some of their first operand."""

VIEWS = ("dynamic_slice", "reshape", "transpose", "bitcast_convert", "broadcast_in_dim")
"""Ops that by themselves only rename memory: slices by the loop's counter, broadcasts that add dims of size 1."""

Order: TypeAlias = tuple[int, ...]
"""Where each index of a value stands among those of another that has the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one kernel launch asks of each rank.

    flops:  FLOPs that the hardware executes, by (engine, element type) [FLOP]
    bytes:  traffic across the kernel's boundary [B]
    matmul: its shape, where it is one
    row:    bytes that lie together, where rows are fetched or stored one by one [B]
    keys:   that a query of an attention kernel sees on average [1]
    """

    flops: Mapping[tuple[str, str], Amount]
    bytes: Amount
    matmul: Matmul | None = None
    row: Term | None = None
    keys: Term | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel(Demand):
    """A kernel by the ops that it runs.

    nodes:      positions of its ops in the region it belongs to, those repeated from other kernels left out
    inputs:     copies from outside that it works on
    stored:     copies that it writes to memory of their own (not those that alias a view or an updated buffer)
    overwrites: for each stored copy, inputs whose memory it may take over if nobody needs them any more
    """

    phase: str
    label: str
    scope: str
    source: str
    nodes: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()
    overwrites: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def kernel_of(
    sharded: ShardedGraph,
    ops: Sequence[LocalOp],
    own: Mapping[int, LocalOp],
    needed: Sequence[int],
    *,
    by_element: Callable[[Op], bool],
) -> Kernel:
    """The kernel that runs `ops`: its `own` by position in the region, the others repeated from other kernels. The
    results `needed` are read elsewhere; `by_element` tells whether an op may read operands element by element.
    """
    flops: dict[tuple[str, str], list[Term]] = {}
    for local in ops:
        for engine, dtype, term in executed(sharded, local):
            flops.setdefault((engine, dtype), []).append(term)
    main = max(own.values(), key=_weight)
    inside = {copy for local in ops for copy in local.results}
    inputs = {copy: None for local in ops for copy in local.operands if copy not in inside}
    view = all(_is_view(sharded.graph, local.op) for local in ops)
    stated = moved_bytes(sharded, main)
    crossing = [*_reads(sharded, ops), *_writes(sharded, ops, needed)] if stated is None else [stated]
    return Kernel(
        flops={key: amount(terms) for key, terms in flops.items()},
        bytes={} if view else amount(crossing),
        matmul=matmul(sharded, main),
        row=row_bytes(sharded, main),
        keys=attended(sharded, main),
        phase=main.op.phase,
        label=main.op.kind,
        scope=main.op.scope,
        source=main.op.source,
        nodes=tuple(sorted(own)),
        inputs=tuple(inputs),
        stored=() if view else tuple(needed),
        overwrites={} if view else _overwrites(sharded, ops, needed, by_element),
    )


def _overwrites(
    sharded: ShardedGraph, ops: Sequence[LocalOp], needed: Sequence[int], by_element: Callable[[Op], bool]
) -> dict[int, tuple[int, ...]]:
    """Inputs by the result that may take their place: as large, and read nowhere but where the result's element goes
    that is made of the element read, as XLA's buffer assignment wants it. Transposes count as other names for indices.
    """
    sizes = {copy: sharded.copies[copy].bytes for copy in needed}
    large = set(sizes.values())
    inside = {copy for local in ops for copy in local.results}
    orders: dict[int, dict[int, Order]] = {}  # copy -> inputs it is made of element by element -> index of each
    spread: set[int] = set()  # inputs that are read at several indices, or in several orders
    for local in ops:
        results, blocked = [_flat(dims) for dims in local.op.result_dims], set(local.op.blocked)
        elementwise = by_element(local.op)
        for dims, copy in zip(map(_flat, local.op.operand_dims), local.operands, strict=True):
            if copy not in inside and sharded.copies[copy].bytes in large:
                orders.setdefault(copy, {copy: tuple(range(len(dims)))})
            for source, order in orders.get(copy, {}).items():
                for made, result in zip(results, local.results, strict=True):
                    inplace = elementwise and set(made) == set(dims) and not blocked.intersection(dims)
                    turned = tuple(order[dims.index(i)] for i in made) if inplace else None
                    if turned is None or orders.setdefault(result, {}).setdefault(source, turned) != turned:
                        spread.add(source)
    found = {
        copy: tuple(i for i in orders.get(copy, ()) if i not in spread and sharded.copies[i].bytes == size)
        for copy, size in sizes.items()
    }
    return {copy: inputs for copy, inputs in found.items() if inputs}


def _flat(dims: Dims) -> tuple[int, ...]:
    return tuple(i for dim in dims for i in dim)


def _weight(local: LocalOp) -> tuple[bool, float]:
    """What tells a kernel's main op: a matmul before all others, then the most FLOPs."""
    work = local.op.work
    return any(each.engine == "tensor" for each in work), sum(each.flops for each in work)


def _is_view(graph: Graph, op: Op) -> bool:
    """Whether an op by itself only renames memory: the consumer reads the original in place."""
    if op.kind == "dynamic_slice":
        return bool(op.stepped)
    if op.kind == "broadcast_in_dim":
        return graph.elements(op.operands[0]) == graph.elements(op.results[0])
    return op.kind in VIEWS


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
