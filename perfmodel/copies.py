"""The copies of every value at hand while a graph is sharded, and the collectives that make others from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from perfmodel.graph import Op
from perfmodel.placement import Placement
from perfmodel.sharded import Copy, LocalNode, LocalOp, Reshard
from perfmodel.state import LOCAL, Axes, State, after, sharding, steps
from perfmodel.work import Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where in the step a value is wanted: the nodes so far, phase and source line; what is gathered there over axes
    of `ring` is passed round.
    """

    nodes: list[LocalNode]
    phase: str
    source: str
    ring: frozenset[str] = frozenset()


class Copies:
    """Copies of values by state; `table` holds all that were ever made.

    zero:  values known to be zero: partial and whole at once
    rings: copies that a kernel made part by part, and over which axes
    """

    def __init__(self, place: Placement) -> None:
        self.table: list[Copy] = []
        self.zero: set[int] = set()
        self.rings: dict[int, frozenset[str]] = {}
        self._place = place
        self._of: dict[int, list[int]] = {}  # value -> copies of it, oldest first
        self._free: set[int] = set()  # copies made of constants only: any state costs nothing
        self._lazy: dict[int, Op] = {}  # broadcasts, made in whatever state a consumer asks for

    def define(self, value: int, state: State, *, free: bool = False) -> int:
        """A new copy of a value."""
        self.table.append(Copy(value, state, self._place.bytes(value, state)))
        copy = len(self.table) - 1
        self._of.setdefault(value, []).append(copy)
        if free:
            self._free.add(copy)
        return copy

    def postpone(self, op: Op) -> None:
        """Make a broadcast's result where it is wanted: cheaper made anew in each state than moved."""
        self._lazy[op.results[0]] = op

    def obtain(self, value: int, state: State, site: Site) -> int:
        """A copy of `value` in `state`, made by the cheapest collectives from the copies at hand."""
        copies = self._of.get(value, [])
        for copy in copies:
            if self.table[copy].state == state:
                return copy
        if value in self._lazy:
            return self._broadcast(value, state, site)
        if copies[0] in self._free:
            return self.define(value, state, free=True)
        start = min(copies, key=lambda copy: (_distance(self.table[copy].state, state), -copy))
        return self._convert(start, state, site)

    def move(self, value: int, state: State, site: Site) -> int:
        """A copy of what the program itself moves there: it is not made anew, even if it could be."""
        if value in self._lazy or self.is_free(value):
            return self._convert(self.obtain(value, self._place.resting_state(value), site), state, site)
        return self.obtain(value, state, site)

    # -- what is at hand ------------------------------------------------------------------------------------------

    def state(self, value: int) -> State:
        """The state a value is in now; a broadcast is in none."""
        return self._place.whole(value) if value in self._lazy else self.table[self._of[value][-1]].state

    def beside(self, value: int, pending: frozenset[str]) -> State:
        """The state of a summand to sums that are pending over axes: that of a copy which these shard, if there is one,
        since there the sums can be scattered.
        """
        copies = [] if value in self._lazy else self._of[value]
        states = (self.table[copy].state for copy in reversed(copies))
        return next((state for state in states if state.axes & pending and not state.partial), self.state(value))

    def first(self, value: int) -> int:
        """The oldest copy of a value."""
        return self._of[value][0]

    def last(self, value: int) -> int:
        """The newest copy of a value."""
        return self._of[value][-1]

    def is_lazy(self, value: int) -> bool:
        """Whether a value is a broadcast that is made where it is wanted."""
        return value in self._lazy

    def is_free(self, value: int) -> bool:
        """Whether a value is made of constants only."""
        return value not in self._lazy and self._of[value][0] in self._free

    def costs_nothing(self, copy: int) -> bool:
        """Whether a copy is made of constants only."""
        return copy in self._free

    def free(self, copy: int) -> None:
        """Let a copy cost nothing."""
        self._free.add(copy)

    @property
    def all_free(self) -> frozenset[int]:
        """Every copy that is made of constants only."""
        return frozenset(self._free)

    # -- trials ---------------------------------------------------------------------------------------------------

    def fork(self) -> Copies:
        """Copies as they are now, to try something out."""
        other = Copies(self._place)
        other.table = list(self.table)
        other.zero = set(self.zero)
        other.rings = dict(self.rings)
        other._of = {value: list(copies) for value, copies in self._of.items()}
        other._free = set(self._free)
        other._lazy = dict(self._lazy)
        return other

    # -- collectives ----------------------------------------------------------------------------------------------

    def _broadcast(self, value: int, state: State, site: Site) -> int:
        op = self._lazy[value]
        axes: list[Axes] = [()] * len(op.local)
        for dim, dim_axes in zip(op.result_dims[0], state.dims, strict=True):
            for i, each in zip(dim, dim_axes, strict=True):
                axes[i] = each
        here = Site(nodes=site.nodes, phase=op.phase, source=op.source)
        (source,), (dims,) = op.operands, op.operand_dims
        operand = self.obtain(source, State(sharding(dims, axes), state.partial), here)  # masked while it is small
        result = self.define(value, state)
        site.nodes.append(LocalOp(op=op, operands=(operand,), results=(result,), axes=tuple(axes)))
        return result

    def _convert(self, copy: int, want: State, site: Site) -> int:
        for kind, axes in steps(self.table[copy].state, want):
            copy = self._step(copy, want, kind, axes, site)
        return copy

    def _step(self, copy: int, want: State, kind: str, axes: Axes, site: Site) -> int:
        """One collective, towards the state that is wanted."""
        have = self.table[copy]
        new = self.define(have.value, after(have.state, want, kind, axes))
        gathers = kind == "all_gather"
        ring = {"all_gather": site.ring, "reduce_scatter": self.rings.get(copy, frozenset())}.get(kind, frozenset())
        if gathers and ring >= set(axes):  # one part is worked on while the next arrives, and none stays
            self.table[new] = replace(self.table[new], held=have.bytes * Term(2.0))
            self._of[have.value].remove(new)
        site.nodes.append(
            Reshard(
                kind=kind,
                axes=axes,
                operand=copy,
                result=new,
                bytes=self.table[new].bytes if gathers else have.bytes,
                phase=site.phase,
                source=site.source,
                ring=ring >= set(axes),
            )
        )
        return new

    def made_in_parts(self, results: Iterable[int], operands: Iterable[int], ring: frozenset[str]) -> None:
        """Note that partial results were made part by part, by a kernel on a ring or from operands that were."""
        if made := ring.union(*(self.rings.get(copy, ()) for copy in operands)):
            self.rings.update({copy: made for copy in results if self.table[copy].state.partial})


def _distance(have: State, want: State) -> int:
    """How many axes must communicate; a partial sum counts twice, since undoing it costs most."""
    moves = steps(have, want)
    return sum(len(axes) for kind, axes in moves if kind not in LOCAL) + len(have.partial - want.partial)
