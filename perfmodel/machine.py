"""A machine: plain SI floats per rank, the tiers of its fabric, and where every number comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perfmodel.catalog import read_calibration, read_machine
from perfmodel.errors import MachineError
from perfmodel.spec_file import (
    CalibrationSpec,
    MachineSpec,
    TierCalibration,
    TierSpec,
    dimension_of,
    finite_ranks,
    numbers,
    parse_calibration,
    parse_machine,
)
from perfmodel.topology import Algorithm, Tier
from perfmodel.units import to_si

ENGINES = ("tensor", "attention", "vector", "memory")
GATHERS = ("all_gather", "reduce_scatter", "all_to_all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number as its file states it."""

    value: float | list[int]
    unit: str
    kind: str
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a layout is priced on; numbers are SI and per rank (what JAX calls a device) unless they say chip.

    tensor_flops:  peak of the matrix engine by element type [FLOP/s]
    quoted_flops:  published peak that MFU is quoted against [FLOP/s]
    vector_flops:  peak of the elementwise engines [FLOP/s]
    memory_bytes, memory_reserve_bytes: capacity, and the runtime's own share of it [B]
    efficiency:    reachable share of the tensor, vector and memory peaks, and of the tensor peak inside marked
                   attention kernels; 1 without calibration [1]
    overlap:       share of compute time that each class of collective may hide behind [1]
    pipeline_depth: how far the phases of a hierarchical collective overlap [1]
    group_sizes:   sizes of mesh axes that the runtime supports; an axis that is absent may have any
    """

    name: str
    title: str
    ranks_per_chip: int
    tensor_flops: Mapping[str, float]
    quoted_flops: Mapping[str, float]
    vector_flops: float
    memory_bytes: float
    memory_reserve_bytes: float
    memory_bandwidth: float
    efficiency: Mapping[str, float]
    overlap: Mapping[str, float]
    kernel_launch_seconds: float
    step_overhead_seconds: float
    tiers: tuple[Tier, ...]
    pipeline_depth: float
    group_sizes: Mapping[str, tuple[int, ...]]
    usd_per_chip_hour: float
    watts_per_chip: float
    facts: Mapping[str, Fact]
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]


def check_chips(machine: Machine, chips: int) -> int:
    """Ranks of `chips` accelerators; raises MachineError unless they fill the fabric evenly."""
    whole = max(finite_ranks(tier.extents for tier in machine.tiers) // machine.ranks_per_chip, 1)
    unbounded = 0 in machine.tiers[-1].extents
    if chips < 1 or (whole % chips if chips < whole else chips % whole) or (chips > whole and not unbounded):
        fitting = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        more = f" or a multiple of {whole}" if unbounded else ""
        raise MachineError(f"chips: got {chips}, expected {fitting}{more} ({machine.title}): change --chips")
    return chips * machine.ranks_per_chip


def load_machine(name_or_path: str | Path, *, calibrated: bool = True) -> Machine:
    """Read a shipped machine by name, or one from a TOML file with the calibration beside it, `NAME.calibration.toml`.

    `calibrated=False` leaves a pure roofline, as does the lack of a calibration; `assumptions` says so.
    Raises MachineError with the path of the fault.
    """
    where, data = read_machine(name_or_path)
    spec = parse_machine(data, where)
    found = read_calibration(name_or_path) if calibrated else None
    calibration = parse_calibration(found[1], found[0], spec) if found else None
    return _machine(spec, calibration, _gaps(spec, calibration, calibrated))


def _gaps(spec: MachineSpec, calibration: CalibrationSpec | None, wanted: bool) -> tuple[str, ...]:
    """What lacks a measurement, in words."""
    if calibration is None:
        state = "is not calibrated" if wanted else "is taken without its calibration"
        return (f"{spec.name} {state}: a pure roofline, no overlap",)
    known = {tier.name for tier in calibration.tiers}
    ideal = (
        f"tier {tier.name} of {spec.name} is not calibrated: collectives reach its full bandwidth"
        for tier in spec.tiers
        if tier.name not in known
    )
    guesses = [
        f"{path} {number.value:g}"
        for path, number in numbers(calibration)
        if number.kind == "assumed" and path.startswith(("efficiency.", "overlap."))
    ]
    return (*ideal, *([f"assumed, not measured: {', '.join(guesses)}"] if guesses else []))


class _Reader:
    """Numbers of a file in SI, by dotted path; lists stay with the facts."""

    def __init__(self, spec: MachineSpec | CalibrationSpec) -> None:
        self.facts: dict[str, Fact] = {}
        self.si: dict[str, float] = {}
        for path, number in numbers(spec):
            self.facts[path] = Fact(**number.model_dump())
            if not isinstance(number.value, list):
                self.si[path] = to_si(number.value, number.unit, dimension_of(path))

    def table(self, prefix: str) -> dict[str, float]:
        """Numbers directly under a path."""
        return {path.removeprefix(prefix + "."): x for path, x in self.si.items() if path.startswith(prefix + ".")}


def _machine(spec: MachineSpec, calibration: CalibrationSpec | None, gaps: tuple[str, ...]) -> Machine:
    read = _Reader(spec)
    fitted = _Reader(calibration) if calibration else None
    ranks = spec.chip.ranks.value
    measured = {tier.name: tier for tier in calibration.tiers} if calibration else {}
    facts = {**read.facts, **({f"calibration.{k}": v for k, v in fitted.facts.items()} if fitted else {})}
    return Machine(
        name=spec.name,
        title=spec.title,
        ranks_per_chip=ranks,
        tensor_flops={k: x / ranks for k, x in read.table("chip.tensor").items()},
        quoted_flops={k: x / ranks for k, x in read.table("chip.quoted").items()},
        vector_flops=read.si["chip.vector"] / ranks,
        memory_bytes=read.si["chip.memory"] / ranks,
        memory_reserve_bytes=read.si["chip.memory_reserve"] / ranks,
        memory_bandwidth=read.si["chip.memory_bandwidth"] / ranks,
        efficiency=fitted.table("efficiency") if fitted else dict.fromkeys(ENGINES, 1.0),
        overlap=fitted.table("overlap") if fitted else {},
        kernel_launch_seconds=read.si["chip.kernel_launch"],
        step_overhead_seconds=read.si["chip.step_overhead"],
        tiers=tuple(_tier(tier, measured.get(tier.name), read, fitted, ranks) for tier in spec.tiers),
        pipeline_depth=fitted.si["pipeline_depth"] if fitted else 1.0,
        group_sizes={axis: tuple(number.value) for axis, number in spec.groups if number},
        usd_per_chip_hour=read.si["price.instance"] / spec.price.chips.value,
        watts_per_chip=read.si["power.chip"],
        facts=facts,
        assumptions=(*spec.assumptions, *gaps),
        sources=tuple(sorted({fact.source for fact in facts.values()})),
    )


def _tier(spec: TierSpec, measured: TierCalibration | None, read: _Reader, fitted: _Reader | None, ranks: int) -> Tier:
    path = f"tiers.{spec.name}"
    share = ranks if spec.per == "chip" else 1
    bandwidth = read.si[f"{path}.link"] * read.si[f"{path}.links"] / share
    latency = read.si[f"{path}.latency"]
    algorithms: tuple[Algorithm, ...]
    if fitted is None or measured is None:
        algorithms = (Algorithm(name="recursive", latency=latency, efficiency=dict.fromkeys(GATHERS, 1.0)),)
    else:
        algorithms = tuple(
            _algorithm(algorithm.name, f"{path}.algorithms.{algorithm.name}", fitted)
            for algorithm in measured.algorithms
        )
    return Tier(
        name=spec.name,
        kind=spec.kind,
        extents=tuple(spec.extents.value),
        bandwidth=(bandwidth,) * len(spec.extents.value),
        relay=fitted.si.get(f"{path}.relay", 0.0) if fitted else 0.0,
        latency=latency,
        algorithms=algorithms,
    )


def _algorithm(name: str, path: str, fitted: _Reader) -> Algorithm:
    return Algorithm(
        name=name,
        latency=fitted.si[f"{path}.latency"],
        efficiency={kind: fitted.si[f"{path}.{kind}"] for kind in GATHERS},
    )
