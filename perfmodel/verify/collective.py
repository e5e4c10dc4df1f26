"""A collective of a step, and what a compiler's program looks like to those who look for collectives in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from perfmodel.layout import AXES
from perfmodel.work import TP

Key: TypeAlias = tuple[str, str]
"""Kind of collective and mesh axes, as in ("all_gather", "dp+fsdp")."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """A collective of a step: `bytes` on each rank as in `perfmodel.sharded.Reshard`, and how many `times` it runs.

    `summands` collectives were merged into this one, because only their sum (or difference) is used.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: float
    name: str
    times: float = 1.0
    summands: int = 1

    @property
    def key(self) -> Key:
        """What it is counted under."""
        return self.kind, axis_name(self.axes)


def axis_name(axes: Iterable[str]) -> str:
    """Mesh axes as people name them, as in `dp+fsdp`; the two halves of tp are one axis to everybody outside."""
    named = {"tp" if axis in TP else axis for axis in axes}
    return "+".join(axis for axis in reversed(AXES) if axis in named)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """An instruction of a partitioned program: operands by name, sizes on one rank.

    axes:   mesh axes that a collective runs over
    detail: what else tells apart two collectives of the same operands
    minor:  whether a gather is along the last dim
    dims:   dims along which Shardy gathers a value, or of which a slice keeps a part
    label:  where in the program it comes from
    runs:   bodies that it runs, and how often
    """

    name: str
    opcode: str
    dtype: str = ""
    elements: int = 0
    bytes: float = 0.0
    operands: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    detail: str = ""
    minor: bool = False
    dims: tuple[int, ...] = ()
    label: str = ""
    runs: tuple[tuple[tuple[Instruction, ...], float], ...] = field(default=(), repr=False)


Runs: TypeAlias = tuple[tuple[tuple[Instruction, ...], float], ...]
"""Bodies, and how often each runs."""


def dearest(branches: Sequence[tuple[Instruction, ...]]) -> Runs:
    """Of several branches, the one whose instructions move most, run once."""
    return ((max(branches, key=_moved), 1.0),)


def _moved(body: Sequence[Instruction]) -> float:
    own = sum(each.bytes for each in body if each.axes)
    return own + sum(trips * _moved(inner) for each in body for inner, trips in each.runs)


def total_bytes(collectives: Iterable[Collective]) -> dict[Key, float]:
    """Bytes per step and rank."""
    return _totals((each.key, each.times * each.bytes) for each in collectives)


def total_times(collectives: Iterable[Collective]) -> dict[Key, float]:
    """How many run in a step."""
    return _totals((each.key, each.times) for each in collectives)


def _totals(amounts: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    found: defaultdict[Key, float] = defaultdict(float)
    for key, amount in amounts:
        found[key] += amount
    return dict(found)


def changed(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[Key, tuple[float, float]]:
    """Bytes before and after, where they are not the same."""
    pairs = {key: (before.get(key, 0.0), after.get(key, 0.0)) for key in sorted({*before, *after})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
