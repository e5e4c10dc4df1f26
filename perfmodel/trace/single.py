"""One StableHLO op as a raw op: its rule, its cost, and through which operands a partial sum passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from jaxlib.mlir import ir

from perfmodel.errors import TraceError
from perfmodel.trace.ops import KINDS, NOW, Shape, Shapes
from perfmodel.trace.raw import Frame, RawOp, RawWork
from perfmodel.trace.rules import NOTES, OWN_RULES, attributes_of, identity_rule
from perfmodel.trace.stablehlo import multiplied_in, read_rule

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker

REDUCTIONS = ("reduce", "reduce_window", "scatter")
REDUCERS = {"stablehlo.add": "add"} | dict.fromkeys(
    (f"stablehlo.{name}" for name in ("maximum", "minimum", "and", "or")), "maximum"
)
"""What a region does that is one op."""
IDLE = ("sdy.sharding_constraint", "stablehlo.return")
"""What may stand beside it; `shard_map` constrains even scalars."""

OpShapes: TypeAlias = tuple[tuple[Shape, ...], tuple[Shape, ...]]


def single_op(walker: Walker, op: ir.Operation, name: str, operands: list[int], frame: Frame) -> list[int]:
    """Add one op, known to the tables as `name`; returns its results."""
    results = walker.results(op, operands)
    shapes = tuple(walker.shapes[v] for v in operands), tuple(walker.shapes[v] for v in results)
    own = OWN_RULES.get(name)
    rule = own(op, *shapes) if own else read_rule(op) or identity_rule(*shapes)
    raw = RawOp(
        kind=name.removeprefix("stablehlo."),
        operands=operands,
        results=results,
        rule=rule,
        nodes=[walker.space.new(size) for size in rule.sizes],
        summed=[rule.reduced] * len(results),
        scope=frame.scope,
        source=walker.source(op),
    )
    raw.work = _work(walker, op, name, raw, shapes)
    raw.linear = _linear(walker, name, raw)
    if raw.kind in REDUCTIONS and (reducer := reducer_of(op)) != "add":
        raw.linear, raw.reducer = (), reducer
    elif raw.kind == "slice" and rule.reduced:
        raw.reducer = NOW
    if name in NOTES:
        walker.notes[NOTES[name]] = None
    walker.known.track(op, raw, walker.shapes[results[0]])
    return walker.add(raw, frame.out)


def reducer_of(op: ir.Operation) -> str:
    """What a reduction does with two elements: add, maximum (or any other choice of one of them) or other."""
    (block,) = op.regions[0].blocks
    steps = [name for each in block.operations if (name := each.operation.name) not in IDLE]
    return REDUCERS.get(steps[0], "other") if len(steps) == 1 else "other"


def _work(walker: Walker, op: ir.Operation, name: str, raw: RawOp, shapes: OpShapes) -> list[RawWork]:
    if name in walker.hints.costs:
        engine, flops = "tensor", float(walker.hints.costs[name](*shapes))
    elif name in KINDS:
        engine = KINDS[name].engine
        flops = KINDS[name].flops(Shapes(*shapes, attributes_of(op)))
    else:
        raise TraceError(
            f"{raw.source}: got op {name!r} (in {raw.scope or 'the program'}), whose cost is not known: "
            f"supply one, Program(..., hints=Hints(costs={{{name!r}: lambda operands, results: FLOPs}})), or a Cost "
            f"with kernels= in place of costs="
        )
    if flops == 0.0:
        return []
    dtype = multiplied_in(op) or walker.dtypes[raw.operands[0] if raw.operands else raw.results[0]]
    over = [i for dims in (*raw.rule.operands, *raw.rule.results) for dim in dims for i in dim]
    return [RawWork(engine=engine, flops=flops, dtype=dtype, over=tuple(sorted(set(over))))]


def _linear(walker: Walker, name: str, raw: RawOp) -> tuple[int, ...]:
    """Operands through which a partial sum may pass: all of them must then be partial (or zero)."""
    rule = KINDS[name].linear if name in KINDS else ""
    if rule == "scale":
        uniform = [v in walker.known.uniform for v in raw.operands]
        if uniform[1]:
            return (0,)
        return (1,) if uniform[0] and raw.kind == "multiply" else ()
    count = {"all": len(raw.operands), "branches": len(raw.operands), "both": 2, "first": 1}.get(rule, 0)
    return tuple(range(int(rule == "branches"), count))
