"""Derived collectives: what each rank holds and computes, and which values must travel, under an assignment.

A value's state is the mesh axes that shard each of its dims and the axes over which it is a partial sum. Every op
decides how its local indices are sharded; an operand in another state *is* a collective. Nothing here knows a
strategy by name, nor the size of any axis: sizes stay symbols (`perfmodel.work`).
"""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel.agreement import Agreement
from perfmodel.copies import Copies, Site
from perfmodel.graph import Graph, Loop, Node, Op
from perfmodel.layout import Assignment
from perfmodel.placement import Placement
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import Axes, State, sharding


def shard(graph: Graph, assignment: Assignment) -> ShardedGraph:
    """Derive local work and collectives of every op of `graph` under `assignment`."""
    return _Sharder(graph, assignment).run()


class _Sharder:
    def __init__(self, graph: Graph, assignment: Assignment) -> None:
        self.graph = graph
        self.assignment = assignment
        self.place = Placement(graph, assignment)
        self.agreement = Agreement(graph, self.place)
        self.copies = Copies(self.place)
        self.settled: dict[object, dict[int, State]] = {}  # what trial trips have found, by loop and what enters it

    def run(self) -> ShardedGraph:
        graph, copies = self.graph, self.copies
        parameters = [copies.define(p.value, self.place.resting_state(p.value, p.role)) for p in graph.parameters]
        nodes: list[LocalNode] = []
        self.nodes(graph.nodes, nodes)
        roles = {p.alias: p.role for p in graph.parameters if p.alias is not None}
        end = Site(nodes=nodes, phase="update", source="result")
        results = [
            copies.obtain(value, self.place.resting_state(value, roles.get(i)), end)
            for i, value in enumerate(graph.results)
        ]
        return ShardedGraph(
            graph=graph,
            assignment=self.assignment,
            copies=tuple(copies.table),
            parameters=tuple(parameters),
            nodes=tuple(nodes),
            results=tuple(results),
            free=copies.all_free,
        )

    # -- ops ------------------------------------------------------------------------------------------------------

    def nodes(self, nodes: Sequence[Node], out: list[LocalNode]) -> None:
        for node in nodes:
            if isinstance(node, Loop):
                self.loop(node, out)
            else:
                self.op(node, out)

    def op(self, op: Op, out: list[LocalNode]) -> None:
        copies = self.copies
        moves = self.moves(op)
        free = not moves and all(map(copies.is_free, op.operands))
        if op.kind == "broadcast_in_dim" and not free and self.place.expands(op):
            copies.postpone(op)
            return
        states = self.states(op)
        passing = frozenset() if free else self.agreement.passing(op, states, copies)
        axes = self.agreement.axes(op, states, passing, copies)
        site = Site(nodes=out, phase=op.phase, source=op.source, ring=frozenset() if free else self.ring(op, axes))
        obtain = copies.move if moves else copies.obtain
        operands = tuple(
            obtain(value, State(sharding(dims, axes), partial), site)
            for value, dims, partial in zip(op.operands, op.operand_dims, _carried_in(op, states, passing), strict=True)
        )
        results = []
        for value, dims, summed in zip(op.results, op.result_dims, op.summed, strict=True):
            partial = frozenset() if free else passing | {axis for i in summed for axis in axes[i]}
            results.append(copies.define(value, State(sharding(dims, axes), partial), free=free))
        copies.made_in_parts(results, operands, site.ring)
        if op.kind == "zeros":
            copies.zero.update(op.results)
        if op.kind == "collective_permute":
            out.append(self.permute(op, operands[0], results[0], axes))
        else:
            out.append(LocalOp(op=op, operands=operands, results=tuple(results), axes=axes))
        if op.reducer != "add":  # a maximum over ranks can't be carried along like a sum
            for copy in results:
                copies.obtain(copies.table[copy].value, State(copies.table[copy].state.dims, passing), site)

    def moves(self, op: Op) -> bool:
        """Whether the program itself has the ranks of a `shard_map` exchange values: they do so with constants too."""
        crossed = (*op.blocked, *op.summed[0]) if op.kind == "reshape" else ()
        return op.kind == "collective_permute" or any(self.graph.factors[op.local[i]].bound for i in crossed)

    def states(self, op: Op) -> list[State]:
        """The states of an op's operands; what is added to a pending sum is taken where the sum can be scattered."""
        states = list(map(self.copies.state, op.operands))
        pending = frozenset().union(*(state.partial for state in states))
        if op.kind in ("add", "subtract") and pending:
            return [self.copies.beside(value, pending) for value in op.operands]
        return states

    def ring(self, op: Op, axes: Sequence[Axes]) -> frozenset[str]:
        """Axes over which a marked kernel is spread along one index while it needs all of its like."""
        if not self.assignment.ring or not op.kind.startswith("perfmodel."):
            return frozenset()
        twice = {factor for factor in op.local if op.local.count(factor) > 1}
        return frozenset(axis for i, own in enumerate(axes) if op.local[i] in twice for axis in own)

    def permute(self, op: Op, operand: int, result: int, axes: Sequence[Axes]) -> Reshard:
        """A message from each rank to another, along the index that the program has bound to a mesh axis."""
        return Reshard(
            kind="permute",
            axes=tuple(axis for i, _ in op.pinned for axis in axes[i]),
            operand=operand,
            result=result,
            bytes=self.copies.table[operand].bytes,
            phase=op.phase,
            source=op.source,
        )

    # -- loops ----------------------------------------------------------------------------------------------------

    def loop(self, loop: Loop, out: list[LocalNode]) -> None:
        copies = self.copies
        site = Site(nodes=out, phase=loop.phase, source=loop.source)
        operands = [self.carried(loop, k, site) for k in range(len(loop.operands))]
        for k, state in self.accumulators(loop, operands).items():
            operands[k] = copies.obtain(loop.operands[k], state, site)
        parameters = tuple(self.parameter(loop, k, operand) for k, operand in enumerate(operands))
        body: list[LocalNode] = []
        self.nodes(loop.body, body)
        inside = Site(nodes=body, phase=loop.phase, source=loop.source)
        yields = tuple(
            copies.obtain(y, copies.table[p].state, inside) for y, p in zip(loop.yields, parameters, strict=True)
        )
        results = tuple(copies.define(r, copies.table[p].state) for r, p in zip(loop.results, parameters, strict=True))
        out.append(
            LocalLoop(
                loop=loop,
                trips=self.place.trips(loop.trip),
                axes=self.place.wanted[loop.trip],
                operands=tuple(operands),
                parameters=parameters,
                body=tuple(body),
                yields=yields,
                results=results,
            )
        )

    def carried(self, loop: Loop, k: int, site: Site) -> int:
        """The copy of a loop operand that enters the loop: no partial sum does."""
        value, copies = loop.operands[k], self.copies
        changes = loop.parameters[k] != loop.yields[k]
        if copies.is_lazy(value):
            return copies.obtain(value, self.place.resting_state(value), site)
        copy = copies.last(value) if changes else copies.first(value)
        if copies.costs_nothing(copy) or (changes and self.place.is_activation(value)):
            return copies.obtain(value, self.place.resting_state(value), site)
        state = copies.table[copy].state
        if not state.partial:
            return copy
        return copies.obtain(value, State(self.place.at_rest(value, state, "optimizer").dims), site)

    def parameter(self, loop: Loop, k: int, operand: int) -> int:
        """The copy that a loop's body sees; constants that every trip reads stay free."""
        free = loop.parameters[k] == loop.yields[k] and self.copies.costs_nothing(operand)
        return self.copies.define(loop.parameters[k], self.copies.table[operand].state, free=free)

    def accumulators(self, loop: Loop, operands: Sequence[int]) -> dict[int, State]:
        """States of what a loop adds up from zero, or fills: what one trial trip leaves in them, with gradients at rest
        where they are kept.
        """
        slots = [
            k
            for k, (parameter, left) in enumerate(zip(loop.parameters, loop.yields, strict=True))
            if parameter != left and self.begins_anywhere(loop.operands[k], operands[k])
        ]
        entering = [(self.copies.table[copy].state, self.copies.costs_nothing(copy)) for copy in operands]
        key = (id(loop), tuple(slots), tuple(entering))
        if slots and key not in self.settled:
            self.settled[key] = self.trial(loop, operands, slots)
        return self.settled.get(key, {})

    def begins_anywhere(self, value: int, copy: int) -> bool:
        """Whether it takes nothing to have a value in another state: zeros, and constants that activations replace
        (some element types have no zero).
        """
        return value in self.copies.zero or (self.copies.costs_nothing(copy) and self.place.is_activation(value))

    def trial(self, loop: Loop, operands: Sequence[int], slots: Sequence[int]) -> dict[int, State]:
        """What one trip leaves in accumulators that may be in any state."""
        kept, self.copies = self.copies, self.copies.fork()
        for k, parameter in enumerate(loop.parameters):
            copy = self.parameter(loop, k, operands[k])
            if k in slots:
                self.copies.free(copy)
            if k in slots and loop.operands[k] in self.copies.zero:
                self.copies.zero.add(parameter)
        self.nodes(loop.body, [])
        left = {k: self.copies.state(loop.yields[k]) for k in slots}
        self.copies = kept
        return {k: self.accumulator_state(loop.parameters[k], state) for k, state in left.items()}

    def accumulator_state(self, value: int, state: State) -> State:
        if not self.place.is_activation(value):
            return self.place.at_rest(value, state, "gradients")
        return State(state.dims) if self.place.repeats(value) else self.place.left_at_rest(value, state)


def _carried_in(op: Op, states: Sequence[State], passing: frozenset[str]) -> list[frozenset[str]]:
    """Axes over which each operand enters as a partial sum."""
    if op.kind == "dot_general":
        return [passing & state.partial for state in states]
    return [passing if k in op.linear else frozenset() for k in range(len(states))]
