"""What a sharded graph costs before any machine: its kernels and collectives, how often and where in the step.

Structure is looked at once (fusion, stages, monomials); `perfmodel.price` turns it into seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from perfmodel.fuse import kernels, regions
from perfmodel.graph import Graph, Op
from perfmodel.kernel import Demand, Kernel
from perfmodel.layer import layer_of
from perfmodel.sharded import LocalLoop, LocalNode, Reshard, ShardedGraph
from perfmodel.stage import EVERY, StageMap, Stages, stage_map
from perfmodel.state import LOCAL
from perfmodel.work import MESH, TP, VIRTUAL, Amount, Term, amount, plus, resized


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where in the program some of several equal kernels stand, and how often these are launched.

    layer: as `perfmodel.layer` tells it
    """

    label: str
    source: str
    layer: str
    times: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute(Demand):
    """Equal kernels: `times` launches per microbatch (or per step, outside the microbatch loop).

    weights: whether they only make gradients of weights, which no other stage of a pipeline waits for
    origins: where they stand in the program; their launches add up to `times`
    """

    times: Amount
    phase: str
    label: str
    repeated: bool
    stages: Stages
    weights: bool = False
    origins: tuple[Origin, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Equal collectives: `times` per microbatch (or per step), in a loop body that runs `trips` times; `klass` says
    what they may overlap with.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: Term
    times: Amount
    trips: Term
    phase: str
    klass: str
    repeated: bool
    stages: Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a sharded graph costs, hardware-free: its kernels and collectives by place in the step.

    layers: that the stages of a pipeline share, of all loops over them
    """

    computes: tuple[Compute, ...]
    traffics: tuple[Traffic, ...]
    model_flops: Amount
    layers: int = 0


def analyse(sharded: ShardedGraph, *, epilogues: bool = True) -> Plan:
    """Fuse, place on stages and count a sharded graph; `epilogues` is whether matmuls work on their results."""
    stages = stage_map(sharded)
    clock = _Clock(sharded)
    computes: list[Compute] = []
    traffics: list[Traffic] = []
    for loops, nodes, _ in regions(sharded):
        apart = _behind(sharded, loops[-1]) if loops and "pp" in loops[-1].axes else frozenset()
        for kernel in kernels(sharded, nodes, epilogues=epilogues):
            where = stages.of_kernel([nodes[i] for i in kernel.nodes])
            weights = kernel.phase == "backward" and apart.issuperset(kernel.nodes)
            compute = _compute(sharded, kernel, loops, clock.when(loops, kernel.phase), where)
            computes.append(replace(compute, weights=weights))
        for node in nodes:
            if isinstance(node, Reshard) and node.kind not in LOCAL:
                traffics.append(_collective(sharded, node, clock.when(loops, node.phase), stages.of_node(node)))
            elif isinstance(node, LocalLoop):
                when = clock.when(loops, node.loop.phase)
                traffics.extend(_stage_sends(sharded, node, when))
                computes.extend(_zero_fills(sharded, node, loops, when, stages))
    return Plan(
        computes=_merge_computes(computes),
        traffics=_merge_traffics(traffics),
        model_flops=_model_flops(sharded),
        layers=_layers(sharded),
    )


def _layers(sharded: ShardedGraph) -> int:
    """Layers over which pipelined loops go, the forward and the backward pass over the same ones."""
    pipelined = (loops[-1] for loops, _, _ in regions(sharded) if loops and "pp" in loops[-1].axes)
    return sum(sharded.graph.factors[trip].size for trip in {loop.loop.trip for loop in pipelined})


def _behind(sharded: ShardedGraph, loop: LocalLoop) -> frozenset[int]:
    """Nodes of a pipelined loop that nothing it passes on to the next stage depends on, by position."""
    slots = zip(loop.parameters, loop.yields, strict=True)
    needed = {left for parameter, left in slots if _is_activation_carry(sharded, parameter)}
    behind = set()
    for i, node in reversed(list(enumerate(loop.body))):
        if needed.isdisjoint(node.results):
            behind.add(i)
        else:
            needed.update(node.operands)
    return frozenset(behind)


@dataclass(frozen=True, slots=True)
class _When:
    """How often something happens per microbatch (`repeated`) or per step, and in which phase."""

    times: Term
    repeated: bool
    phase: str


class _Clock:
    """Tells what happens in every microbatch from what happens once per step.

    A program without a loop over microbatches is one microbatch, up to its update; one without gradients is all
    forward pass.
    """

    def __init__(self, sharded: ShardedGraph) -> None:
        self._looped = any(loop.repeats for loops, _, _ in regions(sharded) for loop in loops)
        self._training = _is_training(sharded.graph)

    def when(self, loops: Sequence[LocalLoop], phase: str) -> _When:
        """When a node of `phase` inside `loops` runs."""
        times = Term(1.0)
        for loop in loops:
            times = times if loop.repeats else times * loop.trips
        phase = phase if self._training else "forward"
        inside = any(loop.repeats for loop in loops) if self._looped else phase != "update"
        return _When(times, inside, phase)


def _is_training(graph: Graph) -> bool:
    return any(op.phase == "backward" for _, op in graph.walk())


def _compute(sharded: ShardedGraph, kernel: Kernel, loops: Sequence[LocalLoop], when: _When, stages: Stages) -> Compute:
    times = amount([when.times])
    layer = layer_of(sharded.graph, loops, kernel.scope, kernel.source, when.phase)
    return Compute(
        **{field.name: getattr(kernel, field.name) for field in fields(Demand)},
        times=times,
        origins=(Origin(label=kernel.label, source=kernel.source, layer=layer, times=times),),
        phase=when.phase,
        label=kernel.label,
        repeated=when.repeated,
        stages=stages,
    )


def _zero_fills(
    sharded: ShardedGraph, loop: LocalLoop, around: Sequence[LocalLoop], when: _When, stages: StageMap
) -> list[Compute]:
    """Buffers that a loop accumulates into must be cleared first."""
    return [
        _compute(
            sharded,
            Kernel(
                flops={},
                bytes=amount([sharded.copies[operand].bytes]),
                phase=loop.loop.phase,
                label="zeros",
                scope=loop.loop.scope,
                source=loop.loop.source,
                nodes=(),
            ),
            around,
            when,
            stages.of_copy(result),
        )
        for operand, parameter, left, result in zip(
            loop.operands, loop.parameters, loop.yields, loop.results, strict=True
        )
        if operand in sharded.free and parameter != left and sharded.copies[operand].state.dims
    ]


def _collective(sharded: ShardedGraph, node: Reshard, when: _When, stages: Stages) -> Traffic:
    """What is gathered or scattered on a ring of n ranks goes in n - 1 messages, each a rank's part."""
    return Traffic(
        kind="permute" if node.ring else node.kind,
        axes=tuple(axis for axis in MESH if axis in node.axes),
        bytes=node.bytes.times(node.axes, -1) if node.ring else node.bytes,
        times=amount([when.times.times(node.axes), when.times * Term(-1.0)] if node.ring else [when.times]),
        trips=when.times,
        phase=when.phase,
        klass=klass_of(node.axes, when.repeated),
        repeated=when.repeated,
        stages=stages,
    )


def klass_of(axes: Sequence[str], repeated: bool) -> str:
    """What a collective may overlap with: once per step, the reduction of gradients and gathering of weights.

    Weights are never spread over dp, so what goes over it in every microbatch is of the batch itself: sums over all
    sequences, rows that change ranks.
    """
    if not repeated:
        return "data"
    if "dp" in axes:
        return "batch"
    if "fsdp" in axes:
        return "fsdp"
    if "ep" in axes:
        return "expert"
    if set(TP) & set(axes):
        return "tensor"
    return "context" if "cp" in axes else "pipeline"


def _stage_sends(sharded: ShardedGraph, loop: LocalLoop, when: _When) -> list[Traffic]:
    """Activations that a pipelined loop carries go from each chunk of layers to the next, once per microbatch."""
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
            times=amount([when.times.times((VIRTUAL,))]),
            trips=when.times,
            phase=when.phase,
            klass="pipeline",
            repeated=when.repeated,
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
        key = (flops, c.matmul, c.row, c.keys, tuple(sorted(c.bytes.items())), *_place(c))
        merged[key] = _together(merged[key], c) if key in merged else c
    return tuple(merged.values())


def _together(c: Compute, other: Compute) -> Compute:
    """Equal kernels of two places as one entry."""
    origins = {(o.label, o.source, o.layer): o for o in c.origins}
    for o in other.origins:
        key = o.label, o.source, o.layer
        origins[key] = replace(o, times=plus(origins[key].times, o.times)) if key in origins else o
    return replace(c, times=plus(c.times, other.times), origins=tuple(origins.values()))


def _place(c: Compute) -> tuple[object, ...]:
    return c.phase, c.repeated, c.stages, c.weights


def _merge_traffics(traffics: Sequence[Traffic]) -> tuple[Traffic, ...]:
    merged: dict[object, Traffic] = {}
    for t in traffics:
        key = (t.kind, t.axes, t.bytes, t.trips, t.phase, t.klass, t.repeated, t.stages)
        merged[key] = replace(t, times=plus(merged[key].times, t.times)) if key in merged else t
    return tuple(merged.values())


def _model_flops(sharded: ShardedGraph) -> Amount:
    """FLOPs of the whole step over all ranks that MFU counts, with batch sizes as symbols."""
    training = _is_training(sharded.graph)
    return amount(
        term
        for times, op in _ops(sharded.nodes, Term(3.0 if training else 1.0))
        if op.phase == "forward" or not training
        for term in _global_flops(sharded, op, times)
    )


def _ops(nodes: Sequence[LocalNode], times: Term) -> Iterator[tuple[Term, Op]]:
    """Every op and how often all ranks together run it."""
    for node in nodes:
        if isinstance(node, LocalLoop):
            yield from _ops(node.body, times * node.trips.times(node.axes))
        elif not isinstance(node, Reshard):
            yield times, node.op


def _global_flops(sharded: ShardedGraph, op: Op, times: Term) -> list[Term]:
    factors = sharded.graph.factors
    terms = []
    for work in op.work:
        if work.engine == "tensor":
            term = times * Term(work.flops)
            for i in work.over:
                factor = factors[op.local[i]]
                term = resized(term, factor.name, factor.named_size)
            terms.append(term)
    return terms
