"""What passes between the ranks of a `shard_map`, in terms of its hidden dims; the collectives follow from them.

A sum over ranks sums a hidden dim, gathering makes a hidden dim part of another, scattering the reverse, an
all-to-all does both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxlib.mlir import ir

from perfmodel.errors import TraceError
from perfmodel.trace.manual import View, vary
from perfmodel.trace.ops import NOW
from perfmodel.trace.raw import Frame
from perfmodel.trace.single import reducer_of

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker

Step = Callable[["Walker", ir.Operation, int, list[str], Frame], int]


def _collective(step: Step, walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    axes = _grouped_axes(walker, op)
    return [step(walker, op, value, axes, frame) if axes else value for value in operands]


def _all_reduce(walker: Walker, op: ir.Operation, value: int, axes: list[str], frame: Frame) -> int:
    reducer = reducer_of(op)
    return _reduce(walker, op, value, axes, frame, NOW if reducer == "add" else reducer)


def _reduce_scatter(walker: Walker, op: ir.Operation, value: int, axes: list[str], frame: Frame) -> int:
    whole = _reduce(walker, op, value, axes, frame, reducer_of(op))
    return _move(walker, op, whole, axes, frame, scatter=_dim(op, "scatter_dimension"))


def _all_gather(walker: Walker, op: ir.Operation, value: int, axes: list[str], frame: Frame) -> int:
    value = vary(walker, op, value, axes, frame)
    return _move(walker, op, value, axes, frame, gather=_dim(op, "all_gather_dim"))


def _all_to_all(walker: Walker, op: ir.Operation, value: int, axes: list[str], frame: Frame) -> int:
    value = vary(walker, op, value, axes, frame)
    gather, scatter = _dim(op, "concat_dimension"), _dim(op, "split_dimension")
    return _move(walker, op, value, axes, frame, gather=gather, scatter=scatter)


def _reduce(walker: Walker, op: ir.Operation, value: int, axes: list[str], frame: Frame, reducer: str) -> int:
    view = View(walker, op, vary(walker, op, value, axes, frame), frame)
    rest = view.dims()
    summed = [view.hidden[axis] for axis in axes]
    linear = (0,) if reducer in ("add", NOW) else ()
    return view.emit(rest, rest, left=axes, summed=summed, reducer=reducer, linear=linear)


def _move(
    walker: Walker,
    op: ir.Operation,
    value: int,
    axes: list[str],
    frame: Frame,
    *,
    gather: int | None = None,
    scatter: int | None = None,
) -> int:
    """Ranks along `axes` become the major part of dim `gather`, the major part of dim `scatter` becomes ranks."""
    view = View(walker, op, value, frame)
    ranks = [walker.mesh.ranks[axis] for axis in axes]
    shape = list(walker.shapes[value])
    if scatter is not None:
        shape[scatter] //= math.prod(ranks)
    before: list[Any] = [view.factor(size) for size in shape]
    after: list[Any] = list(before)
    landed: dict[str, int] = {}
    blocked, pinned, tied = [], [], []
    if scatter is not None:
        departing = [view.factor(size) for size in ranks]
        landed = {axis: view.ranks(axis) for axis in axes}
        before[scatter] = (*departing, before[scatter])
        pinned = [(i, walker.mesh.bound(axis, walker.source(op))[1]) for axis, i in zip(axes, departing, strict=True)]
        tied = list(zip(landed.values(), departing, strict=True))
    if gather is not None:
        arrived = [view.factor(size) for size in ranks]
        after[gather] = (*arrived, after[gather])
        blocked = [*arrived, *(view.hidden[axis] for axis in axes)]
    left = axes if gather is not None else ()
    return view.emit(before, after, landed=landed, left=left, blocked=blocked, pinned=pinned, tied=tied)


def _permute(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    """`ppermute`: every rank hands its part to another one along the pinned axes."""
    axes = _crossed(walker, op, "source_target_pairs")
    if not axes:
        return operands
    value = vary(walker, op, operands[0], axes, frame)
    view = View(walker, op, value, frame)
    rest = view.dims()
    pinned = [(view.hidden[axis], walker.mesh.bound(axis, walker.source(op))[1]) for axis in axes]
    return [view.emit(rest, rest, kind="collective_permute", pinned=pinned)]


def _grouped_axes(walker: Walker, op: ir.Operation) -> list[str]:
    axes = _crossed(walker, op, "replica_groups")
    members = np.array(op.attributes["replica_groups"]).shape[1]
    if math.prod(walker.mesh.ranks[axis] for axis in axes) != members:
        raise TraceError(
            f"{walker.source(op)}: got groups of {members} ranks that are no whole mesh axes (axis_index_groups), "
            f"expected the ranks along mesh axes: give the groups a mesh axis of their own"
        )
    return axes


def _crossed(walker: Walker, op: ir.Operation, name: str) -> list[str]:
    """Mesh axes, major to minor, along which the ranks of a row of attribute `name` differ."""
    ranks = np.array(op.attributes[name])
    sizes = walker.mesh.ranks
    if ranks.min() < 0 or ranks.max() >= math.prod(sizes.values()):
        raise TraceError(
            f"{walker.source(op)}: got {op.name} over ranks {ranks.min()} to {ranks.max()}, expected those of the mesh "
            f"{sizes}: use groups of equal size on one mesh"
        )
    coordinates = np.unravel_index(ranks, tuple(sizes.values()))
    return [axis for axis, where in zip(sizes, coordinates, strict=True) if (where != where[:, :1]).any()]


def _dim(op: ir.Operation, name: str) -> int:
    return ir.IntegerAttr(op.attributes[name]).value


COLLECTIVES: Mapping[str, Callable[[Any, ir.Operation, list[int], Frame], list[int]]] = {
    "stablehlo.all_reduce": partial(_collective, _all_reduce),
    "stablehlo.reduce_scatter": partial(_collective, _reduce_scatter),
    "stablehlo.all_gather": partial(_collective, _all_gather),
    "stablehlo.all_to_all": partial(_collective, _all_to_all),
    "stablehlo.collective_permute": _permute,
}
