"""Seconds per kernel and per collective, on a machine; sums by where in the step they are spent.

One set of formulas for one layout and for arrays of them: sizes enter here, as floats or as arrays that broadcast. A
quantity is an array along the dims of the sizes that it depends on, no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from perfmodel.collective import share_at
from perfmodel.engine import Matmul
from perfmodel.errors import MachineError
from perfmodel.formulas import matmul as formulas
from perfmodel.framework import Framework
from perfmodel.kernel import Demand
from perfmodel.machine import Machine
from perfmodel.network import Network
from perfmodel.plan import Compute, Plan, Traffic
from perfmodel.rows import Kinds, Table
from perfmodel.stage import Stages
from perfmodel.work import (
    MESH,
    MICROBATCH,
    TP,
    Again,
    Amount,
    Evaluator,
    Identity,
    Late,
    Number,
    Term,
    amount,
    growth,
    largest,
    symbols_of,
)

WEIGHTS = "weights"
"""The part of the backward pass that only makes gradients of weights."""
UPDATE = "update"

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in the step time is spent: per microbatch or once (`repeated`), on which stages, and in what."""

    repeated: bool
    stages: Stages
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """All equal kernels of a step on one rank that stand at one place of the program.

    label:   the op that does most in it; `source` is its line, `layer` what it belongs to (`perfmodel.layer`)
    stages:  of a pipeline, that run it
    decides: the engine that takes longest, or memory
    count:   launches in a step [1]
    seconds, flops, bytes: of all of them together, launch overheads among the seconds [s], [FLOP], [B]
    """

    label: str
    source: str
    layer: str
    phase: str
    stages: Stages
    decides: Any
    count: Number
    seconds: Number
    flops: Number
    bytes: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCost:
    """All equal collectives of a step on one rank: bytes of each, how many, and seconds of all together.

    axis:  the mesh axes that it may run over, joined by +
    sizes: ranks along each of them [1]
    optimum: seconds below which no algorithm gets on the links that the groups have, of all together
    """

    kind: str
    axis: str
    klass: str
    sizes: Mapping[str, Number]
    bytes: Number
    count: Number
    seconds: Number
    optimum: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds by place: kernels by phase, collectives by class; before any overlap.

    launches: kernels and collectives that the host launches [1]
    engine: seconds of the kernels of one step by what decides them: an engine or the memory

    `engine`, `kernels` and `collectives` are worked out when asked for.
    """

    compute: Mapping[Place, Number]
    launches: Mapping[Place, Number]
    engine: Mapping[str, Number]
    communication: Mapping[Place, Number]
    collectives: Iterable[CollectiveCost]
    model_flops: Number
    kernels: Iterable[KernelCost] = ()


DTYPES = {"bf16": "bf16", "f16": "f16", "f32": "f32", "f64": "f32"}
NARROW = ("f8", "f4")
"""How types begin that come in several kinds, all of one rate."""


def price(plan: Plan, sizes: Mapping[str, Number], machine: Machine) -> Costs:
    """Seconds of every kernel and collective of a plan for given axis sizes, scalars or arrays alike."""
    evaluate = Evaluator(sizes)
    table, alike = Table(evaluate.sizes), _alike(Identity(plan))
    compute, decided = _price_kernels(alike.computes, table, machine)
    communication, hauls = _price_traffic(alike.bundles, table, machine)
    return Costs(
        compute=compute,
        launches=_launches(alike, table, machine.framework),
        engine=_by_engine(decided, sizes[MICROBATCH]),
        communication=communication,
        collectives=Again(lambda: (hauls[id(t)].cost(sizes) for t in plan.traffics)),
        model_flops=evaluate.amount(plan.model_flops),
        kernels=Again(lambda: _kernel_costs(plan, evaluate, machine)),
    )


@dataclass(frozen=True, slots=True)
class _Alike(Generic[T]):
    """Kernels or collectives that depend on the same sizes, more or less, and the symbols of these."""

    items: Sequence[T]
    symbols: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """A plan in groups of those that are alike."""

    computes: Sequence[_Alike[Compute]]
    bundles: Sequence[_Alike[Bundle]]


@lru_cache(maxsize=64)
def _alike(plan: Identity[Plan]) -> _Groups:
    return _Groups(
        computes=_grouped((c, "", (c.bytes, c.times, *c.flops.values(), *_sizes(c))) for c in plan.it.computes),
        bundles=_grouped((bundle, bundle[0].axes[-1], _needs(bundle)) for bundle in bundles(plan.it)),
    )


Bundle: TypeAlias = tuple[Traffic, ...]
"""Collectives of one kind over the same axes in one body of a loop, which a framework may combine into fewer."""

COMBINED = ("fsdp",)
"""Classes of collectives whose operands are there together: weights, and gradients of weights."""


def bundles(plan: Plan) -> list[Bundle]:
    """Collectives of a plan, those together that may be combined."""
    found: dict[object, list[Traffic]] = {}
    for t in plan.traffics:
        together = t.klass in COMBINED and t.kind != "permute"
        key = (t.kind, t.axes, t.trips, t.phase, t.repeated, t.stages) if together else id(t)
        found.setdefault(key, []).append(t)
    return [tuple(bundle) for bundle in found.values()]


def _needs(bundle: Bundle) -> list[Amount]:
    """What the time of a bundle depends on."""
    each = (amounts for t in bundle for amounts in (amount([t.bytes]), t.times))
    return [*each, amount([bundle[0].trips]), _apart(bundle[0].axes)]


def message_bytes(bundle: Bundle, evaluate: Evaluator, combine: float) -> list[Number]:
    """Bytes of the message that each collective of a bundle travels in: that of all of them together, cut into messages
    of `combine` bytes at most, but into no more than there are collectives.
    """
    own = [evaluate.term(t.bytes) for t in bundle]
    if not combine or bundle[0].klass not in COMBINED or bundle[0].kind == "permute":
        return own
    runs = [evaluate.amount(t.times) / evaluate.term(t.trips) for t in bundle]
    total = sum(size * times for size, times in zip(own, runs, strict=True))
    messages = np.clip(np.ceil(total / combine), 1.0, sum(runs))
    return [total / messages] * len(bundle)


def _sizes(kernel: Demand) -> list[Amount]:
    """What else a kernel's time depends on: the sizes of its matmul, of its rows and of its keys."""
    shape = kernel.matmul
    terms = (*((shape.m, shape.n, shape.k, shape.batch) if shape else ()), kernel.row, kernel.keys)
    return [amount([term]) for term in terms if term is not None]


def _apart(axes: Sequence[str]) -> Amount:
    """What tells how far apart the ranks along mesh axes lie: the axes up to the outermost one."""
    return amount([Term(1.0).times(MESH[: MESH.index(axes[-1]) + 1])])


def _grouped(items: Iterable[tuple[T, str, Sequence[Amount]]]) -> list[_Alike[T]]:
    """Items by a label and by how the amounts that they depend on grow with the batch."""
    groups: dict[object, list[tuple[T, Sequence[Amount]]]] = {}
    for item, label, amounts in items:
        key = label, frozenset(growth(exponents) for terms in amounts for exponents in terms)
        groups.setdefault(key, []).append((item, amounts))
    return [
        _Alike([item for item, _ in group], symbols_of(terms for _, amounts in group for terms in amounts))
        for group in groups.values()
    ]


def _launches(groups: _Groups, table: Table, framework: Framework) -> dict[Place, Number]:
    """Kernels and collectives by place, where the host's time to launch them is known."""
    launches: dict[Place, Number] = {}
    if not np.any(framework.host_seconds):
        return launches
    for kernels in groups.computes:
        kinds = table.kinds(kernels.symbols)
        for c in kernels.items:
            place = place_of(c)
            _add(launches, place, kinds.spread(kinds.evaluate.amount(c.times) * left(place, framework)))
    for calls in groups.bundles:
        kinds = table.kinds(calls.symbols)
        evaluate = kinds.evaluate
        for bundle in calls.items:
            several = evaluate.term(Term(1.0).times(bundle[0].axes)) > 1.0
            for t, message in zip(bundle, message_bytes(bundle, evaluate, framework.combine), strict=True):
                times = evaluate.amount(t.times) * evaluate.term(t.bytes) / message
                _add(launches, place_of(t), kinds.spread(times * several))
    return launches


def _price_kernels(
    groups: Sequence[_Alike[Compute]], table: Table, machine: Machine
) -> tuple[dict[Place, Number], dict[tuple[str, bool], Number]]:
    """Seconds of kernels by place, and by what decides them and whether that is in every microbatch."""
    compute: dict[Place, Number] = {}
    decided: dict[tuple[str, bool], Number] = {}
    for alike in groups:
        kinds = table.kinds(alike.symbols)
        spent, deciding = _price_alike(alike.items, kinds.evaluate, machine)
        for place, value in spent.items():
            _add(compute, place, kinds.spread(value))
        for key, value in deciding.items():
            _add(decided, key, kinds.spread(value))
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
        _add(compute, place, times * (slowest + machine.kernel_launch_seconds))
        for name, value in seconds.items():
            _add(decided, (name, c.repeated), times * np.where(value < slowest, 0.0, value))
    return compute, decided


def place_of(it: Compute | Traffic) -> Place:
    """Where in the step a kernel or a collective runs."""
    part = it.klass if isinstance(it, Traffic) else WEIGHTS if it.weights else it.phase
    return Place(repeated=it.repeated, stages=it.stages, part=part)


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


def _add(total: dict[K, Number], key: K, value: Number) -> None:
    total[key] = total[key] + value if key in total else value


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
        _add(seconds, engine, evaluate.amount(flops) / (rate * share))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Haul:
    """Equal collectives as priced: bytes and seconds of each, the bound of each, and how many at a time, for each kind
    of layout.
    """

    traffic: Traffic
    kinds: Kinds
    bytes: Number
    each: Number
    bound: Number
    times: Number

    def cost(self, sizes: Mapping[str, Number]) -> CollectiveCost:
        """What all of them in a step cost."""
        t, spread = self.traffic, self.kinds.spread
        runs = sizes[MICROBATCH] if t.repeated else 1.0
        spans: dict[str, Number] = {}
        for axis in t.axes:
            name = "tp" if axis in TP else axis
            spans[name] = spans.get(name, 1.0) * sizes[axis]
        return CollectiveCost(
            kind=t.kind,
            axis="+".join(spans),
            klass=t.klass,
            sizes=spans,
            bytes=spread(self.bytes),
            count=spread(self.times) * runs,
            seconds=spread(self.times * self.each) * runs,
            optimum=spread(self.times * self.bound) * runs,
        )


def _price_traffic(
    groups: Sequence[_Alike[Bundle]], table: Table, machine: Machine
) -> tuple[dict[Place, Number], dict[int, _Haul]]:
    """Seconds of collectives by place, and each of them."""
    communication: dict[Place, Number] = {}
    hauls: dict[int, _Haul] = {}
    networks: dict[Kinds, Network] = {}
    for alike in groups:
        kinds = table.kinds(alike.symbols)
        evaluate = kinds.evaluate
        network = networks.setdefault(kinds, Network(kinds.sizes, machine))
        here: dict[Place, Number] = {}
        for bundle in alike.items:
            for t, message in zip(bundle, message_bytes(bundle, evaluate, machine.framework.combine), strict=True):
                size, times = evaluate.term(t.bytes), evaluate.amount(t.times)
                cost, share = network.cost(t.kind, t.axes), size / message
                each, bound = cost.seconds(message) * share, cost.optimum(message) * share
                _add(here, place_of(t), times * each)
                hauls[id(t)] = _Haul(traffic=t, kinds=kinds, bytes=size, each=each, bound=bound, times=times)
        for place, value in here.items():
            _add(communication, place, kinds.spread(value))
    return communication, hauls
