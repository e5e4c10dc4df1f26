"""Measured runs priced before any framework, side by side: what a step takes under frameworks tried on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.formulas.cut import CUTS
from perfmodel.framework import Framework
from perfmodel.machine import Machine
from perfmodel.network import Network
from perfmodel.plan import Plan
from perfmodel.price import Costs, Place, bundles, kernel_seconds, left, message_bytes, place_of
from perfmodel.schedule import Pace, cut_layers, step_time
from perfmodel.work import Evaluator, Floats, Number, Term

ENGINES = ("tensor", "attention", "memory", "vector", "scalar", "gpsimd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: kernels by what each engine needs for them, collectives by place.

    places:  of the kernels
    times:   how often each kernel runs [kernel]
    engines: seconds that each engine and the memory need for it [kernel, engine]
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
    network = Network(evaluate.sizes, machine)
    calls: dict[Place, tuple[float, float]] = {}
    for bundle in bundles(plan):
        if evaluate.term(Term(1.0).times(bundle[0].axes)) > 1.0:
            cost = network.cost(bundle[0].kind, bundle[0].axes)
            for t, message in zip(bundle, message_bytes(bundle, evaluate, machine.framework.combine), strict=True):
                times = float(evaluate.amount(t.times) * evaluate.term(t.bytes) / message)
                seconds, count = calls.get(place_of(t), (0.0, 0.0))
                calls[place_of(t)] = seconds + times * float(cost.seconds(message)), count + times
    needed = [kernel_seconds(c, evaluate, machine) for c in plan.computes]
    return Run(
        machine=machine,
        sizes=sizes,
        places=[place_of(c) for c in plan.computes],
        times=np.array([float(evaluate.amount(c.times)) for c in plan.computes]),
        engines=np.array([[float(seconds.get(name, 0.0)) for name in ENGINES] for seconds in needed]),
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
        self._run = np.repeat(np.arange(len(runs)), [len(run.places) for run in runs])
        self._place = np.array([index[place] for run in runs for place in run.places])
        self._times = np.concatenate([run.times for run in runs])
        self._engines = np.concatenate([run.engines for run in runs])
        self._launch = _over(run.machine.kernel_launch_seconds for run in runs)[self._run]
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
        factors = np.array([_each(framework.slower.get(name, 1.0), len(self)) for name in ENGINES]).T[self._run]
        seconds = self._times * ((self._engines * factors).max(axis=1) + self._launch)
        launches = self._by_place(self._times, framework)
        return Costs(
            compute=self._by_place(seconds, framework),
            launches={**launches, **self._calls},
            engine={},
            communication=self._communication,
            collectives=(),
            model_flops=np.nan,
        )

    def _by_place(self, amounts: Floats, framework: Framework) -> dict[Place, Number]:
        """Sums over the kernels of each run at each place."""
        shape = len(self._places), len(self)
        where = self._place * shape[1] + self._run
        rows = np.bincount(where, amounts, shape[0] * shape[1]).astype(np.float64).reshape(shape)
        return {place: row * left(place, framework) for place, row in zip(self._places, rows, strict=True)}


def _over(numbers: Iterable[Number]) -> Floats:
    return np.array([float(x) for x in numbers])


def _each(number: Number, count: int) -> Floats:
    return np.broadcast_to(np.asarray(number, dtype=np.float64), count)
