"""From seconds by place to the time of a step: overlap, pipeline, bounds.

A step is M microbatches through pp stages, then what happens once: the reduction of gradients and the update.

    step = M t_microbatch + bubble + t_once + overhead

t_microbatch is that of the slowest stage, compute plus the communication that compute does not hide, and never less
than the host takes to launch it all; the bubble is
what a microbatch takes on the other stages, less as the schedule has it (`perfmodel.formulas.pipeline`). How much
compute may hide is one number per class of collective and machine: the share of the compute time that can run
meanwhile. What happens once hides behind what the last microbatch leaves. The bounds are the same formula with every
share at 1 (lower) and at 0 (upper), so lower <= expected <= upper always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from perfmodel.formulas.pipeline import SCHEDULES, bubble
from perfmodel.machine import Machine
from perfmodel.price import WEIGHTS, Costs, Place
from perfmodel.stage import Stages, runs_on
from perfmodel.work import MESH, MICROBATCH, VIRTUAL, Late, Number

CLASSES = ("tensor", "context", "expert", "fsdp", "batch", "pipeline")
PHASES = ("forward", "recompute", "backward", "update")
DATA = "data"
PARTS = (*PHASES, "host", *CLASSES, DATA, "bubble", "overhead")
RUN = ("only", "first", "last")
"""Stages that may be the slowest: the single one, or an end of a pipeline, which has all that those between have."""

VIEWS = (*RUN, "middle")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step, its bounds, and its parts; the parts sum to `expected` and are worked out when asked for.

    traffic: seconds of the collectives by class before overlap, on the slowest stage
    runs:    whether the slowest stage runs what runs on given stages
    """

    expected: Number
    lower: Number
    upper: Number
    parts: Mapping[str, Number]
    traffic: Mapping[str, Number]
    runs: Callable[[Stages], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What decides how a step goes on, beside the seconds of its parts: share of compute that may hide each class of
    collective [1], the host's time for a launch, the fixed cost of a step, what each doubling of the ranks adds [s].
    """

    overlap: Mapping[str, Number]
    host: Number
    overhead: Number
    barrier: Number

    @classmethod
    def of(cls, machine: Machine) -> Pace:
        """That of a machine with its framework."""
        return cls(
            overlap=machine.overlap,
            host=machine.framework.host_seconds,
            overhead=machine.step_overhead_seconds,
            barrier=machine.barrier_seconds,
        )


def step_time(costs: Costs, sizes: Mapping[str, Number], pace: Pace, schedule: str = SCHEDULES[0]) -> StepTime:
    """Time of one training step for given costs, axis sizes and pipeline schedule."""
    stages = [_Stage(costs, view, sizes[MICROBATCH], pace.host) for view in VIEWS]
    pipeline = _Pipeline(schedule, sizes["pp"], sizes[VIRTUAL])
    expected, lower, upper = (
        _Step(stages, pipeline, overlap, _overhead(sizes, pace))
        for overlap in (pace.overlap, dict.fromkeys((*CLASSES, DATA), 1.0), {})
    )
    return StepTime(
        expected=expected.total,
        lower=lower.total,
        upper=upper.total,
        parts=Late(PARTS, expected.seconds_of),
        traffic=Late((*CLASSES, DATA), expected.traffic_of),
        runs=expected.runs,
    )


def _overhead(sizes: Mapping[str, Number], pace: Pace) -> Number:
    """Fixed cost of a step: ranks that communicate wait for each other, longer with each doubling of them."""
    ranks = math.prod(sizes[axis] for axis in MESH)
    return pace.overhead + pace.barrier * np.log2(ranks)


class _Stage:
    """Seconds of one stage before any overlap, by part; without the parts that the program does not have.

    microbatch, compute: seconds of the kernels of a microbatch, with what the stage waits for the host, and of a step
    """

    def __init__(self, costs: Costs, view: str, count: Number, host_seconds: Number) -> None:
        self.count = count
        self.repeated = _by_part(costs.compute, view, repeated=True)
        self.once = _by_part(costs.compute, view, repeated=False)
        sent, reduced = (_by_part(costs.communication, view, repeated=repeated) for repeated in (True, False))
        self.traffic = {klass: seconds for klass in CLASSES for seconds in _found(sent, klass)}
        self.traffic.update((DATA, seconds) for seconds in _found(reduced, DATA))
        kernels = _total(seconds for name in (*PHASES, WEIGHTS) for seconds in _found(self.repeated, name))
        launches = tuple(_by_part(costs.launches, view, repeated=True).values())
        self.waits = np.maximum(host_seconds * _total(launches) - kernels, 0.0) if launches else 0.0
        self.microbatch = _total((kernels, *((self.waits,) if launches else ())))
        self.weights = _total(_found(self.repeated, WEIGHTS))
        self.compute = _total(_total(spent) for name in PHASES if (spent := tuple(self._spent(name))))

    def phase(self, name: str) -> Number:
        """Seconds of the kernels of a phase in a step."""
        return _total(self._spent(name))

    def _spent(self, name: str) -> Iterator[Number]:
        """What a phase spends in all microbatches, and once; nothing where the program has no such phase."""
        names = (name, WEIGHTS) if name == "backward" else (name,)
        yield from (self.count * seconds for part in names for seconds in _found(self.repeated, part))
        yield from (seconds for part in names for seconds in _found(self.once, part))


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """How stages are run: pp of them, vpp chunks of layers on each."""

    schedule: str
    pp: Number
    vpp: Number


class _Step:
    """A step of the slowest stage, under given overlap."""

    def __init__(
        self, stages: Sequence[_Stage], pipeline: _Pipeline, overlap: Mapping[str, Number], overhead: Number
    ) -> None:
        self._stages, self._pipeline, self._overhead = stages, pipeline, overhead
        self._exposed = [exposed_seconds(stage.traffic, stage.microbatch, overlap) for stage in stages]
        only, first, last = map(self._step, range(len(RUN)))
        self._pipelined, self._first = np.asarray(pipeline.pp) > 1.0, first >= last
        self.total = self._slowest((only, first, last))

    def seconds_of(self, part: str) -> Number:
        """Seconds of a step by part."""
        return self._slowest([self._part(view, part) for view in range(len(RUN))])

    def traffic_of(self, klass: str) -> Number:
        """Seconds of a class of collectives in a step, before overlap."""
        return self._slowest(
            [_in_step(stage, klass, stage.traffic.get(klass, 0.0)) for stage in self._stages[: len(RUN)]]
        )

    def runs(self, stages: Stages) -> Any:
        """Mask of the layouts whose slowest stage runs what runs on `stages`."""
        return self._slowest([runs_on(stages, view) for view in RUN])

    def _slowest(self, views: Sequence[Number]) -> Number:
        only, first, last = views
        return np.where(self._pipelined, np.where(self._first, first, last), only)

    def _step(self, view: int) -> Number:
        waits = ("host", *self._exposed[view], "bubble", "overhead")
        return _total((self._stages[view].compute, *(self._part(view, name) for name in waits)))

    def _part(self, view: int, name: str) -> Number:
        stage, exposed = self._stages[view], self._exposed[view]
        if name in PHASES:
            return stage.phase(name)
        if name == "host":
            return stage.count * stage.waits
        if name == "bubble":
            return self._bubble(view)
        if name == "overhead":
            return self._overhead
        return _in_step(stage, name, exposed[name]) if name in exposed else 0.0

    def _bubble(self, view: int) -> Number:
        """Idle seconds of an end of the pipeline: the stages between, and the other end, are what it waits for."""
        if VIEWS[view] == "only":
            return 0.0
        other, middle = VIEWS.index("last" if VIEWS[view] == "first" else "first"), VIEWS.index("middle")
        between = self._pipeline.pp - 2.0
        whole = self._microbatch(other) + between * self._microbatch(middle)
        weights = self._stages[other].weights + between * self._stages[middle].weights
        return bubble(self._pipeline.schedule, whole, weights, self._pipeline.vpp)

    def _microbatch(self, view: int) -> Number:
        """Seconds of a microbatch on a stage, with the communication that it waits for."""
        waited = (seconds for klass, seconds in self._exposed[view].items() if klass != DATA)
        return _total((self._stages[view].microbatch, *waited))


def _in_step(stage: _Stage, klass: str, seconds: Number) -> Number:
    """Seconds in a step of a class of collectives, from those that its `traffic` has."""
    return seconds if klass == DATA else stage.count * seconds


def exposed_seconds(traffic: Mapping[str, Number], compute: Number, overlap: Mapping[str, Number]) -> dict[str, Number]:
    """Communication that is left to wait for: each class hides behind its share of the compute time, as far as the
    classes before it have not used that time up.
    """
    hidden_so_far: Number = 0.0
    exposed: dict[str, Number] = {}
    for klass, seconds in traffic.items():
        room = np.maximum(overlap.get(klass, 0.0) * compute - hidden_so_far, 0.0)
        hidden = np.minimum(seconds, room)
        hidden_so_far = hidden_so_far + hidden
        exposed[klass] = seconds - hidden
    return exposed


def _by_part(seconds: Mapping[Place, Number], view: str, *, repeated: bool) -> dict[str, Number]:
    """Seconds on the stages of a view, by part."""
    parts: dict[str, Number] = {}
    for place, value in seconds.items():
        if place.repeated == repeated and runs_on(place.stages, view):
            parts[place.part] = parts[place.part] + value if place.part in parts else value
    return parts


def _found(seconds: Mapping[str, Number], part: str) -> tuple[Number, ...]:
    return (seconds[part],) if part in seconds else ()


def _total(numbers: Iterable[Number]) -> Number:
    """The sum, without a pass over arrays to add nothing."""
    return reduce(add, numbers) if (numbers := tuple(numbers)) else 0.0
