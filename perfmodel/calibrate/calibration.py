"""Fit a machine's calibration to measured collectives and kernels, and say how well it predicts rows it never saw."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perfmodel.calibrate.file import GUESSED, MEASURED, Origin, as_toml, derived
from perfmodel.calibrate.fit import fit
from perfmodel.calibrate.groups import GROUPS, kind_of
from perfmodel.calibrate.parameters import Data, Parameter, parameters, rounded, with_values
from perfmodel.calibrate.problem import Problem
from perfmodel.calibrate.rows import Collective, Row, Skipped, read_rows
from perfmodel.calibrate.start import uncalibrated
from perfmodel.catalog import calibration_text, read_calibration, read_machine, written
from perfmodel.errors import MachineError
from perfmodel.machine_spec import MachineSpec
from perfmodel.spec_file import parse_machine
from perfmodel.units import format_bytes
from perfmodel.work import Floats

TOLD = float(np.log(2.0) / 1.645)
"""Standard error of a logarithm below which a number is within a factor of two, with 90 % confidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Absolute relative errors of some rows: how many, median, 90th percentile."""

    rows: int
    median: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A fitted number, in SI: before, after, standard error of its logarithm, and whether it lies on a bound."""

    before: float
    after: float
    spread: float
    bound: bool

    @property
    def told(self) -> bool:
        """Whether the rows tell it, to within a factor of two with 90 % confidence, and no bound stopped it."""
        return not self.bound and self.spread < TOLD


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

    values:   path of each number that was fitted -> what was found
    launches: source of kernel rows -> what its harness adds to each [s]
    errors:   kind of row -> (before, after, left out): errors with the numbers as they were, as fitted, and as fitted
              without the row's group
    data:     the calibration with the new numbers, `fitted` the parameters among them
    options:  what decides which rows are fitted, as the file repeats it
    """

    machine: str
    values: Mapping[str, Value]
    launches: Mapping[str, float]
    errors: Mapping[str, tuple[Errors, Errors, Errors]]
    rows: Sequence[Row]
    residuals: Residuals
    skipped: Sequence[Skipped]
    data: Data
    fitted: tuple[Parameter, ...]
    options: Mapping[str, Any]
    original: str | None

    def text(self) -> str:
        """The calibration file, as TOML."""
        _, _, left_out = self.errors["all"]
        return as_toml(
            self.original,
            self.data,
            {parameter: self._origin(parameter) for parameter in self.fitted},
            machine=self.machine,
            fit={
                "date": date.today().isoformat(),
                **self.options,
                "residuals": f"{left_out.rows} rows, left out in turn: median {100 * left_out.median:.0f} %, "
                f"90th percentile {100 * left_out.p90:.0f} %",
            },
        )

    def _origin(self, parameter: Parameter) -> Origin:
        """Where a fitted number is from: the rows of collectives tell those of the tiers, those of kernels the rest."""
        if not self.values[parameter.path].told:
            return GUESSED
        of_tier = parameter.path.startswith("tiers.")
        telling = [row for row in self.rows if isinstance(row.what, Collective) == of_tier]
        models = [row.model for row in telling if row.model]
        return derived(", ".join(dict.fromkeys(models)), len(models), len(telling)) if models else MEASURED

    def write(self, path: str | Path) -> None:
        """Write the calibration file; raises MachineError where that fails."""
        written(path, self.text())


def calibrate(
    tables: Sequence[str | Path],
    machine: str | Path,
    *,
    hardware: str | None = None,
    smallest: float = 0.0,
    leave_out: str = "point",
    keep: Sequence[str] = (),
) -> Calibration:
    """Fit the calibration of a machine to the rows of tables (CSV).

    hardware:  regular expression for the tables' column of that name; the machine's instance, as a word of its own,
               without one
    smallest:  collectives of fewer bytes are left out [B]
    leave_out: rows that are predicted together without having been seen: those of a "point" (a size of a collective on
               a group, a shape of a kernel), of a number of "ranks", of a "kind" of collective, of a "source"
    keep:      paths of numbers that stay as they are

    Raises MachineError where nothing can be fitted.
    """
    where, data = read_machine(machine)
    spec = parse_machine(data, where)
    wanted = hardware or rf"\b{re.escape(spec.instance.name.partition('.')[0])}\b"
    rows, skipped = _rows(tables, wanted, smallest)
    if leave_out not in GROUPS:
        raise MachineError(f"leave out: got {leave_out!r}, expected one of {', '.join(GROUPS)}: choose one")
    if not rows:
        raise MachineError(
            f"{', '.join(map(str, tables))}: got no usable row for {wanted}, expected measurements of {spec.title}: "
            f"choose rows with --hardware"
        )
    found = read_calibration(machine)
    start = found[1] if found else uncalibrated(spec)
    _check_kept(keep, start)
    parts = _fitted(spec, start, rows, GROUPS[leave_out], keep)
    return Calibration(
        machine=spec.name,
        values=parts.values,
        launches=parts.launches,
        errors=_errors(rows, parts.residuals),
        rows=rows,
        residuals=parts.residuals,
        skipped=skipped,
        data=parts.data,
        fitted=parts.fitted,
        options={
            "data": ", ".join(Path(table).name for table in tables),
            "hardware": wanted,
            "smallest": smallest,
            "leave_out": leave_out,
            **({"keep": ", ".join(keep)} if keep else {}),
            **_range([row.what for row in rows if isinstance(row.what, Collective)]),
        },
        original=calibration_text(machine),
    )


def _check_kept(keep: Sequence[str], start: Data) -> None:
    known = [parameter.path for parameter in parameters(start)]
    for path in keep:
        if path not in known:
            raise MachineError(f"keep: got {path!r}, expected one of {', '.join(known)}: name a number")


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


def _range(collectives: Sequence[Collective]) -> dict[str, str]:
    """Within which groups and sizes the collectives lie, in words, where there are any."""
    if not collectives:
        return {}
    ranks, sizes = [c.ranks for c in collectives], [c.bytes for c in collectives]
    small, large = format_bytes(min(sizes)), format_bytes(max(sizes))
    groups = f"{min(ranks)} to {max(ranks)}" if min(ranks) < max(ranks) else f"{min(ranks)}"
    return {"range": f"collectives of {groups} ranks, {small} to {large}"}


class _Parts(NamedTuple):
    """What the fits of collectives and of kernels found together."""

    data: Data
    fitted: tuple[Parameter, ...]
    values: Mapping[str, Value]
    launches: Mapping[str, float]
    residuals: Residuals


def _fitted(
    spec: MachineSpec, start: Data, rows: Sequence[Row], group: Callable[[Row], str], keep: Sequence[str]
) -> _Parts:
    """Collectives and kernels share no parameter, so each are fitted by themselves."""
    data, fitted = start, list[Parameter]()
    values, launches = dict[str, Value](), dict[str, float]()
    residuals = {name: np.full(len(rows), np.nan) for name in ("before", "after", "held_out")}
    for collectives in (True, False):
        chosen = [i for i, row in enumerate(rows) if isinstance(row.what, Collective) is collectives]
        if not chosen:
            continue
        part = [rows[i] for i in chosen]
        problem = Problem(spec, start, part, keep)
        groups = [group(row) for row in part]
        limits = problem.start, problem.neutral, problem.lower, problem.upper
        result = fit(problem.residuals, *limits, groups, problem.completed)
        found = [rounded(value) for value in np.exp(result.logs)]
        count = len(problem.parameters)
        values |= {
            p.path: Value(before=p.start, after=x, spread=float(s), bound=bool(b))
            for p, x, s, b in zip(problem.parameters, found, result.spread, result.bound, strict=False)
        }
        launches |= dict(zip(problem.sources, found[count:], strict=True))
        data = with_values(data, problem.parameters, found[:count])
        fitted += problem.parameters
        for name, array in residuals.items():
            array[chosen] = getattr(result, name)
    return _Parts(data, tuple(fitted), values, launches, Residuals(**residuals))


def _errors(rows: Sequence[Row], logs: Residuals) -> dict[str, tuple[Errors, Errors, Errors]]:
    kinds = [kind_of(row) for row in rows]
    chosen = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in dict.fromkeys(kinds)}
    chosen["all"] = list(range(len(rows)))
    return {
        name: (_error(logs.before[which]), _error(logs.after[which]), _error(logs.held_out[which]))
        for name, which in chosen.items()
    }


def _error(logs: Floats) -> Errors:
    shares = np.abs(np.expm1(logs[np.isfinite(logs)]))
    if not len(shares):
        return Errors(rows=0, median=float("nan"), p90=float("nan"))
    return Errors(rows=len(shares), median=float(np.median(shares)), p90=float(np.percentile(shares, 90)))
