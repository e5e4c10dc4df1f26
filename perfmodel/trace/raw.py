"""Ops as they are collected, while their factors are still nodes of the factor space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from perfmodel.graph import Moved
from perfmodel.trace.stablehlo import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class RawWork:
    """FLOPs of one engine, spread over local factors."""

    engine: str
    flops: float
    dtype: str
    over: tuple[int, ...]
    share: float = 1.0
    band: float = 1.0


@dataclass(slots=True, kw_only=True)
class RawOp:
    """An op whose local factors are still nodes of the factor space."""

    kind: str
    operands: list[int]
    results: list[int]
    rule: Rule
    nodes: list[int]
    summed: list[tuple[int, ...]]
    reducer: str = "add"
    stepped: list[int] = field(default_factory=list)
    linear: tuple[int, ...] = ()
    tied: list[tuple[int, int]] = field(default_factory=list)
    pinned: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    work: list[RawWork] = field(default_factory=list)
    moved: Moved | None = None
    scope: str = ""
    source: str = ""


@dataclass(slots=True, kw_only=True)
class RawLoop:
    """A loop; `trip` is a node of the factor space."""

    trip: int
    operands: list[int]
    parameters: list[int]
    body: list[RawNode]
    yields: list[int]
    results: list[int]
    scope: str = ""
    source: str = ""


RawNode: TypeAlias = RawOp | RawLoop
Environment: TypeAlias = dict[Any, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an op stands: the values of the names that it may use, its scope, and the list that it is added to."""

    env: Environment
    scope: str
    out: list[RawNode]
