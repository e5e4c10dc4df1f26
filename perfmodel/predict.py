"""The composition: graph, layout and machine in, estimate out; one layout or arrays of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from perfmodel.allocation import let_in_parts, slice_of
from perfmodel.costs import Costs, KernelCost
from perfmodel.cut import Cut
from perfmodel.errors import LayoutError
from perfmodel.estimate import Estimate
from perfmodel.framework import Framework
from perfmodel.graph import Graph
from perfmodel.layout import Layout, assignment
from perfmodel.limits import warnings
from perfmodel.machine import Machine
from perfmodel.memory import MemoryPlan, MemoryUse, memory_use, plan_memory
from perfmodel.offload import over_host_link
from perfmodel.plan import Plan, analyse
from perfmodel.price import price
from perfmodel.rules import Constraint, constraints, violations
from perfmodel.schedule import Pace, StepTime, cut_layers, step_time
from perfmodel.shard import shard
from perfmodel.work import Again, Identity, Number

ASSUMPTIONS = (
    "pipelines: every microbatch takes as long as on the slowest stage, and a bubble what it takes on the others",
    "causal attention kernels skip the masked half; MFU counts it in full",
    "the vocabulary is padded to a multiple of tp",
    "ZeRO shards over fsdp and ep only: dp and cp hold copies",
    "activations follow the layout's assignment (batch on dp, fsdp and ep, seq on cp and tp) between blocks",
)

OFFLOADED = "the host's memory holds the optimizer state; its update streams it over the host link, both ways at once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """All that is known of a graph under an assignment before any size is."""

    plan: Plan
    memory: MemoryPlan
    constraints: tuple[Constraint, ...]


def structure_of(graph: Graph, layout: Layout, framework: Framework) -> Structure:
    """What is known of a graph under the assignment of a layout, run by a framework; worked out once for each."""
    return _structure(Identity(graph), layout.zero, layout.sp, layout.ring, layout.experts, framework.epilogues)


@lru_cache(maxsize=64)
def _structure(key: Identity[Graph], zero: int, sp: bool, ring: bool, experts: str, epilogues: bool) -> Structure:
    with _uncollected():
        sharded = shard(key.it, assignment(zero=zero, sp=sp, ring=ring, experts=experts))
        return Structure(
            plan=analyse(sharded, epilogues=epilogues), memory=plan_memory(sharded), constraints=constraints(sharded)
        )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for cycles of garbage: many objects are made, no cycles, and it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def predict(graph: Graph, layout: Layout, machine: Machine) -> Estimate:
    """Estimate one training step; numeric fields of `layout` may be arrays that broadcast.

    Equally shaped arrays are a table of layouts. An open grid (each field an array along a dim of its own, as
    `numpy.ix_` makes them) is every combination, and costs far less than the table of them.

    Raises LayoutError when the graph was traced with another recompute policy than the layout asks for, and for arrays
    that hold no layout, or numbers of ranks that get different parts of the machine.
    """
    if graph.recompute != layout.recompute:
        raise LayoutError(
            f"layout: got recompute={layout.recompute}, expected {graph.recompute}, with which {graph.name} was "
            f"traced: trace it again with the policy you want"
        )
    if empty := [field.name for field in fields(layout) if not np.size(getattr(layout, field.name))]:
        raise LayoutError(
            f"layout: got no value in {', '.join(empty)}, expected one for each layout: leave out what is empty"
        )
    machine = part_for(machine, layout)
    structure = structure_of(graph, layout, machine.framework)
    sizes = layout.sizes(graph)
    costs, cut = priced(structure, layout, sizes, machine)
    time = step_time(costs, sizes, Pace.of(machine), layout.schedule, cut)
    elsewhere = ("optimizer",) if layout.offload else ()
    memory = memory_use(structure.memory, sizes, machine.memory_reserve_bytes, layout.schedule, cut, elsewhere)
    broken = violations(graph, structure.constraints, layout, sizes, memory.total, machine, structure.plan.layers)
    estimate = _estimate(graph, layout, machine, costs, time, memory, broken, cut)
    if estimate.shape:
        return estimate
    return replace(estimate, warnings=warnings(structure.plan, sizes, machine))


def priced(structure: Structure, layout: Layout, sizes: Mapping[str, Number], machine: Machine) -> tuple[Costs, Cut]:
    """What a step costs, and how the stages of its pipeline share the layers."""
    costs = price(structure.plan, sizes, machine)
    cut = cut_layers(costs, sizes, Pace.of(machine), structure.plan.layers, layout.cut)
    return over_host_link(costs, structure.memory, sizes, machine, cut) if layout.offload else costs, cut


def part_for(machine: Machine, layout: Layout) -> Machine:
    """The part of a machine that layouts run on; raises LayoutError for numbers of ranks that get different parts."""
    if not let_in_parts(machine):
        return machine
    ranks = np.unique(layout.ranks)
    part, *others = (slice_of(machine, int(n)) for n in ranks)
    if any(other.tiers != part.tiers for other in others):
        raise LayoutError(
            f"layout: got from {ranks[0]:g} to {ranks[-1]:g} ranks, expected one number on {machine.name}, where it "
            f"decides what a job gets of the fabric: ask for each number of ranks by itself"
        )
    return part


def _estimate(
    graph: Graph,
    layout: Layout,
    machine: Machine,
    costs: Costs,
    time: StepTime,
    memory: MemoryUse,
    broken: Mapping[str, Any],
    cut: Cut,
) -> Estimate:
    per_sequence = graph.tokens()
    tokens = layout.global_batch * float(per_sequence or 1)
    chips = layout.ranks / machine.ranks_per_chip
    usd_per_hour = chips * machine.usd_per_chip_hour
    quoted = layout.ranks * machine.quoted_flops["bf16"]
    fits = ~np.asarray(reduce(np.logical_or, sorted(broken.values(), key=np.size)))
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
        breakdown=time.parts,
        stage_layers=cut.layers,
        memory_parts=memory.parts,
        engines=costs.engine,
        communication=time.traffic,
        kernels=Again(lambda: _running(costs, time)),
        collectives=costs.collectives,
        cost_usd_per_hour=usd_per_hour,
        usd_per_million_tokens=usd_per_hour / 3600.0 * time.expected / tokens * 1e6,
        assumptions=(*ASSUMPTIONS, *(OFFLOADED,) * layout.offload, *graph.notes, *machine.assumptions),
        sources=machine.sources,
        counted="samples" if per_sequence is None else "tokens",
        interval=machine.framework.interval,
    )
    return estimate if estimate.shape else estimate.at(0)


def _running(costs: Costs, time: StepTime) -> Iterator[KernelCost]:
    """Kernels of the stage that decides a step; where others decide it, they run 0 times."""
    for kernel in costs.kernels:
        runs = time.runs(kernel.stages)
        amounts = ("count", "seconds", "flops", "bytes")
        yield replace(kernel, **{name: getattr(kernel, name) * runs for name in amounts})
