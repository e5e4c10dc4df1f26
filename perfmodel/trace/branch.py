"""Branches: `lax.cond` and `lax.switch` count as their dearest branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from jaxlib.mlir import ir

from perfmodel.graph import DTYPE_BYTES
from perfmodel.trace.raw import Frame, RawLoop, RawNode

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker

Cost: TypeAlias = tuple[float, float, float]
"""(tensor FLOPs, vector FLOPs, bytes read and written)"""


def branch(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    """`stablehlo.case` or `stablehlo.if`: the ops of the dearest branch, in place; its choice is a note."""
    noted = walker.notes
    walked = []
    for region in op.regions:
        walker.notes, body, start = {}, list[RawNode](), len(walker.shapes)
        values = walker.block(region.blocks[0], dict(frame.env), frame.scope, body)
        walked.append((body, values, walker.notes, range(start, len(walker.shapes))))
    costs = [_cost(walker, body) for body, *_ in walked]
    dearest = costs.index(max(costs))
    body, results, notes, made = walked[dearest]
    for _, values, _, others in walked:
        for first, second in zip(results, values, strict=True):
            walker.unify(first, second)
        walker.dropped.update(others if others != made else ())
    walker.notes = {**noted, **notes}
    if len(set(costs)) > 1:
        which = "dearer" if len(costs) == 2 else "dearest"
        note = f"{walker.source(op)}: cond counted as its {which} branch ({dearest + 1} of {len(costs)})"
        walker.notes[note] = None
    frame.out.extend(body)
    return results


def _cost(walker: Walker, nodes: Sequence[RawNode], times: float = 1.0) -> Cost:
    tensor, vector, moved = 0.0, 0.0, 0.0
    for node in nodes:
        if isinstance(node, RawLoop):
            inside = _cost(walker, node.body, times * walker.space.size(node.trip))
            tensor, vector, moved = tensor + inside[0], vector + inside[1], moved + inside[2]
            continue
        for work in node.work:
            flops = times * work.flops * work.share
            tensor, vector = (tensor + flops, vector) if work.engine == "tensor" else (tensor, vector + flops)
        moved += times * sum(_bytes(walker, value) for value in (*node.operands, *node.results))
    return tensor, vector, moved


def _bytes(walker: Walker, value: int) -> float:
    return math.prod(map(walker.space.size, walker.nodes[value])) * DTYPE_BYTES.get(walker.dtypes[value], 0.0)
