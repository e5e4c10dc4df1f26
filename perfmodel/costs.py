"""What a step costs before any overlap: seconds by where in the step they are spent, and all that is behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from perfmodel.plan import Compute, Traffic
from perfmodel.stage import Stages
from perfmodel.work import Number

WEIGHTS = "weights"
"""The part of the backward pass that only makes gradients of weights."""
UPDATE = "update"

K = TypeVar("K")


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


def place_of(it: Compute | Traffic) -> Place:
    """Where in the step a kernel or a collective runs."""
    part = it.klass if isinstance(it, Traffic) else WEIGHTS if it.weights else it.phase
    return Place(repeated=it.repeated, stages=it.stages, part=part)


def add(total: dict[K, Number], key: K, value: Number) -> None:
    """Add to a total that may not be there yet."""
    total[key] = total[key] + value if key in total else value
