"""A graph as each rank runs it: local ops, collectives and loops over copies of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from perfmodel.graph import Graph, Loop, Op
from perfmodel.layout import Assignment
from perfmodel.state import Axes, State
from perfmodel.work import MICROBATCH, SYMBOLS, Term


@dataclass(frozen=True, slots=True)
class Copy:
    """One version of a graph value on the ranks: its state, its bytes on each, and the bytes that memory holds of it
    (None: all; of what passes round a ring, the part at work and the part that arrives).
    """

    value: int
    state: State
    bytes: Term
    held: Term | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOp:
    """An op as each rank runs it; `axes` shards each local index. Operands and results are copies."""

    op: Op
    operands: tuple[int, ...]
    results: tuple[int, ...]
    axes: tuple[Axes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshard:
    """A collective over mesh axes. `bytes` per rank: all_gather counts its output, reduce_scatter its input,
    all_reduce and all_to_all their buffer, permute its message. A gather or scatter on a `ring` goes part by part,
    from each rank to the next.
    """

    kind: str
    axes: Axes
    operand: int
    result: int
    bytes: Term
    phase: str
    source: str
    ring: bool = False

    @property
    def operands(self) -> tuple[int, ...]:
        """The copy that goes in, as a tuple like an op's."""
        return (self.operand,)

    @property
    def results(self) -> tuple[int, ...]:
        """The copy that comes out, as a tuple like an op's."""
        return (self.result,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLoop:
    """A loop as each rank runs it, `trips` times; fields as in `perfmodel.graph.Loop`, over copies."""

    loop: Loop
    trips: Term
    axes: Axes
    operands: tuple[int, ...]
    parameters: tuple[int, ...]
    body: tuple[LocalNode, ...]
    yields: tuple[int, ...]
    results: tuple[int, ...]

    @property
    def repeats(self) -> bool:
        """Whether it goes over microbatches."""
        return self.trips.exponents[SYMBOLS.index(MICROBATCH)] != 0


LocalNode: TypeAlias = LocalOp | Reshard | LocalLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedGraph:
    """A graph under an assignment: local nodes over `copies`; `free` copies cost nothing to keep or reshape."""

    graph: Graph
    assignment: Assignment
    copies: tuple[Copy, ...]
    parameters: tuple[int, ...]
    nodes: tuple[LocalNode, ...]
    results: tuple[int, ...]
    free: frozenset[int]
