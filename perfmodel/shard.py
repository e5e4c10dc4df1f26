"""Derived collectives: what each rank holds and computes, and which values must travel, under an assignment.

A value's state is the mesh axes that shard each of its dims and the axes over which it is a partial sum. Every op
decides how its local indices are sharded; an operand in another state *is* a collective. Nothing here knows a
strategy by name, nor the size of any axis: sizes stay symbols (`perfmodel.work`).
"""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel.graph import Graph, Loop, Op
from perfmodel.layout import Assignment
from perfmodel.placement import Placement
from perfmodel.sharded import Copy, LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import LOCAL, Axes, State, after, sharding, steps, unclaimed


def shard(graph: Graph, assignment: Assignment) -> ShardedGraph:
    """Derive local work and collectives of every op of `graph` under `assignment`."""
    return _Sharder(graph, assignment).run()


class _Sharder:
    def __init__(self, graph: Graph, assignment: Assignment) -> None:
        self.graph = graph
        self.assignment = assignment
        self.place = Placement(graph, assignment)
        self.copies: list[Copy] = []
        self.env: dict[int, list[int]] = {}  # graph value -> copies of it, oldest first
        self.free: set[int] = set()  # copies made of constants only: any state costs nothing
        self.zero: set[int] = set()  # graph values known to be zero: partial and whole at once
        self.lazy: dict[int, Op] = {}  # broadcasts, made in whatever state a consumer asks for

    def run(self) -> ShardedGraph:
        graph = self.graph
        parameters = [self.define(p.value, self.place.resting_state(p.value, p.role)) for p in graph.parameters]
        nodes: list[LocalNode] = []
        self.nodes(graph.nodes, nodes)
        roles = {p.alias: p.role for p in graph.parameters if p.alias is not None}
        results = [
            self.obtain(value, self.place.resting_state(value, roles.get(i)), nodes, "update", "result")
            for i, value in enumerate(graph.results)
        ]
        return ShardedGraph(
            graph=graph,
            assignment=self.assignment,
            copies=tuple(self.copies),
            parameters=tuple(parameters),
            nodes=tuple(nodes),
            results=tuple(results),
            free=frozenset(self.free),
        )

    # -- values ---------------------------------------------------------------------------------------------------

    def define(self, value: int, state: State, *, free: bool = False) -> int:
        """A new copy of a value."""
        self.copies.append(Copy(value, state, self.place.bytes(value, state)))
        copy = len(self.copies) - 1
        self.env.setdefault(value, []).append(copy)
        if free:
            self.free.add(copy)
        return copy

    def obtain(self, value: int, state: State, out: list[LocalNode], phase: str, source: str) -> int:
        """A copy of `value` in `state`, made by the cheapest collectives from the copies at hand."""
        copies = self.env.get(value, [])
        for copy in copies:
            if self.copies[copy].state == state:
                return copy
        if value in self.lazy:
            return self._broadcast(value, state, out)
        if copies[0] in self.free:
            return self.define(value, state, free=True)
        start = min(copies, key=lambda copy: (self._distance(self.copies[copy].state, state), -copy))
        return self._convert(start, state, out, phase, source)

    def _broadcast(self, value: int, state: State, out: list[LocalNode]) -> int:
        """A copy of a broadcast value: cheaper made anew in each state than moved."""
        op = self.lazy[value]
        axes: list[Axes] = [()] * len(op.local)
        for dim, dim_axes in zip(op.result_dims[0], state.dims, strict=True):
            for i, each in zip(dim, dim_axes, strict=True):
                axes[i] = each
        (source,), (dims,) = op.operands, op.operand_dims
        operand = self.obtain(source, State(sharding(dims, axes)), out, op.phase, op.source)
        result = self.define(value, State(state.dims))
        out.append(LocalOp(op=op, operands=(operand,), results=(result,), axes=tuple(axes)))
        return self._convert(result, state, out, op.phase, op.source)

    def state(self, value: int) -> State:
        """The state a value is in now; a broadcast is in none."""
        if value in self.lazy:
            return State(tuple(((),) * len(dim) for dim in self.graph.values[value].dims))
        return self.copies[self.env[value][-1]].state

    def is_free(self, value: int) -> bool:
        """Whether a value is made of constants only."""
        return value not in self.lazy and self.env[value][0] in self.free

    def _distance(self, have: State, want: State) -> int:
        """How many axes must communicate; a partial sum counts twice, since undoing it costs most."""
        moves = steps(have, want)
        return sum(len(axes) for kind, axes in moves if kind not in LOCAL) + len(have.partial - want.partial)

    def _convert(self, copy: int, want: State, out: list[LocalNode], phase: str, source: str) -> int:
        for kind, axes in steps(self.copies[copy].state, want):
            have = self.copies[copy]
            state = after(have.state, want, kind, axes)
            new = self.define(have.value, state)
            size = self.copies[new].bytes if kind == "all_gather" else have.bytes
            reshard = Reshard(kind=kind, axes=axes, operand=copy, result=new, bytes=size, phase=phase, source=source)
            out.append(reshard)
            copy = new
        return copy

    # -- ops ------------------------------------------------------------------------------------------------------

    def nodes(self, nodes: Sequence[Op | Loop], out: list[LocalNode]) -> None:
        for node in nodes:
            if isinstance(node, Loop):
                self.loop(node, out)
            else:
                self.op(node, out)

    def op(self, op: Op, out: list[LocalNode]) -> None:
        free = all(self.is_free(v) for v in op.operands)
        if op.kind == "broadcast_in_dim" and not free and self.place.expands(op):
            self.lazy[op.results[0]] = op
            return
        states = [self.state(v) for v in op.operands]
        passing = frozenset() if free else self.passing(op, states)
        axes = self.local_axes(op, states, passing)
        operands = tuple(
            self.obtain(v, State(sharding(dims, axes), partial), out, op.phase, op.source)
            for v, dims, partial in zip(
                op.operands, op.operand_dims, self._carried_in(op, states, passing), strict=True
            )
        )
        results = []
        unreduced = []
        for value, dims, summed in zip(op.results, op.result_dims, op.summed, strict=True):
            partial = frozenset() if free else passing | {axis for i in summed for axis in axes[i]}
            state = State(sharding(dims, axes), partial)
            results.append(self.define(value, state, free=free))
            if partial and op.reducer != "add":
                unreduced.append((value, State(state.dims)))
        if op.kind == "zeros":
            self.zero.update(op.results)
        out.append(LocalOp(op=op, operands=operands, results=tuple(results), axes=axes))
        for value, state in unreduced:  # a maximum over ranks can't be carried along like a sum
            self.obtain(value, state, out, op.phase, op.source)

    def _carried_in(self, op: Op, states: Sequence[State], passing: frozenset[str]) -> list[frozenset[str]]:
        """Axes over which each operand enters as a partial sum."""
        if op.kind == "dot_general":
            return [passing & state.partial for state in states]
        return [passing if k in op.linear else frozenset() for k in range(len(states))]

    def passing(self, op: Op, states: Sequence[State]) -> frozenset[str]:
        """Axes over which the op may work on partial sums: it is linear, and every operand concerned is partial."""
        if op.kind == "dot_general":
            return self._through_matmul(op, states)
        if not op.linear or not any(states[k].partial for k in op.linear):
            return frozenset()
        if op.kind == "convert" and self.place.widens(op):
            return self._waiting(op.operands[0], states[0])
        summands = [states[k] for k in op.linear if op.operands[k] not in self.zero]
        others = [states[k].partial for k in range(len(states)) if k not in op.linear]
        common = frozenset.intersection(*(state.partial for state in summands)).difference(*others)
        if op.kind in ("add", "subtract") and common:
            # a summand that is whole over an axis can be counted once, so that the sum waits for all axes at once
            together = frozenset().union(*(state.partial for state in summands))
            common |= {axis for axis in together if not any(axis in state.axes for state in summands)}
        return common

    def _through_matmul(self, op: Op, states: Sequence[State]) -> frozenset[str]:
        """A matmul is linear in each operand. Waiting pays where its result must be reduced anyway: later in the step
        (gradients of weights) or because the matmul itself sums over a sharded index; but an operand that comes to
        rest scattered is scattered first, and each rank multiplies its part.
        """
        reduced = any(self.place.wanted[op.local[i]] for i in op.summed[0])
        if not reduced and self.place.is_activation(op.results[0]):
            return frozenset()
        left, right = (state.partial for state in states)
        scattered = [self.place.resting_state(v).axes for v in op.operands]
        return (left - right - scattered[0]) | (right - left - scattered[1])

    def _waiting(self, value: int, state: State) -> frozenset[str]:
        """Axes over which a sum stays partial for long. Any other is reduced while its type is narrow: an activation's
        is needed soon, and a gradient kept scattered is scattered at once.
        """
        return frozenset() if self.place.is_activation(value) else self.place.at_rest(value, state, "gradients").partial

    def local_axes(self, op: Op, states: Sequence[State], passing: frozenset[str]) -> tuple[Axes, ...]:
        """Mesh axes of each local index: names as assigned, then whatever shards the operands already, then the
        resting place of gradients for partial sums that must be resolved here.
        """
        chosen: list[Axes] = [()] * len(op.local)
        taken = set(passing)
        blocked = set(op.blocked)

        def claim(i: int, axes: Sequence[str]) -> None:
            if won := unclaimed(axes, taken) if axes else ():
                chosen[i] = (*chosen[i], *won)
                taken.update(won)

        for i in self.place.by_priority(op):
            if i not in blocked:
                claim(i, self.place.wanted[op.local[i]])
        for k, dims in enumerate(op.operand_dims):
            if self.is_free(op.operands[k]):
                continue
            for dim, dim_axes in zip(dims, states[k].dims, strict=True):
                for i, axes in zip(dim, dim_axes, strict=True):
                    if i not in blocked and i not in op.stepped:
                        claim(i, axes)
        for k, dims in enumerate(op.operand_dims):
            unresolved = states[k].partial - taken
            for i in (i for dim in dims for i in dim if i not in blocked):
                claim(i, self.place.resting_axes(op.local[i], unresolved, "optimizer"))
        return tuple(chosen)

    # -- loops ----------------------------------------------------------------------------------------------------

    def loop(self, loop: Loop, out: list[LocalNode]) -> None:
        operands = [self.carried(loop, k, out) for k in range(len(loop.operands))]
        accumulates = [
            value in self.zero and loop.parameters[k] != loop.yields[k] for k, value in enumerate(loop.operands)
        ]
        settled = self._settle(loop, operands, accumulates) if any(accumulates) else {}
        for k, state in settled.items():
            operands[k] = self.obtain(loop.operands[k], state, out, loop.phase, loop.source)
        parameters = tuple(self.parameter(loop, k, operand) for k, operand in enumerate(operands))
        body: list[LocalNode] = []
        self.nodes(loop.body, body)
        yields = tuple(
            self.obtain(y, self.copies[p].state, body, loop.phase, loop.source)
            for y, p in zip(loop.yields, parameters, strict=True)
        )
        results = tuple(self.define(r, self.copies[p].state) for r, p in zip(loop.results, parameters, strict=True))
        axes = self.place.wanted[loop.trip]
        out.append(
            LocalLoop(
                loop=loop,
                trips=self.place.trips(loop.trip),
                axes=axes,
                operands=tuple(operands),
                parameters=parameters,
                body=tuple(body),
                yields=yields,
                results=results,
            )
        )

    def carried(self, loop: Loop, k: int, out: list[LocalNode]) -> int:
        """The copy of a loop operand that enters the loop: no partial sum does."""
        value = loop.operands[k]
        if value in self.lazy:
            return self.obtain(value, self.place.resting_state(value), out, loop.phase, loop.source)
        copy = self.env[value][0] if loop.parameters[k] == loop.yields[k] else self.env[value][-1]
        state = self.copies[copy].state
        if copy in self.free or (loop.parameters[k] != loop.yields[k] and self.place.is_activation(value)):
            return self.obtain(value, self.place.resting_state(value), out, loop.phase, loop.source)
        if not state.partial:
            return copy
        rest = self.place.at_rest(value, state, "optimizer")
        return self.obtain(value, State(rest.dims), out, loop.phase, loop.source)

    def parameter(self, loop: Loop, k: int, operand: int) -> int:
        """The copy that a loop's body sees; constants that every trip reads stay free."""
        unchanging = loop.parameters[k] == loop.yields[k]
        return self.define(loop.parameters[k], self.copies[operand].state, free=unchanging and operand in self.free)

    def _settle(self, loop: Loop, operands: Sequence[int], accumulates: Sequence[bool]) -> dict[int, State]:
        """States of accumulators: what one trial trip leaves in them, with gradients at rest where they are kept."""
        saved = (
            {v: list(c) for v, c in self.env.items()},
            len(self.copies),
            set(self.free),
            set(self.zero),
            dict(self.lazy),
        )
        for k, parameter in enumerate(loop.parameters):
            copy = self.parameter(loop, k, operands[k])
            if accumulates[k]:
                self.free.add(copy)
                self.zero.add(parameter)
        self.nodes(loop.body, [])
        settled = {}
        for k, value in enumerate(loop.yields):
            if accumulates[k]:
                settled[k] = self._accumulator_state(loop.parameters[k], self.state(value))
        self.env, count, self.free, self.zero, self.lazy = saved
        del self.copies[count:]
        return settled

    def _accumulator_state(self, value: int, state: State) -> State:
        if self.place.is_activation(value):
            return self.place.resting_state(value)
        return self.place.at_rest(value, state, "gradients")
