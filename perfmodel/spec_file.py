"""From parsed files to a machine and a calibration whose parts agree with each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from perfmodel.calibration_spec import GATHERS, WAYS, AlgorithmSpec, CalibrationSpec, TierCalibration
from perfmodel.machine_spec import MachineSpec, Offer, TierSpec
from perfmodel.schema import Number, Strict, dimension_of, fault, numbers, parse
from perfmodel.units import DIMENSIONS, to_si


def parse_machine(data: dict[str, Any], where: str) -> MachineSpec:
    """A machine file whose parts agree with each other; raises MachineError with the path of the first fault."""
    spec: MachineSpec = parse(MachineSpec, data, where)
    check_units(spec, where)
    _check_names("tiers", spec.tiers, where)
    _check_names("offers", spec.offers, where)
    if "bf16" not in spec.chip.quoted:
        raise fault(where, "chip.quoted.bf16", "nothing", "the peak that MFU is quoted against")
    for tier in spec.tiers:
        _check_extents(tier, where, last=tier is spec.tiers[-1])
    for below, tier in zip([None, *spec.tiers], spec.tiers, strict=False):
        _check_switch(tier, below, where)
    ranks, fabric = spec.chip.ranks.value, finite_ranks(tier.extents.value for tier in spec.tiers)
    if fabric > 1 and fabric % ranks:
        raise fault(where, "chip.ranks.value", ranks, f"a divisor of the {fabric} ranks that the tiers' extents span")
    _check_curves(spec, where)
    return spec


def parse_calibration(
    data: dict[str, Any], where: str, machine: MachineSpec, *, inherited: bool = False
) -> CalibrationSpec:
    """A calibration file that fits its machine; raises MachineError with the path of the first fault.

    That of a machine which this one extends may have another name, and tiers that this one lacks.
    """
    spec: CalibrationSpec = parse(CalibrationSpec, data, where)
    check_units(spec, where)
    _check_names("tiers", spec.tiers, where)
    if spec.machine != machine.name and not inherited:
        raise fault(where, "machine", repr(spec.machine), f"{machine.name!r}, the machine that it calibrates")
    known = [tier.name for tier in machine.tiers]
    for tier in spec.tiers:
        path = f"tiers.{tier.name}.algorithms"
        _check_names(path, tier.algorithms, where)
        for algorithm in tier.algorithms:
            if algorithm.name.partition(" ")[0] not in WAYS:
                raise fault(where, f"{path}.{algorithm.name}.name", repr(algorithm.name), f"one of {', '.join(WAYS)}")
        if tier.name not in known and not inherited:
            raise fault(where, f"tiers.{tier.name}", "a tier that the machine lacks", f"one of {', '.join(known)}")
        for kind in GATHERS:
            if all(getattr(algorithm, kind) is None for algorithm in tier.algorithms):
                raise fault(where, path, f"none that serves {kind}", "one that does")
    _check_curves(spec, where)
    return spec


def finite_ranks(extents: Iterable[Sequence[int]]) -> int:
    """Ranks that the bounded dims of a fabric span together."""
    return math.prod(extent for row in extents for extent in row if extent)


def _check_extents(tier: TierSpec, where: str, *, last: bool) -> None:
    """Only a torus has several dims; only the outermost switch may have any number of members."""
    extents, path = tier.extents.value, f"tiers.{tier.name}.extents.value"
    if tier.kind != "torus" and len(extents) > 1:
        raise fault(where, path, extents, f"one extent: a {tier.kind} tier has no dims")
    if 0 in extents and not (last and tier.kind == "switch"):
        raise fault(where, path, extents, "extents above 0: only the last tier, a switch, may have any number")
    for shape in tier.shapes.value if tier.shapes else ():
        if len(shape) != len(extents) or any(part > whole for part, whole in zip(shape, extents, strict=True)):
            raise fault(where, f"tiers.{tier.name}.shapes.value", shape, f"shapes that fit into {extents}")


def _check_switch(tier: TierSpec, below: TierSpec | None, where: str) -> None:
    """Only switches have rails and uplinks, and these a switch below."""
    switches = {"rails": (tier,), "uplink": (tier, below)}
    for key, needed in switches.items():
        if getattr(tier, key) and any(each is None or each.kind != "switch" for each in needed):
            raise fault(
                where, f"tiers.{tier.name}.{key}", "true", f"it on a switch{' above a switch' * (len(needed) - 1)}"
            )


def _check_curves(spec: MachineSpec | CalibrationSpec, where: str) -> None:
    """The sizes of a curve rise; what a collective reaches rises no faster, or more bytes would take less time."""
    for path, number in numbers(spec):
        name = path.rpartition(".")[2]
        if name not in ("curve", "descriptors"):
            continue
        sizes = [size for size, _ in number.value]
        if sizes != sorted(set(sizes)):
            raise fault(where, f"{path}.value", sizes, "sizes that rise")
        for (small, low), (large, high) in pairwise(number.value if name == "curve" else ()):
            if high / low > large / small:
                raise fault(
                    where, f"{path}.value", [[small, low], [large, high]], "shares that rise no faster than sizes"
                )


def _check_names(path: str, items: Sequence[TierSpec | TierCalibration | AlgorithmSpec | Offer], where: str) -> None:
    names = [item.name for item in items]
    for name in names:
        if names.count(name) > 1:
            raise fault(where, f"{path}.{name}", f"the name {name!r} {names.count(name)} times", "it once")


def check_units(spec: Strict, where: str) -> None:
    """Raises MachineError for a unit that is none of what a number measures."""
    for path, number in numbers(spec):
        dimension = dimension_of(path)
        if number.unit not in DIMENSIONS[dimension]:
            expected = f"one of {', '.join(DIMENSIONS[dimension])}"
            raise fault(where, f"{path}.unit", repr(number.unit), expected, f"write a unit of {dimension}")


def si_of(spec: Strict) -> dict[str, float]:
    """Numbers in SI, by dotted path; lists aside."""
    return {
        path: to_si(number.value, number.unit, dimension_of(path))
        for path, number in numbers(spec)
        if not isinstance(number.value, list)
    }


def rank_bandwidth(tier: TierSpec, si: Mapping[str, float], ranks: int) -> float:
    """Bandwidth of one of a chip's ranks along a dim of a tier, in one direction of all its links together [B/s]."""
    path = f"tiers.{tier.name}"
    share = (ranks if tier.per == "chip" else 1) * si.get(f"{path}.oversubscription", 1.0)
    return si[f"{path}.link"] * si[f"{path}.links"] / share


def points(number: Number[list[list[float]]]) -> list[list[float]]:
    """The points of a curve, sizes in bytes."""
    scale = DIMENSIONS["size"][number.unit]
    return [[size * scale, share] for size, share in number.value]


def point_paths(path: str, curve: Sequence[Sequence[float]]) -> list[str]:
    """Dotted paths of the points of a curve at a path: by their sizes, as the file has them."""
    return [f"{path}.{size:.15g}" for size, _ in curve]
