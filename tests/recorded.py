"""A traced program with what its graph leaves out: the attributes of every op, read while the trace walks over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
from numpy.typing import NDArray

from perfmodel.graph import Graph
from perfmodel.trace import Program, trace
from perfmodel.trace.kernel import _body
from perfmodel.trace.walk import Walker

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Attributes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Dimension numbers of a gather or scatter: window dims of what is read or added, and dims of the table."""

    window: Shape
    collapsed: Shape
    batching: tuple[tuple[int, int], ...]
    indexed: Shape
    vector: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """A traced program, and the attributes of the op that makes each value."""

    graph: Graph
    attributes: Mapping[int, Attributes]


def record(program: Program) -> Recorded:
    """Trace a program, keeping the attributes of its ops."""
    walkers: list[_Recorder] = []

    def started(*args: Any) -> _Recorder:
        walkers.append(_Recorder(*args))
        return walkers[-1]

    with patch("perfmodel.trace.Walker", started):
        graph = trace(program)
    return Recorded(graph, walkers[0].attributes)


class _Recorder(Walker):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.attributes: dict[int, Attributes] = {}

    def nested(self) -> Walker:
        self.inner = _Recorder(self.module, self.hints)
        return self.inner

    def _visit(self, op: ir.Operation, operands: list[int], *rest: Any) -> list[int]:
        results = super()._visit(op, operands, *rest)
        if results and results[0] not in self.attributes:  # those of a call have been seen inside it
            self.attributes[results[0]] = self._read(op, operands)
        return results

    def _read(self, op: ir.Operation, operands: list[int]) -> Attributes:
        found = {name: READERS[name](op.attributes[name]) for name in op.attributes if name in READERS}
        found["name"] = op.name.removeprefix("stablehlo.")
        if op.regions and op.name != "stablehlo.while":
            found["combine"] = op.regions[0].blocks[0].operations[0].operation.name.removeprefix("stablehlo.")
        if op.name == "stablehlo.composite":
            body = _body(self, str(op.attributes["decomposition"]).lstrip("@"), operands)
            found["body"] = Recorded(body, self.inner.attributes)
        return found


def _integers(attribute: Any) -> tuple[int, ...]:
    return tuple(ir.DenseI64ArrayAttr(attribute))


def _integer(attribute: Any) -> int:
    return int(ir.IntegerAttr(attribute).value)


def _constant(attribute: Any) -> Array:
    return np.asarray(attribute.get_splat_value().value if attribute.is_splat else np.array(attribute))


def _dot(attribute: Any) -> tuple[tuple[int, ...], ...]:
    numbers = stablehlo.DotDimensionNumbers(attribute)
    return (
        tuple(numbers.lhs_batching_dimensions),
        tuple(numbers.rhs_batching_dimensions),
        tuple(numbers.lhs_contracting_dimensions),
        tuple(numbers.rhs_contracting_dimensions),
    )


def _gathered(attribute: Any) -> Lookup:
    numbers = stablehlo.GatherDimensionNumbers(attribute)
    return Lookup(
        window=tuple(numbers.offset_dims),
        collapsed=tuple(numbers.collapsed_slice_dims),
        batching=tuple(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)),
        indexed=tuple(numbers.start_index_map),
        vector=numbers.index_vector_dim,
    )


def _scattered(attribute: Any) -> Lookup:
    numbers = stablehlo.ScatterDimensionNumbers(attribute)
    return Lookup(
        window=tuple(numbers.update_window_dims),
        collapsed=tuple(numbers.inserted_window_dims),
        batching=tuple(zip(numbers.input_batching_dims, numbers.scatter_indices_batching_dims, strict=True)),
        indexed=tuple(numbers.scattered_dims_to_operand_dims),
        vector=numbers.index_vector_dim,
    )


READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("broadcast_dimensions", "dimensions", "permutation", "slice_sizes"), _integers),
    **dict.fromkeys(("start_indices", "limit_indices", "strides"), _integers),
    **dict.fromkeys(("edge_padding_low", "edge_padding_high", "interior_padding"), _integers),
    **dict.fromkeys(("dimension", "iota_dimension"), _integer),
    "value": _constant,
    "dot_dimension_numbers": _dot,
    "dimension_numbers": _gathered,
    "scatter_dimension_numbers": _scattered,
    "comparison_direction": lambda attribute: str(attribute).rstrip(">").split()[-1],
}
