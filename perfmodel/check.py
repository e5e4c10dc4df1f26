"""What a reader of a machine file would object to, though it loads."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Container, Iterator, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from perfmodel.calibration_spec import CalibrationSpec
from perfmodel.catalog import read_calibration, read_machine
from perfmodel.machine_spec import Check, MachineSpec, TierSpec
from perfmodel.schema import Number, dimension_of, numbers
from perfmodel.spec_file import parse_calibration, parse_machine, rank_bandwidth, si_of
from perfmodel.topology import RING_OF_FOUR
from perfmodel.units import DIMENSIONS, UNITS, format_count

NO_SOURCE = ("", "na", "none", "tbd", "todo", "unknown")
"""Texts, reduced to their letters and digits, that name no source."""

ROUNDING = 1e-12
"""Relative error of the arithmetic in a check that must hold exactly."""

PLACE = r"\bsections? \S|\b(chapters?|figures?|lines?|pages?|pp?\.|rows?|tables?) \d|#\w"
"""How a source names a place in itself."""

YEAR = r"(19|20)\d\d(-|$)"
"""How a date begins."""

SHARES = ("tensor", "attention", "vector", "memory", "all_gather", "reduce_scatter", "all_reduce", "all_to_all")
"""Numbers of a calibration, by their last name, that are shares of a peak."""

SLIP = 2.0
"""How far apart two numbers for the same thing may lie before a unit is wrong."""


def check_machine(name_or_path: str | Path) -> list[str]:
    """Findings in a machine file and its calibration, one line each; an empty list if there are none.

    Raises MachineError where a file cannot be loaded at all.
    """
    where, data = read_machine(name_or_path)
    spec = parse_machine(data, where)
    findings = [f"{where}: {finding}" for finding in _machine_findings(spec)]
    if found := read_calibration(name_or_path):
        calibration = parse_calibration(found[1], found[0], spec, inherited=found[2])
        known = {f"tiers.{tier.name}" for tier in (spec if found[2] else calibration).tiers}
        findings += [f"{found[0]}: {finding}" for finding in _calibration_findings(calibration, spec, known)]
    return findings


def _machine_findings(spec: MachineSpec) -> Iterator[str]:
    si = si_of(spec)
    yield from _unsourced(spec)
    yield from _unplaced(spec)
    yield from _underived(spec)
    for i, check in enumerate(spec.checks):
        yield from (f"checks.{i}: {finding}" for finding in _identity(check, si))
    yield from _implausible_chip(spec, si)
    yield from _implausible_links(spec, si)
    yield from _misfits(spec)
    yield from (finding for tier in spec.tiers for finding in _idle_keys(tier))
    yield from _implausible_curves(spec)
    yield from _implausible_costs(spec)


def _implausible_chip(spec: MachineSpec, si: Mapping[str, float]) -> Iterator[str]:
    """Numbers of a chip that contradict each other."""
    if si["chip.memory_reserve"] >= si["chip.memory"]:
        yield "chip.memory_reserve: got as much as chip.memory, expected less: nothing is left to train in"
    for dtype in spec.chip.tensor:
        if si[f"chip.tensor.{dtype}"] < si["chip.vector"]:
            yield f"chip.tensor.{dtype}: got less than chip.vector, expected the matrix engine to be faster: see units"
    for dtype in spec.chip.quoted:
        quoted, peak = si[f"chip.quoted.{dtype}"], si.get(f"chip.tensor.{dtype}")
        if peak is None:
            known = ", ".join(spec.chip.tensor)
            yield f"chip.quoted.{dtype}: got a peak that chip.tensor lacks, expected one of {known}"
        elif not 1 / SLIP <= quoted / peak <= SLIP:
            got = f"{quoted / peak:.3g} x chip.tensor.{dtype}"
            yield f"chip.quoted.{dtype}: got {got}, expected about as much: see the units"


def _implausible_links(spec: MachineSpec, si: Mapping[str, float]) -> Iterator[str]:
    """Tiers through which a rank would send faster than its memory reads."""
    memory = si["chip.memory_bandwidth"] / spec.chip.ranks.value
    for path, bandwidth in _bandwidths(spec).items():
        if bandwidth > SLIP * memory:
            got = format_count(bandwidth, "B/s")
            yield f"{path}.link: got {got} per rank, expected no more than its memory gives: see unit, links and per"


def _misfits(spec: MachineSpec) -> Iterator[str]:
    """Chips and instances that the tiers hold only a part of."""
    extents = [extent for tier in spec.tiers for extent in tier.extents.value if extent]
    ranks, chips = spec.chip.ranks.value, spec.instance.chips.value
    inner = list(accumulate(extents, operator.mul, initial=1))
    if ranks not in inner:
        sizes = ", ".join(map(str, inner))
        yield f"chip.ranks.value: got {ranks}, expected what inner extents multiply to, one of {sizes}: a tier cuts it"
    if extents and inner[-1] % (chips * ranks):
        held = f"a divisor of the {inner[-1] / ranks:g} chips that the bounded tiers hold"
        yield f"instance.chips.value: got {chips}, expected {held}: see extents, and add a tier that is missing"


def _idle_keys(tier: TierSpec) -> Iterator[str]:
    """What is said of a torus, but changes nothing in this tier."""
    path, extents = f"tiers.{tier.name}", tier.extents.value
    given = {"wrap": tier.wrap, "together": tier.together, "folded": tier.folded, "shapes": tier.shapes}
    for key in (key for key, said in given.items() if said and tier.kind != "torus"):
        yield f"{path}.{key}: got it on a {tier.kind}, expected it on a torus: leave it out"
    if tier.kind != "torus":
        return
    if tier.wrap and tier.wrap.value > max(extents):
        yield f"{path}.wrap.value: got {tier.wrap.value}, expected at most {max(extents)}, or no dim is ever a ring"
    if tier.folded and RING_OF_FOUR not in extents:
        yield f"{path}.folded: got true with extents {extents}, expected a ring of {RING_OF_FOUR}: leave it out"


def _implausible_curves(spec: MachineSpec | CalibrationSpec) -> Iterator[str]:
    """Shares above 1, and larger transfers that reach less."""
    for path, number in numbers(spec):
        if not isinstance(number.value, list) or dimension_of(path) != "size":
            continue
        shares = [share for _, share in number.value]
        if max(shares) > 1.0:
            yield f"{path}.value: got {max(shares):g}, expected shares of at most 1: see what it is a share of"
        for low, high in pairwise(shares):
            if high < low:
                yield f"{path}.value: got {high:g} after {low:g}, expected shares that do not fall as sizes rise"


def _implausible_costs(spec: MachineSpec) -> Iterator[str]:
    """Prices of no date, and a power that nobody vouches for."""
    for offer in spec.offers:
        if not re.match(YEAR, offer.date):
            yield f"offers.{offer.name}.date: got {offer.date!r}, expected the year, as in 2026-10: prices change"
    if spec.power.chip.kind == "assumed" and spec.power.chip.confidence is None:
        yield "power.chip.confidence: got nothing, expected high, medium or low: an assumed power is a guess"


def _calibration_findings(calibration: CalibrationSpec, spec: MachineSpec, known: Container[str]) -> Iterator[str]:
    """What cannot be in a calibration, and which tiers it should know; that of another machine need not know all."""
    yield from _unsourced(calibration)
    yield from _unplaced(calibration)
    yield from _implausible_curves(calibration)
    si = si_of(calibration)
    for path, value in si.items():
        parent, _, name = path.rpartition(".")
        if (name in SHARES or parent == "efficiency.by_dtype") and value > 1.0:
            yield f"{path}: got {value:g}, expected a share of at most 1: the peak it refers to is too low"
    for path, bandwidth in _bandwidths(spec).items():
        if path not in known:
            yield f"{path}: got nothing, expected how this tier of the machine behaves: it is taken as ideal"
        if si.get(f"{path}.relay", 0.0) > bandwidth:
            most = format_count(bandwidth, "B/s")
            yield f"{path}.relay: got more than the tier gives a rank, expected at most {most}: relaying shares it"


def _bandwidths(spec: MachineSpec) -> dict[str, float]:
    """Bandwidth of a rank in one dim, by path of the tier [B/s]."""
    si, ranks = si_of(spec), spec.chip.ranks.value
    return {f"tiers.{tier.name}": rank_bandwidth(tier, si, ranks) for tier in spec.tiers}


def _unsourced(spec: MachineSpec | CalibrationSpec) -> Iterator[str]:
    for path, number in numbers(spec):
        if not _has_source(number):
            yield f"{path}.source: got {number.source!r}, expected where this {number.kind} number comes from"


def _unplaced(spec: MachineSpec | CalibrationSpec) -> Iterator[str]:
    """Published numbers that a reader would have to search for, or could take for another."""
    for path, number in numbers(spec):
        placed = number.note.strip() or re.search(PLACE, number.source, re.IGNORECASE)
        if number.kind == "datasheet" and _has_source(number) and not placed:
            yield f"{path}.note: got nothing, expected how the number is meant, or its section or page in source"


def _has_source(number: Number[Any]) -> bool:
    return "".join(filter(str.isalnum, number.source)).lower() not in NO_SOURCE


def _underived(spec: MachineSpec) -> Iterator[str]:
    """Derived numbers that no check derives from anything."""
    shown = {path for check in spec.checks for path in _paths(check)}
    for path, number in numbers(spec):
        if number.kind == "derived" and path not in shown:
            yield f"{path}: got a derived number, expected one of the checks to show what it follows from: add it"


def _paths(check: Check) -> list[str]:
    of = [check.of] if isinstance(check.of, str) else check.of
    return [*of, *check.per, *([check.equals] if isinstance(check.equals, str) else [])]


def _identity(check: Check, si: Mapping[str, float]) -> Iterator[str]:
    """What is wrong with a check: it names no number, its unit is of another dimension, or it does not hold."""
    for path in _paths(check):
        if path not in si:
            close = difflib.get_close_matches(path, si, n=1, cutoff=0.0)
            yield f"got {path!r}, expected the path of a number: did you mean {close[0]}?"
            return
    of = [check.of] if isinstance(check.of, str) else check.of
    got = check.times * math.prod(si[path] for path in of) / math.prod(si[path] for path in check.per)
    words = " x ".join([*of, *([f"{check.times:g}"] if check.times != 1.0 else [])])
    words += "".join(f" / {path}" for path in check.per)
    if isinstance(check.equals, str):
        yield from _compared(check, words, got, si[check.equals], "", check.equals)
        return
    unit, dimension = check.equals.unit, dimension_of(of[0])
    alone = len(of) == 1 and not check.per
    if alone and unit not in DIMENSIONS[dimension]:
        yield f"got {unit!r}, expected one of {', '.join(DIMENSIONS[dimension])}: {of[0]} is a {dimension}"
        return
    if unit not in UNITS:
        yield f"got {unit!r}, expected a unit: one of {', '.join(UNITS)}"
        return
    yield from _compared(check, words, got / UNITS[unit], check.equals.value, f" {unit}", check.equals.source)


def _compared(check: Check, words: str, got: float, expected: float, unit: str, source: str) -> Iterator[str]:
    if abs(got - expected) > (check.within + ROUNDING) * expected:
        yield (
            f"got {words} = {got:.6g}{unit}, expected {expected:.6g}{unit} within {100 * check.within:g} % ({source})"
        )
