"""What an assignment wants of a graph: how its values lie while nobody uses them, and how large they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perfmodel.graph import DTYPE_BYTES, Graph, Op
from perfmodel.layout import Assignment, Rules
from perfmodel.pins import pins
from perfmodel.state import Axes, State, mesh_axes, unclaimed
from perfmodel.work import Term, resized


class Placement:
    """A graph seen through an assignment; what it says never changes.

    wanted: mesh axes that each factor is computed over
    """

    def __init__(self, graph: Graph, assignment: Assignment) -> None:
        self._graph = graph
        self._compute = assignment.compute
        self._stored = {role: dict(rules) for role, rules in assignment.stored.items()}
        self._whole: dict[int, Term] = {}  # bytes of values on one rank
        self._rank = {name: i for i, (name, _) in enumerate(assignment.compute)}
        compute = dict(assignment.compute)
        self._pins = pins(graph)
        self.wanted = [
            mesh_axes(factor.bound) or compute.get(factor.name or "", ()) or self._pins.factors.get(i, ())
            for i, factor in enumerate(graph.factors)
        ]

    # -- values ---------------------------------------------------------------------------------------------------

    def resting_state(self, value: int, role: str | None = None) -> State:
        """The state of a value while it is only kept: as `role` stores it, else as it is computed."""
        stored = self._stored.get(role, {}) if role is not None else {}
        return self._claimed(value, (*stored.items(), *self._compute))

    def _claimed(self, value: int, rules: Rules) -> State:
        """Every name gets its axes, earlier rules first."""
        dims = self._graph.values[value].dims
        factors = [(d, i, self._graph.factors[f]) for d, dim in enumerate(dims) for i, f in enumerate(dim)]
        claims = [(d, i, factor.name) for d, i, factor in factors if not factor.bound]
        given: dict[tuple[int, int], Axes] = {(d, i): mesh_axes(f.bound) for d, i, f in factors if f.bound}
        taken = {axis for axes in given.values() for axis in axes}
        for name, axes in rules:
            for d, i, claimed in claims:
                if claimed == name:
                    won = unclaimed(axes, taken)
                    given[d, i] = given.get((d, i), ()) + won
                    taken.update(won)
        for d, i, _ in factors if self._pins.factors else ():
            won = unclaimed(self._pins.factors.get(dims[d][i], ()), taken)
            given[d, i] = given.get((d, i), ()) + won
            taken.update(won)
        return State(tuple(tuple(given.get((d, i), ()) for i in range(len(dim))) for d, dim in enumerate(dims)))

    def whole(self, value: int) -> State:
        """The state of a value that lies whole on every rank."""
        return State(tuple(((),) * len(dim) for dim in self._graph.values[value].dims))

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
        if value not in self._whole:
            whole = Term(self._graph.bytes(value))
            for factor in (f for dim in self._graph.values[value].dims for f in dim):
                whole = self._resized(whole, factor)
            self._whole[value] = whole
        return self._whole[value].times([axis for dim in state.dims for axes in dim for axis in axes], -1)

    def repeats(self, value: int) -> bool:
        """Whether a value ranges over a factor twice, so that either of two dims could be sharded."""
        factors = [f for dim in self._graph.values[value].dims for f in dim]
        return len(set(factors)) < len(factors)

    def elements(self, value: int) -> float:
        """How many elements a value has in all, as it was traced."""
        return self._graph.elements(value)

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
        return sorted(indices, key=lambda i: (self._rank_of(op.local[i]), i))

    def _rank_of(self, factor: int) -> int:
        """What the program itself has bound comes before any rule, what it has pinned somewhere behind all."""
        entry = self._graph.factors[factor]
        return -1 if entry.bound else self._rank.get(entry.name or "", len(self._rank))

    def asked(self, op: Op) -> Iterator[tuple[int, Axes]]:
        """Axes that the program's constraints ask for on the local indices of an op's results."""
        for value, dims in zip(op.results, op.result_dims, strict=True) if self._pins.values else ():
            for (d, k), axes in self._pins.values.get(value, {}).items():
                yield dims[d][k], axes

    def trips(self, factor: int) -> Term:
        """How often a rank runs a loop over a factor."""
        size = self._resized(Term(float(self._graph.factors[factor].size)), factor)
        return size.times(self.wanted[factor], -1)

    def _resized(self, term: Term, factor: int) -> Term:
        entry = self._graph.factors[factor]
        return resized(term, entry.name, entry.named_size)

    # -- ops ------------------------------------------------------------------------------------------------------

    def expands(self, op: Op) -> bool:
        """Whether the result has more elements than the operand."""
        return self._graph.elements(op.results[0]) > self._graph.elements(op.operands[0])

    def widens(self, op: Op) -> bool:
        """Whether the result has a wider element type than the operand."""
        source, target = (self._graph.values[v].dtype for v in (op.operands[0], op.results[0]))
        return DTYPE_BYTES[target] > DTYPE_BYTES[source]
