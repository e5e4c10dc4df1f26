"""Which values of a module the values of a traced graph are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
from jaxlib.mlir import ir

from perfmodel.graph import Graph
from perfmodel.trace import Argument, Program
from perfmodel.trace.build import finish
from perfmodel.trace.program import Hints
from perfmodel.trace.raw import RawLoop, RawNode
from perfmodel.trace.stablehlo import MAIN, tensor_type
from perfmodel.trace.walk import Walker
from perfmodel.verify.passes import RULES, run

RULE = "sdy.sharding_rule"
TRIPS = "perfmodel.trips"
"""Attribute of a loop: how often it runs. Compilers' passes leave it as it is."""
KERNEL = "stablehlo.composite"
SUMS = ("stablehlo.convolution", "stablehlo.dot_general", "stablehlo.gather", "stablehlo.scatter")


def traced(module: ir.Module, program: Program, *, kernels: bool) -> tuple[Recorder, Graph]:
    """The graph of a module, and which values of the module its values are."""
    run(RULES, module.operation)
    walker = Recorder(module, program.hints)
    walker.kernels = kernels
    (block,) = walker.functions[MAIN].regions[0].blocks
    inputs, nodes = _inputs(walker, block, program), list[RawNode]()
    results = walker.function(MAIN, inputs, "", nodes)
    each_op(module, lambda op: op.attributes.__delitem__(RULE) if RULE in op.attributes else None)
    parameters = [(value, "", "other", None) for value in inputs]  # what constraints reach is kept as they ask
    return walker, finish(walker, nodes, parameters, results, name=program.name, recompute=program.recompute)


class Recorder(Walker):
    """Remembers which values of the module each value of the program is, one for each call site.

    seen:   ids by value, but for what lies inside `shard_map`, where the program itself places values, and inside
            kernels that state a rule, which says nothing about their insides
    tables: what gathers read from and scatters add to
    sums:   the first result of each op that may sum, and of each marked kernel, by call site
    """

    kernels = True
    silent = False

    def __init__(self, module: ir.Module, hints: Hints) -> None:
        super().__init__(module, hints)
        self.seen: defaultdict[Any, list[int]] = defaultdict(list)
        self.tables: set[Any] = set()
        self.sums: defaultdict[ir.Operation, list[int]] = defaultdict(list)

    def _visit(self, op: ir.Operation, operands: list[int], env: Any, scope: str, out: list[RawNode]) -> list[int]:
        if op.name == KERNEL and not self.kernels:
            outside, self.silent = self.silent, self.silent or _is_ruled(op)
            results = self.function(ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value, operands, scope, out)
            self.silent = outside
        else:
            results = super()._visit(op, operands, env, scope, out)
        if op.name == "stablehlo.while" and isinstance(out[-1], RawLoop):
            trips = self.space.size(out[-1].trip)
            op.attributes[TRIPS] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64, op.context), trips)
        if not self.silent and not any(self.hidden[index] for index in (*operands, *results)):
            self.record(op, operands, results, out)
        return results

    def record(self, op: ir.Operation, operands: list[int], results: list[int], out: list[RawNode]) -> None:
        """Remember an op of the module, and what stands for its operands and results."""
        for value, index in zip((*op.operands, *op.results), (*operands, *results), strict=True):
            self.seen[value].append(index)
        if op.name in SUMS or (op.name == KERNEL and self.kernels):
            self.sums[op].append(results[0])
        if op.name in ("stablehlo.gather", "stablehlo.scatter"):
            self.tables.update((op.operands[0], *(op.results if op.name == "stablehlo.scatter" else ())))


def _is_ruled(op: ir.Operation) -> bool:
    return "composite_attributes" in op.attributes and "rule" in ir.DictAttr(op.attributes["composite_attributes"])


def _inputs(walker: Walker, block: ir.Block, program: Program) -> list[int]:
    """Values for the arguments of the main function, their dims named."""
    names = [each for argument in program.arguments for each in axis_names(argument)]
    inputs = []
    for argument, axes in zip(block.arguments, names, strict=True):
        shape, dtype = tensor_type(argument)
        inputs.append(walker.new_value(shape, dtype))
        walker.nodes[-1] = [walker.space.new(n, axis, "argument") for n, axis in zip(shape, axes, strict=True)]
    return inputs


def axis_names(argument: Argument) -> list[tuple[str | None, ...]]:
    """Axis names of each array of an argument; None for an array none of whose dims has one."""
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten(argument.tree)
    names = structure.flatten_up_to(argument.axes)
    return [(None,) * len(leaf.shape) if own is None else tuple(own) for leaf, own in zip(leaves, names, strict=True)]


def each_op(module: ir.Module, visit: Callable[[ir.Operation], None]) -> None:
    """Visit every op of a module."""

    def step(op: ir.Operation) -> ir.WalkResult:
        visit(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(step)
