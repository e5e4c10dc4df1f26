"""`shard_map`: a body written for one rank, lifted over the ranks of its manual axes as `jax.vmap` would lift it.

A value that differs from rank to rank along a manual axis carries a hidden leading dim over the ranks there, bound to
the axes of a layout that the manual axis stands for: each rank holds one part, as in the body. Ops that treat all ranks
alike take the hidden dims along; entering splits a dim into (ranks, what each holds), leaving merges them again; what
passes between ranks is in `perfmodel.trace.collective`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from perfmodel.graph import Moved
from perfmodel.trace.ops import Shape
from perfmodel.trace.raw import Frame, RawOp
from perfmodel.trace.stablehlo import Rule, splat, tensor_type

if TYPE_CHECKING:
    from perfmodel.graph import Dim, Dims
    from perfmodel.trace.walk import Walker


SIDES = ("in_shardings", "out_shardings")


def manual(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    """`sdy.manual_computation`: its arguments split, its body walked, its results merged."""
    (block,) = op.regions[0].blocks
    outside = walker.mesh.ranks, walker.mesh.manual
    ins, outs = (sdy.TensorShardingPerValueAttr(op.attributes[name]).shardings for name in SIDES)
    for sharding in (*ins, *outs):  # all of them on one mesh
        walker.mesh.ranks = walker.mesh.mesh(sdy.TensorShardingAttr(sharding).mesh_or_ref)
    axes = sdy.ManualAxesAttr(op.attributes["manual_axes"])
    own = {axes[i] for i in range(len(axes)) if walker.mesh.ranks[axes[i]] > 1}
    walker.mesh.manual |= own if operands else set()  # one without arguments only tells a rank its number
    inside = [
        _enter(View(walker, op, value, frame), _split(walker, sharding, own), tensor_type(argument)[0])
        for value, sharding, argument in zip(operands, ins, block.arguments, strict=True)
    ]
    env = {**frame.env, **dict(zip(block.arguments, inside, strict=True))}
    yields = walker.block(block, env, frame.scope, frame.out)
    results = [
        _leave(walker, op, value, _split(walker, sharding, own), own, frame)
        for value, sharding in zip(yields, outs, strict=True)
    ]
    walker.mesh.ranks, walker.mesh.manual = outside
    return results


def _split(walker: Walker, sharding: ir.Attribute, own: set[str]) -> list[tuple[str, ...]]:
    """The manual axes that split each dim."""
    return [tuple(axis for axis in axes if axis in own) for axes, _ in walker.mesh.dims(sharding)]


def _enter(view: View, axes: Sequence[tuple[str, ...]], local: Shape) -> int:
    """The value as a rank sees it: of each dim its own part."""
    if not any(axes):
        return view.value
    ranks = {axis: view.ranks(axis) for split in axes for axis in split}
    rest = [view.factor(size) for size in local]
    whole = [(*(ranks[axis] for axis in split), part) for split, part in zip(axes, rest, strict=True)]
    return view.emit(whole, rest, landed=ranks)


def _leave(
    walker: Walker, op: ir.Operation, value: int, axes: Sequence[tuple[str, ...]], own: set[str], frame: Frame
) -> int:
    """The parts of all ranks as one value; along manual axes that split nothing, the ranks are taken to agree."""
    split = [axis for dim in axes for axis in dim]
    value = vary(walker, op, value, split, frame)
    dropped = [axis for axis in walker.hidden[value] if axis in own]
    if not dropped:
        return value
    view = View(walker, op, value, frame)
    rest = view.dims()
    whole = [(*(view.hidden[axis] for axis in dim), part) for dim, part in zip(axes, rest, strict=True)]
    return view.emit(rest, whole, left=dropped, linear=(0,))


def rank(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    """`stablehlo.partition_id`, of which JAX reads one coordinate (`axis_index`): it varies along that axis."""
    raw = RawOp(
        kind="iota",
        operands=[],
        results=[walker.new_value(*tensor_type(op.results[0]), hidden=_coordinate(walker, op))],
        rule=Rule((), (), ((),)),
        nodes=[],
        summed=[()],
        scope=frame.scope,
        source=walker.source(op),
    )
    return walker.add(raw, frame.out)


def _coordinate(walker: Walker, op: ir.Operation) -> list[str]:
    """The axes whose coordinate is read off a rank's number: its quotient by a stride, modulo a size."""
    sizes = walker.mesh.ranks
    names = list(sizes)
    strides = {name: math.prod(sizes[minor] for minor in names[i + 1 :]) for i, name in enumerate(names)}
    read = [
        (_number(quotient.owner.operands[1]), _number(modulus.owner.operands[1]))
        for quotient in op.results[0].uses
        for modulus in quotient.owner.results[0].uses
        if (quotient.owner.name, modulus.owner.name) == ("stablehlo.divide", "stablehlo.remainder")
    ]
    found = [name for name in names if sizes[name] > 1 and (strides[name], sizes[name]) in read]
    return sorted(found if len(read) == len(list(op.results[0].uses)) else [n for n in names if sizes[n] > 1])


def _number(value: Any) -> float | None:
    owner = value.owner
    return None if isinstance(owner, ir.Block) or "value" not in owner.attributes else splat(owner.operation)


def lift(walker: Walker, raw: RawOp) -> None:
    """Give an op that treats all ranks alike the hidden dims of its operands and results."""
    axes = walker.varying((*raw.operands, *raw.results))
    nodes = {axis: walker.coordinate(axis) for axis in axes}
    index = {axis: len(raw.nodes) + i for i, axis in enumerate(axes)}
    sizes = tuple(walker.space.size(node) for node in nodes.values())

    def widened(value: int, dims: Dims) -> Dims:
        return (*((index[axis],) for axis in walker.hidden[value]), *dims)

    raw.rule = replace(
        raw.rule,
        sizes=(*raw.rule.sizes, *sizes),
        operands=tuple(map(widened, raw.operands, raw.rule.operands)),
        results=tuple(map(widened, raw.results, raw.rule.results)),
    )
    raw.nodes = [*raw.nodes, *nodes.values()]
    raw.work = [
        replace(work, flops=work.flops * math.prod(sizes), over=(*work.over, *index.values())) for work in raw.work
    ]
    if raw.moved is not None:
        raw.moved = Moved(raw.moved.bytes * math.prod(sizes), (*raw.moved.over, *index.values()))
    occupy(walker, raw, axes)


def occupy(walker: Walker, raw: RawOp, used: Collection[str]) -> None:
    """Let an op that differs over `used` manual axes range over the others too, so that no dim is spread over them: all
    ranks there repeat it.
    """
    for axis in walker.mesh.idle(used):
        raw.rule = replace(raw.rule, sizes=(*raw.rule.sizes, walker.mesh.ranks[axis]))
        raw.nodes = [*raw.nodes, walker.idle.setdefault(axis, walker.coordinate(axis))]


def vary(walker: Walker, op: ir.Operation, value: int, axes: Sequence[str], frame: Frame) -> int:
    """The value with a hidden dim for each of `axes`: every rank holds a copy."""
    missing = [axis for axis in axes if axis not in walker.hidden[value]]
    if not missing:
        return value
    view = View(walker, op, value, frame)
    rest = view.dims()
    landed = {axis: view.ranks(axis) for axis in missing}
    result = view.emit(rest, rest, kind="broadcast_in_dim", landed=landed, linear=(0,))
    if value in walker.known.uniform:
        walker.known.uniform.add(result)
    return result


class View:
    """An op that only looks at a value in another way: the same elements, grouped and hidden differently."""

    def __init__(self, walker: Walker, op: ir.Operation, value: int, frame: Frame) -> None:
        self._walker, self._op, self._frame = walker, op, frame
        self.value = value
        self.sizes: list[int] = []
        self._nodes: list[int] = []
        self.hidden = {axis: self.ranks(axis) for axis in walker.hidden[value]}

    def factor(self, size: int) -> int:
        """A local index of its own."""
        self._nodes.append(self._walker.space.new(size))
        self.sizes.append(size)
        return len(self.sizes) - 1

    def dims(self) -> list[int]:
        """A local index for each dim of the value."""
        return [self.factor(size) for size in self._walker.shapes[self.value]]

    def ranks(self, axis: str) -> int:
        """A local index over the ranks along a manual axis."""
        self._nodes.append(self._walker.coordinate(axis))
        self.sizes.append(self._walker.space.size(self._nodes[-1]))
        return len(self.sizes) - 1

    def emit(
        self,
        before: Sequence[int | Dim],
        after: Sequence[int | Dim],
        *,
        kind: str = "reshape",
        landed: dict[str, int] | None = None,
        left: Sequence[str] = (),
        summed: Sequence[int] = (),
        reducer: str = "add",
        blocked: Sequence[int] = (),
        pinned: Sequence[tuple[int, tuple[str, ...]]] = (),
        tied: Sequence[tuple[int, int]] = (),
        linear: tuple[int, ...] = (),
    ) -> int:
        """Add the op: dims `before` and `after` in local indices, hidden dims `landed` on and `left`."""
        walker = self._walker
        stays = {axis: i for axis, i in self.hidden.items() if axis not in left} | (landed or {})
        dims = _dims([*self.hidden.values(), *before]), _dims([*(stays[axis] for axis in sorted(stays)), *after])
        raw = RawOp(
            kind=kind,
            operands=[self.value],
            results=[walker.new_value(self._shape(after), walker.dtypes[self.value], sorted(stays))],
            rule=Rule(tuple(self.sizes), dims[:1], dims[1:], blocked=tuple(blocked)),
            nodes=self._nodes,
            summed=[tuple(summed)],
            reducer=reducer,
            linear=linear,
            pinned=list(pinned),
            tied=list(tied),
            scope=self._frame.scope,
            source=walker.source(self._op),
        )
        walker.known.hand_on(raw)
        occupy(walker, raw, {*self.hidden, *stays})
        walker.attach(raw)
        self._frame.out.append(raw)
        return raw.results[0]

    def _shape(self, dims: Sequence[int | Dim]) -> Shape:
        return tuple(math.prod(self.sizes[i] for i in dim) for dim in _dims(dims))


def _dims(dims: Sequence[int | Dim]) -> Dims:
    return tuple((dim,) if isinstance(dim, int) else tuple(dim) for dim in dims)
