"""Predicted against measured: published training steps, or a table of one's own.

found = validate()                     # the runs that ship with the package
found.errors.median_ape, found.ranking.kendall_tau, found.skipped
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from perfmodel.errors import ModelError, PerfModelError
from perfmodel.estimate import Estimate
from perfmodel.graph import Graph
from perfmodel.predict import part_for, predict, structure_of
from perfmodel.table import pattern
from perfmodel.validate.case import Case, case_of
from perfmodel.validate.rows import Row, RowError, read_rows
from perfmodel.validate.runs import Run, run_of
from perfmodel.validate.score import Errors, Ranking, errors, ranking

__all__ = ["Prediction", "Skipped", "Validation", "validate"]

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A run as predicted and as measured.

    seconds: predicted
    bounds: seconds between which four of five measurements are
    ideal: seconds by the same model with every efficiency at 1
    half_peak: seconds of the model FLOPs at half of the peak
    run: what it takes before any framework, where that was asked for
    """

    case: Case
    estimate: Estimate
    seconds: float
    bounds: tuple[float, float]
    ideal: float
    half_peak: float
    run: Run | None = None

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.seconds / self.case.seconds - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that is left out of the scores, and why."""

    row: Row
    reason: str


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Predictions of the rows of a table, and the rows without one."""

    predictions: Sequence[Prediction]
    skipped: Sequence[Skipped]

    @cached_property
    def errors(self) -> Errors:
        """Errors of all predictions."""
        return errors_of(self.predictions)

    @cached_property
    def ranking(self) -> Ranking:
        """Agreement over groups of runs that differ only in layout."""
        return ranking_of(self.predictions)

    def by(self, key: Callable[[Prediction], str]) -> dict[str, Sequence[Prediction]]:
        """Predictions by what `key` says of them, most first."""
        groups = grouped(self.predictions, key)
        return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def errors_of(predictions: Sequence[Prediction]) -> Errors:
    """Errors of the model."""
    measured = [p.case.seconds for p in predictions]
    return errors([p.seconds for p in predictions], measured, [p.bounds for p in predictions])


def baselines(predictions: Sequence[Prediction]) -> dict[str, Errors]:
    """Errors of simpler predictions of the same rows."""
    measured = [p.case.seconds for p in predictions]
    return {
        "half of peak": errors([p.half_peak for p in predictions], measured),
        "all efficiencies 1": errors([p.ideal for p in predictions], measured),
    }


def ranking_of(predictions: Iterable[Prediction]) -> Ranking:
    """Agreement over groups of runs that differ only in layout."""
    groups: dict[Hashable, dict[Hashable, list[tuple[float, float]]]] = {}
    for p in predictions:
        layouts = groups.setdefault(p.case.problem, {})
        cells = tuple(p.case.row.text(column) for column in LAYOUT)
        layouts.setdefault(cells, []).append((p.seconds, p.case.seconds))
    return ranking(layouts.values() for layouts in groups.values())


LAYOUT = ("micro_batch", "dp", "fsdp", "tp", "sp", "pp", "vpp", "cp", "ep", "zero_stage", "recompute")


def grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Items by key."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def validate(
    table: str | Path | None = None,
    *,
    source: str = "",
    hardware: str = "",
    runs: bool = False,
    progress: Progress = lambda *_: None,
) -> Validation:
    """Predict the runs of a table, by default of those published, whose source and hardware match regular expressions.

    Every other row of a match is told with the reason. `runs` keeps what frameworks can be fitted to. `progress` is
    told how many rows of how many are done. Raises ModelError for a table that cannot be read, or where no row matches.
    """
    rows = _matching(read_rows(table), {"source": source, "hardware": hardware})
    skipped: list[Skipped] = []
    programs: dict[Hashable, list[Case]] = {}
    for row in rows:
        try:
            case = case_of(row)
        except RowError as reason:
            skipped.append(Skipped(row=row, reason=str(reason)))
        else:
            programs.setdefault(case.program, []).append(case)
    predictions: list[Prediction] = []
    for cases in programs.values():
        done, left_out = _predicted(cases, runs=runs)
        predictions += done
        skipped += left_out
        progress(len(predictions) + len(skipped), len(rows))
    order = {id(row): i for i, row in enumerate(rows)}
    return Validation(
        predictions=sorted(predictions, key=lambda p: order[id(p.case.row)]),
        skipped=sorted(skipped, key=lambda s: order[id(s.row)]),
    )


def _matching(rows: Iterable[Row], wanted: Mapping[str, str]) -> list[Row]:
    patterns = {column: pattern(column, text, ModelError) for column, text in wanted.items()}
    found = [row for row in rows if all(p.search(row.text(column)) for column, p in patterns.items())]
    if not found:
        asked = " and ".join(f"{column} {text!r}" for column, text in wanted.items() if text) or "a run"
        raise ModelError(f"runs: got no row with {asked}, expected at least one: widen the filter, or add rows")
    return found


def _predicted(cases: Sequence[Case], *, runs: bool) -> tuple[list[Prediction], list[Skipped]]:
    """Predictions of runs of one program, which is traced once."""
    predictions: list[Prediction] = []
    skipped: list[Skipped] = []
    try:
        graph = _graph(cases[0])
    except PerfModelError as error:
        return [], [Skipped(row=case.row, reason=str(error)) for case in cases]
    for case in cases:
        try:
            predictions.append(_prediction(case, graph, runs=runs))
        except (RowError, PerfModelError) as error:
            skipped.append(Skipped(row=case.row, reason=str(error)))
    return predictions, skipped


def _graph(case: Case) -> Graph:
    from perfmodel.models.training import train_program  # JAX, which reading a table does not need
    from perfmodel.trace import trace

    return trace(
        train_program(case.config, seq_len=case.seq_len, recompute=case.layout.recompute, precision=case.precision)
    )


def _prediction(case: Case, graph: Graph, *, runs: bool) -> Prediction:
    estimate = predict(graph, case.layout, case.machine)
    at_peak = float(estimate.mfu * estimate.step_time_s) * case.machine.quoted_flops["bf16"] / case.peak
    if at_peak > case.seconds:
        raise RowError(f"contradicts itself: {at_peak / case.seconds:.3g} times the peak of {case.machine.name}")
    ideal = predict(graph, case.layout, case.ideal)
    low, high = estimate.likely_s
    return Prediction(
        case=case,
        estimate=estimate,
        seconds=float(estimate.step_time_s),
        bounds=(float(low), float(high)),
        ideal=float(ideal.step_time_s),
        half_peak=2.0 * at_peak,
        run=_run(case, graph) if runs else None,
    )


def _run(case: Case, graph: Graph) -> Run:
    plan = structure_of(graph, case.layout, case.machine.framework).plan
    return run_of(plan, case.layout.sizes(graph), part_for(case.machine, case.layout))
