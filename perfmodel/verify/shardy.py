"""Shardy's own answer: the collectives it makes explicit in a stated program, with no devices and no compilation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from perfmodel.graph import DTYPE_BYTES
from perfmodel.trace.stablehlo import MAIN, scope_of, tensor_type
from perfmodel.trace.walk import TERMINATORS
from perfmodel.verify.collective import Instruction, dearest
from perfmodel.verify.groups import axes_of
from perfmodel.verify.mesh import Mesh
from perfmodel.verify.passes import SHARDY, run
from perfmodel.verify.record import TRIPS
from perfmodel.verify.stated import Stated

DERIVED: Mapping[str, str] = {
    "sdy.all_gather": "all-gather",
    "sdy.all_reduce": "all-reduce",
    "sdy.all_slice": "dynamic-slice",
    "sdy.all_to_all": "all-to-all",
    "sdy.collective_permute": "collective-permute",
    "sdy.reduce_scatter": "reduce-scatter",
}
"""Collectives that Shardy makes of shardings."""
WRITTEN: Mapping[str, str] = {
    "stablehlo.all_gather": "all-gather",
    "stablehlo.all_reduce": "all-reduce",
    "stablehlo.all_to_all": "all-to-all",
    "stablehlo.collective_permute": "collective-permute",
    "stablehlo.reduce_scatter": "reduce-scatter",
}
"""Collectives that the program itself writes, in `shard_map`."""


PLACED = "sdy.sharding"
"""Attribute of an op: where its results lie."""
INLINED = ("sdy.named_computation", "sdy.manual_computation")


def ask_shardy(stated: Stated) -> tuple[Instruction, ...]:
    """The program of one rank as Shardy partitions it; `stated` is left as it is."""
    copy = stated.module.operation.clone()
    run(SHARDY, copy)
    return _Reader(copy, stated.mesh).entry()


class _Reader:
    def __init__(self, module: Any, mesh: Mesh) -> None:
        self.functions = {
            ir.StringAttr(op.attributes["sym_name"]).value: op.operation
            for op in module.regions[0].blocks[0].operations
            if "sym_name" in op.attributes
        }
        self.mesh = mesh

    def entry(self) -> tuple[Instruction, ...]:
        (block,) = self.functions[MAIN].regions[0].blocks
        return self.body(block)

    def body(self, block: ir.Block) -> tuple[Instruction, ...]:
        """Instructions of a block, calls inlined; what it captures are parameters."""
        body = _Body(self)
        body.visit(block)
        return tuple(body.found)

    def called(self, op: ir.Operation) -> ir.Block:
        function = op if op.name in INLINED else self.functions[ir.FlatSymbolRefAttr(op.attributes["callee"]).value]
        block: ir.Block = function.regions[0].blocks[0]
        return block

    def instruction(self, op: ir.Operation, name: str, operands: Sequence[str]) -> Instruction:
        if op.name in DERIVED:
            return self.derived(op, name, operands)
        if op.name in WRITTEN:
            return self.written(op, name, operands)
        if op.name == "stablehlo.slice":
            return self.slice(op, name, operands)
        opcode = op.name.removeprefix("stablehlo.")
        return Instruction(name=name, opcode=opcode, operands=tuple(operands), runs=self.runs(op))

    def runs(self, op: ir.Operation) -> tuple[tuple[tuple[Instruction, ...], float], ...]:
        """What a loop or a branch runs."""
        if op.name == "stablehlo.while":
            return ((self.body(op.regions[1].blocks[0]), float(ir.IntegerAttr(op.attributes[TRIPS]).value)),)
        if op.name in ("stablehlo.case", "stablehlo.if"):
            return dearest([self.body(region.blocks[0]) for region in op.regions])
        return ()

    def slice(self, op: ir.Operation, name: str, operands: Sequence[str]) -> Instruction:
        (before, dtype), (after, _) = map(tensor_type, (op.operands[0], op.results[0]))
        sharding = (
            sdy.TensorShardingPerValueAttr(op.attributes[PLACED]).shardings[0] if PLACED in op.attributes else None
        )
        elements = self.elements(after, sharding) if sharding else math.prod(after)
        return Instruction(
            name=name,
            opcode="slice",
            dtype=dtype,
            elements=elements,
            bytes=elements * DTYPE_BYTES[dtype],
            operands=tuple(operands),
            dims=tuple(d for d, sizes in enumerate(zip(before, after, strict=True)) if len(set(sizes)) > 1),
        )

    def derived(self, op: ir.Operation, name: str, operands: Sequence[str]) -> Instruction:
        shape, dtype = tensor_type(op.results[0])
        elements = self.elements(shape, op.attributes["out_sharding"])
        return Instruction(
            name=name,
            opcode=DERIVED[op.name],
            dtype=dtype,
            elements=elements,
            bytes=elements * DTYPE_BYTES[dtype],
            operands=tuple(operands),
            axes=tuple(self.mesh.symbols[axis] for axis in _axes(op)),
            detail=str(op.attributes["out_sharding"]),
            dims=_gathered(op) if op.name == "sdy.all_gather" else (),
            label=scope_of(op.location),
        )

    def written(self, op: ir.Operation, name: str, operands: Sequence[str]) -> Instruction:
        permutes = op.name == "stablehlo.collective_permute"
        groups = np.array(
            ir.DenseIntElementsAttr(op.attributes["source_target_pairs" if permutes else "replica_groups"])
        )
        shape, dtype = tensor_type(op.results[0])
        return Instruction(
            name=name,
            opcode=WRITTEN[op.name],
            dtype=dtype,
            elements=math.prod(shape),
            bytes=math.prod(shape) * DTYPE_BYTES[dtype],
            operands=tuple(operands),
            axes=axes_of(groups, self.mesh.sizes),
            detail=name,
            label=scope_of(op.location),
        )

    def elements(self, shape: Sequence[int], sharding: ir.Attribute) -> int:
        """Elements of a value on one rank."""
        dims = sdy.TensorShardingAttr(sharding).dimension_shardings
        return math.prod(self.local(size, dim) for size, dim in zip(shape, dims, strict=True))

    def local(self, size: int, dim: Any) -> int:
        """Length of a dim on one rank."""
        refs = map(sdy.AxisRefAttr, sdy.DimensionShardingAttr(dim).axes)
        return math.ceil(size / math.prod(map(self.parts, refs)))

    def parts(self, axis: Any) -> int:
        part = axis.sub_axis_info
        return sdy.SubAxisInfoAttr(part).size if part else self.mesh.sizes[self.mesh.symbols[axis.name]]


class _Body:
    """The instructions of a block as they are read, and the names of its values."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.found: list[Instruction] = []
        self.env: dict[Any, str] = {}

    def visit(self, block: ir.Block) -> list[str]:
        """Read a block; returns the names of what it yields."""
        for operation in block.operations:
            op = operation.operation
            operands = [self.name(value) for value in op.operands]
            if op.name in TERMINATORS:
                return operands
            if op.name in ("func.call", *INLINED):
                inner = self.reader.called(op)
                self.env.update(zip(inner.arguments, operands, strict=True))
                self.env.update(zip(op.results, self.visit(inner), strict=True))
            else:
                self.add(op, operands)
        return []

    def add(self, op: ir.Operation, operands: Sequence[str]) -> None:
        """An op; of one with several results, each result is an instruction of its own."""
        instruction = self.reader.instruction(op, self.next_name(), operands)
        self.found.append(instruction)
        if len(op.results) == 1:
            self.env[op.result] = instruction.name
            return
        for result in op.results:
            self.new(result, "get-tuple-element", instruction.name)

    def name(self, value: Any) -> str:
        if value not in self.env:
            self.new(value, "parameter")
        return self.env[value]

    def new(self, value: Any, opcode: str, *operands: str) -> None:
        self.env[value] = self.next_name()
        self.found.append(Instruction(name=self.env[value], opcode=opcode, operands=operands))

    def next_name(self) -> str:
        return f"%{len(self.found)}"


def _axes(op: ir.Operation) -> tuple[str, ...]:
    """Mesh axes that a collective moves along; of a permutation, all that it may."""
    moved = [str(op.attributes[key]) for key in op.attributes if key != "out_sharding"]
    text = " ".join(moved) or str(op.attributes["out_sharding"])
    return tuple(dict.fromkeys(re.findall(r'"([^"]+)"', text)))


def _gathered(op: ir.Operation) -> tuple[int, ...]:
    """Dims along which values are gathered."""
    dims = re.findall(r"\{([^}]*)\}", str(op.attributes["gathering_axes"]))
    return tuple(d for d, axes in enumerate(dims) if axes)
