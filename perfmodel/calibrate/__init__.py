"""Fit a machine's calibration to measured collectives and kernels, and say how well it predicts rows it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from perfmodel.calibrate.file import as_toml
from perfmodel.calibrate.fit import fit
from perfmodel.calibrate.model import predicted
from perfmodel.calibrate.parameters import Data, Parameter, parameters, rounded, with_values
from perfmodel.calibrate.rows import Collective, Row, Skipped, read_rows
from perfmodel.catalog import calibration_text, read_calibration, read_machine
from perfmodel.errors import MachineError
from perfmodel.machine import GATHERS, Machine, calibrated
from perfmodel.schema import MachineSpec
from perfmodel.spec_file import parse_calibration, parse_machine
from perfmodel.work import Floats

MOVED = 1e-3
"""A parameter that changes no row's logarithm by so much for a tenth of itself is not fitted."""

LAUNCH = (1e-6, 1e-3)
"""Bounds of what a harness adds to a kernel's time [s]; the start is their middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Absolute relative errors of some rows: how many, median, 90th percentile."""

    rows: int
    median: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """Logarithm of predicted over measured, of each row: as the numbers were, as fitted, and by a fit that never saw
    the row's group.
    """

    before: Floats
    after: Floats
    held_out: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a fit found.

    values:   path of each number that was fitted -> (before, after) in SI
    launches: source of kernel rows -> what its harness adds to each [s]
    errors:   kind of row -> (before, after, left out): errors with the numbers as they were, as fitted, and as fitted
              without the row's group
    data:     the calibration with the new numbers, `fitted` the parameters among them
    """

    machine: str
    values: Mapping[str, tuple[float, float]]
    launches: Mapping[str, float]
    errors: Mapping[str, tuple[Errors, Errors, Errors]]
    rows: Sequence[Row]
    residuals: Residuals
    skipped: Sequence[Skipped]
    data: Data
    fitted: tuple[Parameter, ...]
    tables: Sequence[str]
    original: str | None

    def text(self) -> str:
        """The calibration file, as TOML."""
        _, _, left_out = self.errors["all"]
        return as_toml(
            self.original,
            self.data,
            self.fitted,
            machine=self.machine,
            date=date.today().isoformat(),
            tables=", ".join(self.tables),
            residuals=f"{left_out.rows} rows, left out in turn: median {100 * left_out.median:.0f} %, "
            f"90th percentile {100 * left_out.p90:.0f} %",
        )

    def write(self, path: str | Path) -> None:
        """Write the calibration file; raises MachineError where that fails."""
        try:
            Path(path).write_text(self.text(), encoding="utf-8")
        except OSError as error:
            raise MachineError(f"{path}: got {error.strerror}, expected to write a file: check the path") from None


def calibrate(
    tables: Sequence[str | Path],
    machine: str | Path,
    *,
    hardware: str | None = None,
    smallest: float = 0.0,
    leave_out: str = "point",
) -> Calibration:
    """Fit the calibration of a machine to the rows of tables (CSV).

    hardware:  regular expression for the tables' column of that name; the machine's instance without one
    smallest:  collectives of fewer bytes are left out [B]
    leave_out: rows that are predicted together without having been seen: those of a "point" (a size of a collective on
               a group, a shape of a kernel), of a number of "ranks", of a "kind" of collective, of a "source"

    Raises MachineError where nothing can be fitted.
    """
    where, data = read_machine(machine)
    spec = parse_machine(data, where)
    wanted = hardware or spec.instance.name.partition(".")[0]
    rows, skipped = _rows(tables, wanted, smallest)
    if leave_out not in GROUPS:
        raise MachineError(f"leave out: got {leave_out!r}, expected one of {', '.join(GROUPS)}: choose one")
    if not rows:
        raise MachineError(
            f"{', '.join(map(str, tables))}: got no usable row for {wanted!r}, expected measurements of {spec.title}: "
            f"choose rows with --hardware"
        )
    found = read_calibration(machine)
    start = found[1] if found else uncalibrated(spec)
    result = _fitted(spec, start, rows, skipped, leave_out)
    return replace(result, tables=[Path(table).name for table in tables], original=calibration_text(machine))


def _rows(tables: Sequence[str | Path], hardware: str, smallest: float) -> tuple[list[Row], list[Skipped]]:
    read = [read_rows(table, hardware) for table in tables]
    rows, skipped = ([item for part in parts for item in part] for parts in zip(*read, strict=True))
    large: list[Row] = []
    for row in rows:
        if isinstance(row.what, Collective) and row.what.bytes < smallest:
            skipped.append(Skipped(id=row.id, reason=f"smaller than {smallest:g} B"))
        else:
            large.append(row)
    return large, skipped


def uncalibrated(spec: MachineSpec) -> Data:
    """A calibration to start from where a machine has none: on every tier a ring, and a tree for all-reduces."""

    def number(value: Any, unit: str = "1") -> Data:
        return {"value": value, "unit": unit, "kind": "assumed", "source": "where the fit starts"}

    def algorithm(name: str, kinds: Sequence[str]) -> Data:
        return {
            "name": name,
            "base": number(10.0, "us"),
            "latency": number(2.0, "us"),
            "copies": number(1.0),
            **{kind: number(0.8) for kind in kinds},
            "curve": number([[1.0, 0.5], [16.0, 0.8], [256.0, 1.0]], "MiB"),
        }

    engines = {name: number(0.8) for name in ("tensor", "vector", "memory")}
    shapes = {name: number(x) for name, x in (("fill", 2.0), ("operands", 20.0), ("query_keys", 256.0))}
    dtypes = {"f8": number(0.7)} if "f8" in spec.chip.tensor else {}
    overlap = {name: number(0.0) for name in ("tensor", "context", "expert", "pipeline")}
    behind = {name: number(0.5) for name in ("fsdp", "data")}
    return {
        "machine": spec.name,
        "fit": {"date": "never", "data": "none", "residuals": "none"},
        "efficiency": {**engines, "attention": number(0.5), **shapes, "by_dtype": dtypes},
        "overlap": overlap | behind,
        "pipeline_depth": number(4.0),
        "tiers": [
            {"name": tier.name, "algorithms": [algorithm("ring", GATHERS), algorithm("tree", ["all_reduce"])]}
            for tier in spec.tiers
        ],
    }


class _Problem:
    """Logarithms of predicted over measured, as a function of those of parameters and of the harnesses' launches."""

    def __init__(self, spec: MachineSpec, start: Data, rows: Sequence[Row]) -> None:
        self._spec, self._start, self._rows = spec, start, rows
        self._measured = np.log([row.seconds for row in rows])
        self.sources = sorted({row.source for row in rows if not isinstance(row.what, Collective)})
        middle = np.sqrt(LAUNCH[0] * LAUNCH[1])
        launches = np.log([(middle, middle, *LAUNCH)] * len(self.sources)).reshape(-1, 4)
        self.parameters = parameters(start)
        known = np.log([(p.start, p.neutral, *p.bounds) for p in self.parameters])
        telling = self._telling(np.concatenate([known, launches]))
        self.parameters = [self.parameters[i] for i in telling]
        self.start, self.neutral, self.lower, self.upper = np.concatenate([known[telling], launches]).T

    def _telling(self, limits: Floats) -> list[int]:
        """Parameters that some row depends on."""
        rows, start = range(len(self._rows)), limits[:, 0]
        base = self.residuals(start, rows)
        moved = (start - 0.1 * (np.arange(len(start)) == i) for i in range(len(self.parameters)))
        return [i for i, logs in enumerate(moved) if np.max(np.abs(self.residuals(logs, rows) - base)) > MOVED]

    def residuals(self, logs: Floats, which: Sequence[int]) -> Floats:
        """Of the rows at given positions, shape (rows,)."""
        values = np.exp(logs)
        launches = dict(zip(self.sources, values[len(self.parameters) :], strict=True))
        seconds = predicted([self._rows[i] for i in which], self._machine(values), launches)
        return np.log(seconds) - self._measured[list(which)]

    def _machine(self, values: Floats) -> Machine:
        data = with_values(self._start, self.parameters, list(values)[: len(self.parameters)])
        return calibrated(self._spec, parse_calibration(data, "calibration", self._spec, inherited=True))


def _fitted(spec: MachineSpec, start: Data, rows: Sequence[Row], skipped: Sequence[Skipped], by: str) -> Calibration:
    """Collectives and kernels share no parameter, so each are fitted by themselves."""
    data, fitted = start, list[Parameter]()
    values, launches = dict[str, tuple[float, float]](), dict[str, float]()
    residuals = {name: np.full(len(rows), np.nan) for name in ("before", "after", "held_out")}
    for collectives in (True, False):
        chosen = [i for i, row in enumerate(rows) if isinstance(row.what, Collective) is collectives]
        if not chosen:
            continue
        part = [rows[i] for i in chosen]
        problem = _Problem(spec, start, part)
        groups = [GROUPS[by](row) for row in part]
        result = fit(problem.residuals, problem.start, problem.neutral, problem.lower, problem.upper, groups)
        found = [rounded(value) for value in np.exp(result.logs)]
        count = len(problem.parameters)
        values |= {p.path: (p.start, x) for p, x in zip(problem.parameters, found, strict=False)}
        launches |= dict(zip(problem.sources, found[count:], strict=True))
        data = with_values(data, problem.parameters, found[:count])
        fitted += problem.parameters
        for name, array in residuals.items():
            array[chosen] = getattr(result, name)
    return Calibration(
        machine=spec.name,
        values=values,
        launches=launches,
        errors=_errors(rows, **residuals),
        rows=rows,
        residuals=Residuals(**residuals),
        skipped=skipped,
        data=data,
        fitted=tuple(fitted),
        tables=(),
        original=None,
    )


def _point(row: Row) -> str:
    """Rows that measure the same thing in nearly the same way: other element types, other sharing of keys."""
    what = row.what
    if isinstance(what, Collective):
        return f"{what.kind} {what.ranks} {what.nodes} {what.bytes:g}"
    return str(what).replace("bf16", "f16")


def _ranks(row: Row) -> str:
    return f"{row.what.ranks} {row.what.nodes}" if isinstance(row.what, Collective) else _point(row)


GROUPS: Mapping[str, Callable[[Row], str]] = {
    "point": _point,
    "ranks": _ranks,
    "kind": lambda row: _kind(row),
    "source": lambda row: row.source,
}
"""What may be left out together."""


def _kind(row: Row) -> str:
    return row.what.kind if isinstance(row.what, Collective) else type(row.what).__name__.lower()


def _errors(
    rows: Sequence[Row], before: Floats, after: Floats, held_out: Floats
) -> dict[str, tuple[Errors, Errors, Errors]]:
    kinds = [_kind(row) for row in rows]
    chosen = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in dict.fromkeys(kinds)}
    chosen["all"] = list(range(len(rows)))
    return {
        name: (_error(before[which]), _error(after[which]), _error(held_out[which])) for name, which in chosen.items()
    }


def _error(logs: Floats) -> Errors:
    shares = np.abs(np.expm1(logs[np.isfinite(logs)]))
    if not len(shares):
        return Errors(rows=0, median=float("nan"), p90=float("nan"))
    return Errors(rows=len(shares), median=float(np.median(shares)), p90=float(np.percentile(shares, 90)))
