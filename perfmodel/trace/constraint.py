"""Sharding constraints that the program states (`jax.lax.with_sharding_constraint`) are obeyed, whatever the layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxlib.mlir import ir

from perfmodel.trace.raw import Frame, RawOp
from perfmodel.trace.stablehlo import Rule

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker


def constraint(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    """`sdy.sharding_constraint`: an identity whose dims lie where the program says; one that says nothing vanishes.

    A closed dim without axes is whole. An open dim may lie anywhere, with axes at least there: it is pinned to them.
    """
    dims = walker.mesh.dims(op.attributes["sharding"])
    source = walker.source(op)
    layout = [tuple(each for axis in axes for each in walker.mesh.layout_axes(axis, source)) for axes, _ in dims]
    ignored = any(axes for axes, _ in dims) and not any(layout)
    pinned = [
        (d, axes)
        for d, ((_, closed), axes) in enumerate(zip(dims, layout, strict=True))
        if not ignored and (closed or axes)
    ]
    if not pinned:
        return operands
    (shape,) = (walker.shapes[v] for v in operands)
    rows = (tuple((d,) for d in range(len(shape))),)
    raw = RawOp(
        kind="sharding_constraint",
        operands=operands,
        results=walker.results(op, operands),
        rule=Rule(shape, rows, rows),
        nodes=[walker.space.new(size) for size in shape],
        summed=[()],
        pinned=pinned,
        scope=frame.scope,
        source=source,
    )
    walker.known.hand_on(raw)
    return walker.add(raw, frame.out)
