"""Seconds per kernel and per collective, on a machine; sums by where in the step they are spent.

One set of formulas for one layout and for arrays of them: sizes enter here, as floats or as equally shaped arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from perfmodel.errors import MachineError
from perfmodel.machine import Machine
from perfmodel.plan import Compute, Plan, Traffic
from perfmodel.stage import Stages
from perfmodel.topology import AxisCost, axis_cost
from perfmodel.work import MESH, MICROBATCH, TP, Evaluator, Number

K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in the step time is spent: per microbatch or once (`repeated`), on which stages, and in what."""

    repeated: bool
    stages: Stages
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCost:
    """All equal collectives of a step on one rank: bytes of each, how many, and seconds of all together.

    axis:  the mesh axes that it may run over, joined by +
    sizes: ranks along each of them [1]
    """

    kind: str
    axis: str
    klass: str
    sizes: Mapping[str, Number]
    bytes: Number
    count: Number
    seconds: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds by place: kernels by phase, collectives by class; before any overlap.

    engine: seconds of the kernels of one step by what decides them: an engine or the memory
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
        times, slowest = evaluate.amount(c.times), _slowest(seconds)
        place = Place(repeated=c.repeated, stages=c.stages, part=c.phase)
        _add(compute, place, times * (slowest + machine.kernel_launch_seconds))
        runs = times * (sizes[MICROBATCH] if c.repeated else 1.0)
        for name, value in seconds.items():
            _add(engine, name, runs * np.where(value < slowest, 0.0, value))
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


def _slowest(seconds: Mapping[str, Number]) -> Number:
    slowest: Number = 0.0
    for value in seconds.values():
        slowest = np.maximum(slowest, value)
    return slowest


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
        spans: dict[str, Number] = {}
        for axis in t.axes:
            name = "tp" if axis in TP else axis
            spans[name] = spans.get(name, 1.0) * sizes[axis]
        collectives.append(
            CollectiveCost(
                kind=t.kind,
                axis="+".join(spans),
                klass=t.klass,
                sizes=spans,
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
        self._along: dict[tuple[str, tuple[str, ...]], AxisCost] = {}

    def cost(self, kind: str, axes: tuple[str, ...]) -> AxisCost:
        """Latency and seconds per byte of a collective over `axes` (innermost first)."""
        if (kind, axes) not in self._known:
            self._known[kind, axes] = self._over(kind, _runs(axes))
        return self._known[kind, axes]

    def _over(self, kind: str, runs: Sequence[tuple[str, ...]]) -> AxisCost:
        """Axes that are not neighbours communicate one after the other, the inner ones reducing the bytes."""
        total: AxisCost | None = None
        inner: Number = 1.0
        for run in runs:
            for step in ("reduce_scatter", "all_gather") if kind == "all_reduce" else (kind,):
                cost = self._run(step, run)
                cost = cost if kind == "all_to_all" or run is runs[0] else cost.shrunk(inner)
                total = cost if total is None else total + cost
            inner = inner * self._size(run)
        assert total is not None
        return total

    def _run(self, kind: str, run: tuple[str, ...]) -> AxisCost:
        """Cost along neighbouring axes."""
        if (kind, run) not in self._along:
            self._along[kind, run] = axis_cost(kind, self._size(run), self._stride[run[0]], self._machine)
        return self._along[kind, run]

    def _size(self, run: tuple[str, ...]) -> Number:
        size: Number = 1.0
        for axis in run:
            size = size * self._sizes[axis]
        return size


def _runs(axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Neighbouring mesh axes joined: together they are one larger axis."""
    runs: list[tuple[str, ...]] = []
    for axis in axes:
        if runs and MESH.index(runs[-1][-1]) + 1 == MESH.index(axis):
            runs[-1] = (*runs[-1], axis)
        else:
            runs.append((axis,))
    return runs
