"""What an assignment wants of a graph: how its values lie while nobody uses them, and how large they are there."""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel.graph import DTYPE_BYTES, Graph, Op
from perfmodel.layout import Assignment, Rules
from perfmodel.state import Axes, State, unclaimed
from perfmodel.work import Term, resized


class Placement:
    """A graph seen through an assignment; it never changes.

    wanted: mesh axes that each factor is computed over
    """

    def __init__(self, graph: Graph, assignment: Assignment) -> None:
        self._graph = graph
        self._compute = assignment.compute
        self._stored = {role: dict(rules) for role, rules in assignment.stored.items()}
        self._rank = {name: i for i, (name, _) in enumerate(assignment.compute)}
        compute = dict(assignment.compute)
        self.wanted = [compute.get(factor.name or "", ()) for factor in graph.factors]

    # -- values ---------------------------------------------------------------------------------------------------

    def resting_state(self, value: int, role: str | None = None) -> State:
        """The state of a value while it is only kept: as `role` stores it, else as it is computed."""
        stored = self._stored.get(role, {}) if role is not None else {}
        return self._claimed(value, (*stored.items(), *self._compute))

    def _claimed(self, value: int, rules: Rules) -> State:
        """Every name gets its axes, earlier rules first."""
        dims = self._graph.values[value].dims
        claims = [(d, i, self._graph.factors[f].name) for d, dim in enumerate(dims) for i, f in enumerate(dim)]
        taken: set[str] = set()
        given: dict[tuple[int, int], Axes] = {}
        for name, axes in rules:
            for d, i, claimed in claims:
                if claimed == name:
                    won = unclaimed(axes, taken)
                    given[d, i] = given.get((d, i), ()) + won
                    taken.update(won)
        return State(tuple(tuple(given.get((d, i), ()) for i in range(len(dim))) for d, dim in enumerate(dims)))

    def at_rest(self, value: int, state: State, role: str) -> State:
        """`state` with its partial sums moved to the dims that `role` keeps sharded."""
        partial = set(state.partial)
        dims = []
        for dim, dim_axes in zip(self._graph.values[value].dims, state.dims, strict=True):
            row = []
            for factor, axes in zip(dim, dim_axes, strict=True):
                here = self.resting_axes(factor, partial, role)
                partial.difference_update(here)
                row.append((*axes, *here))
            dims.append(tuple(row))
        return State(tuple(dims), frozenset(partial))

    def bytes(self, value: int, state: State) -> Term:
        """Bytes of a value on each rank."""
        size = Term(self._graph.bytes(value))
        for dim, dim_axes in zip(self._graph.values[value].dims, state.dims, strict=True):
            for factor, axes in zip(dim, dim_axes, strict=True):
                size = self._resized(size, factor).times(axes, -1)
        return size

    def is_activation(self, value: int) -> bool:
        """Whether a value has a batch dim; sums over ranks of any other value are gradients or statistics."""
        return any(self._graph.factors[f].name == "batch" for dim in self._graph.values[value].dims for f in dim)

    # -- factors --------------------------------------------------------------------------------------------------

    def resting_axes(self, factor: int, partial: set[str] | frozenset[str], role: str) -> Axes:
        """Which axes of a partial sum come to rest on a factor, where `role` keeps it sharded."""
        kept = self._stored.get(role, {}).get(self._graph.factors[factor].name or "", ())
        return tuple(axis for axis in kept if axis in partial)

    def by_priority(self, op: Op) -> Sequence[int]:
        """Local indices of an op that are wanted on mesh axes, in the order in which they may claim them."""
        indices = (i for i, factor in enumerate(op.local) if self.wanted[factor])
        return sorted(indices, key=lambda i: (self._rank[self._graph.factors[op.local[i]].name or ""], i))

    def trips(self, factor: int) -> Term:
        """How often a rank runs a loop over a factor."""
        size = self._resized(Term(float(self._graph.factors[factor].size)), factor)
        return size.times(self.wanted[factor], -1)

    def _resized(self, term: Term, factor: int) -> Term:
        entry = self._graph.factors[factor]
        return resized(term, entry.name, entry.size)

    # -- ops ------------------------------------------------------------------------------------------------------

    def expands(self, op: Op) -> bool:
        """Whether the result has more elements than the operand."""
        return self._graph.elements(op.results[0]) > self._graph.elements(op.operands[0])

    def widens(self, op: Op) -> bool:
        """Whether the result has a wider element type than the operand."""
        source, target = (self._graph.values[v].dtype for v in (op.operands[0], op.results[0]))
        return DTYPE_BYTES[target] > DTYPE_BYTES[source]
