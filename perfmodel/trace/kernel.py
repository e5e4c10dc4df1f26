"""A kernel that the program marks (`jax.lax.composite(..., name="perfmodel.*")`): one op, whatever it does inside.

What touches memory is what crosses its boundary. How it may be sharded is what it states itself (`perfmodel.trace.
stated`), or else follows from the ops inside: a factor that is never summed inside is free, one whose sums only pass
through linear ops leaves partial sums, any other blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxlib.mlir import ir

from perfmodel.errors import TraceError
from perfmodel.graph import Graph, Op
from perfmodel.trace.build import finish
from perfmodel.trace.ops import Shape
from perfmodel.trace.raw import RawNode, RawOp, RawWork
from perfmodel.trace.stablehlo import Rule
from perfmodel.trace.stated import StatedRule, stated_rule

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker

ATTENTION = "perfmodel.attention"
"""How the names of kernels start whose scores `causal` and `window` mask."""
STATIC: Mapping[str, tuple[type, Callable[..., bool], str]] = {
    "rule": (ir.StringAttr, bool, "a line such as 'batch in, in out -> batch out; summed: in'"),
    "causal": (ir.BoolAttr, lambda _: True, "True or False"),
    "window": (ir.IntegerAttr, lambda keys: keys > 0, "a whole number above 0"),
}
"""Static arguments that are read: their kind, what values fit, and that in words."""

# A causal kernel skips the blocks above the diagonal: (S+1)/(2S) of the scores, one half for long sequences.
CAUSAL_SHARE = 0.5


def kernel_op(
    outer: Walker, op: ir.Operation, name: str, function: str, operands: Sequence[int], results: Sequence[int]
) -> RawOp:
    """The raw op of a marked kernel: its rule stated, or derived from the decomposition `function`."""
    where = f"{outer.source(op)}: {name}"
    body = _body(outer, function, operands)
    before, after = ([outer.shapes[v] for v in values] for values in (operands, results))
    rule = _static(op, "rule", where)
    if rule is None:
        raw = _derived(outer, body, name, operands, results)
    else:
        raw = _stated(outer, body, name, operands, results, stated_rule(rule, before, after, where))
    if name.startswith(ATTENTION):
        band, share = _executed(op, where, before)
        raw.work = [replace(work, flops=work.flops * band, share=share, band=band) for work in raw.work]
    return raw


def _static(op: ir.Operation, name: str, where: str) -> Any:
    """A static argument of a kernel, None where it has none of that name.

    Raises TraceError for one that is not what it must be (`STATIC`).
    """
    if "composite_attributes" not in op.attributes or name not in ir.DictAttr(op.attributes["composite_attributes"]):
        return None
    attribute = ir.DictAttr(op.attributes["composite_attributes"])[name]
    kind, fits, expected = STATIC[name]
    value: Any = getattr(attribute, "value", None)
    if not isinstance(attribute, kind) or not fits(value):
        raise TraceError(f"{where}: got {name}={attribute}, expected {expected}: correct this static argument")
    return value


def _executed(op: ir.Operation, where: str, operands: Sequence[Shape]) -> tuple[float, float]:
    """The shares of the scores that count as FLOPs, and that are executed of those.

    A query sees `window` keys (dim 1 of the second operand) at most, w/S of them; with a causal mask the first ones
    see fewer: w/S (1 - w/(2S)) of all scores are left.
    """
    band, window = 1.0, _static(op, "window", where)
    if window is not None:
        if len(operands) < 2 or len(operands[1]) < 2:
            raise TraceError(
                f"{where}: got window={window} with operands {', '.join(map(str, operands))}, expected keys as the "
                f"second one, their sequence as its dim 1: order them so, or leave window out"
            )
        band = min(1.0, window / operands[1][1])
    return band, 1.0 - CAUSAL_SHARE * band if _static(op, "causal", where) else 1.0


def _stated(
    outer: Walker, body: Graph, name: str, operands: Sequence[int], results: Sequence[int], stated: StatedRule
) -> RawOp:
    flops: dict[tuple[str, str], float] = {}
    for times, inner in body.walk():
        for work in inner.work:
            flops[work.engine, work.dtype] = flops.get((work.engine, work.dtype), 0.0) + times * work.flops
    return RawOp(
        kind=name,
        operands=list(operands),
        results=list(results),
        rule=stated.rule,
        nodes=[outer.space.new(size) for size in stated.rule.sizes],
        summed=list(stated.summed),
        tied=list(stated.tied),
        work=[
            RawWork(engine=engine, flops=count, dtype=dtype, over=stated.spread)
            for (engine, dtype), count in flops.items()
        ],
    )


def _derived(outer: Walker, body: Graph, name: str, operands: Sequence[int], results: Sequence[int]) -> RawOp:
    inputs = [parameter.value for parameter in body.parameters]
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
            )
            for times, inner in body.walk()
            for work in inner.work
        ],
    )


def _body(outer: Walker, function: str, operands: Sequence[int]) -> Graph:
    walker = outer.nested()
    inputs = [walker.new_value(outer.shapes[v], outer.dtypes[v]) for v in operands]
    nodes: list[RawNode] = []
    outputs = walker.function(function, inputs, "", nodes)
    outer.notes.update(walker.notes)
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
