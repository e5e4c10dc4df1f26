"""From an annotated StableHLO module to raw ops over unified factor nodes: calls inlined, loops kept rolled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from jaxlib.mlir import ir

from perfmodel.errors import TraceError
from perfmodel.trace import ops
from perfmodel.trace.factors import FactorSpace
from perfmodel.trace.kernel import kernel_op
from perfmodel.trace.ops import KINDS, Shape, Shapes
from perfmodel.trace.program import Hints
from perfmodel.trace.raw import RawLoop, RawNode, RawOp, RawWork
from perfmodel.trace.rules import OWN_RULES, attributes_of, identity_rule
from perfmodel.trace.stablehlo import read_rule, scope_of, source_of, splat, tensor_type

KERNEL_PREFIX = "perfmodel."


Environment: TypeAlias = dict[Any, int]


class Walker:
    """Walks functions of one module, collecting values and ops; every call site gets ids of its own."""

    def __init__(self, module: ir.Module, hints: Hints) -> None:
        self.module = module
        self.hints = hints
        self.space = FactorSpace()
        self.shapes: list[Shape] = []
        self.dtypes: list[str] = []
        self.nodes: list[list[int]] = []
        self.functions = {
            ir.StringAttr(op.attributes["sym_name"]).value: op.operation
            for op in module.body.operations
            if "sym_name" in op.attributes
        }
        self._site = "?"  # source of the call or loop that we are in, for ops that have none of their own
        self._uniform: set[int] = set()
        self._constant: set[int] = set()
        self._zero: set[int] = set()
        self._counters: dict[int, int] = {}  # scalar that follows a loop's counter -> trip node of that loop

    def new_value(self, shape: Shape, dtype: str) -> int:
        """A fresh value whose dims are fresh factor nodes."""
        self.shapes.append(shape)
        self.dtypes.append(dtype)
        self.nodes.append([self.space.new(size) for size in shape])
        return len(self.shapes) - 1

    def nested(self) -> Walker:
        """A walker over the same module with a factor space of its own."""
        return Walker(self.module, self.hints)

    def function(self, name: str, operands: Sequence[int], scope: str, out: list[RawNode]) -> list[int]:
        """Inline a call; returns the values it hands back."""
        (block,) = self.functions[name].regions[0].blocks
        return self.block(block, dict(zip(block.arguments, operands, strict=True)), scope, out)

    def block(self, block: ir.Block, env: Environment, scope: str, out: list[RawNode]) -> list[int]:
        """Walk the ops of a block; returns the operands of its terminator."""
        for operation in block.operations:
            op = operation.operation
            operands = [env[value] for value in op.operands]
            if op.name in ("func.return", "stablehlo.return"):
                return operands
            env.update(zip(op.results, self._visit(op, operands, env, scope, out), strict=True))
        return []

    def _visit(
        self, op: ir.Operation, operands: list[int], env: Environment, scope: str, out: list[RawNode]
    ) -> list[int]:
        inner = "/".join(filter(None, (scope, scope_of(op.location))))
        if op.name in ("func.call", "call"):
            with self._inside(op):
                return self.function(str(op.attributes["callee"]).lstrip("@"), operands, inner, out)
        if op.name in ops.TRANSPARENT:
            return operands
        if op.name == "stablehlo.composite":
            return self._composite(op, operands, inner, out)
        if op.name == "stablehlo.custom_call":
            return self._custom_call(op, operands, inner, out)
        if op.name == "stablehlo.while":
            with self._inside(op):
                return self._loop(op, operands, env, inner, out)
        return self._op(op, op.name, operands, inner, out)

    def _source(self, op: ir.Operation) -> str:
        own = source_of(op.location)
        return self._site if own == "?" else own

    @contextmanager
    def _inside(self, op: ir.Operation) -> Iterator[None]:
        outside, self._site = self._site, self._source(op)
        yield
        self._site = outside

    # -- single ops ---------------------------------------------------------------------------------------------

    def _op(self, op: ir.Operation, name: str, operands: list[int], scope: str, out: list[RawNode]) -> list[int]:
        results = [self.new_value(*tensor_type(value)) for value in op.results]
        shapes = tuple(self.shapes[v] for v in operands), tuple(self.shapes[v] for v in results)
        own = OWN_RULES.get(name)
        rule = own(op, *shapes) if own else read_rule(op) or identity_rule(*shapes)
        raw = RawOp(
            kind=name.removeprefix("stablehlo."),
            operands=operands,
            results=results,
            rule=rule,
            nodes=[self.space.new(size) for size in rule.sizes],
            summed=[rule.reduced] * len(results),
            scope=scope,
            source=self._source(op),
        )
        raw.work = self._work(op, name, raw, shapes)
        raw.linear = self._linear(name, raw)
        self._reducer(op, raw)
        self._track(op, raw)
        self.attach(raw)
        out.append(raw)
        return results

    def attach(self, raw: RawOp) -> None:
        """Unify the op's factors with the dims of its operands and results, and loop-sliced dims with the loop."""
        for value, dims in zip((*raw.operands, *raw.results), (*raw.rule.operands, *raw.rule.results), strict=True):
            for node, dim in zip(self.nodes[value], dims, strict=False):
                self.space.unify([node], [raw.nodes[i] for i in dim])
        if raw.kind.startswith("dynamic_"):
            first_index = 2 if raw.kind == "dynamic_update_slice" else 1
            for d in raw.rule.blocked:
                trip = self._counters.get(raw.operands[first_index + d])
                part = self.shapes[raw.operands[1]][d] if first_index == 2 else self.shapes[raw.results[0]][d]
                if trip is not None and part == 1 and self.space.unify([self.nodes[raw.operands[0]][d]], [trip]):
                    raw.stepped.append(d)

    def _work(
        self, op: ir.Operation, name: str, raw: RawOp, shapes: tuple[tuple[Shape, ...], tuple[Shape, ...]]
    ) -> list[RawWork]:
        if name in self.hints.costs:
            engine, flops = "tensor", float(self.hints.costs[name](*shapes))
        elif name in KINDS:
            engine = KINDS[name].engine
            flops = KINDS[name].flops(Shapes(*shapes, attributes_of(op)))
        else:
            raise TraceError(
                f"{raw.source}: got op {name!r} (in {raw.scope or 'the program'}), whose cost is not known: "
                f"supply one, Program(..., hints=Hints(costs={{{name!r}: lambda operands, results: FLOPs}}))"
            )
        if flops == 0.0:
            return []
        dtype = self.dtypes[raw.operands[0]] if raw.operands else self.dtypes[raw.results[0]]
        over = [i for dims in (*raw.rule.operands, *raw.rule.results) for dim in dims for i in dim]
        return [RawWork(engine=engine, flops=flops, dtype=dtype, over=tuple(sorted(set(over))))]

    def _linear(self, name: str, raw: RawOp) -> tuple[int, ...]:
        """Operands through which a partial sum may pass: all of them must then be partial (or zero)."""
        rule = KINDS[name].linear if name in KINDS else ""
        if rule == "scale":
            uniform = [v in self._uniform for v in raw.operands]
            if uniform[1]:
                return (0,)
            return (1,) if uniform[0] and raw.kind == "multiply" else ()
        count = {"all": len(raw.operands), "both": 2, "first": 1}.get(rule, 0)
        return tuple(range(count))

    def _reducer(self, op: ir.Operation, raw: RawOp) -> None:
        if raw.kind != "reduce":
            return
        (block,) = op.regions[0].blocks
        inside = {o.operation.name.removeprefix("stablehlo.") for o in block.operations}
        if "add" not in inside:
            raw.linear = ()
            raw.reducer = "maximum" if inside & {"maximum", "minimum", "or", "and"} else "other"

    def _track(self, op: ir.Operation, raw: RawOp) -> None:
        """Remember which scalars follow a loop counter, and which values hold one number (or zero) throughout."""
        result = raw.results[0]
        if raw.kind == "constant":
            number = splat(op)
            self._constant.add(result)
            if number is not None:
                self._uniform.add(result)
            if number == 0.0:
                self._zero.add(result)
        elif self.shapes[result] == () and raw.operands:
            loops = {self._counters[v] for v in raw.operands if v in self._counters}
            rest = [v for v in raw.operands if v not in self._counters]
            if len(loops) == 1 and all(v in self._constant for v in rest):
                self._counters[result] = loops.pop()
        if self.shapes[result] == () or (raw.operands and all(v in self._uniform for v in raw.operands)):
            self._uniform.add(result)
        if raw.kind in ("broadcast_in_dim", "convert", "reshape") and raw.operands[0] in self._zero:
            self._zero.add(result)
        if result in self._zero:
            raw.kind = "zeros"

    # -- calls ---------------------------------------------------------------------------------------------------

    def _composite(self, op: ir.Operation, operands: list[int], scope: str, out: list[RawNode]) -> list[int]:
        name = ir.StringAttr(op.attributes["name"]).value
        decomposition = str(op.attributes["decomposition"]).lstrip("@")
        if not name.startswith(KERNEL_PREFIX):
            return self.function(decomposition, operands, scope, out)
        results = [self.new_value(*tensor_type(value)) for value in op.results]
        raw = kernel_op(self, op, name, decomposition, operands, results)
        raw.scope, raw.source = scope, self._source(op)
        self.attach(raw)
        out.append(raw)
        return results

    def _custom_call(self, op: ir.Operation, operands: list[int], scope: str, out: list[RawNode]) -> list[int]:
        target = ir.StringAttr(op.attributes["call_target_name"]).value
        if target in ops.TRANSPARENT_CALLS:
            return operands
        return self._op(op, target, operands, scope, out)

    # -- loops ---------------------------------------------------------------------------------------------------

    def _loop(
        self, op: ir.Operation, operands: list[int], env: Environment, scope: str, out: list[RawNode]
    ) -> list[int]:
        condition, (block,) = op.regions[0].blocks[0], op.regions[1].blocks
        source = self._source(op)
        position, count = self._trip_count(condition, block, env, source)
        trip = self.space.new(count)
        parameters = [self.new_value(self.shapes[v], self.dtypes[v]) for v in operands]
        if position is not None:
            self._counters[parameters[position]] = trip
        body: list[RawNode] = []
        inner = {**env, **dict(zip(block.arguments, parameters, strict=True))}
        yields = self.block(block, inner, scope, body)
        results = [self.new_value(self.shapes[v], self.dtypes[v]) for v in operands]
        for slots in zip(operands, parameters, yields, results, strict=True):
            self._unify_values(slots)
        out.append(
            RawLoop(
                trip=trip,
                operands=operands,
                parameters=parameters,
                body=body,
                yields=yields,
                results=results,
                scope=scope,
                source=source,
            )
        )
        return results

    def _unify_values(self, slots: Iterable[int]) -> None:
        first, *rest = slots
        for other in rest:
            for a, b in zip(self.nodes[first], self.nodes[other], strict=True):
                self.space.unify([a], [b])

    def _trip_count(self, condition: ir.Block, body: ir.Block, env: Environment, source: str) -> tuple[int | None, int]:
        """Position of the counter among the loop's values, and how often the loop runs."""
        found = _counted(condition, body)
        if found is not None:
            position, bound = found
            return position, bound
        for where, count in self.hints.trip_counts.items():
            if source.endswith(where):
                return None, count
        raise TraceError(
            f"{source}: got a loop whose trip count depends on data, expected a static one (lax.scan, or fori_loop "
            f"with constant bounds): supply it, Program(..., hints=Hints(trip_counts={{{source!r}: N}}))"
        )


def _counted(condition: ir.Block, body: ir.Block) -> tuple[int, int] | None:
    """(position, trips) of a loop that runs while its counter, which grows by 1, is below a constant."""
    terminator = condition.operations[len(condition.operations) - 1]
    test = terminator.operands[0].owner
    if not isinstance(test, (ir.Operation, ir.OpView)) or test.operation.name != "stablehlo.compare":
        return None
    if "LT" not in str(test.operation.attributes["comparison_direction"]):
        return None
    counter, bound = test.operation.operands
    limit = _constant(bound)
    if limit is None or not isinstance(counter.owner, ir.Block):
        return None
    position = ir.BlockArgument(counter).arg_number
    loop = condition.owner
    start = _constant(loop.operation.operands[position])
    step = body.operations[len(body.operations) - 1].operands[position].owner
    if start is None or isinstance(step, ir.Block) or step.operation.name != "stablehlo.add":
        return None
    steps = [_constant(value) for value in step.operation.operands]
    if steps[1] != 1 or step.operation.operands[0] != body.arguments[position]:
        return None
    return position, max(0, math.ceil(limit - start))


def _constant(value: Any) -> float | None:
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.operation.name != "stablehlo.constant":
        return None
    return splat(owner.operation)
