"""A machine: plain SI floats per rank, the tiers of its fabric, and where every number comes from."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from perfmodel.catalog import read_calibration, read_machine
from perfmodel.errors import MachineError
from perfmodel.gaps import gaps
from perfmodel.schema import CalibrationSpec, MachineSpec, TierCalibration, TierSpec, dimension_of, numbers
from perfmodel.spec_file import (
    finite_ranks,
    parse_calibration,
    parse_machine,
    point_paths,
    points,
    rank_bandwidth,
    si_of,
)
from perfmodel.topology import Algorithm, Curve, Tier, cut, in_use, least_of_several

ENGINES = ("tensor", "attention", "vector", "memory")
ELEMENTWISE = ("vector", "scalar", "gpsimd")
GATHERS = ("all_gather", "reduce_scatter", "all_to_all")
SERVED = (*GATHERS, "all_reduce")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number as its file states it."""

    value: float | list[Any]
    unit: str
    kind: str
    source: str
    note: str = ""
    confidence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """How a rank's matrix engine cuts a matmul up.

    units:    parts that work on output tiles of their own [1]
    tiles:    output tiles (m, n) and steps along the contraction (k) that the engine offers [elements]
    fill:     steps along the contraction that a tile loses before its first result [1]
    operands: how much a small tile loses to fetching its operands: a tile of m by n reaches
              1 / (1 + operands (1/m + 1/n)) of the rate [elements]
    query_keys: what a query of an attention kernel costs beside the keys that it sees, in keys: blocks reach beyond the
              mask, and each block of queries is fetched, rescaled and stored [1]
    ramp:     time that a burst of matrix work loses until the clock is up [s]
    shares:   of the peak that is reached, by element types that differ from the others [1]
    """

    units: float = 1.0
    tiles: tuple[tuple[int, int, int], ...] = ((1, 1, 1),)
    fill: float = 0.0
    operands: float = 0.0
    query_keys: float = 0.0
    ramp: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A price of the instance that holds a chip."""

    name: str
    region: str
    date: str
    usd_per_hour: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a layout is priced on; numbers are SI and per rank (what JAX calls a device) unless they say chip.

    tensor_flops:  peak of the matrix engine by element type [FLOP/s]
    quoted_flops:  published peak that MFU is quoted against [FLOP/s]
    matrix:        how the matrix engine cuts a matmul up
    elementwise:   results per second of the vector, scalar (transcendental) and gpsimd (index, random) engines [1/s]
    memory_bytes, memory_reserve_bytes: capacity, and the runtime's own share of it [B]
    descriptors:   share of the memory bandwidth by the size of rows that are fetched one by one
    efficiency:    reachable share of the tensor, vector and memory peaks, and of the tensor peak inside marked
                   attention kernels; 1 without calibration [1]
    overlap:       share of compute time that each class of collective may hide behind [1]
    barrier_seconds: what each doubling of the ranks adds to a step that communicates [s]
    pipeline_depth: how far the phases of a hierarchical collective overlap; without calibration wholly [1]
    group_sizes:   sizes of mesh axes that the runtime supports; an axis that is absent may have any
    limits:        what the compiler and the runtime take in one graph: instructions, communicators [1]
    usd_per_chip_hour: by the first of the offers; NaN where no price is published [USD/h]
    """

    name: str
    title: str
    ranks_per_chip: int
    tensor_flops: Mapping[str, float]
    quoted_flops: Mapping[str, float]
    matrix: Matrix
    elementwise: Mapping[str, float]
    memory_bytes: float
    memory_reserve_bytes: float
    memory_bandwidth: float
    descriptors: Curve
    efficiency: Mapping[str, float]
    overlap: Mapping[str, float]
    kernel_launch_seconds: float
    step_overhead_seconds: float
    barrier_seconds: float
    tiers: tuple[Tier, ...]
    pipeline_depth: float
    group_sizes: Mapping[str, tuple[int, ...]]
    limits: Mapping[str, int]
    instance: str
    chips_per_instance: int
    offers: tuple[Offer, ...]
    usd_per_chip_hour: float
    watts_per_chip: float
    facts: Mapping[str, Fact]
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]


def check_chips(machine: Machine, chips: int) -> int:
    """Ranks of `chips` accelerators; raises MachineError unless they fill the fabric evenly."""
    if chips < 1 or not _members(machine, chips):
        raise MachineError(f"chips: got {chips}, expected {_allowed(machine)} ({machine.title}): change --chips")
    return chips * machine.ranks_per_chip


def _members(machine: Machine, chips: int) -> tuple[int, ...] | None:
    return in_use(machine.tiers, chips * machine.ranks_per_chip, machine.ranks_per_chip)


def _allowed(machine: Machine) -> str:
    """Numbers of chips that a job may have."""
    whole = max(finite_ranks(tier.extents for tier in machine.tiers) // machine.ranks_per_chip, 1)
    parts = [n for n in range(1, whole + 1) if _members(machine, n)]
    if 0 not in machine.tiers[-1].extents:
        return _ranges(parts)
    repeated = [n for n in parts if _repeats(machine, n)]
    return f"{_ranges(parts)} or a multiple of {'any of ' * (len(repeated) > 1)}{_ranges(repeated)}"


def _repeats(machine: Machine, chips: int) -> bool:
    """Whether a job may have so many chips of each of several whole fabrics."""
    members = _members(machine, chips) or ()
    return all(n >= least_of_several(tier) for tier, n in zip(machine.tiers, members, strict=True))


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 4 to 8."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] + 1 == n:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def slice_of(machine: Machine, ranks: int) -> Machine:
    """The part of a machine that a job of so many ranks gets, as far as it matters to what a job costs: of a torus that
    is let in parts one of them, of switches that are each used in part the ports in use.
    """
    members = in_use(machine.tiers, ranks, machine.ranks_per_chip)
    if not members:
        return machine
    beyond = list(accumulate(members, operator.floordiv, initial=ranks))[1:]
    tiers = (cut(tier, n, several) for tier, n, several in zip(machine.tiers, members, beyond, strict=True))
    return replace(machine, tiers=tuple(tiers))


def load_machine(name_or_path: str | Path, *, calibrated: bool = True) -> Machine:
    """Read a shipped machine by name, or one from a TOML file with the calibration beside it, `NAME.calibration.toml`.

    A file without a calibration of its own is priced by that of the machine it extends. `calibrated=False` leaves a
    pure roofline, as does the lack of a calibration; `assumptions` says so. Raises MachineError with the path of the
    fault.
    """
    where, data = read_machine(name_or_path)
    spec = parse_machine(data, where)
    found = read_calibration(name_or_path) if calibrated else None
    calibration = parse_calibration(found[1], found[0], spec, inherited=found[2]) if found else None
    said = gaps(spec, calibration, wanted=calibrated)
    return _machine(spec, calibration, _Reader(spec), _Reader(calibration), said)


def variations(spec: MachineSpec, calibration: CalibrationSpec) -> Callable[[Mapping[str, float]], Machine]:
    """Machines of checked files, with other numbers of the calibration: a function of values in SI by dotted path,
    those of a curve's points by `point_paths`. What is said of the numbers (`facts`) stays what the files say.
    """
    read, fitted, said = _Reader(spec), _Reader(calibration), gaps(spec, calibration)
    return lambda values: _machine(spec, calibration, read, fitted.varied(values), said)


class _Reader:
    """Numbers of a file in SI, by dotted path; lists stay with the facts."""

    def __init__(self, spec: MachineSpec | CalibrationSpec | None) -> None:
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
