"""Predicted against measured on paper: errors by what runs have in common, the worst rows, and rows left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType

from perfmodel.estimate import Estimate
from perfmodel.report.layout import table
from perfmodel.units import format_seconds
from perfmodel.validate import Prediction, Skipped, Validation, baselines, errors_of, grouped, ranking_of
from perfmodel.validate.rows import Row
from perfmodel.validate.score import Errors

WORST = 12
NAMED = 4
"""Rows left out for one reason that are named; of more, the first ones and how many."""

LARGEST = 3
"""Parts of a step that are named."""

COLUMNS = (">rows", ">mean", ">median", ">90 %", ">bias", ">in interval")
KEYS: Mapping[str, Callable[[Prediction], str]] = {
    "hardware": lambda p: p.case.machine.name,
    "framework": lambda p: p.case.machine.framework.name,
    "source": lambda p: p.case.row.source,
    "model class": lambda p: p.case.kind,
    "grade": lambda p: p.case.row.text("grade") or "none",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table as text, for a terminal or a page."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def validate_report(found: Validation, *, every_row: bool = False) -> Iterator[RenderableType]:
    """The tables in reading order."""
    sections = list(validate_sections(found))
    if every_row:
        sections.insert(0, _listed("Every row", found.predictions))
    for section in sections:
        yield table(section.columns, section.rows, title=section.title)


def validate_sections(found: Validation) -> Iterator[Section]:
    """The same as data; those without rows are left out."""
    sections = (_summary(found), _graded(found), _layouts(found), *(_by(found, name) for name in KEYS))
    worst = sorted(found.predictions, key=lambda p: -abs(np.log(p.seconds / p.case.seconds)))[:WORST]
    for section in (*sections, _differing(found), _listed("The worst rows", worst), _left_out(found)):
        if section.rows:
            yield section


def _summary(found: Validation) -> Section:
    errors = {"this model": found.errors, **baselines(found.predictions)}
    rows = [(name, *cells(e)) for name, e in errors.items()]
    return Section(title="Error of predicted step times", columns=("prediction", *COLUMNS), rows=rows)


def _graded(found: Validation) -> Section:
    """How many of the rows that determine a prediction could be predicted."""
    grades = sorted({row.text("grade") for row in _rows(found)} - {""})
    predicted = [p.case.row.text("grade") for p in found.predictions]
    every = [row.text("grade") for row in _rows(found)]
    counts = [(grade, predicted.count(grade), every.count(grade)) for grade in grades]
    rows = [(grade, str(n), str(of), percent(n / of)) for grade, n, of in counts]
    return Section(title="Rows that could be predicted", columns=("grade", ">rows", ">of", ">share"), rows=rows)


def _rows(found: Validation) -> list[Row]:
    return [p.case.row for p in found.predictions] + [s.row for s in found.skipped]


def _layouts(found: Validation) -> Section:
    by_source = {"all": found.predictions, **found.by(KEYS["source"])}
    rows = []
    for source, predictions in by_source.items():
        r = ranking_of(predictions)
        if r.groups:
            costs = percent(r.pick_cost), percent(r.worst_pick)
            rows.append((source, str(r.groups), f"{r.kendall_tau:.2f}", *costs))
    columns = ("source", ">groups", ">Kendall's tau", ">pick cost", ">worst pick")
    return Section(title="Runs that differ only in layout", columns=columns, rows=rows)


def _by(found: Validation, name: str) -> Section:
    rows = []
    for value, predictions in found.by(KEYS[name]).items():
        half, ideal = baselines(predictions).values()
        rows.append((value, *cells(errors_of(predictions)), percent(half.median_ape), percent(ideal.median_ape)))
    columns = (name, *COLUMNS, ">median of half peak", ">of efficiencies 1")
    return Section(title=f"By {name}", columns=columns, rows=rows)


def _differing(found: Validation) -> Section:
    """Errors by what a prediction has otherwise than its run: one with two such things counts in both."""
    pairs = [(text, p) for p in found.predictions for text in p.case.differs or ("nothing",)]
    groups = grouped(pairs, lambda pair: pair[0])
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [(text, *cells(errors_of([p for _, p in group]))) for text, group in ranked]
    return Section(title="By what differs from the run", columns=("differs", *COLUMNS), rows=rows)


def _listed(title: str, predictions: Sequence[Prediction]) -> Section:
    rows = [
        (
            p.case.row.id,
            f"{p.case.row.text('model_name')} on {p.case.row.text('n_devices')} x {p.case.machine.name}",
            p.case.layout.notation(),
            *(format_seconds(seconds) for seconds in (p.case.seconds, p.seconds)),
            f"{100 * p.error:+.0f} %",
            _largest(p.estimate),
        )
        for p in predictions
    ]
    columns = ("row", "run", "predicted as", ">measured", ">predicted", ">error", "largest parts")
    return Section(title=title, columns=columns, rows=rows)


def _largest(estimate: Estimate) -> str:
    """What decides most of the compute or of the waiting, then the largest parts of the step with their shares."""
    ranked = sorted(estimate.breakdown.items(), key=lambda item: -float(item[1]))
    shares = (f"{name} {100 * float(seconds / estimate.step_time_s):.0f} %" for name, seconds in ranked[:LARGEST])
    return f"{estimate.bound}: {', '.join(shares)}"


def _left_out(found: Validation) -> Section:
    groups = grouped(found.skipped, lambda skipped: skipped.reason)
    rows = [
        (reason, str(len(group)), _names(group)) for reason, group in sorted(groups.items(), key=lambda i: -len(i[1]))
    ]
    return Section(title="Rows left out", columns=("because", ">rows", "which"), rows=rows)


def _names(group: Sequence[Skipped]) -> str:
    names = ", ".join(skipped.row.id for skipped in group[:NAMED])
    return f"{names}, {len(group) - NAMED} more" if len(group) > NAMED else names


def cells(errors: Errors) -> tuple[str, ...]:
    """Errors as `COLUMNS` have them."""
    shares = (errors.mape, errors.median_ape, errors.p90_ape)
    return str(errors.rows), *map(percent, shares), _signed(errors.bias), percent(errors.coverage, digits=0)


def percent(share: float, digits: int = 1) -> str:
    """`12.3 %`, or a dash for no number."""
    return f"{100 * share:.{digits}f} %" if np.isfinite(share) else "-"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %" if np.isfinite(share) else "-"


def validate_json(found: Validation) -> dict[str, Any]:
    """Predictions as plain dicts and lists."""
    ranks, errors = found.ranking, found.errors
    return {
        "rows": [_row(p) for p in found.predictions],
        "skipped": [{"id": skipped.row.id, "reason": skipped.reason} for skipped in found.skipped],
        **_shares(errors),
        "coverage": errors.coverage,
        "kendall_tau": ranks.kendall_tau,
        "pick_cost": ranks.pick_cost,
        "worst_pick": ranks.worst_pick,
        "groups": ranks.groups,
        "baselines": {name: _shares(e) for name, e in baselines(found.predictions).items()},
    }


def _shares(errors: Errors) -> dict[str, float]:
    return {"mape": errors.mape, "median_ape": errors.median_ape, "p90_ape": errors.p90_ape, "bias": errors.bias}


def _row(p: Prediction) -> dict[str, Any]:
    lower, upper = p.bounds
    return {
        "id": p.case.row.id,
        "source": p.case.row.source,
        "hardware": p.case.row.text("hardware"),
        "machine": p.case.machine.name,
        "class": p.case.kind,
        "grade": p.case.row.text("grade"),
        "layout": p.case.layout.notation(),
        "measured_s": p.case.seconds,
        "predicted_s": p.seconds,
        "lower_s": lower,
        "upper_s": upper,
        "error": p.error,
        "bound": p.estimate.bound,
        "breakdown": dict(p.estimate.breakdown),
        "fits": bool(p.estimate.fits),
        "reasons": list(p.estimate.reasons),
        "differs": list(p.case.differs),
    }
