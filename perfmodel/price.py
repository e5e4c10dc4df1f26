"""Seconds per kernel and per collective, on a machine; sums by where in the step they are spent.

One set of formulas for one layout and for arrays of them: sizes enter here, as floats or as arrays that broadcast. A
quantity is an array along the dims of the sizes that it depends on, no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from perfmodel.alike import Alike, grouped
from perfmodel.collective import share_at
from perfmodel.costs import UPDATE, Costs, KernelCost, Place, add, place_of
from perfmodel.engine import Matmul
from perfmodel.errors import MachineError
from perfmodel.formulas import matmul as formulas
from perfmodel.framework import Framework
from perfmodel.haul import Bundle, bundled, price_traffic
from perfmodel.kernel import Demand
from perfmodel.machine import Machine
from perfmodel.plan import Compute, Plan
from perfmodel.rows import Table
from perfmodel.work import (
    MICROBATCH,
    Again,
    Amount,
    Evaluator,
    Identity,
    Late,
    Number,
    Term,
    amount,
    largest,
)

DTYPES = {"bf16": "bf16", "f16": "f16", "f32": "f32", "f64": "f32"}
NARROW = ("f8", "f4")
"""How types begin that come in several kinds, all of one rate."""


def price(plan: Plan, sizes: Mapping[str, Number], machine: Machine) -> Costs:
    """Seconds of every kernel and collective of a plan for given axis sizes, scalars or arrays alike."""
    evaluate = Evaluator(sizes)
    table, alike = Table(evaluate.sizes), _alike(Identity(plan))
    compute, decided = _price_kernels(alike.computes, table, machine)
    hauled = price_traffic(alike.bundles, table, machine)
    timed = bool(np.any(machine.framework.host_seconds))  # whether the host's time for a launch is known
    return Costs(
        compute=compute,
        launches={**_launches(alike.computes, table, machine.framework), **hauled.calls()} if timed else {},
        engine=_by_engine(decided, sizes[MICROBATCH]),
        communication=hauled.seconds,
        collectives=Again(lambda: (hauled.hauls[id(t)].cost(sizes) for t in plan.traffics)),
        model_flops=evaluate.amount(plan.model_flops),
        kernels=Again(lambda: _kernel_costs(plan, evaluate, machine)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """A plan in groups of those that are alike."""

    computes: Sequence[Alike[Compute]]
    bundles: Sequence[Alike[Bundle]]


@lru_cache(maxsize=64)
def _alike(plan: Identity[Plan]) -> _Groups:
    return _Groups(
        computes=grouped((c, "", (c.bytes, c.times, *c.flops.values(), *_sizes(c))) for c in plan.it.computes),
        bundles=bundled(plan.it),
    )


def _sizes(kernel: Demand) -> list[Amount]:
    """What else a kernel's time depends on: the sizes of its matmul, of its rows and of its keys."""
    shape = kernel.matmul
    terms = (*((shape.m, shape.n, shape.k, shape.batch) if shape else ()), kernel.row, kernel.keys)
    return [amount([term]) for term in terms if term is not None]


def _launches(groups: Sequence[Alike[Compute]], table: Table, framework: Framework) -> dict[Place, Number]:
    """Kernels by place."""
    launches: dict[Place, Number] = {}
    for alike in groups:
        kinds = table.kinds(alike.symbols)
        for c in alike.items:
            place = place_of(c)
            add(launches, place, kinds.spread(kinds.evaluate.amount(c.times) * left(place, framework)))
    return launches


def _price_kernels(
    groups: Sequence[Alike[Compute]], table: Table, machine: Machine
) -> tuple[dict[Place, Number], dict[tuple[str, bool], Number]]:
    """Seconds of kernels by place, and by what decides them and whether that is in every microbatch."""
    compute: dict[Place, Number] = {}
    decided: dict[tuple[str, bool], Number] = {}
    for alike in groups:
        kinds = table.kinds(alike.symbols)
        spent, deciding = _price_alike(alike.items, kinds.evaluate, machine)
        for place, value in spent.items():
            add(compute, place, kinds.spread(value))
        for key, value in deciding.items():
            add(decided, key, kinds.spread(value))
    return compute, decided


def _price_alike(
    computes: Sequence[Compute], evaluate: Evaluator, machine: Machine
) -> tuple[dict[Place, Number], dict[tuple[str, bool], Number]]:
    compute: dict[Place, Number] = {}
    decided: dict[tuple[str, bool], Number] = {}
    for c in computes:
        seconds = slowed(kernel_seconds(c, evaluate, machine), machine.framework)
        place, slowest = place_of(c), _slowest(seconds)
        times = evaluate.amount(c.times) * left(place, machine.framework)
        add(compute, place, times * (slowest + machine.kernel_launch_seconds))
        for name, value in seconds.items():
            add(decided, (name, c.repeated), times * np.where(value < slowest, 0.0, value))
    return compute, decided


def left(place: Place, framework: Framework) -> Number:
    """Share of the kernels there that a framework leaves to run by themselves."""
    return framework.accumulation if place.repeated and place.part == UPDATE else 1.0


def slowed(seconds: Mapping[str, Number], framework: Framework) -> dict[str, Number]:
    """Seconds that a kernel's engines and memory need in a step that a framework runs."""
    factors = framework.slower
    return {name: value * factors[name] if name in factors else value for name, value in seconds.items()}


def _kernel_costs(plan: Plan, evaluate: Evaluator, machine: Machine) -> Iterator[KernelCost]:
    """Every kernel of a step by itself, wherever it stands."""
    for c in plan.computes:
        seconds = slowed(kernel_seconds(c, evaluate, machine), machine.framework)
        each = left(place_of(c), machine.framework) * (_slowest(seconds) + machine.kernel_launch_seconds)
        flops = amount(Term(x, e) for terms in c.flops.values() for e, x in terms.items())
        for origin in c.origins:
            count = evaluate.amount(origin.times) * (evaluate.sizes[MICROBATCH] if c.repeated else 1.0)
            yield KernelCost(
                label=origin.label,
                source=origin.source,
                layer=origin.layer,
                phase=c.phase,
                stages=c.stages,
                decides=_decider(seconds),
                count=count,
                seconds=count * each,
                flops=count * evaluate.amount(flops),
                bytes=count * evaluate.amount(c.bytes),
            )


def _decider(seconds: Mapping[str, Number]) -> Any:
    """Name of what takes longest."""
    name = np.array(list(seconds))[largest(list(seconds.values()))]
    return name if name.ndim else str(name)


def _by_engine(decided: Mapping[tuple[str, bool], Number], microbatches: Number) -> Late:
    """Seconds per step from seconds per microbatch and what is spent once."""

    def seconds(name: str) -> Number:
        return microbatches * decided.get((name, True), 0.0) + decided.get((name, False), 0.0)

    return Late(list(dict.fromkeys(name for name, _ in decided)), seconds)


def _slowest(seconds: Mapping[str, Number]) -> Number:
    slowest: Number = 0.0
    for value in seconds.values():
        slowest = np.maximum(slowest, value)
    return slowest


def kernel_seconds(kernel: Demand, evaluate: Evaluator, machine: Machine) -> dict[str, Number]:
    """Seconds that each engine and the memory need for one kernel on one rank; the slowest of them decides."""
    bandwidth: Number = machine.memory_bandwidth * machine.efficiency["memory"]
    if kernel.row is not None:
        bandwidth = bandwidth * share_at(machine.descriptors, evaluate.term(kernel.row))
    seconds: dict[str, Number] = {"memory": evaluate.amount(kernel.bytes) / bandwidth}
    if kernel.matmul is not None:
        seconds["tensor"] = _matmul_seconds(kernel.matmul, evaluate, machine)
    for (engine, dtype), flops in kernel.flops.items():
        if engine == "tensor" and kernel.matmul is not None:
            continue
        rate = machine.elementwise[engine] if engine in machine.elementwise else tensor_rate(machine, dtype)
        share = machine.efficiency["vector" if engine in machine.elementwise else engine]
        add(seconds, engine, evaluate.amount(flops) / (rate * share))
    if kernel.keys is not None:
        beside = 1.0 + machine.matrix.query_keys / evaluate.term(kernel.keys)
        seconds["attention"] = seconds["attention"] * beside
    return seconds


def _matmul_seconds(matmul: Matmul, evaluate: Evaluator, machine: Machine) -> Number:
    """Seconds of a matmul by the best of the engine's tiles."""
    engine = machine.matrix
    m, n, k, batch = (evaluate.term(size) for size in (matmul.m, matmul.n, matmul.k, matmul.batch))
    share = engine.shares.get(tensor_name(matmul.dtype), machine.efficiency["tensor"])
    rate = tensor_rate(machine, matmul.dtype) * share
    seconds: Number = np.inf
    for tile in engine.tiles:
        for rows, columns in ((m, n), (n, m)):
            flops = formulas.padded_flops(rows, columns, k, batch, tile, engine.units, engine.fill)
            seconds = np.minimum(seconds, flops / (rate * formulas.operand_share(tile, engine.operands)))
    return seconds + engine.ramp


def tensor_name(dtype: str) -> str:
    """The rate of a machine file that a StableHLO element type runs at."""
    narrow = next((name for name in NARROW if dtype.startswith(name)), None)
    return narrow or DTYPES.get(dtype, dtype)


def tensor_rate(machine: Machine, dtype: str) -> float:
    """Peak matmul rate of one rank for a StableHLO element type [FLOP/s]."""
    name = tensor_name(dtype)
    if name not in machine.tensor_flops:
        known = ", ".join(sorted(machine.tensor_flops))
        raise MachineError(
            f"{machine.name}: got matmuls in {dtype}, expected one of {known}: add tensor.{name} to the machine file"
        )
    return machine.tensor_flops[name]
