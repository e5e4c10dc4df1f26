"""Derived collectives beside a compiler's: rows by kind and axis, and the differences that have a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perfmodel.sharded import ShardedGraph
from perfmodel.verify.collective import Collective, Instruction, changed, total_bytes, total_times
from perfmodel.verify.derived import EAGER, WHY_EAGER, derived
from perfmodel.verify.rewrites import REWRITES, WHY, collectives_of
from perfmodel.work import Number

OURS = "perfmodel"
SMALL = 0.01
"""Rows with less than this share of a step's bytes (statistics, norms, indices) are not compared."""
TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of collective over one mesh axis (or several), on one rank in one step.

    share: bytes as a share of all that the compiler's collectives carry; difference: derived / compiler - 1
    """

    compiler: str
    kind: str
    axis: str
    derived_bytes: float
    compiler_bytes: float
    derived_count: float
    compiler_count: float
    share: float
    agrees: bool

    @property
    def compared(self) -> bool:
        """Whether the row is large enough to count."""
        return self.share >= SMALL

    @property
    def difference(self) -> float:
        """Relative difference; infinite where the compiler has none of it."""
        return self.derived_bytes / self.compiler_bytes - 1.0 if self.compiler_bytes else float("inf")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A known difference that was taken into account: what it did to one kind and axis, in bytes per step.

    of: whose collectives were rewritten; why: the sentence that `name` stands for
    """

    of: str
    name: str
    why: str
    kind: str
    axis: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What perfmodel derives against what compilers insert, for one program under one layout.

    notes: where the question that was asked differs from the layout; where rows differ, which known limits are reached
    """

    program: str
    layout: str
    ranks: int
    tolerance: float
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row that is compared agrees within the tolerance."""
        return all(row.agrees for row in self.rows if row.compared)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        rows = [{**asdict(row), "compared": row.compared, "difference": row.difference} for row in self.rows]
        return {**asdict(self), "rows": rows, "ok": self.ok}


def compare(
    compiler: str,
    answer: Sequence[Instruction],
    mesh: Mapping[str, int],
    ours: Sequence[Collective],
    tolerance: float,
) -> list[Row]:
    """Rows for one compiler, the largest first; `ours` as a compiler would run them."""
    theirs = collectives_of(answer, mesh)
    amounts = total_bytes(ours), total_bytes(theirs)
    counts = total_times(ours), total_times(theirs)
    whole = sum(amounts[1].values())
    rows = []
    for key in {*amounts[0], *amounts[1]}:
        own, other = (amount.get(key, 0.0) for amount in amounts)
        row = Row(
            compiler=compiler,
            kind=key[0],
            axis=key[1],
            derived_bytes=own,
            compiler_bytes=other,
            derived_count=counts[0].get(key, 0.0),
            compiler_count=counts[1].get(key, 0.0),
            share=max(own, other) / whole if whole else float("inf"),
            agrees=abs(own - other) <= tolerance * other,
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (-row.share, row.kind, row.axis))


def differences_of_compiler(
    compiler: str, answer: Sequence[Instruction], mesh: Mapping[str, int]
) -> Iterator[Difference]:
    """What each known pass changes, one pass after the other."""
    states = [total_bytes(collectives_of(answer, mesh, REWRITES[:i])) for i in range(len(REWRITES) + 1)]
    for i, name in enumerate(REWRITES):
        yield from _differences(compiler, name, WHY[name], states[i], states[i + 1])


def differences_of_ours(sharded: ShardedGraph, sizes: Mapping[str, Number]) -> Iterator[Difference]:
    """What reducing every sum where it arises changes."""
    late, eager = (total_bytes(derived(sharded, sizes, eager=eager)) for eager in (False, True))
    yield from _differences(OURS, EAGER, WHY_EAGER, late, eager)


def _differences(
    of: str, name: str, why: str, before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]
) -> Iterator[Difference]:
    for (kind, axis), pair in changed(before, after).items():
        yield Difference(of=of, name=name, why=why, kind=kind, axis=axis, before=pair[0], after=pair[1])
