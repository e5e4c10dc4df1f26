"""How an op is sharded: which mesh axes its local indices lie on, and over which it works on partial sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from perfmodel.copies import Copies
from perfmodel.graph import Graph, Loop, Node, Op
from perfmodel.placement import Placement
from perfmodel.state import Axes, State, mesh_axes, unclaimed

RENAMED = ("convert", "reshape", "transpose", "negate", "reverse")
"""Ops through which a sum only changes its form: it must be whole behind them if it must be whole before them."""


class Agreement:
    """What the operands of an op agree on, under a placement."""

    def __init__(self, graph: Graph, place: Placement) -> None:
        self._place = place
        self._early = _early(graph, place)

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
        if op.kind == "convert" and self._place.widens(op):
            return self._waiting(op.operands[0], states[0])
        summands = [states[k] for k in op.linear if op.operands[k] not in copies.zero]
        whole = [k for k in range(len(states)) if k not in op.linear and not copies.is_free(op.operands[k])]
        others = [states[k].partial | states[k].axes for k in whole]
        common = frozenset.intersection(*(state.partial for state in summands)).difference(*others)
        if op.kind in ("add", "subtract") and common:
            # a summand that is whole over an axis can be counted once, so that the sum waits for all axes at once
            together = frozenset().union(*(state.partial for state in summands))
            common |= {axis for axis in together if not any(axis in state.axes for state in summands)}
        return common

    def _through_matmul(self, op: Op, states: Sequence[State], copies: Copies) -> frozenset[str]:
        """A matmul is linear in each operand. Waiting pays where its result must be reduced anyway: later in the step
        (gradients of weights) or because the matmul itself sums over a sharded index; but an operand that comes to
        rest scattered is scattered first, and each rank multiplies its part. An axis that the matmul is spread over
        cannot stay pending: a part of one operand and a partial sum of the other do not fit.
        """
        reduced = any(self._place.wanted[op.local[i]] for i in op.summed[0])
        if not reduced and self._place.is_activation(op.results[0]):
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
        claims = _Claims(op, passing)
        for i, axes in op.pinned:
            claims.claim(i, mesh_axes(axes))
        claims.closed.update([*op.blocked, *(i for i, _ in op.pinned), *(i for i, _ in op.tied)])
        for i in self._place.by_priority(op):
            claims.claim(i, self._place.wanted[op.local[i]])
        for i, axes in self._place.asked(op):
            claims.claim(i, axes)
        for k, dims in enumerate(op.operand_dims):
            if not copies.is_free(op.operands[k]):
                for dim, dim_axes in zip(dims, states[k].dims, strict=True):
                    for i, axes in zip(dim, dim_axes, strict=True):
                        if i not in op.stepped:
                            claims.claim(i, axes)
        for k, dims in enumerate(op.operand_dims):
            unresolved = states[k].partial - claims.taken
            for i in (i for dim in dims for i in dim):
                claims.claim(i, self._place.resting_axes(op.local[i], unresolved, "optimizer"))
        return claims.settled(op)


class _Claims:
    """Mesh axes that an op's local indices have claimed, each axis once; `closed` indices claim nothing more."""

    def __init__(self, op: Op, passing: frozenset[str]) -> None:
        self.taken = set(passing)
        self.closed: set[int] = set()
        self._chosen: list[Axes] = [()] * len(op.local)

    def claim(self, i: int, axes: Sequence[str]) -> None:
        """Give an index those of `axes` that are left."""
        if axes and i not in self.closed and (won := unclaimed(axes, self.taken)):
            self._chosen[i] = (*self._chosen[i], *won)
            self.taken.update(won)

    def settled(self, op: Op) -> tuple[Axes, ...]:
        """The axes of each index, followers lying where their leaders lie."""
        for follower, leader in op.tied:
            self._chosen[follower] = self._chosen[leader]
        return tuple(self._chosen)


# -- looking ahead ----------------------------------------------------------------------------------------------------


def _early(graph: Graph, place: Placement) -> frozenset[int]:
    """Values with several uses, one of which needs sums whole: reducing them at once serves all."""
    uses: dict[int, list[tuple[Node, int]]] = {}
    carried: set[int] = set()
    for node in _nodes(graph.nodes):
        for k, value in enumerate(node.operands):
            uses.setdefault(value, []).append((node, k))
        if isinstance(node, Loop):
            carried.update(value for value in node.yields if place.is_activation(value))

    def whole(value: int) -> bool:
        return value in carried or any(_needs_whole(node, k, whole) for node, k in uses.get(value, ()))

    return frozenset(value for value, each in uses.items() if len(each) + (value in carried) > 1 and whole(value))


def _needs_whole(node: Node, k: int, whole: Callable[[int], bool]) -> bool:
    if isinstance(node, Loop):
        return True
    if node.kind in RENAMED or (node.kind == "dynamic_update_slice" and k == 1):
        return whole(node.results[0])
    return k not in node.linear and node.kind != "dot_general"


def _nodes(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        if isinstance(node, Loop):
            yield from _nodes(node.body)
