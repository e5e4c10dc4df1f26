"""A fitted framework as a file: what was fitted is replaced in the text that was there, the rest is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tomlkit

from perfmodel.framework_spec import FrameworkSpec
from perfmodel.schema import dimension_of
from perfmodel.units import DIMENSIONS
from perfmodel.validate.cross import LEFT_OUT
from perfmodel.validate.fit import ENOUGH, TELLS, Measured, fit_framework, held_out, interval
from perfmodel.work import Floats

NEAR_USUAL = "fit above, which leaves it near what is usual"
"""Source of a fitted number that runs tell less well than what is usual does."""

FOLDS = "source"
"""What is left out together for the errors that a file states."""


def fitted_text(original: str, spec: FrameworkSpec, measured: Sequence[Measured], *, date: str) -> str:
    """The text of a framework file fitted to runs.

    The interval of a machine with enough runs is that of its own errors, of one with few that of all runs, and where a
    machine has none, that of runs on machines that a fit had not seen.
    """
    fit = fit_framework(spec, measured)
    unseen = held_out(spec, measured, LEFT_OUT[FOLDS])
    document = tomlkit.parse(original)
    document["fit"] = {
        "date": date,
        "data": f"{len(measured)} runs of {len({m.source for m in measured})} sources",
        "leave_out": FOLDS,
        "residuals": f"{_sizes(fit.after)}; left out in turn by {FOLDS}: {_sizes(_errors(unseen, measured))}",
    }
    machines = tomlkit.table(is_super_table=True)
    document["machines"] = machines
    for name in dict.fromkeys(m.machine for m in measured):
        machines[name] = tomlkit.table()
    for path, value in fit.values.items():
        if path in fit.fitted:
            _put(document, path, _rounded(value, path), path in fit.told)
    elsewhere = held_out(spec, measured, LEFT_OUT["machine"])
    _put(document, "interval", _interval(elsewhere, measured), told=True)
    for name, found in _intervals(unseen, measured):
        _put(document, f"machines.{name}.interval", found, told=True)
    return tomlkit.dumps(document)


def _intervals(seconds: Floats, measured: Sequence[Measured]) -> Iterator[tuple[str, list[float]]]:
    machines = np.array([m.machine for m in measured])
    for name in dict.fromkeys(machines.tolist()):
        own = machines == name
        chosen = own if own.sum() >= ENOUGH else np.ones_like(own)
        yield name, _interval(seconds[chosen], [m for m, kept in zip(measured, chosen, strict=True) if kept])


def _interval(seconds: Floats, measured: Sequence[Measured]) -> list[float]:
    return [float(f"{factor:.3g}") for factor in interval(seconds, measured)]


def _put(document: Any, path: str, value: Any, told: bool) -> None:
    *above, last = path.split(".")
    table = document
    for part in above:
        table = table[part]
    number = tomlkit.inline_table()
    unit = table[last]["unit"] if last in table else "1"
    number.update({"value": value, "unit": unit, "kind": "measured", "source": TELLS})
    if not told:
        number.update({"kind": "assumed", "source": NEAR_USUAL})
    table[last] = number


def _rounded(value: float, path: str) -> float:
    """To three digits, in the unit of the file."""
    scale = DIMENSIONS["time"]["us"] if dimension_of(path) == "time" else 1.0
    return float(f"{value / scale:.3g}")


def _errors(seconds: Floats, measured: Sequence[Measured]) -> Floats:
    return np.log(seconds) - np.log([m.seconds for m in measured])


def _sizes(logs: Floats) -> str:
    sizes = np.abs(np.expm1(logs))
    return f"median {100 * np.median(sizes):.0f} %, 90th percentile {100 * np.quantile(sizes, 0.9):.0f} %"
