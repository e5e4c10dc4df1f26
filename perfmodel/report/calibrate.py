"""A fit on paper: errors before, after and of rows never seen, the numbers found, and rows left out with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import RenderableType

from perfmodel.calibrate.calibration import TOLD, Calibration, Errors, Value
from perfmodel.calibrate.parameters import TIMES
from perfmodel.report.layout import table
from perfmodel.units import format_seconds


def calibrate_report(found: Calibration) -> Iterator[RenderableType]:
    """The tables of a fit, in reading order."""
    columns = ("rows of", ">rows", ">median before", ">fitted", ">left out", ">90 % before", ">fitted", ">left out")
    yield table(
        columns,
        [
            (kind, str(three[1].rows), *(_percent(e.median) for e in three), *(_percent(e.p90) for e in three))
            for kind, three in found.errors.items()
        ],
        title=f"Absolute error of {found.machine}, in sample and of rows left out",
    )
    yield table(
        ("number", ">before", ">fitted", ">within", ""),
        [
            (path, _value(path, v.before), _value(path, v.after), _spread(v), _doubt(v))
            for path, v in found.values.items()
        ],
        title=f"Numbers fitted to rows of {', '.join(dict.fromkeys(row.hardware for row in found.rows))}",
    )
    if found.launches:
        yield table(
            ("harness", ">each kernel"),
            [(source, format_seconds(seconds)) for source, seconds in found.launches.items()],
            title="What a harness adds to the kernels it times",
        )
    if found.skipped:
        reasons = Counter(skipped.reason for skipped in found.skipped)
        yield table(
            ("rows left out because", ">rows"), [(reason, str(count)) for reason, count in reasons.most_common()]
        )


def _spread(value: Value) -> str:
    """By what factor a number may be off, with 90 % confidence."""
    return "-" if value.bound or value.spread >= 2.0 * TOLD else f"x {np.exp(1.645 * value.spread):.2f}"


def _doubt(value: Value) -> str:
    return "at its bound" if value.bound else "" if value.told else "told only with others"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "-"


def _value(path: str, value: float) -> str:
    return format_seconds(value) if path.endswith(TIMES) else f"{value:.3g}"


def calibrate_json(found: Calibration) -> dict[str, Any]:
    """A fit as plain dicts and lists."""
    logs = found.residuals
    return {
        "machine": found.machine,
        "errors": {
            kind: {name: _errors(errors) for name, errors in zip(("before", "after", "left_out"), three, strict=True)}
            for kind, three in found.errors.items()
        },
        "values": {path: {**asdict(value), "told": value.told} for path, value in found.values.items()},
        "hardware": list(dict.fromkeys(row.hardware for row in found.rows)),
        "launches_s": dict(found.launches),
        "rows": [
            {"id": row.id, "measured_s": row.seconds, "error": float(np.expm1(a)), "error_left_out": _finite(o)}
            for row, a, o in zip(found.rows, logs.after, logs.held_out, strict=True)
        ],
        "skipped": [{"id": skipped.id, "reason": skipped.reason} for skipped in found.skipped],
    }


def _finite(log: float) -> float | None:
    return float(np.expm1(log)) if np.isfinite(log) else None


def _errors(errors: Errors) -> dict[str, Any]:
    shares = {"median": errors.median, "p90": errors.p90}
    return {"rows": errors.rows, **{name: x if np.isfinite(x) else None for name, x in shares.items()}}
