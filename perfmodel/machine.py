"""A machine: plain SI floats per rank, the tiers of its fabric, and where every number comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.catalog import read_calibration, read_machine
from perfmodel.errors import MachineError
from perfmodel.spec_file import CalibrationSpec, MachineSpec, Number, TierCalibration, TierSpec, check_unit, parse_spec
from perfmodel.topology import Algorithm, Tier

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
    extents = [extent for tier in machine.tiers for extent in tier.extents if extent]
    whole = math.prod(extents) // machine.ranks_per_chip
    if chips < 1 or (whole % chips if chips < whole else chips % whole):
        fitting = [n for n in range(1, whole) if whole % n == 0]
        raise MachineError(
            f"chips: got {chips}, expected {', '.join(map(str, fitting))} or a multiple of {whole} ({machine.title}): "
            f"change --chips"
        )
    return chips * machine.ranks_per_chip


def load_machine(name_or_path: str | Path, *, calibrated: bool = True) -> Machine:
    """Read a machine by name or from a TOML file; `calibrated=False` leaves a pure roofline.

    Raises MachineError with the path of the fault.
    """
    where, data = read_machine(name_or_path)
    spec: MachineSpec = parse_spec(MachineSpec, data, where)
    found = read_calibration(spec.name) if calibrated else None
    calibration: CalibrationSpec | None = parse_spec(CalibrationSpec, found[1], found[0]) if found else None
    return _machine(spec, calibration, where)


def numbers(spec: MachineSpec | CalibrationSpec) -> Iterator[tuple[str, Number]]:
    """Every number of a file with its dotted path; tiers and algorithms go by their name."""
    yield from _numbers("", spec)


def _numbers(path: str, node: Any) -> Iterator[tuple[str, Number]]:
    if isinstance(node, Number):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(f"{path}.{key}".lstrip("."), value)
    elif isinstance(node, list):
        for item in node:
            yield from _numbers(f"{path}.{getattr(item, 'name', '')}".rstrip("."), item)
    elif hasattr(node, "model_fields"):
        for key in type(node).model_fields:
            yield from _numbers(f"{path}.{key}".lstrip("."), getattr(node, key))


class _Reader:
    """Numbers of a file in SI, by dotted path."""

    def __init__(self, spec: MachineSpec | CalibrationSpec, where: str) -> None:
        self.facts: dict[str, Fact] = {}
        self.si: dict[str, float] = {}
        for path, number in numbers(spec):
            if path.startswith("checks"):
                continue
            factor = check_unit(path, number, where)
            self.facts[path] = Fact(**number.model_dump())
            if isinstance(number.value, list):
                continue
            if not math.isfinite(number.value) or number.value < 0:
                raise MachineError(f"{where}: {path}.value: got {number.value}, expected a number of at least 0")
            self.si[path] = number.value * factor

    def table(self, prefix: str) -> dict[str, float]:
        """Numbers directly under a path."""
        return {path.removeprefix(prefix + "."): x for path, x in self.si.items() if path.startswith(prefix + ".")}


def _machine(spec: MachineSpec, calibration: CalibrationSpec | None, where: str) -> Machine:
    read = _Reader(spec, where)
    fitted = _Reader(calibration, f"calibrations/{spec.name}.toml") if calibration else None
    ranks = int(read.si["chip.ranks"])
    if ranks < 1:
        raise MachineError(f"{where}: chip.ranks.value: got {ranks}, expected at least 1")
    measured = {tier.name: tier for tier in calibration.tiers} if calibration else {}
    facts = {**read.facts, **({f"calibration.{k}": v for k, v in fitted.facts.items()} if fitted else {})}
    uncalibrated = () if calibration else (f"{spec.name} is not calibrated: a pure roofline, no overlap",)
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
        efficiency={**dict.fromkeys(ENGINES, 1.0), **(fitted.table("efficiency") if fitted else {})},
        overlap=fitted.table("overlap") if fitted else {},
        kernel_launch_seconds=read.si["chip.kernel_launch"],
        step_overhead_seconds=read.si["chip.step_overhead"],
        tiers=tuple(_tier(tier, measured.get(tier.name), read, fitted, ranks) for tier in spec.tiers),
        pipeline_depth=fitted.si["pipeline_depth"] if fitted else 1.0,
        group_sizes={axis: tuple(_integers(number)) for axis, number in spec.groups.items()},
        usd_per_chip_hour=read.si["price.instance"] / read.si["price.chips"],
        watts_per_chip=read.si["power.chip"],
        facts=facts,
        assumptions=(*spec.assumptions, *uncalibrated),
        sources=tuple(sorted({fact.source for fact in facts.values()})),
    )


def _tier(spec: TierSpec, measured: TierCalibration | None, read: _Reader, fitted: _Reader | None, ranks: int) -> Tier:
    path = f"tiers.{spec.name}"
    share = ranks if spec.per == "chip" else 1
    bandwidth = read.si[f"{path}.link"] * read.si[f"{path}.links"] / share
    extents = tuple(_integers(spec.extents))
    algorithms: list[Algorithm] = []
    if fitted is not None and measured is not None:
        algorithms = [
            _algorithm(algorithm.name, f"{path}.algorithms.{algorithm.name}", fitted)
            for algorithm in measured.algorithms
        ]
    latency = read.si[f"{path}.latency"]
    ideal = Algorithm(name="recursive", latency=latency, efficiency=dict.fromkeys(GATHERS, 1.0))
    relay = fitted.si[f"{path}.relay"] if fitted and measured and measured.relay else 0.0
    return Tier(
        name=spec.name,
        kind=spec.kind,
        extents=extents,
        bandwidth=(bandwidth,) * len(extents),
        relay=relay,
        latency=latency,
        algorithms=tuple(algorithms) or (ideal,),
    )


def _algorithm(name: str, path: str, fitted: _Reader) -> Algorithm:
    return Algorithm(
        name=name,
        latency=fitted.si[f"{path}.latency"],
        efficiency={kind: fitted.si[f"{path}.{kind}"] for kind in GATHERS},
    )


def _integers(number: Number) -> list[int]:
    return number.value if isinstance(number.value, list) else [int(number.value)]
