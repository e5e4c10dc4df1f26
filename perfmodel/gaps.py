"""What of a machine's behaviour nobody measured, in words that every estimate repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from perfmodel.calibration_spec import CalibrationSpec
from perfmodel.framework_spec import FrameworkSpec
from perfmodel.machine_spec import MachineSpec
from perfmodel.schema import Number, numbers


def gaps(spec: MachineSpec, calibration: CalibrationSpec | None, *, wanted: bool = True) -> tuple[str, ...]:
    """What lacks a measurement; `wanted` is whether a calibration was looked for."""
    if calibration is None:
        state = "is not calibrated" if wanted else "is taken without its calibration"
        return (f"{spec.name} {state}: a pure roofline, no overlap",)
    known = {tier.name for tier in calibration.tiers}
    taken = [f"{spec.name} is priced with the calibration of {calibration.machine}"]
    ideal = (
        f"tier {tier.name} of {spec.name} is not calibrated: collectives reach its full bandwidth"
        for tier in spec.tiers
        if tier.name not in known
    )
    guesses = ", ".join(f"{path} {number.value:g}" for path, number in _shares(calibration, "assumed"))
    foreign = [*_shares(calibration, "derived")]
    expected = ", ".join(f"{path} {number.value:g}" for path, number in foreign)
    models = ", ".join(dict.fromkeys(number.source for _, number in foreign))
    tiers = [*_of_tiers(spec, calibration)]
    return (
        *(taken if calibration.machine != spec.name else ()),
        *ideal,
        *([f"derived, not measured: {expected} ({models})"] if foreign else []),
        *([f"assumed, not measured: {guesses}"] if guesses else []),
        *([f"fitted to {calibration.fit.range}: others are extrapolated"] if calibration.fit.range else []),
        *([f"assumed of the fabric: {'; '.join(tiers)}"] if tiers else []),
    )


def unseen(framework: FrameworkSpec, machines: Sequence[str]) -> tuple[str, ...]:
    """What of a framework nobody saw on any of the names of a machine."""
    if any(name in framework.machines for name in machines):
        return (f"runs by {framework.title}, fitted to {framework.fit.data}",)
    return (f"runs by {framework.title}, of which no run on {machines[0]} was fitted: taken as on other machines",)


def _shares(calibration: CalibrationSpec, kind: str) -> Iterator[tuple[str, Number[Any]]]:
    """Efficiencies and overlaps of a kind."""
    for path, number in numbers(calibration):
        if number.kind == kind and path.startswith(("efficiency.", "overlap.")):
            yield path, number


def _of_tiers(spec: MachineSpec, calibration: CalibrationSpec) -> Iterator[str]:
    """For each tier of the machine with assumed numbers: which, and where they were taken from."""
    for tier in spec.tiers:
        prefix = f"tiers.{tier.name}."
        of_tier = [(path, number) for path, number in numbers(calibration) if path.startswith(prefix)]
        assumed = [(path, number) for path, number in of_tier if number.kind == "assumed"]
        if assumed:
            names = "all" if len(assumed) == len(of_tier) else ", ".join(_names(assumed))
            yield f"{names} of {tier.name} ({', '.join(dict.fromkeys(number.source for _, number in assumed))})"


def _names(found: Sequence[tuple[str, Number[Any]]]) -> list[str]:
    """What numbers are called, whichever algorithm they are of."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path, _ in found))
