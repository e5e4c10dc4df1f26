"""How an op is sharded: which mesh axes its local indices lie on, and over which it works on partial sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from perfmodel.copies import Copies
from perfmodel.graph import Graph, Loop, Node, Op
from perfmodel.placement import Placement
from perfmodel.state import Axes, State

RENAMED = ("broadcast_in_dim", "convert", "reshape", "transpose", "negate", "reverse")
"""Ops through which a sum only changes its form: it must be whole behind them if it must be whole before them."""

Uses: TypeAlias = Mapping[int, Sequence[tuple[Node, int]]]
"""The nodes that read each value, and as which operand."""


class Agreement:
    """What the operands of an op agree on, under a placement."""

    def __init__(self, graph: Graph, place: Placement) -> None:
        self._place = place
        self._uses = _uses(graph)
        self._early = _early(graph, place, self._uses)
        self._statistics = _statistics(graph, place)

    # -- partial sums ---------------------------------------------------------------------------------------------

    def passing(self, op: Op, states: Sequence[State], copies: Copies) -> frozenset[str]:
        """Axes over which the op may work on partial sums: it is linear, and every operand concerned is partial."""
        states = [
            State(state.dims) if value in self._early else state
            for value, state in zip(op.operands, states, strict=True)
        ]
        if op.kind == "dot_general":
            return self._through_matmul(op, states, copies)
        if not op.linear or not any(states[k].partial for k in op.linear):
            return frozenset()
        if op.kind == "pad" and self._place.expands(op):
            return frozenset()  # the gradient of a slice is smaller before zeros are put around it
        if op.kind == "convert" and self._place.widens(op):
            return self._waiting(op.operands[0], states[0])
        summands = [states[k] for k in op.linear if op.operands[k] not in copies.zero]
        whole = [k for k in range(len(states)) if k not in op.linear and not copies.is_free(op.operands[k])]
        others = [states[k].partial | states[k].axes for k in whole]
        common = frozenset.intersection(*(state.partial for state in summands)).difference(*others)
        if op.kind == "reduce" and len(self._uses[op.operands[0]]) > 1:
            # where others scatter the sum, each rank adds up its part
            common -= self._place.resting_state(op.operands[0]).axes
        if op.kind in ("add", "subtract") and (common or any(map(copies.is_lazy, op.operands))):
            # a summand that is whole over an axis can be counted once, so that the sum waits for all axes at once; a
            # broadcast (a bias) costs nothing to leave out on the other ranks
            together = frozenset().union(*(state.partial for state in summands))
            common |= {axis for axis in together if not any(axis in state.axes for state in summands)}
        return common

    def _through_matmul(self, op: Op, states: Sequence[State], copies: Copies) -> frozenset[str]:
        """A matmul is linear in each operand. Waiting pays where its result must be reduced anyway: later in the step
        (gradients of weights) or because the matmul itself sums over a sharded index; but an operand that comes to
        rest scattered is scattered first, and each rank multiplies its part. An axis that the matmul is spread over
        cannot stay pending: a part of one operand and a partial sum of the other do not fit.
        """
        if _resolves(op, self._place):
            return frozenset()
        left, right = (state.partial for state in states)
        scattered = [self._place.resting_state(v).axes for v in op.operands]
        waiting = (left - right - scattered[0]) | (right - left - scattered[1])
        if not waiting:
            return waiting
        spread = self.axes(op, [State(state.dims) for state in states], frozenset(), copies)
        return waiting.difference(*spread)

    def _waiting(self, value: int, state: State) -> frozenset[str]:
        """Axes over which a sum stays partial for long. Any other is reduced while its type is narrow: an activation's
        is needed soon, and a gradient kept scattered is scattered at once.
        """
        if self._place.is_activation(value):
            return frozenset()
        return self._place.at_rest(value, state, "gradients").partial

    # -- indices --------------------------------------------------------------------------------------------------

    def axes(self, op: Op, states: Sequence[State], passing: frozenset[str], copies: Copies) -> tuple[Axes, ...]:
        """Mesh axes of each local index: where the program itself pins it, then names as assigned, what constraints
        further on ask for, whatever shards the operands already, and the resting place of gradients for partial sums
        that must be resolved here.
        """
        claims = self._place.claims(op, self._in_order(op, states, copies), passing)
        for k, dims in enumerate(op.operand_dims):
            if not copies.is_free(op.operands[k]):
                for dim, dim_axes in zip(dims, states[k].dims, strict=True):
                    for i, axes in zip(dim, dim_axes, strict=True):
                        if i not in op.stepped:
                            claims.claim(i, axes)
        for k, dims in enumerate(op.operand_dims if op.results[0] not in self._statistics else ()):
            unresolved = states[k].partial - claims.taken
            for i in (i for dim in dims for i in dim):
                claims.claim(i, self._place.resting_axes(op.local[i], unresolved, "optimizer"))
        return claims.settled()

    def _in_order(self, op: Op, states: Sequence[State], copies: Copies) -> Sequence[int]:
        """Local indices in the order in which they may claim axes; of two over one factor (queries and keys of a
        sequence), that along which less must travel comes first, then that which softmax leaves.
        """
        order = self._place.by_priority(op)
        first = {op.local[i]: n for n, i in reversed(list(enumerate(order)))}
        if len(first) == len(order):
            return order
        costs = {i: (self._moved(op, i, states, copies), self._is_reduced(op, i, set())) for i in order}
        return sorted(order, key=lambda i: (first[op.local[i]], *costs[i]))

    def _moved(self, op: Op, index: int, states: Sequence[State], copies: Copies) -> float:
        """Elements that travel where an op is spread along this index, and not along another over the same factor: an
        operand that lies along the other is gathered, or half of it is passed on; a result that is summed, scattered.
        """
        others = [i for i, factor in enumerate(op.local) if factor == op.local[index] and i != index]
        results = zip(op.results, op.summed, strict=True)
        total = sum(self._place.elements(value) for value, summed in results if index in summed)
        for value, dims, state in zip(op.operands, op.operand_dims, states, strict=True):
            flat = {
                i: axes for dim, own in zip(dims, state.dims, strict=True) for i, axes in zip(dim, own, strict=True)
            }
            if not copies.is_free(value) and any(flat.get(i) for i in others):
                total += self._place.elements(value) * (0.5 if index in flat else 1.0)
        return total

    def _is_reduced(self, op: Op, i: int, seen: set[tuple[int, int, int]]) -> bool:
        """Whether an index of an op's results is summed over next, by an op that is no matmul."""
        return any(
            (value, d, k) not in seen and self._is_reduced_behind(value, d, k, seen)
            for value, dims in zip(op.results, op.result_dims, strict=True)
            for d, dim in enumerate(dims)
            for k, index in enumerate(dim)
            if index == i
        )

    def _is_reduced_behind(self, value: int, d: int, k: int, seen: set[tuple[int, int, int]]) -> bool:
        seen.add((value, d, k))
        for node, operand in self._uses.get(value, ()):
            if not isinstance(node, Loop) and node.kind != "dot_general":
                i = node.operand_dims[operand][d][k]
                if any(i in summed for summed in node.summed) or self._is_reduced(node, i, seen):
                    return True
        return False


# -- looking ahead ----------------------------------------------------------------------------------------------------


def _uses(graph: Graph) -> Uses:
    uses: dict[int, list[tuple[Node, int]]] = {}
    for node in _nodes(graph.nodes):
        for k, value in enumerate(node.operands):
            uses.setdefault(value, []).append((node, k))
    return uses


def _early(graph: Graph, place: Placement, uses: Uses) -> frozenset[int]:
    """Values with several uses, one of which needs sums whole: reducing them at once serves all."""
    loops = (node for node in _nodes(graph.nodes) if isinstance(node, Loop))
    carried = {value for loop in loops for value in loop.yields if place.is_activation(value)}

    def whole(value: int) -> bool:
        return value in carried or any(needed(node, k) for node, k in uses.get(value, ()))

    def needed(node: Node, k: int) -> bool:
        if isinstance(node, Loop):
            return True
        if node.kind in RENAMED or (node.kind == "dynamic_update_slice" and k == 1):
            return _spreads(node, place) or whole(node.results[0])
        return _resolves(node, place) if node.kind == "dot_general" else k not in node.linear

    return frozenset(value for value, each in uses.items() if len(each) + (value in carried) > 1 and whole(value))


def _resolves(matmul: Op, place: Placement) -> bool:
    """Whether a matmul wants whole operands: nothing would be summed over ranks behind it."""
    reduced = any(place.wanted[matmul.local[i]] for i in matmul.summed[0])
    return not reduced and place.is_activation(matmul.results[0])


def _spreads(op: Op, place: Placement) -> bool:
    """Whether an op gives what was summed over the batch to each of its members."""
    return place.is_activation(op.results[0]) and not place.is_activation(op.operands[0])


def _statistics(graph: Graph, place: Placement) -> frozenset[int]:
    """Values without a batch dim that activations are made from: unlike gradients, they rest nowhere."""
    found: set[int] = set()
    nodes = list(_nodes(graph.nodes))
    while True:
        before = len(found)
        for node in reversed(nodes):
            _trace_back(node, place, found)
        if len(found) == before:
            return frozenset(found)


def _trace_back(node: Node, place: Placement, found: set[int]) -> None:
    def reached(value: int) -> bool:
        return value in found or place.is_activation(value)

    if not isinstance(node, Loop):
        if any(map(reached, node.results)):
            found.update(node.operands)
        return
    for operand, parameter, given, result in zip(
        node.operands, node.parameters, node.yields, node.results, strict=True
    ):
        if reached(result) or reached(parameter):
            found.update((operand, given))


def _nodes(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        if isinstance(node, Loop):
            yield from _nodes(node.body)
