"""A machine: plain SI floats per rank, the tiers of its fabric, and where every number comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfmodel.framework import Framework
from perfmodel.topology import Curve, Tier

ENGINES = ("tensor", "attention", "vector", "memory")
ELEMENTWISE = ("vector", "scalar", "gpsimd")


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
    host_link:     bandwidth to the memory of the host in one direction, 0 where none is stated [B/s]
    descriptors:   share of the memory bandwidth by the size of rows that are fetched one by one
    efficiency:    reachable share of the tensor, vector and memory peaks, and of the tensor peak inside marked
                   attention kernels; 1 without calibration [1]
    framework:     what runs the step
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
    host_link: float
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
    framework: Framework = field(default_factory=Framework)
