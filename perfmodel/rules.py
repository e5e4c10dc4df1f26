"""Which layouts are legal: named rules as masks over one layout or arrays of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import accumulate, chain
from typing import Any, TypeAlias

import numpy as np

from perfmodel.formulas.pipeline import SCHEDULES
from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.machine import Machine
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, ShardedGraph
from perfmodel.state import Axes
from perfmodel.topology import places, unsupported_group
from perfmodel.units import GIB
from perfmodel.work import MESH, MICROBATCH, RESIZABLE, TP, VIRTUAL, Identity, Number

OUT_OF_MEMORY = "out of memory"
ONE_MICROBATCH = "no dim named microbatch, so dp*fsdp*ep*mb must be the global batch"
PADDED = ("vocab",)
"""Axis names whose dims are padded until they divide, as trainers pad the vocabulary."""

Masks: TypeAlias = Iterator[tuple[str, Any]]
"""Names of rules, each with a mask of the layouts that break it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A factor of `size` must be divisible by the product of `axes`; `name` is its axis name, or else where it comes
    from.
    """

    name: str
    size: int
    axes: tuple[str, ...]


def constraints(sharded: ShardedGraph) -> tuple[Constraint, ...]:
    """Every divisibility that the shardings of values and ops ask for."""
    found: dict[Constraint, None] = {}
    for factor, axes in dict.fromkeys(chain(_computed(sharded.nodes), _held(sharded))):
        entry = sharded.graph.factors[factor]
        if axes and not entry.bound and entry.name not in (*RESIZABLE, *PADDED):
            name = entry.name or entry.origin or "index of size"
            found[Constraint(name=name, size=entry.size, axes=axes)] = None
    return tuple(found)


def _computed(nodes: Sequence[LocalNode]) -> Iterator[tuple[int, Axes]]:
    """Factors that ops and loops range over, and the axes over which they do."""
    for node in nodes:
        if isinstance(node, LocalLoop):
            yield node.loop.trip, node.axes
            yield from _computed(node.body)
        elif isinstance(node, LocalOp):
            yield from zip(node.op.local, node.axes, strict=True)


def _held(sharded: ShardedGraph) -> Iterator[tuple[int, Axes]]:
    """Factors of copies, and the axes over which they lie."""
    for copy in sharded.copies:
        for dim, axes in zip(sharded.graph.values[copy.value].dims, copy.state.dims, strict=True):
            yield from zip(dim, axes, strict=True)


def violations(
    graph: Graph,
    rules: Sequence[Constraint],
    layout: Layout,
    sizes: Mapping[str, Number],
    memory: Number,
    machine: Machine,
    layers: int,
) -> dict[str, Any]:
    """Masks by rule, True where a layout breaks it; `rules` are the `constraints` of the sharded graph, `layers` those
    that the stages of a pipeline share.
    """
    misfit = misfits(graph, rules, layout, sizes, layers)
    wrong = chain(_wrong_groups(layout, machine), _astride(layout, sizes, machine), _no_host(layout, machine))
    return {**misfit, **dict(wrong), OUT_OF_MEMORY: np.asarray(memory) > machine.memory_bytes}


def misfits(
    graph: Graph, rules: Sequence[Constraint], layout: Layout, sizes: Mapping[str, Number], layers: int
) -> dict[str, Any]:
    """The `violations` of those rules that hold on any machine."""
    broken: dict[str, Any] = {}
    divided = [rule for rule in rules if not layers or rule.axes != ("pp",)]  # layers can be cut unevenly
    for name, mask in chain(
        _undivided(divided, sizes),
        _few_layers(layers, sizes),
        _interleaved(layout, sizes),
        _unshared_heads(graph, sizes),
        _wrong_batch(graph, layout, sizes),
        _wrong_mesh(graph, layout),
        _idle_axes(graph, layout),
    ):
        broken[name] = np.logical_or(broken[name], mask) if name in broken else mask
    return broken


def _undivided(rules: Sequence[Constraint], sizes: Mapping[str, Number]) -> Masks:
    """Index ranges that the ranks along their axes cannot share evenly."""
    for rule in rules:
        axes = "*".join(dict.fromkeys("tp" if axis in TP else axis for axis in rule.axes))
        parts = math.prod(sizes[axis] for axis in rule.axes)
        yield f"{rule.name} {rule.size} not divisible by {axes}", _uneven(rule.size, parts)


def _few_layers(layers: int, sizes: Mapping[str, Number]) -> Masks:
    """Chunks of layers without one; that with the embedding needs none, nor that with the head."""
    if layers:
        few = np.asarray(sizes["pp"] * sizes[VIRTUAL] - 2.0 > layers)
        yield f"layers {layers} too few for pp*vpp", few & (np.asarray(sizes["pp"]) > 1.0)


def _interleaved(layout: Layout, sizes: Mapping[str, Number]) -> Masks:
    """Virtual stages where they cannot be: on one stage, for microbatches that do not come in groups of all stages."""
    stages, chunks = sizes["pp"], sizes[VIRTUAL]
    interleaved = np.asarray(chunks) > 1.0
    yield "vpp > 1 without pp > 1", interleaved & (np.asarray(stages) == 1.0)
    yield "vpp > 1 with microbatches not divisible by pp", interleaved & _uneven(sizes[MICROBATCH], stages)
    yield f"vpp > 1 with schedule={layout.schedule}", interleaved & (layout.schedule != SCHEDULES[0])


def _unshared_heads(graph: Graph, sizes: Mapping[str, Number]) -> Masks:
    """More ranks than key/value heads must share the queries of each head."""
    if "kv_heads" in graph.named():
        queries, keys = graph.size("q_per_kv"), graph.size("kv_heads")
        name = f"q_per_kv {queries} not divisible by tp" if queries > 1 else f"kv_heads {keys} not divisible by tp"
        yield name, _uneven(queries, sizes[TP[1]])


def _wrong_batch(graph: Graph, layout: Layout, sizes: Mapping[str, Number]) -> Masks:
    """Batches that are no whole number of microbatches, or that no dim of the program can be resized for."""
    names = graph.named()
    microbatches = np.asarray(sizes[MICROBATCH])
    yield "global batch not divisible by dp*fsdp*ep*mb", _fractional(microbatches)
    if MICROBATCH not in names:
        yield ONE_MICROBATCH, microbatches > 1.0
    if "batch" not in names:
        yield (
            "no dim of more than 1 named batch to split over dp*fsdp*ep*mb",
            np.asarray(layout.data * layout.mb) > 1.0,
        )


def _wrong_mesh(graph: Graph, layout: Layout) -> Masks:
    """Other sizes than those of a mesh over which the program itself spreads its ranges."""
    for axes, size in {factor.bound: factor.size for factor in graph.factors if factor.bound}.items():
        found = np.asarray(math.prod(getattr(layout, axis) for axis in axes))
        yield f"{'*'.join(axes)} not {size}, for which the program's shard_map is written", found != size


def _idle_axes(graph: Graph, layout: Layout) -> Masks:
    """Axes whose ranks would all do the same: no dim has a name that goes on them, nor does the program use them."""
    names, own = graph.named(), _own_axes(Identity(graph))
    spread = [(name, axes) for name, axes in layout.assignment.compute if name not in RESIZABLE]
    for axis, parts in {"tp": TP, "cp": ("cp",), "ep": ("ep",), "pp": ("pp",)}.items():
        wanted = [name for name, axes in spread if set(parts) & set(axes)]
        if axis not in own and not names.keys() & wanted:
            yield f"no dim named {' or '.join(wanted)} to split over {axis}", np.asarray(getattr(layout, axis)) > 1.0


@lru_cache(maxsize=64)
def _own_axes(graph: Identity[Graph]) -> frozenset[str]:
    """Axes that the program itself spreads values over: manual ones, and those of its sharding constraints."""
    bound = (axis for factor in graph.it.factors for axis in factor.bound)
    pinned = (axis for _, op in graph.it.walk() for _, axes in op.pinned for axis in axes)
    return frozenset((*bound, *pinned))


def _wrong_groups(layout: Layout, machine: Machine) -> Masks:
    """Ranks and groups of them that the machine does not have."""
    yield "ranks do not fill whole chips", _fractional(np.asarray(layout.ranks) / machine.ranks_per_chip)
    for axis in machine.group_sizes:
        mask = unsupported_group(axis, getattr(layout, axis, 1), machine)
        yield f"group of {axis} not supported by {machine.name}", mask


def _astride(layout: Layout, sizes: Mapping[str, Number], machine: Machine) -> Masks:
    """Groups that lie partly in one place of the fabric and partly in the next, so that an axis has no two alike: what
    an axis and those inside it join must divide the ranks of a place, or be a multiple of them.
    """
    joined = list(accumulate((sizes[axis] for axis in MESH), operator.mul))
    for name, ranks in places(machine.tiers):
        uneven = reduce(np.logical_or, (_fractional(n / ranks) & _fractional(ranks / n) for n in joined))
        yield f"groups astride the {ranks} ranks of {name}", uneven & (np.asarray(layout.ranks) > ranks)


def _no_host(layout: Layout, machine: Machine) -> Masks:
    """State in the memory of the host, where it is not known how fast a chip reaches that."""
    if layout.offload:
        yield f"offload=1 without a chip.host_link in the file of {machine.name}", np.asarray(not machine.host_link)


def _uneven(size: Number, parts: Number) -> Any:
    """Mask of the numbers of parts, which need not be whole, that a size does not divide into."""
    return _fractional(size / parts) | _fractional(parts)


def _fractional(number: Number) -> Any:
    """Mask of what is not whole."""
    return np.asarray(number != np.floor(number))


def reason(rule: str, memory: float, capacity: float) -> str:
    """A sentence for a broken rule."""
    if rule == OUT_OF_MEMORY:
        return f"out of memory: needs {memory / GIB:.1f} GiB of {capacity / GIB:.1f} GiB per rank"
    return rule
