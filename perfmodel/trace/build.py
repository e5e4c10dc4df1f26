"""From raw ops to a frozen Graph: factor nodes become ids, names are handed down, phases are read off the scopes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from perfmodel.graph import Dim, Dims, Factor, Graph, Loop, Moved, Node, Op, Parameter, Value, Work
from perfmodel.trace.raw import RawLoop, RawNode, RawOp, RawWork

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker


def phase_of(scope: str) -> str:
    """forward, recompute, backward or update, from JAX's name stack."""
    if "rematted_computation" in scope:
        return "recompute"
    if "transpose(" in scope:
        return "backward"
    return "forward" if "jvp(" in scope else "update"


def finish(
    walker: Walker,
    nodes: Sequence[RawNode],
    parameters: Sequence[tuple[int, str, str, int | None]],
    results: Sequence[int],
    *,
    name: str,
    recompute: str,
) -> Graph:
    """Freeze what a walker collected."""
    return _Finisher(walker, _is_training(nodes)).graph(nodes, parameters, results, name, recompute)


class _Finisher:
    def __init__(self, walker: Walker, training: bool) -> None:
        self.walker = walker
        self.space = walker.space
        self.ids: dict[int, int] = {}
        self.training = training
        self.space.hand_down_names()
        self.values = tuple(
            Value(dims=() if value in walker.dropped else tuple(self.dim([node]) for node in dims), dtype=dtype)
            for value, (dims, dtype) in enumerate(zip(walker.nodes, walker.dtypes, strict=True))
        )

    def dim(self, nodes: Sequence[int]) -> Dim:
        """Factor ids of a list of nodes."""
        return tuple(self.ids.setdefault(leaf, len(self.ids)) for leaf in self.space.leaves(nodes))

    def graph(
        self,
        nodes: Sequence[RawNode],
        parameters: Sequence[tuple[int, str, str, int | None]],
        results: Sequence[int],
        name: str,
        recompute: str,
    ) -> Graph:
        frozen = tuple(map(self.node, nodes))
        return Graph(
            name=name,
            recompute=recompute,
            factors=self.factors(),
            values=self.values,
            parameters=tuple(Parameter(value=v, name=n, role=r, alias=a) for v, n, r, a in parameters),
            nodes=frozen,
            results=tuple(results),
            notes=tuple(self.walker.notes),
        )

    def factors(self) -> tuple[Factor, ...]:
        return tuple(self.space.factor(leaf) for leaf in self.ids)

    def node(self, raw: RawNode) -> Node:
        return self.op(raw) if isinstance(raw, RawOp) else self.loop(raw)

    def loop(self, raw: RawLoop) -> Loop:
        (trip,) = self.dim([raw.trip]) or (self.unit(raw.trip),)
        return Loop(
            trip=trip,
            operands=tuple(raw.operands),
            parameters=tuple(raw.parameters),
            body=tuple(self.node(node) for node in raw.body),
            yields=tuple(raw.yields),
            results=tuple(raw.results),
            phase=self.phase(raw),
            scope=raw.scope,
            source=raw.source,
        )

    def unit(self, node: int) -> int:
        """Id of a trip count that is 1 (such ranges vanish from dims)."""
        return self.ids.setdefault(node, len(self.ids))

    def op(self, raw: RawOp) -> Op:
        index = _Indices([self.dim([node]) for node in raw.nodes])
        operand_dims, result_dims = (
            tuple(index.align(self.values[v].dims, dims) for v, dims in zip(values, rows, strict=True))
            for values, rows in ((raw.operands, raw.rule.operands), (raw.results, raw.rule.results))
        )
        stepped = index.spread(raw.stepped)
        return Op(
            kind=raw.kind,
            operands=tuple(raw.operands),
            results=tuple(raw.results),
            local=tuple(index.local),
            operand_dims=operand_dims,
            result_dims=result_dims,
            summed=tuple(map(index.spread, raw.summed)),
            reducer=raw.reducer,
            blocked=tuple(i for i in (*index.spread(raw.rule.blocked), *index.unmatched) if i not in stepped),
            stepped=stepped,
            linear=raw.linear,
            tied=tuple(pair for tie in raw.tied for pair in index.pairs(*tie)),
            pinned=tuple((index.parts[i][0], axes) for i, axes in raw.pinned if index.parts[i]),
            work=tuple(self.work(work, index) for work in raw.work),
            moved=raw.moved and Moved(raw.moved.bytes, index.spread(raw.moved.over)),
            phase=self.phase(raw),
            scope=raw.scope,
            source=raw.source,
        )

    def work(self, raw: RawWork, index: _Indices) -> Work:
        over = index.spread(raw.over)
        return Work(engine=raw.engine, flops=raw.flops, dtype=raw.dtype, over=over, share=raw.share, band=raw.band)

    def phase(self, raw: RawNode) -> str:
        return phase_of(raw.scope) if self.training else "forward"


class _Indices:
    """Local indices of one op: `parts` of each of its factors, as that was split, and the factor id behind each index.

    Where dims don't match those of a value, they get `unmatched` indices of their own.
    """

    def __init__(self, dims: Sequence[Dim]) -> None:
        self.local: list[int] = []
        self.unmatched: list[int] = []
        self.parts = [self._new(dim) for dim in dims]

    def _new(self, dim: Dim) -> tuple[int, ...]:
        start = len(self.local)
        self.local.extend(dim)
        return tuple(range(start, len(self.local)))

    def spread(self, factors: Sequence[int]) -> tuple[int, ...]:
        """The indices of some of the op's factors."""
        return tuple(leaf for i in factors for leaf in self.parts[i])

    def pairs(self, first: int, second: int) -> Iterable[tuple[int, int]]:
        """The indices of two factors side by side, as far as they go."""
        return zip(self.parts[first], self.parts[second], strict=False)

    def align(self, value: Dims, dims: Dims) -> Dims:
        """Indices for each dim of a value, where the op's rule has the factors `dims`."""
        return tuple(self._aligned(own, self.spread(dim)) for own, dim in zip(value, dims, strict=False))

    def _aligned(self, own: Dim, indices: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(self.local[i] for i in indices) == own:
            return indices
        fresh = self._new(own)
        self.unmatched.extend(fresh)
        return fresh


def _is_training(nodes: Sequence[RawNode]) -> bool:
    """Whether anything belongs to a backward pass; without one, all is forward pass."""
    return any(
        _is_training(node.body) if isinstance(node, RawLoop) else phase_of(node.scope) == "backward" for node in nodes
    )
