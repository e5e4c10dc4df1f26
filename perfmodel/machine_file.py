"""From the files of a machine to the record: numbers in SI and per rank, with what the calibration says of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from perfmodel.calibration_spec import GATHERS, SERVED, CalibrationSpec, TierCalibration
from perfmodel.catalog import calibrated_as, read_calibration, read_machine
from perfmodel.framework_file import framework_on, known_as, read_framework
from perfmodel.framework_spec import FrameworkSpec
from perfmodel.gaps import gaps, unseen
from perfmodel.machine import ELEMENTWISE, ENGINES, Fact, Machine, Matrix, Offer
from perfmodel.machine_spec import MachineSpec, TierSpec
from perfmodel.schema import Strict, dimension_of, numbers
from perfmodel.spec_file import parse_calibration, parse_machine, point_paths, points, rank_bandwidth, si_of
from perfmodel.topology import Algorithm, Curve, Tier


def load_machine(name_or_path: str | Path, *, calibrated: bool = True, framework: str | Path | None = None) -> Machine:
    """Read a shipped machine by name, or one from a TOML file with the calibration beside it, `NAME.calibration.toml`.

    A file without a calibration of its own is priced by that of the machine it extends. `framework`, a name or the
    path of a file, is what runs the step; without one, what the machine's file says. `calibrated=False` leaves a pure
    roofline, as does the lack of a calibration; `assumptions` says so. Raises MachineError with the path of the fault.
    """
    where, data = read_machine(name_or_path)
    spec = parse_machine(data, where)
    found = read_calibration(name_or_path) if calibrated else None
    calibration = parse_calibration(found[1], found[0], spec, inherited=found[2]) if found else None
    said = gaps(spec, calibration, wanted=calibrated)
    machine = _machine(spec, calibration, _Reader(spec), _Reader(calibration), said)
    name = framework or spec.framework
    if calibration is None or name is None:
        return machine
    return run_by(machine, read_framework(name), (spec.name, *calibrated_as(calibration.machine)))


def run_by(machine: Machine, framework: FrameworkSpec, names: Sequence[str]) -> Machine:
    """A machine, which a framework file may know by one of several names, as the framework runs it. What the machine's
    own calibration says of overlap stays.
    """
    read = _Reader(framework)
    facts = {f"framework.{path}": fact for path, fact in read.facts.items() if _is_of(path, known_as(framework, names))}
    return replace(
        machine,
        framework=framework_on(framework, names),
        overlap={**read.table("overlap"), **machine.overlap},
        facts={**machine.facts, **facts},
        assumptions=(*machine.assumptions, *unseen(framework, names)),
        sources=tuple(sorted({*machine.sources, *(fact.source for fact in facts.values())})),
    )


def _is_of(path: str, machine: str) -> bool:
    """Whether a number of a framework is of no machine, or of this one."""
    return not path.startswith("machines.") or path.startswith(f"machines.{machine}.")


def variations(spec: MachineSpec, calibration: CalibrationSpec) -> Callable[[Mapping[str, float]], Machine]:
    """Machines of checked files, with other numbers of the calibration: a function of values in SI by dotted path,
    those of a curve's points by `point_paths`. What is said of the numbers (`facts`) stays what the files say.
    """
    read, fitted, said = _Reader(spec), _Reader(calibration), gaps(spec, calibration)
    return lambda values: _machine(spec, calibration, read, fitted.varied(values), said)


class _Reader:
    """Numbers of a file in SI, by dotted path; lists stay with the facts."""

    def __init__(self, spec: Strict | None) -> None:
        found = dict(numbers(spec)) if spec else {}
        self.facts = {path: Fact(**number.model_dump()) for path, number in found.items()}
        self.si = si_of(spec) if spec else {}
        curves = {p: x for p, x in found.items() if isinstance(x.value, list) and dimension_of(p) == "size"}
        self.curves: dict[str, Curve] = {
            path: tuple((size, share) for size, share in points(number)) for path, number in curves.items()
        }
        self.points = {path: point_paths(path, number.value) for path, number in curves.items()}

    def table(self, prefix: str) -> dict[str, float]:
        """Numbers directly under a path."""
        return {path.removeprefix(prefix + "."): x for path, x in self.si.items() if path.startswith(prefix + ".")}

    def varied(self, values: Mapping[str, float]) -> _Reader:
        """With other numbers at some paths."""
        other = copy.copy(self)
        other.si = {path: values.get(path, x) for path, x in self.si.items()}
        other.curves = {
            path: tuple(
                (size, values.get(at, share)) for at, (size, share) in zip(self.points[path], curve, strict=True)
            )
            for path, curve in self.curves.items()
        }
        return other


def _machine(
    spec: MachineSpec, calibration: CalibrationSpec | None, read: _Reader, fitted: _Reader, gaps: tuple[str, ...]
) -> Machine:
    ranks, chips = spec.chip.ranks.value, spec.instance.chips.value
    facts = {**read.facts, **{f"calibration.{path}": fact for path, fact in fitted.facts.items()}}
    offers = _offers(spec)
    return Machine(
        name=spec.name,
        title=spec.title,
        ranks_per_chip=ranks,
        tensor_flops={k: x / ranks for k, x in read.table("chip.tensor").items()},
        quoted_flops={k: x / ranks for k, x in read.table("chip.quoted").items()},
        matrix=_matrix(spec, read, fitted),
        elementwise={name: read.si.get(f"chip.{name}", read.si["chip.vector"]) / ranks for name in ELEMENTWISE},
        memory_bytes=read.si["chip.memory"] / ranks,
        memory_reserve_bytes=read.si["chip.memory_reserve"] / ranks,
        memory_bandwidth=read.si["chip.memory_bandwidth"] / ranks,
        host_link=read.si.get("chip.host_link", 0.0) / ranks,
        descriptors=read.curves.get("chip.descriptors", ()),
        efficiency={name: fitted.si.get(f"efficiency.{name}", 1.0) for name in ENGINES},
        overlap=fitted.table("overlap"),
        kernel_launch_seconds=read.si["chip.kernel_launch"],
        step_overhead_seconds=read.si["chip.step_overhead"],
        barrier_seconds=read.si.get("chip.barrier", 0.0),
        tiers=_tiers(spec, calibration, read, fitted),
        pipeline_depth=fitted.si.get("pipeline_depth", math.inf),
        group_sizes={axis: tuple(number.value) for axis, number in spec.groups if number},
        limits={name: number.value for name, number in spec.limits if number},
        instance=spec.instance.name,
        chips_per_instance=chips,
        offers=offers,
        usd_per_chip_hour=offers[0].usd_per_hour / chips if offers else math.nan,
        watts_per_chip=read.si["power.chip"],
        facts=facts,
        assumptions=(*spec.assumptions, *gaps),
        sources=tuple(sorted({fact.source for fact in facts.values()})),
    )


def _offers(spec: MachineSpec) -> tuple[Offer, ...]:
    return tuple(Offer(name=o.name, region=o.region, date=o.date, usd_per_hour=o.price.value) for o in spec.offers)


def _matrix(spec: MachineSpec, read: _Reader, fitted: _Reader) -> Matrix:
    return Matrix(
        units=spec.chip.units.value / spec.chip.ranks.value if spec.chip.units else 1.0,
        tiles=tuple((m, n, k) for m, n, k in spec.chip.tiles.value) if spec.chip.tiles else ((1, 1, 1),),
        fill=fitted.si.get("efficiency.fill", 0.0),
        operands=fitted.si.get("efficiency.operands", 0.0),
        query_keys=fitted.si.get("efficiency.query_keys", 0.0),
        ramp=read.si.get("chip.ramp", 0.0),
        shares=fitted.table("efficiency.by_dtype"),
    )


def _tiers(spec: MachineSpec, calibration: CalibrationSpec | None, read: _Reader, fitted: _Reader) -> tuple[Tier, ...]:
    measured = {tier.name: tier for tier in calibration.tiers} if calibration else {}
    return tuple(_tier(tier, measured.get(tier.name), read, fitted, spec.chip.ranks.value) for tier in spec.tiers)


def _tier(spec: TierSpec, measured: TierCalibration | None, read: _Reader, fitted: _Reader, ranks: int) -> Tier:
    path = f"tiers.{spec.name}"
    latency = read.si[f"{path}.latency"]
    ideal = Algorithm(name="recursive", latency=latency, efficiency=dict.fromkeys(GATHERS, 1.0))
    memory = read.si["chip.memory_bandwidth"] / ranks
    names = [algorithm.name for algorithm in measured.algorithms] if measured else []
    return Tier(
        name=spec.name,
        kind=spec.kind,
        extents=tuple(spec.extents.value),
        bandwidth=(rank_bandwidth(spec, read.si, ranks),) * len(spec.extents.value),
        relay=fitted.si.get(f"{path}.relay", 0.0),
        latency=latency,
        wrap=int(read.si.get(f"{path}.wrap", 0)),
        together=spec.together,
        folded=spec.folded,
        oversubscription=read.si.get(f"{path}.oversubscription", 1.0),
        uplink=spec.uplink,
        rails=spec.rails,
        shapes=tuple(map(tuple, spec.shapes.value)) if spec.shapes else (),
        algorithms=tuple(_algorithm(name, f"{path}.algorithms.{name}", fitted, memory) for name in names) or (ideal,),
    )


def _algorithm(name: str, path: str, fitted: _Reader, memory_bandwidth: float) -> Algorithm:
    return Algorithm(
        name=name,
        inner=fitted.si.get(f"{path}.inner", 0.0),
        base=fitted.si.get(f"{path}.base", 0.0),
        copy=fitted.si.get(f"{path}.copies", 0.0) / memory_bandwidth,
        latency=fitted.si[f"{path}.latency"],
        efficiency={kind: fitted.si[f"{path}.{kind}"] for kind in SERVED if f"{path}.{kind}" in fitted.si},
        curve=fitted.curves.get(f"{path}.curve", ()),
        up_to=fitted.si.get(f"{path}.up_to", math.inf),
    )
