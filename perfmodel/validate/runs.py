"""Measured runs priced before any framework, side by side: what a step takes under frameworks tried on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.costs import Costs, Place, place_of
from perfmodel.formulas.cut import CUTS
from perfmodel.framework import BOUND_BY_MEMORY, Framework
from perfmodel.haul import bundled, price_traffic
from perfmodel.machine import Machine
from perfmodel.plan import Plan
from perfmodel.price import kernel_seconds, left
from perfmodel.rows import Table
from perfmodel.schedule import Pace, cut_layers, step_time
from perfmodel.work import Evaluator, Floats, Number

ENGINES: Mapping[str, tuple[str, ...]] = {
    "tensor": ("tensor",),
    "attention": ("attention",),
    "memory": BOUND_BY_MEMORY,
}
"""What a framework slows down by one factor each."""

CLEAR = 5.0
"""Ratio of what decides a kernel to all else beyond which no framework's factors change what decides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: kernels by what each engine needs for them, collectives by place.

    places:  of the kernels
    times:   how often each kernel runs [kernel]
    engines: seconds that `ENGINES` need for it [kernel, engine]
    calls:   seconds and number of the collectives at a place
    layers:  that the stages of a pipeline share
    """

    machine: Machine
    sizes: Mapping[str, Number]
    places: Sequence[Place]
    times: Floats
    engines: Floats
    calls: Mapping[Place, tuple[float, float]]
    layers: int


def run_of(plan: Plan, sizes: Mapping[str, Number], machine: Machine) -> Run:
    """A run from its plan, for the sizes of one layout."""
    evaluate = Evaluator(sizes)
    hauled = price_traffic(bundled(plan), Table(evaluate.sizes), machine)
    counts = hauled.calls()
    calls = {place: (float(seconds), float(counts[place])) for place, seconds in hauled.seconds.items()}
    needed = [kernel_seconds(c, evaluate, machine) for c in plan.computes]
    return Run(
        machine=machine,
        sizes=sizes,
        places=[place_of(c) for c in plan.computes],
        times=np.array([float(evaluate.amount(c.times)) for c in plan.computes]),
        engines=np.array(
            [[max(float(s.get(name, 0.0)) for name in names) for names in ENGINES.values()] for s in needed]
        ),
        calls=calls,
        layers=plan.layers,
    )


class Runs:
    """Several runs: arrays over them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._layers = _over(run.layers for run in runs)
        self._sizes = {name: _over(run.sizes[name] for run in runs) for name in runs[0].sizes}
        self._places = list(dict.fromkeys(place for run in runs for place in run.places))
        index = {place: i for i, place in enumerate(self._places)}
        run = np.repeat(np.arange(len(runs)), [len(run.places) for run in runs])
        where = np.array([index[place] for run in runs for place in run.places]) * len(runs) + run
        times = np.concatenate([run.times for run in runs])
        self._launches = self._by_place(where, times)
        self._between = self._by_place(where, times * _over(run.machine.kernel_launch_seconds for run in runs)[run])
        self._where, self._engines = _summed(where, times[:, np.newaxis] * np.concatenate([r.engines for r in runs]))
        self._overhead = _over(run.machine.step_overhead_seconds for run in runs)
        self._barrier = _over(run.machine.barrier_seconds for run in runs)
        calls = list(dict.fromkeys(place for run in runs for place in run.calls))
        nothing = (0.0, 0.0)
        self._communication = {place: _over(run.calls.get(place, nothing)[0] for run in runs) for place in calls}
        self._calls = {place: _over(run.calls.get(place, nothing)[1] for run in runs) for place in calls}

    def __len__(self) -> int:
        return len(self._runs)

    def seconds(self, framework: Framework, overlap: Mapping[str, Number]) -> Floats:
        """Seconds of a step of each run; numbers of the framework may be arrays over the runs."""
        pace = Pace(overlap=overlap, host=framework.host_seconds, overhead=self._overhead, barrier=self._barrier)
        costs = self._costs(framework)
        cut = cut_layers(costs, self._sizes, pace, self._layers, CUTS[0])
        return _each(step_time(costs, self._sizes, pace, cut=cut).expected, len(self))

    def _costs(self, framework: Framework) -> Costs:
        factors = np.array([_each(framework.slower.get(name, 1.0), len(self)) for name in ENGINES]).T
        seconds = (self._engines * factors[self._where % len(self)]).max(axis=1)
        compute = self._by_place(self._where, seconds) + self._between
        return Costs(
            compute=self._left(compute, framework),
            launches={**self._left(self._launches, framework), **self._calls},
            engine={},
            communication=self._communication,
            collectives=(),
            model_flops=np.nan,
        )

    def _by_place(self, where: NDArray[np.intp], amounts: Floats) -> Floats:
        """Sums over the kernels at each place of each run [place, run]."""
        shape = len(self._places), len(self)
        return np.bincount(where, amounts, shape[0] * shape[1]).astype(np.float64).reshape(shape)

    def _left(self, amounts: Floats, framework: Framework) -> dict[Place, Number]:
        return {place: row * left(place, framework) for place, row in zip(self._places, amounts, strict=True)}


def _summed(where: NDArray[np.intp], engines: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Kernels at a place of a run that one engine clearly decides, added up for each engine; the others as they are."""
    most = engines.argmax(axis=1)
    largest = np.take_along_axis(engines, most[:, np.newaxis], axis=1)
    clear = (np.sort(engines, axis=1)[:, -2] * CLEAR) < largest[:, 0]
    keys, group = np.unique(where[clear] * len(ENGINES) + most[clear], return_inverse=True)
    sums = np.zeros((len(keys), len(ENGINES)))
    np.add.at(sums, group, engines[clear])
    return np.concatenate([keys // len(ENGINES), where[~clear]]), np.concatenate([sums, engines[~clear]])


def _over(numbers: Iterable[Number]) -> Floats:
    return np.array([float(x) for x in numbers])


def _each(number: Number, count: int) -> Floats:
    return np.broadcast_to(np.asarray(number, dtype=np.float64), count)
