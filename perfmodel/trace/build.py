"""From raw ops to a frozen Graph: factor nodes become ids, names are handed down, phases are read off the scopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from perfmodel.graph import Dim, Dims, Factor, Graph, Loop, Node, Op, Parameter, Value, Work
from perfmodel.trace.raw import RawLoop, RawNode, RawOp

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
    return _Finisher(walker).graph(nodes, parameters, results, name, recompute)


class _Finisher:
    def __init__(self, walker: Walker) -> None:
        self.walker = walker
        self.space = walker.space
        self.ids: dict[int, int] = {}
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
        frozen = tuple(self.node(node) for node in nodes)
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
            phase=phase_of(raw.scope),
            scope=raw.scope,
            source=raw.source,
        )

    def unit(self, node: int) -> int:
        """Id of a trip count that is 1 (such ranges vanish from dims)."""
        return self.ids.setdefault(node, len(self.ids))

    def op(self, raw: RawOp) -> Op:
        local: list[int] = []
        parts: list[tuple[int, ...]] = []
        for node in raw.nodes:
            dim = self.dim([node])
            parts.append(tuple(range(len(local), len(local) + len(dim))))
            local.extend(dim)
        extra: list[int] = []
        spread = _spreader(parts)

        def align(value: int, dims: Dims) -> Dims:
            """Local indices of each dim; where the op's factors don't match the value's, fresh blocked ones."""
            aligned = []
            for own, dim in zip(self.values[value].dims, dims, strict=False):
                indices = spread(dim)
                if tuple(local[i] for i in indices) != own:
                    indices = tuple(range(len(local), len(local) + len(own)))
                    local.extend(own)
                    extra.extend(indices)
                aligned.append(indices)
            return tuple(aligned)

        operand_dims = tuple(align(v, dims) for v, dims in zip(raw.operands, raw.rule.operands, strict=True))
        result_dims = tuple(align(v, dims) for v, dims in zip(raw.results, raw.rule.results, strict=True))
        stepped = spread(raw.stepped)
        return Op(
            kind=raw.kind,
            operands=tuple(raw.operands),
            results=tuple(raw.results),
            local=tuple(local),
            operand_dims=operand_dims,
            result_dims=result_dims,
            summed=tuple(spread(summed) for summed in raw.summed),
            reducer=raw.reducer,
            blocked=tuple(i for i in (*spread(raw.rule.blocked), *extra) if i not in stepped),
            stepped=stepped,
            linear=raw.linear,
            tied=tuple((i, j) for f, g in raw.tied for i, j in zip(parts[f], parts[g], strict=False)),
            pinned=tuple((parts[i][0], axes) for i, axes in raw.pinned if parts[i]),
            work=tuple(
                Work(engine=w.engine, flops=w.flops, dtype=w.dtype, over=spread(w.over), share=w.share)
                for w in raw.work
            ),
            phase=phase_of(raw.scope),
            scope=raw.scope,
            source=raw.source,
        )


def _spreader(parts: Sequence[tuple[int, ...]]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    def spread(indices: Sequence[int]) -> tuple[int, ...]:
        """Local indices of the leaves that the op's factors were split into."""
        return tuple(leaf for i in indices for leaf in parts[i])

    return spread
