"""What a reader of a machine file would object to, though it loads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from perfmodel.catalog import read_calibration, read_machine
from perfmodel.spec_file import (
    CalibrationSpec,
    Check,
    MachineSpec,
    dimension_of,
    numbers,
    parse_calibration,
    parse_machine,
)
from perfmodel.units import DIMENSIONS, format_count, to_si

NO_SOURCE = ("", "na", "none", "tbd", "todo", "unknown")
"""Texts, reduced to their letters and digits, that name no source."""

ROUNDING = 1e-12
"""Relative error of the arithmetic in a check that must hold exactly."""


def check_machine(name_or_path: str | Path) -> list[str]:
    """Findings in a machine file and its calibration, one line each; an empty list if there are none.

    Raises MachineError where a file cannot be loaded at all.
    """
    where, data = read_machine(name_or_path)
    spec = parse_machine(data, where)
    findings = [f"{where}: {finding}" for finding in _machine_findings(spec)]
    if found := read_calibration(name_or_path):
        calibration = parse_calibration(found[1], found[0], spec)
        findings += [f"{found[0]}: {finding}" for finding in _calibration_findings(calibration, spec)]
    return findings


def _machine_findings(spec: MachineSpec) -> Iterator[str]:
    si = _si(spec)
    yield from _unsourced(spec)
    for i, check in enumerate(spec.checks):
        yield from (f"checks.{i}: {finding}" for finding in _identity(check, si))
    if si["chip.memory_reserve"] >= si["chip.memory"]:
        yield "chip.memory_reserve: got as much as chip.memory, expected less: nothing is left to train in"
    for dtype in sorted(spec.chip.quoted.keys() - spec.chip.tensor.keys()):
        yield f"chip.quoted.{dtype}: got a peak that chip.tensor lacks, expected one of {', '.join(spec.chip.tensor)}"


def _calibration_findings(calibration: CalibrationSpec, spec: MachineSpec) -> Iterator[str]:
    yield from _unsourced(calibration)
    si = _si(calibration)
    for path, value in si.items():
        if dimension_of(path) == "count" and path != "pipeline_depth" and value > 1.0:
            yield f"{path}: got {value:g}, expected a share of at most 1: the peak it refers to is too low"
    known = {tier.name for tier in calibration.tiers}
    for path, bandwidth in _bandwidths(spec).items():
        if path.removeprefix("tiers.") not in known:
            yield f"{path}: got nothing, expected how this tier of the machine behaves: it is taken as ideal"
        if si.get(f"{path}.relay", 0.0) > bandwidth:
            most = format_count(bandwidth, "B/s")
            yield f"{path}.relay: got more than the tier gives a rank, expected at most {most}: relaying shares it"


def _si(spec: MachineSpec | CalibrationSpec) -> dict[str, float]:
    return {
        path: to_si(number.value, number.unit, dimension_of(path))
        for path, number in numbers(spec)
        if not isinstance(number.value, list)
    }


def _bandwidths(spec: MachineSpec) -> dict[str, float]:
    """Bandwidth of a rank in one dim, by path of the tier [B/s]."""
    si, ranks = _si(spec), spec.chip.ranks.value
    paths = {f"tiers.{tier.name}": ranks if tier.per == "chip" else 1 for tier in spec.tiers}
    return {path: si[f"{path}.link"] * si[f"{path}.links"] / share for path, share in paths.items()}


def _unsourced(spec: MachineSpec | CalibrationSpec) -> Iterator[str]:
    for path, number in numbers(spec):
        if "".join(filter(str.isalnum, number.source)).lower() in NO_SOURCE:
            yield f"{path}.source: got {number.source!r}, expected where this {number.kind} number comes from"


def _identity(check: Check, si: Mapping[str, float]) -> Iterator[str]:
    """What is wrong with a check: it names no number, its unit is of another dimension, or it does not hold."""
    if check.of not in si:
        close = difflib.get_close_matches(check.of, si, n=1, cutoff=0.0)
        yield f"got of = {check.of!r}, expected the path of a number: did you mean {close[0]}?"
        return
    units, unit = DIMENSIONS[dimension_of(check.of)], check.equals.unit
    if unit not in units:
        yield f"got {unit!r}, expected one of {', '.join(units)}: {check.of} is a {dimension_of(check.of)}"
        return
    got, expected = si[check.of] * check.times / units[unit], check.equals.value
    if abs(got - expected) > (check.within + ROUNDING) * expected:
        yield (
            f"got {check.of} x {check.times:g} = {got:.6g} {unit}, expected {expected:g} {unit} within "
            f"{100 * check.within:g} % ({check.equals.source})"
        )
