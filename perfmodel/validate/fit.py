"""A framework fitted to measured steps: few numbers, each of which means something, held to what is usual where runs do
not tell; and the error of runs that no fit had seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import expit

from perfmodel.framework import Framework, slower
from perfmodel.framework_spec import FrameworkSpec
from perfmodel.schema import Number as Spec
from perfmodel.schema import numbers
from perfmodel.spec_file import si_of
from perfmodel.validate.runs import Run, Runs
from perfmodel.work import Floats, Number

SCATTER = 0.1
"""Relative error beyond which a run counts linearly rather than by its square, and that of a run without a flaw."""

SHARED = 0.5
"""A source with n runs counts as n ** SHARED of them: its runs err together."""

TELLS = "fit above"
"""Source of a number that runs told."""

FOUR_OF_FIVE = (0.1, 0.9)
FOLDS = 16
"""Groups are left out in at most so many turns."""

ENOUGH = 30
"""Runs of a machine from which its own interval is taken."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What a number usually is: a normal distribution of its logarithm, or of its log odds for a share."""

    mean: float
    spread: float
    share: bool = False

    def value(self, x: float) -> float:
        """The number at a point of the distribution."""
        return float(expit(x) if self.share else np.exp(x))


LITTLE, MUCH = Usual(-1.0, 1.5, share=True), Usual(0.5, 1.5, share=True)
USUAL: Mapping[str, Usual] = {
    "host": Usual(float(np.log(5e-6)), 1.5),
    "slower.memory": Usual(0.3, 0.5),
    "overlap.tensor": LITTLE,
    "overlap.context": LITTLE,
    "overlap.expert": LITTLE,
    "overlap.pipeline": LITTLE,
    "overlap.fsdp": MUCH,
    "overlap.data": MUCH,
}
"""Numbers of a framework that runs can tell, by their paths. What waits for the next kernel hides little, what is
prefetched much; a launch takes some microseconds; elementwise kernels move more than those that a compiler fuses.
"""
ON_MACHINE: Mapping[str, Usual] = {"matrix": Usual(0.0, 0.1), "attention": Usual(0.0, 0.3), "memory": Usual(0.0, 0.3)}
"""The same of a framework on one machine, against what is `slower` on all: clocks under load, which attention kernel it
has, how much its elementwise kernels are fused there.
"""

Values = Mapping[str, float]
"""Numbers in SI by their dotted paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run to fit to: `machine` as the framework file knows it, and seconds of a step."""

    run: Run
    machine: str
    source: str
    model: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkFit:
    """A framework as fitted to all runs.

    values: by path
    fitted: paths of the numbers that were fitted
    told:   paths of those that runs tell; others are what is usual
    before, after: logarithms of predicted over measured, of each run
    """

    values: Values
    fitted: frozenset[str]
    told: frozenset[str]
    before: Floats
    after: Floats


def fit_framework(spec: FrameworkSpec, measured: Sequence[Measured]) -> FrameworkFit:
    """Fit the numbers of a framework that its file does not hold to be known (`datasheet`) to runs."""
    problem = _Problem(spec, measured)
    x, told = problem.solve()
    return FrameworkFit(
        values=problem.values(x),
        fitted=problem.fitted,
        told=told,
        before=problem.residuals(problem.known),
        after=problem.residuals(problem.values(x)),
    )


def held_out(spec: FrameworkSpec, measured: Sequence[Measured], group: Callable[[Measured], str]) -> Floats:
    """Seconds of each run as predicted by a fit that saw no run of its group; of many groups several are left out in
    one turn.
    """
    folds = _folds([group(m) for m in measured])
    seconds = np.empty(len(measured))
    for fold in range(folds.max() + 1):
        out = folds == fold
        seen = [m for m, left in zip(measured, out, strict=True) if not left]
        values = dict(_unfitted(spec))
        if seen:
            problem = _Problem(spec, seen)
            values = problem.values(problem.solve()[0])
        unseen = [m for m, left in zip(measured, out, strict=True) if left]
        seconds[out] = _seconds(Runs([m.run for m in unseen]), [m.machine for m in unseen], values)
    return seconds


def _folds(groups: Sequence[str]) -> NDArray[np.intp]:
    """The turn in which each run is left out: the largest groups first, each where fewest are."""
    sizes = [0] * min(FOLDS, len(set(groups)))
    turn: dict[str, int] = {}
    for name, size in Counter(groups).most_common():
        turn[name] = sizes.index(min(sizes))
        sizes[turn[name]] += size
    return np.array([turn[name] for name in groups])


def interval(seconds: Floats, measured: Sequence[Measured]) -> tuple[float, float]:
    """By what factors four of five runs are faster and slower than predicted by fits that never saw them."""
    errors = np.log([m.seconds for m in measured]) - np.log(seconds)
    faster, longer = np.exp(np.quantile(errors, FOUR_OF_FIVE, weights=_weights(measured), method="inverted_cdf"))
    return min(float(faster), 1.0), max(float(longer), 1.0)


class _Problem:
    """Numbers of a framework as one vector of points of their usual distributions, in units of the spread."""

    def __init__(self, spec: FrameworkSpec, measured: Sequence[Measured]) -> None:
        self._machines = [m.machine for m in measured]
        self._runs = Runs([m.run for m in measured])
        self._seconds = np.array([m.seconds for m in measured])
        self._weights = np.sqrt(_weights(measured))
        fixed = {path for path, number in numbers(spec) if not _fitted(number)}
        self.known = dict(_unfitted(spec))
        names = dict.fromkeys(self._machines)
        on = {f"machines.{name}.{key}": usual for name in names for key, usual in ON_MACHINE.items()}
        self._usual = {path: usual for path, usual in {**USUAL, **on}.items() if path not in fixed}

    @property
    def fitted(self) -> frozenset[str]:
        """Paths of the numbers."""
        return frozenset(self._usual)

    def values(self, x: Floats) -> dict[str, float]:
        """Numbers by path."""
        fitted = {
            path: usual.value(usual.mean + usual.spread * each)
            for (path, usual), each in zip(self._usual.items(), x.tolist(), strict=True)
        }
        shared = {**self.known, **fitted}
        against = {path: shared[f"slower.{path.rpartition('.')[2]}"] for path in fitted if path.startswith("machines.")}
        return {**shared, **{path: fitted[path] * factor for path, factor in against.items()}}

    def residuals(self, values: Values) -> Floats:
        """Logarithms of predicted over measured."""
        errors: Floats = np.log(_seconds(self._runs, self._machines, values) / self._seconds)
        return errors

    def solve(self) -> tuple[Floats, frozenset[str]]:
        """The most likely vector, and paths of the numbers that runs tell better than what is usual does."""

        def costs(x: Floats) -> Floats:
            error = self.residuals(self.values(x)) / SCATTER
            robust = np.sign(error) * np.sqrt(2.0 * (np.sqrt(1.0 + error * error) - 1.0))
            return np.concatenate([self._weights * robust, x])

        found = least_squares(costs, np.zeros(len(self._usual)))
        slopes = np.asarray(found.jac)
        spread = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)))
        told = frozenset(path for path, each in zip(self._usual, spread, strict=True) if each < TOLD)
        return np.asarray(found.x), told


TOLD = 0.5
"""Spread of a number against what is usual, below which runs tell it."""


def _weights(measured: Sequence[Measured]) -> Floats:
    """Weights of runs: those of one source err together."""
    counts = Counter(m.source for m in measured)
    return np.array([counts[m.source] ** (SHARED - 1.0) for m in measured])


def _unfitted(spec: FrameworkSpec) -> Iterator[tuple[str, float]]:
    """Numbers of a framework as its file has them, but for those of machines that it does not hold to be known."""
    known = dict(numbers(spec))
    for path, value in si_of(spec).items():
        if not (path.startswith("machines.") and _fitted(known[path])):
            yield path, value


def _fitted(number: Spec[Any]) -> bool:
    """Whether a number of a file is there to be fitted: one that a fit told, or that nobody knows."""
    return number.kind == "assumed" or number.source == TELLS


def _seconds(runs: Runs, machines: Sequence[str], values: Values) -> Floats:
    """Seconds of a step of each run, by the numbers of its machine."""

    def on(name: str) -> Number:
        return np.array([values.get(f"machines.{m}.{name}", values[f"slower.{name}"]) for m in machines])

    framework = Framework(
        slower=slower(matrix=on("matrix"), attention=on("attention"), memory=on("memory")),
        host_seconds=values["host"],
        accumulation=values["accumulation"],
    )
    overlap = {path.removeprefix("overlap."): x for path, x in values.items() if path.startswith("overlap.")}
    return runs.seconds(framework, overlap)
