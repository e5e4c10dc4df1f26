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

from perfmodel.costs import WEIGHTS, Costs, Place
from perfmodel.cut import Cut, balanced_cut, even_cut, uneven
from perfmodel.formulas.pipeline import SCHEDULES, bubble
from perfmodel.machine import Machine
from perfmodel.stage import Stages, runs_on
from perfmodel.work import MESH, MICROBATCH, VIRTUAL, Late, Number

CLASSES = ("tensor", "context", "expert", "fsdp", "batch", "pipeline")
PHASES = ("forward", "recompute", "backward", "update")
DATA, SENDS = "data", "pipeline"
PARTS = (*PHASES, "host", *CLASSES, DATA, "bubble", "overhead")
RUN = ("only", "first", "last")
"""Stages that may be the slowest: the single one, or an end of a pipeline, which has all that those between have; where
those have more layers than an end, one of them too.
"""

VIEWS = (*RUN, "middle")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step, its bounds, and its parts; the parts sum to `expected` and are worked out when asked for.

    traffic: seconds of the collectives by class before overlap, on the slowest stage
    runs:    how much of what runs on given stages the slowest stage runs [1]
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


def step_time(
    costs: Costs,
    sizes: Mapping[str, Number],
    pace: Pace,
    schedule: str = SCHEDULES[0],
    cut: Cut | None = None,
) -> StepTime:
    """Time of one training step for given costs, axis sizes, pipeline schedule and cut (by default an even one)."""
    overlaps: list[Mapping[str, Number]] = [pace.overlap, dict.fromkeys((*CLASSES, DATA), 1.0), {}]
    expected, lower, upper = _steps(costs, sizes, pace, schedule, cut or even_cut(0, sizes), overlaps)
    return StepTime(
        expected=expected.total,
        lower=lower.total,
        upper=upper.total,
        parts=Late(PARTS, expected.seconds_of),
        traffic=Late((*CLASSES, DATA), expected.traffic_of),
        runs=expected.runs,
    )


def task_seconds(costs: Costs, sizes: Mapping[str, Number], pace: Pace, view: str, share: Number) -> dict[str, Number]:
    """Seconds of a microbatch on a stage, by the kinds of `perfmodel.pipeline.Task`: F and B wait for communication and
    for the host, each by its part of the compute; W are the gradients of weights.
    """
    stage = _Stage(costs, view, sizes[MICROBATCH], pace.host, share)
    exposed = exposed_seconds(stage.traffic, stage.microbatch, pace.overlap)
    kernels = _total(seconds for name in PHASES for seconds in _found(stage.repeated, name))
    whole = _waited(stage, exposed) - stage.weights
    forward = whole * _total(_found(stage.repeated, "forward")) / np.maximum(kernels, np.finfo(np.float64).tiny)
    return {"F": forward, "B": whole - forward, "W": stage.weights}


def seconds_behind(costs: Costs, sizes: Mapping[str, Number], pace: Pace, schedule: str, cut: Cut) -> Number:
    """Seconds of a step that follow the last microbatch: what happens once, and the overhead."""
    (step,) = _steps(costs, sizes, pace, schedule, cut, [pace.overlap])
    return step.behind


def _steps(
    costs: Costs,
    sizes: Mapping[str, Number],
    pace: Pace,
    schedule: str,
    cut: Cut,
    overlaps: Sequence[Mapping[str, Number]],
) -> list[_Step]:
    """The step under each of some overlaps."""
    stages = [_Stage(costs, view, sizes[MICROBATCH], pace.host, cut.share(view)) for view in VIEWS]
    pipeline = _Pipeline(schedule, sizes["pp"], sizes[VIRTUAL], cut)
    return [_Step(stages, pipeline, overlap, _overhead(sizes, pace)) for overlap in overlaps]


def cut_layers(costs: Costs, sizes: Mapping[str, Number], pace: Pace, layers: Number, cut: str) -> Cut:
    """How the stages of a pipeline share layers, given how `perfmodel.formulas.cut.CUTS` call it; a balanced cut from
    what a microbatch takes.
    """
    where, even = uneven(layers, sizes, cut), even_cut(layers, sizes)
    if not np.any(where):
        return even
    stages = [_Stage(costs, view, sizes[MICROBATCH], pace.host) for view in VIEWS]
    step = _Step(stages, _Pipeline(SCHEDULES[0], sizes["pp"], sizes[VIRTUAL], even), pace.overlap, 0.0)
    first, last, middle = (step.microbatch(VIEWS.index(view)) for view in ("first", "last", "middle"))
    in_layers = middle - step.sends(VIEWS.index("middle"))
    layer = in_layers * sizes["pp"] / np.maximum(layers, 1.0)
    return balanced_cut(layers, sizes, where, layer=layer, first=first - middle, last=last - middle)


def _overhead(sizes: Mapping[str, Number], pace: Pace) -> Number:
    """Fixed cost of a step: ranks that communicate wait for each other, longer with each doubling of them."""
    ranks = math.prod(sizes[axis] for axis in MESH)
    return pace.overhead + pace.barrier * np.log2(ranks)


class _Stage:
    """Seconds of one stage before any overlap, by part; without the parts that the program does not have.

    share: layers of the stage over those of a stage in an even cut
    microbatch, compute: seconds of the kernels of a microbatch, with what the stage waits for the host, and of a step
    """

    def __init__(self, costs: Costs, view: str, count: Number, host_seconds: Number, share: Number = 1.0) -> None:
        self.count = count
        self.repeated = _by_part(costs.compute, view, share, repeated=True)
        self.once = _by_part(costs.compute, view, share, repeated=False)
        sent, reduced = (_by_part(costs.communication, view, share, repeated=repeated) for repeated in (True, False))
        self.traffic = {klass: seconds for klass in CLASSES for seconds in _found(sent, klass)}
        self.traffic.update((DATA, seconds) for seconds in _found(reduced, DATA))
        kernels = _total(seconds for name in (*PHASES, WEIGHTS) for seconds in _found(self.repeated, name))
        launches = tuple(_by_part(costs.launches, view, share, repeated=True).values())
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
    cut: Cut


class _Step:
    """A step of the slowest stage, under given overlap."""

    def __init__(
        self, stages: Sequence[_Stage], pipeline: _Pipeline, overlap: Mapping[str, Number], overhead: Number
    ) -> None:
        self._stages, self._pipeline, self._overhead = stages, pipeline, overhead
        self._exposed = [exposed_seconds(stage.traffic, stage.microbatch, overlap) for stage in stages]
        self._run = range(len(RUN if pipeline.cut.is_even else VIEWS))
        _, first, last, *middle = totals = [self._step(view) for view in self._run]
        self._pipelined, self._first = np.asarray(pipeline.pp) > 1.0, first >= last
        self._between = bool(middle) and pipeline.cut.fuller_between & (middle[0] > np.maximum(first, last))
        self.total = self._slowest(totals)

    def seconds_of(self, part: str) -> Number:
        """Seconds of a step by part."""
        return self._slowest([self._part(view, part) for view in self._run])

    @property
    def behind(self) -> Number:
        """Seconds that follow the last microbatch."""
        piped = [self._stages[view].count * self.microbatch(view) + self._bubble(view) for view in self._run]
        return self.total - self._slowest(piped)

    def traffic_of(self, klass: str) -> Number:
        """Seconds of a class of collectives in a step, before overlap."""
        stages = [self._stages[view] for view in self._run]
        return self._slowest([_in_step(stage, klass, stage.traffic.get(klass, 0.0)) for stage in stages])

    def runs(self, stages: Stages) -> Any:
        """How much of what runs on `stages` the slowest stage runs [1]: none, all, or more or less with its layers."""
        shares = [1.0 if stages else self._pipeline.cut.share(VIEWS[view]) for view in self._run]
        return self._slowest([_scaled(runs_on(stages, VIEWS[view]), shares[view]) for view in self._run])

    def _slowest(self, views: Sequence[Number]) -> Number:
        only, first, last, *middle = views
        end = np.where(self._first, first, last)
        return np.where(self._pipelined, np.where(self._between, middle[0], end) if middle else end, only)

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
        """Idle seconds of a stage of the pipeline: all others, at the ends and between, are what it waits for."""
        if VIEWS[view] == "only":
            return 0.0
        ends = [VIEWS.index(name) for name in ("first", "last") if name != VIEWS[view]]
        middle, between = VIEWS.index("middle"), self._pipeline.cut.between
        between = between - 1.0 if view == middle else between

        def elsewhere(seconds: Callable[[int], Number]) -> Number:
            return _total((*map(seconds, ends), between * seconds(middle)))

        whole, weights = elsewhere(self.microbatch), elsewhere(lambda other: self._stages[other].weights)
        return bubble(self._pipeline.schedule, whole, weights, self._pipeline.vpp)

    def microbatch(self, view: int) -> Number:
        """Seconds of a microbatch on a stage, with the communication that it waits for."""
        return _waited(self._stages[view], self._exposed[view])

    def sends(self, view: int) -> Number:
        """Seconds of a microbatch on a stage that go into waiting for its neighbours' activations."""
        return self._exposed[view].get(SENDS, 0.0)


def _waited(stage: _Stage, exposed: Mapping[str, Number]) -> Number:
    """Seconds of a microbatch on a stage, with the communication that is exposed in it."""
    return _total((stage.microbatch, *(seconds for klass, seconds in exposed.items() if klass != DATA)))


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


def _by_part(seconds: Mapping[Place, Number], view: str, share: Number, *, repeated: bool) -> dict[str, Number]:
    """Seconds on the stages of a view, by part: what all stages have is of their layers, but for the sends between."""
    parts: dict[str, Number] = {}
    for place, value in seconds.items():
        if place.repeated == repeated and runs_on(place.stages, view):
            here = value if place.stages or place.part == SENDS else _scaled(value, share)
            parts[place.part] = parts[place.part] + here if place.part in parts else here
    return parts


def _scaled(value: Number, share: Number) -> Number:
    """The share of a value, without a pass over arrays to take all of it."""
    return value if isinstance(share, float) and share == 1.0 else value * share


def _found(seconds: Mapping[str, Number], part: str) -> tuple[Number, ...]:
    return (seconds[part],) if part in seconds else ()


def _total(numbers: Iterable[Number]) -> Number:
    """The sum, without a pass over arrays to add nothing."""
    return reduce(add, numbers) if (numbers := tuple(numbers)) else 0.0
