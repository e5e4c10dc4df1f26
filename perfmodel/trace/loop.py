"""Loops: how often they run, and how what they carry ranges alike from trip to trip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from jaxlib.mlir import ir

from perfmodel.errors import TraceError
from perfmodel.trace.manual import vary
from perfmodel.trace.raw import Frame, RawLoop
from perfmodel.trace.stablehlo import splat

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker


@dataclass(frozen=True, slots=True)
class _Body:
    """The body of a loop: what it carries in and out, the manual axes that this varies over, and the ops between."""

    parameters: list[int]
    yields: list[int]
    hidden: list[tuple[str, ...]]
    frame: Frame


def loop(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    """`stablehlo.while`, kept rolled. What it carries varies over a manual axis if it enters or comes back so."""
    source = walker.source(op)
    position, count = _trip_count(walker, op, source)
    trip = walker.space.new(count)
    body = _body(walker, op, operands, frame, {} if position is None else {position: trip})
    operands = [vary(walker, op, v, h, frame) for v, h in zip(operands, body.hidden, strict=True)]
    yields = [vary(walker, op, v, h, body.frame) for v, h in zip(body.yields, body.hidden, strict=True)]
    results = [walker.new_value(walker.shapes[v], walker.dtypes[v], walker.hidden[v]) for v in operands]
    for first, *rest in zip(operands, body.parameters, yields, results, strict=True):
        for other in rest:
            walker.unify(first, other)
    frame.out.append(
        RawLoop(
            trip=trip,
            operands=operands,
            parameters=body.parameters,
            body=body.frame.out,
            yields=yields,
            results=results,
            scope=frame.scope,
            source=source,
        )
    )
    return results


def _body(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame, counter: Mapping[int, int]) -> _Body:
    """The ops of a body, walked until nothing comes back that varies over more manual axes; `counter` is the position
    of the loop's counter, if it is known, and the node of its trip count.
    """
    (block,) = op.regions[1].blocks
    hidden = [walker.hidden[v] for v in operands]
    while True:
        start = len(walker.shapes)
        parameters = [
            walker.new_value(walker.shapes[v], walker.dtypes[v], h) for v, h in zip(operands, hidden, strict=True)
        ]
        walker.known.counters.update((parameters[position], trip) for position, trip in counter.items())
        inner = Frame({**frame.env, **dict(zip(block.arguments, parameters, strict=True))}, frame.scope, [])
        yields = walker.block(block, inner.env, inner.scope, inner.out)
        varying = [walker.varying(pair) for pair in zip(parameters, yields, strict=True)]
        if varying == hidden:
            return _Body(parameters, yields, hidden, inner)
        hidden = varying
        walker.dropped.update(range(start, len(walker.shapes)))


def _trip_count(walker: Walker, op: ir.Operation, source: str) -> tuple[int | None, int]:
    """Position of the counter among the loop's values, and how often the loop runs."""
    found = _counted(op.regions[0].blocks[0], op.regions[1].blocks[0])
    if found is not None:
        return found
    path = f"/{walker.line(op)}"
    for where, count in walker.hints.trip_counts.items():
        if path.endswith(f"/{where}"):
            return None, _checked(where, count)
    raise TraceError(
        f"{source}: got a loop whose trip count depends on data, expected a static one (lax.scan, or fori_loop "
        f"with constant bounds): supply it, Program(..., hints=Hints(trip_counts={{{source!r}: N}}))"
    )


def _checked(where: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
        raise TraceError(
            f"Hints(trip_counts={{{where!r}: {count!r}}}): got {count!r}, expected how often the loop runs, a whole "
            f"number: correct it"
        )
    return int(count)


def _counted(condition: ir.Block, body: ir.Block) -> tuple[int, int] | None:
    """(position, trips) of a loop that runs while its counter, which grows by 1, is below a constant."""
    test = _maker(condition.operations[len(condition.operations) - 1].operands[0])
    if test is None or test.name != "stablehlo.compare":
        return None
    if "LT" not in str(test.attributes["comparison_direction"]):
        return None
    counter, bound = map(_plain, test.operands)
    limit = _constant(bound)
    if limit is None or not isinstance(counter.owner, ir.Block):
        return None
    position = ir.BlockArgument(counter).arg_number
    start = _constant(condition.owner.operation.operands[position])
    step = _maker(body.operations[len(body.operations) - 1].operands[position])
    if start is None or step is None or step.name != "stablehlo.add":
        return None
    left, right = map(_plain, step.operands)
    if _constant(right) != 1 or left != body.arguments[position]:
        return None
    return position, max(0, math.ceil(limit - start))


def _constant(value: Any) -> float | None:
    owner = _maker(value)
    return splat(owner) if owner is not None and owner.name == "stablehlo.constant" else None


def _maker(value: Any) -> ir.Operation | None:
    """The op that makes a value, or None for an argument of a block."""
    owner = _plain(value).owner
    return None if isinstance(owner, ir.Block) else owner.operation


def _plain(value: Any) -> Any:
    """A value without the constraints that `shard_map` puts even on scalars."""
    while not isinstance(value.owner, ir.Block) and value.owner.operation.name == "sdy.sharding_constraint":
        value = value.owner.operation.operands[0]
    return value
