"""What an assignment wants of a graph: how its values lie while nobody uses them, and how large they are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from perfmodel.graph import DTYPE_BYTES, Dims, Graph, Op
from perfmodel.layout import Assignment, Rules
from perfmodel.pins import CONSTRAINT, pins
from perfmodel.state import Axes, Claims, State, mesh_axes, unclaimed
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
        self._multiplied = frozenset(self._weights()) if self._pins.factors else frozenset()
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
        for factor, d, i in self._pinned_places(dims):
            won = unclaimed(self._pins.factors[factor], taken)
            given[d, i] = given.get((d, i), ()) + won
            taken.update(won)
        return State(tuple(tuple(given.get((d, i), ()) for i in range(len(dim))) for d, dim in enumerate(dims)))

    def _pinned_places(self, dims: Dims) -> list[tuple[int, int, int]]:
        """(factor, dim, position in the dim) of what is pinned, in the order in which it may claim axes."""
        pinned = self._pins.factors
        found = [(f, d, i) for d, dim in enumerate(dims) for i, f in enumerate(dim) if f in pinned] if pinned else []
        return sorted(found, key=lambda place: self._is_secondary(place[0]))

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

    def left_at_rest(self, value: int, state: State) -> State:
        """Where a value rests that was made in `state`: what no name gives a place to (the rows of an expert, of which
        a part lies wherever a part of a sequence does) stays where it was made.
        """
        rest = self.resting_state(value)
        dims = []
        for dim, kept, made in zip(self._graph.values[value].dims, rest.dims, state.dims, strict=True):
            row = zip(dim, kept, made, strict=True)
            dims.append(tuple(k if self.wanted[f] else tuple(a for a in m if a not in rest.axes) for f, k, m in row))
        return State(tuple(dims))

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
        return -1 if entry.bound else self._rank.get(entry.name or "", len(self._rank) + self._is_secondary(factor))

    def _is_secondary(self, factor: int) -> bool:
        """Of what is pinned, weights come before what only activations have, as names of weights come before `seq`."""
        return factor not in self._multiplied

    def _weights(self) -> Iterator[int]:
        """Factors of what activations are multiplied with."""
        for _, op in self._graph.walk():
            if any(map(self.is_activation, op.operands)) and any(work.engine == "tensor" for work in op.work):
                for value in (*op.operands, *op.results):
                    if not self.is_activation(value):
                        yield from (factor for dim in self._graph.values[value].dims for factor in dim)

    def asked(self, op: Op) -> Iterator[tuple[int, Axes]]:
        """Axes that the program's constraints ask for on the local indices of an op: of factors, then results."""
        for factor, _, i in self._pinned_places((op.local,)):
            yield i, self._pins.factors[factor]
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

    def pinned(self, op: Op) -> Iterator[tuple[int, Axes]]:
        """Axes that the program itself gives local indices of an op. What a constraint has whole stays in parts where
        nobody reads it whole: compilers gather nothing of which each rank keeps its own part.
        """
        for i, axes in sorted(op.pinned, key=lambda pin: not pin[1]):  # what it splits comes first
            yield i, mesh_axes(axes) or (self._parts(op, i) if op.kind == CONSTRAINT else ())

    def _parts(self, constraint: Op, index: int) -> Axes:
        """Axes over which all that read a constraint's result are spread along one of its indices."""
        (result,), (dims,) = constraint.results, constraint.result_dims
        ((d, k),) = ((d, k) for d, dim in enumerate(dims) for k, i in enumerate(dim) if i == index)
        readers = self._pins.readers.get(result, ())
        spread = {self.computed(op)[op.operand_dims[operand][d][k]] if _is_plain(op) else () for op, operand in readers}
        if result in self._pins.kept:
            spread.add(self.resting_state(result).dims[d][k])
        return spread.pop() if len(spread) == 1 else ()

    def computed(self, op: Op) -> tuple[Axes, ...]:
        """Mesh axes of each local index of an op, wherever its operands lie."""
        return self.claims(op, self.by_priority(op)).settled()

    def claims(self, op: Op, order: Sequence[int], passing: Iterable[str] = ()) -> Claims:
        """What an op's local indices claim of the axes that are not `passing`: where the program itself pins them, then
        by name, in order, then what its constraints further on ask for.
        """
        claims = Claims(len(op.local), op.tied, passing)
        for i, axes in self.pinned(op):
            claims.claim(i, axes)
        claims.closed.update([*op.blocked, *(i for i, _ in op.pinned), *(follower for follower, _ in op.tied)])
        for i in order:
            claims.claim(i, self.wanted[op.local[i]])
        for i, axes in self.asked(op):
            claims.claim(i, axes)
        return claims

    def expands(self, op: Op) -> bool:
        """Whether the result has more elements than the operand."""
        return self._graph.elements(op.results[0]) > self._graph.elements(op.operands[0])

    def widens(self, op: Op) -> bool:
        """Whether the result has a wider element type than the operand."""
        source, target = (self._graph.values[v].dtype for v in (op.operands[0], op.results[0]))
        return DTYPE_BYTES[target] > DTYPE_BYTES[source]


def _is_plain(op: Op) -> bool:
    """Whether no two of an op's indices range over one factor: where such an op lies depends on its operands."""
    return len(set(op.local)) == len(op.local)
