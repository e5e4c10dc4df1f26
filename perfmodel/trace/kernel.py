"""A kernel that the program marks (`jax.lax.composite(..., name="perfmodel.*")`): one op, ruled by its body.

What touches memory is what crosses its boundary; how it may be sharded follows from the ops inside: a factor that
is never summed inside is free, one whose sums only pass through linear ops leaves partial sums, any other blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxlib.mlir import ir

from perfmodel.graph import Graph, Op
from perfmodel.trace.build import finish
from perfmodel.trace.raw import RawNode, RawOp, RawWork
from perfmodel.trace.stablehlo import Rule

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker

# A causal kernel skips the blocks above the diagonal: (S+1)/(2S) of the scores, one half for long sequences.
CAUSAL_SHARE = 0.5


def kernel_op(
    outer: Walker, op: ir.Operation, name: str, function: str, operands: Sequence[int], results: Sequence[int]
) -> RawOp:
    """The raw op of a marked kernel, its rule derived from the decomposition `function`."""
    body = _body(outer, function, operands)
    inputs = [parameter.value for parameter in body.parameters]
    share = CAUSAL_SHARE if _causal(op) else 1.0
    blocked: set[int] = set()
    summed: list[set[int]] = [set() for _ in results]
    for factor in range(len(body.factors)):
        partial = _partial_results(body, factor)
        if partial is None:
            blocked.add(factor)
        else:
            for i, is_partial in enumerate(partial):
                if is_partial:
                    summed[i].add(factor)
    sizes = tuple(factor.size for factor in body.factors)
    return RawOp(
        kind=name,
        operands=list(operands),
        results=list(results),
        rule=Rule(
            sizes,
            tuple(body.values[v].dims for v in inputs),
            tuple(body.values[v].dims for v in body.results),
            blocked=tuple(sorted(blocked)),
        ),
        nodes=[outer.space.new(size) for size in sizes],
        summed=[tuple(sorted(factors)) for factors in summed],
        work=[
            RawWork(
                engine=work.engine,
                flops=work.flops * times,
                dtype=work.dtype,
                over=tuple(sorted({inner.local[i] for i in work.over})),
                share=share,
            )
            for times, inner in body.walk()
            for work in inner.work
        ],
    )


def _causal(op: ir.Operation) -> bool:
    return "composite_attributes" in op.attributes and "causal = true" in str(op.attributes["composite_attributes"])


def _body(outer: Walker, function: str, operands: Sequence[int]) -> Graph:
    walker = outer.nested()
    inputs = [walker.new_value(outer.shapes[v], outer.dtypes[v]) for v in operands]
    nodes: list[RawNode] = []
    outputs = walker.function(function, inputs, "", nodes)
    return finish(walker, nodes, [(v, str(v), "other", None) for v in inputs], outputs, name=function, recompute="none")


def _partial_results(body: Graph, factor: int) -> list[bool] | None:
    """Which results are partial sums when only `factor` is sharded; None if it cannot be."""
    partial: set[int] = set()
    for times, op in body.walk():
        if times != 1 or any(op.local[i] == factor for i in (*op.blocked, *op.stepped)):
            return None
        state = _through(op, factor, partial)
        if state is None:
            return None
        partial.update(result for result, is_partial in zip(op.results, state, strict=True) if is_partial)
    return [result in partial for result in body.results]


def _through(op: Op, factor: int, partial: set[int]) -> list[bool] | None:
    """Which results of one op are partial over `factor`, given which values are; None if a partial sum gets stuck."""
    incoming = [v in partial for v in op.operands]
    if any(incoming):
        others = [p for i, p in enumerate(incoming) if i not in op.linear]
        if not op.linear or any(others) or not all(incoming[i] for i in op.linear):
            return None
        return [True] * len(op.results)
    uses = [i for i, f in enumerate(op.local) if f == factor]
    if len(uses) > 1:  # the same factor twice in one op: sharding it needs a copy of one side
        return None
    state = [bool(set(uses) & set(summed)) for summed in op.summed]
    return None if any(state) and op.reducer != "add" else state
