"""From an annotated StableHLO module to raw ops over unified factor nodes: calls inlined, loops kept rolled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from jaxlib.mlir import ir

from perfmodel.trace import ops
from perfmodel.trace.branch import branch
from perfmodel.trace.collective import COLLECTIVES
from perfmodel.trace.constraint import constraint
from perfmodel.trace.custom import custom_op
from perfmodel.trace.factors import FactorSpace
from perfmodel.trace.kernel import kernel_op
from perfmodel.trace.known import Known
from perfmodel.trace.loop import loop
from perfmodel.trace.manual import lift, manual, rank
from perfmodel.trace.mesh import MeshAxes
from perfmodel.trace.ops import Shape
from perfmodel.trace.program import Hints
from perfmodel.trace.raw import Environment, Frame, RawNode, RawOp
from perfmodel.trace.single import single_op
from perfmodel.trace.stablehlo import is_array, line_of, scope_of, tensor_type

KERNEL_PREFIX = "perfmodel."
TERMINATORS = ("func.return", "stablehlo.return", "sdy.return")


class Walker:
    """Walks functions of one module, collecting values and ops; every call site gets ids of its own.

    `hidden` are the manual axes (`perfmodel.trace.manual`) that a value varies over: extra leading dims of it;
    `dropped` values were made on the way, and belong to nothing.
    """

    def __init__(self, module: ir.Module, hints: Hints) -> None:
        self.module = module
        self.hints = hints
        self.space = FactorSpace()
        self.shapes: list[Shape] = []
        self.dtypes: list[str] = []
        self.nodes: list[list[int]] = []
        self.hidden: list[tuple[str, ...]] = []
        self.dropped: set[int] = set()
        self.idle: dict[str, int] = {}  # manual axis -> node for ops that all ranks along it repeat
        self.known = Known()
        self.notes: dict[str, None] = {}
        self.functions = {
            ir.StringAttr(op.attributes["sym_name"]).value: op.operation
            for op in module.body.operations
            if "sym_name" in op.attributes
        }
        self.mesh = MeshAxes(self.functions, hints.mesh)
        self._site = "?"  # line of the call or loop that we are in, for ops that have none of their own

    # -- values ---------------------------------------------------------------------------------------------------

    def new_value(self, shape: Shape, dtype: str, hidden: Sequence[str] = ()) -> int:
        """A fresh value whose dims are fresh factor nodes."""
        self.shapes.append(shape)
        self.dtypes.append(dtype)
        self.hidden.append(tuple(hidden))
        self.nodes.append([*map(self.coordinate, hidden), *(self.space.new(size) for size in shape)])
        return len(self.shapes) - 1

    def results(self, op: ir.Operation, operands: Sequence[int]) -> list[int]:
        """Fresh values for the results of an op, which vary wherever an operand does."""
        hidden = self.varying(operands)
        return [self.new_value(*tensor_type(value), hidden) for value in op.results]

    def varying(self, values: Sequence[int]) -> tuple[str, ...]:
        """Manual axes that any of `values` varies over."""
        return tuple(sorted({axis for value in values for axis in self.hidden[value]}))

    def coordinate(self, axis: str) -> int:
        """A fresh node for the ranks along a manual axis."""
        size, bound = self.mesh.bound(axis, self._site.rpartition("/")[-1])
        return self.space.new(size, bound=bound)

    def unify(self, first: int, second: int) -> None:
        """Declare two values of one shape to range alike."""
        left, right = ([*self.hidden[v], *range(len(self.shapes[v]))] for v in (first, second))
        there = dict(zip(right, self.nodes[second], strict=True))
        for dim, node in zip(left, self.nodes[first], strict=True):
            if dim in there:
                self.space.unify([node], [there[dim]])

    def nested(self) -> Walker:
        """A walker over the same module with a factor space of its own."""
        return Walker(self.module, self.hints)

    # -- ops ------------------------------------------------------------------------------------------------------

    def function(self, name: str, operands: Sequence[int], scope: str, out: list[RawNode]) -> list[int]:
        """Inline a call; returns the values it hands back."""
        (block,) = self.functions[name].regions[0].blocks
        return self.block(block, dict(zip(block.arguments, operands, strict=True)), scope, out)

    def block(self, block: ir.Block, env: Environment, scope: str, out: list[RawNode]) -> list[int]:
        """Walk the ops of a block; returns the operands of its terminator."""
        for operation in block.operations:
            op = operation.operation
            operands = [env[value] for value in op.operands]
            if op.name in TERMINATORS:
                return operands
            env.update(zip(op.results, self._visit(op, operands, env, scope, out), strict=True))
        return []

    def _visit(
        self, op: ir.Operation, operands: list[int], env: Environment, scope: str, out: list[RawNode]
    ) -> list[int]:
        frame = Frame(env, "/".join(filter(None, (scope, scope_of(op.location)))), out)
        if op.name in ops.TRANSPARENT:
            return operands
        if op.name not in HANDLERS:
            return single_op(self, op, op.name, operands, frame)
        with self._inside(op):
            return HANDLERS[op.name](self, op, operands, frame)

    def source(self, op: ir.Operation) -> str:
        """`file.py:line` of an op, or that of the call or loop around it; "?" where neither is known."""
        return self.line(op).rpartition("/")[-1]

    def line(self, op: ir.Operation) -> str:
        """The same, with the whole path."""
        return line_of(op.location) or self._site

    @contextmanager
    def _inside(self, op: ir.Operation) -> Iterator[None]:
        outside, self._site = self._site, self.line(op)
        yield
        self._site = outside

    def add(self, raw: RawOp, out: list[RawNode]) -> list[int]:
        """Put an op that treats all ranks alike behind the others; returns its results."""
        lift(self, raw)
        self.attach(raw)
        out.append(raw)
        return raw.results

    def attach(self, raw: RawOp) -> None:
        """Unify the op's factors with the dims of its operands and results, and loop-sliced dims with the loop."""
        for value, dims in zip((*raw.operands, *raw.results), (*raw.rule.operands, *raw.rule.results), strict=True):
            for node, dim in zip(self.nodes[value], dims, strict=False):
                self.space.unify([node], [raw.nodes[i] for i in dim])
        if raw.kind.startswith("dynamic_"):
            self._step(raw)

    def _step(self, raw: RawOp) -> None:
        large = raw.operands[0]
        first_index = 2 if raw.kind == "dynamic_update_slice" else 1
        part = self.shapes[raw.operands[1] if first_index == 2 else raw.results[0]]
        for d in raw.rule.blocked:
            trip = self.known.counters.get(raw.operands[first_index + d])
            node = self.nodes[large][len(self.hidden[large]) + d]
            if trip is not None and part[d] == 1 and self.space.unify([node], [trip]):
                raw.stepped.append(d)


Handler: TypeAlias = Callable[[Walker, ir.Operation, list[int], Frame], list[int]]


def _call(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    return walker.function(ir.FlatSymbolRefAttr(op.attributes["callee"]).value, operands, frame.scope, frame.out)


def _composite(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    name = ir.StringAttr(op.attributes["name"]).value
    decomposition = ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value
    if not name.startswith(KERNEL_PREFIX):
        return walker.function(decomposition, operands, frame.scope, frame.out)
    raw = kernel_op(walker, op, name, decomposition, operands, walker.results(op, operands))
    raw.scope, raw.source = frame.scope, walker.source(op)
    return walker.add(raw, frame.out)


def _custom_call(walker: Walker, op: ir.Operation, operands: list[int], frame: Frame) -> list[int]:
    target = ir.StringAttr(op.attributes["call_target_name"]).value
    if target in ops.CALLBACKS and not any(map(is_array, op.results)):  # only looks at values
        return [operand for operand, value in zip(operands, op.operands, strict=True) if not is_array(value)]
    return operands if target in ops.TRANSPARENT_CALLS else custom_op(walker, op, target, operands, frame)


HANDLERS: Mapping[str, Handler] = {
    "func.call": _call,
    "call": _call,
    "stablehlo.composite": _composite,
    "stablehlo.custom_call": _custom_call,
    "stablehlo.while": loop,
    "stablehlo.case": branch,
    "stablehlo.if": branch,
    "stablehlo.partition_id": rank,
    "sdy.sharding_constraint": constraint,
    "sdy.manual_computation": manual,
    **COLLECTIVES,
}
