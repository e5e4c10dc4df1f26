"""Which layouts are legal: named rules as masks over one layout or arrays of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.machine import Machine
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, ShardedGraph
from perfmodel.topology import unsupported_group
from perfmodel.units import GIB
from perfmodel.work import RESIZABLE, TP, Number

OUT_OF_MEMORY = "out of memory"
PADDED = ("vocab",)
"""Axis names whose dims are padded until they divide, as trainers pad the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A factor of `size` (axis name `name`) must be divisible by the product of `axes`."""

    name: str
    size: int
    axes: tuple[str, ...]


def constraints(sharded: ShardedGraph) -> tuple[Constraint, ...]:
    """Every divisibility that the shardings of values and ops ask for."""
    factors = sharded.graph.factors
    found: dict[Constraint, None] = {}

    def need(factor: int, axes: Sequence[str]) -> None:
        entry = factors[factor]
        if axes and not entry.bound and entry.name not in (*RESIZABLE, *PADDED):
            found[Constraint(name=entry.name or f"index of size {entry.size}", size=entry.size, axes=tuple(axes))] = (
                None
            )

    def visit(nodes: Sequence[LocalNode]) -> None:
        for node in nodes:
            if isinstance(node, LocalLoop):
                need(node.loop.trip, node.axes)
                visit(node.body)
            elif isinstance(node, LocalOp):
                for factor, axes in zip(node.op.local, node.axes, strict=True):
                    need(factor, axes)

    visit(sharded.nodes)
    for copy in sharded.copies:
        for dim, dim_axes in zip(sharded.graph.values[copy.value].dims, copy.state.dims, strict=True):
            for factor, axes in zip(dim, dim_axes, strict=True):
                need(factor, axes)
    return tuple(found)


def violations(
    graph: Graph,
    rules: Sequence[Constraint],
    layout: Layout,
    sizes: Mapping[str, Number],
    memory: Number,
    machine: Machine,
) -> dict[str, Any]:
    """Masks by rule, True where a layout breaks it; `rules` are the `constraints` of the sharded graph."""
    broken: dict[str, Any] = {}
    for rule in rules:
        product: Number = 1.0
        for axis in rule.axes:
            product = product * sizes[axis]
        axes = "*".join(dict.fromkeys("tp" if axis in TP else axis for axis in rule.axes))
        name = f"{rule.name} {rule.size} not divisible by {axes}"
        broken[name] = np.logical_or(broken.get(name, False), _uneven(rule.size, product))
    names = graph.named()
    if "kv_heads" in names:
        queries, keys = graph.size("q_per_kv"), graph.size("kv_heads")
        name = f"q_per_kv {queries} not divisible by tp" if queries > 1 else f"kv_heads {keys} not divisible by tp"
        broken[name] = np.logical_or(broken.get(name, False), _uneven(queries, sizes[TP[1]]))
    microbatches = np.asarray(sizes["microbatch"])
    broken["global batch not divisible by dp*fsdp*ep*mb"] = _fractional(microbatches)
    if "microbatch" not in names:
        broken["no dim named microbatch, so dp*fsdp*ep*mb must be the global batch"] = microbatches > 1.0
    if "batch" not in names:
        broken["no dim named batch to split over dp*fsdp*ep*mb"] = np.asarray(layout.data * layout.mb) > 1.0
    bound = {factor.bound: factor.size for factor in graph.factors if factor.bound}
    for spread, size in bound.items():
        found = np.asarray(math.prod(getattr(layout, axis) for axis in spread))
        broken[f"{'*'.join(spread)} not {size}, for which the program's shard_map is written"] = found != size
    spread_names = [(name, axes) for name, axes in layout.assignment.compute if name not in RESIZABLE]
    for axis, parts in {"tp": TP, "cp": ("cp",), "ep": ("ep",), "pp": ("pp",)}.items():
        if any(axis in spread for spread in bound):
            continue
        wanted = [name for name, axes in spread_names if set(parts) & set(axes)]
        if not names.keys() & wanted:
            broken[f"no dim named {' or '.join(wanted)} to split over {axis}"] = np.asarray(getattr(layout, axis)) > 1.0
    broken["ranks do not fill whole chips"] = _fractional(np.asarray(layout.ranks) / machine.ranks_per_chip)
    for axis in machine.group_sizes:
        broken[f"group of {axis} not supported by {machine.name}"] = unsupported_group(
            axis, getattr(layout, axis, 1), machine
        )
    broken[OUT_OF_MEMORY] = np.asarray(memory) > machine.memory_bytes
    return broken


def _uneven(size: float, parts: Number) -> Any:
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
