"""The composition: graph, layout and machine in, estimate out; one layout or arrays of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from perfmodel.errors import LayoutError
from perfmodel.estimate import Estimate
from perfmodel.graph import Graph
from perfmodel.layout import Layout, assignment
from perfmodel.machine import Machine
from perfmodel.memory import MemoryPlan, MemoryUse, memory_use, plan_memory
from perfmodel.plan import Plan, analyse
from perfmodel.price import Costs, price
from perfmodel.rules import Constraint, constraints, violations
from perfmodel.schedule import CLASSES, PHASES, StepTime, step_time
from perfmodel.shard import shard
from perfmodel.work import Number

ASSUMPTIONS = (
    "1F1B pipeline schedule, every microbatch as slow as on the slowest stage",
    "causal attention kernels skip the masked half; MFU counts it in full",
    "the vocabulary is padded to a multiple of tp",
    "ZeRO shards over fsdp only: dp and cp hold copies",
    "activations follow the layout's assignment (batch on dp and fsdp, seq on cp and tp) between blocks",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """All that is known of a graph under an assignment before any size is."""

    plan: Plan
    memory: MemoryPlan
    constraints: tuple[Constraint, ...]


class _Identity:
    """A graph as a cache key: graphs are frozen, and comparing them field by field would cost more than sharding."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return id(self.graph)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.graph is other.graph


@lru_cache(maxsize=64)
def _structure(key: _Identity, zero: int, sp: bool) -> Structure:
    sharded = shard(key.graph, assignment(zero=zero, sp=sp))
    return Structure(plan=analyse(sharded), memory=plan_memory(sharded), constraints=constraints(sharded))


def predict(graph: Graph, layout: Layout, machine: Machine) -> Estimate:
    """Estimate one training step; numeric fields of `layout` may be equally shaped arrays.

    Raises LayoutError when the graph was traced with another recompute policy than the layout asks for.
    """
    if graph.recompute != layout.recompute:
        raise LayoutError(
            f"layout: got recompute={layout.recompute}, expected {graph.recompute}, with which {graph.name} was "
            f"traced: trace it again with the policy you want"
        )
    structure = _structure(_Identity(graph), layout.zero, layout.sp)
    sizes = layout.sizes(graph)
    costs = price(structure.plan, sizes, machine)
    time = step_time(costs, sizes, machine)
    memory = memory_use(structure.memory, sizes, machine.memory_reserve_bytes)
    broken = violations(graph, structure.constraints, layout, sizes, memory.total, machine)
    return _estimate(graph, layout, machine, costs, time, memory, broken)


def _estimate(
    graph: Graph,
    layout: Layout,
    machine: Machine,
    costs: Costs,
    time: StepTime,
    memory: MemoryUse,
    broken: Mapping[str, Any],
) -> Estimate:
    tokens = layout.global_batch * float(graph.size("seq"))
    chips = layout.ranks / machine.ranks_per_chip
    usd_per_hour = chips * machine.usd_per_chip_hour
    quoted = layout.ranks * machine.quoted_flops["bf16"]
    fits = ~np.any(np.stack(np.broadcast_arrays(*broken.values())), axis=0)
    estimate = Estimate(
        step_time_s=time.expected,
        lower_s=time.lower,
        upper_s=time.upper,
        mfu=costs.model_flops / (time.expected * quoted),
        tokens_per_s=tokens / time.expected,
        memory_bytes=memory.total,
        memory_capacity_bytes=machine.memory_bytes,
        fits=fits,
        violations=broken,
        reasons=(),
        bound=_bound(costs, time),
        breakdown=time.parts,
        memory_parts=memory.parts,
        collectives=costs.collectives,
        cost_usd_per_hour=usd_per_hour,
        usd_per_million_tokens=usd_per_hour / 3600.0 * time.expected / tokens * 1e6,
        assumptions=(*ASSUMPTIONS, *machine.assumptions),
        sources=machine.sources,
    )
    return estimate if np.ndim(time.expected) or np.ndim(fits) else estimate.at(0)


ENGINES = {
    "tensor": "matrix engine",
    "attention": "matrix engine in attention",
    "vector": "vector engine",
    "memory": "memory bandwidth",
}
LABELS = {
    "tensor": "tensor-parallel collectives",
    "context": "context-parallel collectives",
    "expert": "expert-parallel collectives",
    "fsdp": "FSDP collectives",
    "pipeline": "pipeline sends",
    "data": "gradient reduction",
    "bubble": "pipeline bubble",
    "overhead": "step overhead",
}


def _bound(costs: Costs, time: StepTime) -> Any:
    """Name of the largest part of the step: what decides most of the compute, a collective class, bubble, overhead."""
    compute: Number = 0.0
    for phase in PHASES:
        compute = compute + time.parts[phase]
    parts = {"compute": compute, **{name: time.parts[name] for name in (*CLASSES, "data", "bubble", "overhead")}}
    engines = {name: costs.engine.get(name, 0.0) for name in ENGINES}
    largest = np.argmax(np.stack(np.broadcast_arrays(*parts.values())), axis=0)
    engine = np.argmax(np.stack(np.broadcast_arrays(*engines.values())), axis=0)
    names = np.array([LABELS.get(name, name) for name in parts])
    labels = np.array(list(ENGINES.values()))
    bound = np.where(largest == 0, labels[engine], names[largest])
    return bound if bound.ndim else str(bound)
