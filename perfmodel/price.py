"""Seconds per kernel and per collective, on a machine; sums by where in the step they are spent.

`analyse` looks at structure once (fusion, stages, monomials); `price` turns it into seconds for one layout or for
arrays of them by the same formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from perfmodel.errors import MachineError
from perfmodel.fuse import Kernel, fuse, regions
from perfmodel.graph import Op
from perfmodel.machine import Machine
from perfmodel.shard import LOCAL, LocalLoop, LocalNode, Reshard, ShardedGraph
from perfmodel.stage import EVERY, StageMap, Stages
from perfmodel.topology import AxisCost, axis_cost
from perfmodel.work import MESH, SYMBOLS, TP, Amount, Evaluator, Number, Term, amount, resized

MICROBATCH = "microbatch"
K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Equal kernels: `times` launches per microbatch (or per step, outside the microbatch loop)."""

    flops: Mapping[tuple[str, str], Amount]
    bytes: Amount
    times: Amount
    phase: str
    label: str
    repeated: bool
    stages: Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Equal collectives: `times` per microbatch (or per step); `klass` says what they may overlap with."""

    kind: str
    axes: tuple[str, ...]
    bytes: Term
    times: Amount
    phase: str
    klass: str
    repeated: bool
    stages: Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a sharded graph costs, hardware-free: its kernels and collectives by place in the step."""

    computes: tuple[Compute, ...]
    traffics: tuple[Traffic, ...]
    model_flops: Amount


def analyse(sharded: ShardedGraph) -> Plan:
    """Fuse, place on stages and count a sharded graph."""
    stages = StageMap(sharded)
    computes: list[Compute] = []
    traffics: list[Traffic] = []
    for loops, nodes, kept in regions(sharded):
        times, repeated = _trips(loops)
        for kernel in fuse(sharded, nodes, kept):
            computes.append(_compute(kernel, times, repeated, stages.of_node(nodes[kernel.nodes[0]])))
        for node in nodes:
            if isinstance(node, Reshard) and node.kind not in LOCAL:
                traffics.append(_collective(sharded, node, times, repeated, stages.of_node(node)))
            elif isinstance(node, LocalLoop):
                traffics.extend(_stage_sends(sharded, node, times, repeated))
                computes.extend(_zero_fills(sharded, node, times, repeated))
    return Plan(
        computes=_merge_computes(computes), traffics=_merge_traffics(traffics), model_flops=_model_flops(sharded)
    )


def _trips(loops: Sequence[LocalLoop]) -> tuple[Term, bool]:
    """How often a region runs per microbatch, and whether it is inside the microbatch loop."""
    times, repeated = Term(1.0), False
    for loop in loops:
        if loop.trips.exponents[SYMBOLS.index(MICROBATCH)]:
            repeated = True
        else:
            times = times * loop.trips
    return times, repeated


def _compute(kernel: Kernel, times: Term, repeated: bool, stages: Stages) -> Compute:
    return Compute(
        flops=kernel.flops,
        bytes=kernel.bytes,
        times=amount([times]),
        phase=kernel.phase,
        label=kernel.label,
        repeated=repeated,
        stages=stages,
    )


def _zero_fills(sharded: ShardedGraph, loop: LocalLoop, times: Term, repeated: bool) -> list[Compute]:
    """Buffers that a loop accumulates into must be cleared first."""
    cleared = [
        sharded.copies[operand].bytes
        for operand, parameter, left in zip(loop.operands, loop.parameters, loop.yields, strict=True)
        if operand in sharded.free and parameter != left and sharded.copies[operand].state.dims
    ]
    fills = [
        Kernel(flops={}, bytes=amount([size]), phase=loop.loop.phase, label="zeros", source="", nodes=())
        for size in cleared
    ]
    return [_compute(fill, times, repeated, EVERY) for fill in fills]


def _collective(sharded: ShardedGraph, node: Reshard, times: Term, repeated: bool, stages: Stages) -> Traffic:
    return Traffic(
        kind=node.kind,
        axes=tuple(axis for axis in MESH if axis in node.axes),
        bytes=node.bytes,
        times=amount([times]),
        phase=node.phase,
        klass=klass_of(node.axes, repeated),
        repeated=repeated,
        stages=stages,
    )


def klass_of(axes: Sequence[str], repeated: bool) -> str:
    """What a collective may overlap with: once per step, the reduction of gradients and gathering of weights."""
    if not repeated:
        return "data"
    if "fsdp" in axes or "dp" in axes:
        return "fsdp"
    return "tensor" if set(TP) & set(axes) else "context"


def _stage_sends(sharded: ShardedGraph, loop: LocalLoop, times: Term, repeated: bool) -> list[Traffic]:
    """Activations that a pipelined loop carries go from each stage to the next, once per microbatch."""
    if "pp" not in loop.axes:
        return []
    carried = [
        sharded.copies[parameter].bytes
        for parameter, left in zip(loop.parameters, loop.yields, strict=True)
        if parameter != left and _is_activation_carry(sharded, parameter)
    ]
    return [
        Traffic(
            kind="permute",
            axes=("pp",),
            bytes=size,
            times=amount([times]),
            phase=loop.loop.phase,
            klass="pipeline",
            repeated=repeated,
            stages=EVERY,
        )
        for size in carried
    ]


def _is_activation_carry(sharded: ShardedGraph, copy: int) -> bool:
    """A carried value with dims that is not stacked by layer (those stay where they were made)."""
    entry = sharded.copies[copy]
    return bool(entry.state.dims) and "pp" not in entry.state.axes and copy not in sharded.free


def _merge_computes(computes: Sequence[Compute]) -> tuple[Compute, ...]:
    """One entry for kernels that cost the same (such as the projections to keys and to values)."""
    merged: dict[object, Compute] = {}
    for c in computes:
        flops = tuple(sorted((k, tuple(sorted(v.items()))) for k, v in c.flops.items()))
        key = (flops, tuple(sorted(c.bytes.items())), c.phase, c.repeated, c.stages)
        merged[key] = replace(c, times=_sum(merged[key].times, c.times)) if key in merged else c
    return tuple(merged.values())


def _merge_traffics(traffics: Sequence[Traffic]) -> tuple[Traffic, ...]:
    merged: dict[object, Traffic] = {}
    for t in traffics:
        key = (t.kind, t.axes, t.bytes, t.phase, t.klass, t.repeated, t.stages)
        merged[key] = replace(t, times=_sum(merged[key].times, t.times)) if key in merged else t
    return tuple(merged.values())


def _sum(a: Amount, b: Amount) -> Amount:
    return amount(Term(c, e) for each in (a, b) for e, c in each.items())


def _model_flops(sharded: ShardedGraph) -> Amount:
    """FLOPs of the whole step over all ranks that MFU counts, with batch sizes as symbols."""
    graph = sharded.graph
    training = any(op.phase == "backward" for _, op in graph.walk())
    terms = []

    def visit(nodes: Sequence[LocalNode], times: Term) -> None:
        for node in nodes:
            if isinstance(node, LocalLoop):
                visit(node.body, times * node.trips.times(node.axes))
            elif not isinstance(node, Reshard) and (node.op.phase == "forward" or not training):
                terms.extend(_global_flops(sharded, node.op, times))

    visit(sharded.nodes, Term(3.0 if training else 1.0))
    return amount(terms)


def _global_flops(sharded: ShardedGraph, op: Op, times: Term) -> list[Term]:
    factors = sharded.graph.factors
    terms = []
    for work in op.work:
        if work.engine == "tensor":
            term = times * Term(work.flops)
            for i in work.over:
                term = resized(term, factors[op.local[i]].name, factors[op.local[i]].size)
            terms.append(term)
    return terms


# -- seconds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in the step time is spent: per microbatch or once (`repeated`), on which stages, and in what."""

    repeated: bool
    stages: Stages
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCost:
    """All equal collectives of a step on one rank: bytes of each, how many, and seconds of all together."""

    kind: str
    axis: str
    klass: str
    bytes: Number
    count: Number
    seconds: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds by place: kernels by phase, collectives by class; before any overlap.

    engine: seconds of one step that each engine alone would take, by place of the kernels
    """

    compute: Mapping[Place, Number]
    engine: Mapping[str, Number]
    communication: Mapping[Place, Number]
    collectives: tuple[CollectiveCost, ...]
    model_flops: Number


DTYPES = {"bf16": "bf16", "f16": "f16", "f32": "f32", "f64": "f32"}


def price(plan: Plan, sizes: Mapping[str, Number], machine: Machine) -> Costs:
    """Seconds of every kernel and collective of a plan for given axis sizes, scalars or arrays alike."""
    evaluate = Evaluator(sizes)
    compute: dict[Place, Number] = {}
    engine: dict[str, Number] = {}
    for c in plan.computes:
        seconds = kernel_seconds(c, evaluate, machine)
        times = evaluate.amount(c.times)
        _add(compute, Place(repeated=c.repeated, stages=c.stages, part=c.phase), times * _slowest(seconds, machine))
        runs = times * (sizes[MICROBATCH] if c.repeated else 1.0)
        for name, value in seconds.items():
            _add(engine, name, runs * value)
    communication, collectives = _price_traffic(plan.traffics, evaluate, sizes, machine)
    return Costs(
        compute=compute,
        engine=engine,
        communication=communication,
        collectives=collectives,
        model_flops=evaluate.amount(plan.model_flops),
    )


def _add(total: dict[K, Number], key: K, value: Number) -> None:
    total[key] = total[key] + value if key in total else value


def _slowest(seconds: Mapping[str, Number], machine: Machine) -> Number:
    slowest: Number = 0.0
    for value in seconds.values():
        slowest = np.maximum(slowest, value)
    return slowest + machine.kernel_launch_seconds


def kernel_seconds(kernel: Compute, evaluate: Evaluator, machine: Machine) -> dict[str, Number]:
    """Seconds that each engine and the memory need for one kernel on one rank; the slowest of them decides."""
    seconds: dict[str, Number] = {
        "memory": evaluate.amount(kernel.bytes) / (machine.memory_bandwidth * machine.efficiency["memory"])
    }
    for (engine, dtype), flops in kernel.flops.items():
        rate = machine.vector_flops if engine == "vector" else tensor_rate(machine, dtype)
        _add(seconds, engine, evaluate.amount(flops) / (rate * machine.efficiency[engine]))
    return seconds


def tensor_rate(machine: Machine, dtype: str) -> float:
    """Peak matmul rate of one rank for a StableHLO element type [FLOP/s]."""
    name = "f8" if dtype.startswith("f8") else DTYPES.get(dtype, dtype)
    if name not in machine.tensor_flops:
        known = ", ".join(sorted(machine.tensor_flops))
        raise MachineError(
            f"{machine.name}: got matmuls in {dtype}, expected one of {known}: add tensor.{name} to the machine file"
        )
    return machine.tensor_flops[name]


def _price_traffic(
    traffics: Sequence[Traffic], evaluate: Evaluator, sizes: Mapping[str, Number], machine: Machine
) -> tuple[dict[Place, Number], tuple[CollectiveCost, ...]]:
    network = Network(sizes, machine)
    communication: dict[Place, Number] = {}
    collectives = []
    for t in traffics:
        cost = network.cost(t.kind, t.axes)
        size, times = evaluate.term(t.bytes), evaluate.amount(t.times)
        seconds = times * cost.seconds(size)
        _add(communication, Place(repeated=t.repeated, stages=t.stages, part=t.klass), seconds)
        runs = sizes[MICROBATCH] if t.repeated else 1.0
        collectives.append(
            CollectiveCost(
                kind=t.kind,
                axis="+".join(dict.fromkeys("tp" if axis in TP else axis for axis in t.axes)),
                klass=t.klass,
                bytes=size,
                count=times * runs,
                seconds=seconds * runs,
            )
        )
    return communication, tuple(collectives)


class Network:
    """Costs of collectives over sets of mesh axes, each computed once per layout array."""

    def __init__(self, sizes: Mapping[str, Number], machine: Machine) -> None:
        self._machine = machine
        self._sizes = sizes
        self._stride: dict[str, Number] = {}
        stride: Number = 1.0
        for axis in MESH:
            self._stride[axis] = stride
            stride = stride * sizes[axis]
        self._known: dict[tuple[str, tuple[str, ...]], AxisCost] = {}

    def cost(self, kind: str, axes: tuple[str, ...]) -> AxisCost:
        """Latency and seconds per byte of a collective over `axes` (innermost first)."""
        if (kind, axes) not in self._known:
            self._known[kind, axes] = self._compute(kind, _runs(axes))
        return self._known[kind, axes]

    def _compute(self, kind: str, runs: Sequence[tuple[str, ...]]) -> AxisCost:
        """Axes that are not neighbours communicate one after the other, the inner ones reducing the bytes."""
        total: AxisCost | None = None
        inner: Number = 1.0
        for i, run in enumerate(runs):
            size: Number = 1.0
            for axis in run:
                size = size * self._sizes[axis]
            split = kind == "all_reduce" and i < len(runs) - 1
            for step in ("reduce_scatter", "all_gather") if split else (kind,):
                cost = axis_cost(step, size, self._stride[run[0]], self._machine)
                cost = cost if kind == "all_to_all" else cost.shrunk(inner)
                total = cost if total is None else total + cost
            inner = inner * size
        assert total is not None
        return total


def _runs(axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Neighbouring mesh axes joined: together they are one larger axis."""
    runs: list[tuple[str, ...]] = []
    for axis in axes:
        if runs and MESH.index(runs[-1][-1]) + 1 == MESH.index(axis):
            runs[-1] = (*runs[-1], axis)
        else:
            runs.append((axis,))
    return runs
