"""Sharding rules of the ops that Shardy leaves to us, written as it writes the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from perfmodel.trace.ops import Shape
from perfmodel.trace.stablehlo import Rule

Dims = tuple[tuple[int, ...], ...]


def identity_rule(operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Nothing shared, nothing shardable: every dim is a factor of its own that must be whole."""
    sizes: list[int] = []

    def fresh(shape: Shape) -> Dims:
        start = len(sizes)
        sizes.extend(shape)
        return tuple((start + i,) for i in range(len(shape)))

    operand_dims, result_dims = tuple(map(fresh, operands)), tuple(map(fresh, results))
    return Rule(tuple(sizes), operand_dims, result_dims, blocked=tuple(range(len(sizes))))


def source_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Constants and iotas: each rank makes its own part."""
    (shape,) = results
    return Rule(shape, (), (tuple((i,) for i in range(len(shape))),))


def slice_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """`dynamic_slice` and `dynamic_update_slice`: equal dims are shared, sliced ones are not."""
    large, small = (operands[0], results[0]) if "update" not in op.name else (operands[0], operands[1])
    whole: Dims = tuple((i,) for i in range(len(large)))
    part: Dims = tuple((i,) if large[i] == small[i] else () for i in range(len(large)))
    cut = tuple(i for i in range(len(large)) if large[i] != small[i])
    if "update" not in op.name:
        return Rule(large, (whole, *((),) * (len(operands) - 1)), (part,), blocked=cut)
    return Rule(large, (whole, part, *((),) * (len(operands) - 2)), (whole,), blocked=cut)


def scatter_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Window dims and batching dims are shared; the scattered-over dims of the updates are summed."""
    numbers = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
    table, indices, updates = operands[0], operands[1], operands[2]
    sizes = list(table)
    window = iter(
        d for d in range(len(table)) if d not in (*numbers.inserted_window_dims, *numbers.input_batching_dims)
    )
    index_dims: list[tuple[int, ...]] = [() for _ in indices]
    update_dims: list[tuple[int, ...]] = [() for _ in updates]
    blocked: list[int] = []
    for d in numbers.update_window_dims:
        source = next(window)
        if updates[d] == table[source]:
            update_dims[d] = (source,)
        elif updates[d] != 1:  # a window narrower than the table
            blocked.append(source)
            sizes.append(updates[d])
            blocked.append(len(sizes) - 1)
            update_dims[d] = (len(sizes) - 1,)
    batching = dict(zip(numbers.scatter_indices_batching_dims, numbers.input_batching_dims, strict=True))
    index_order = [d for d in range(len(indices)) if d != numbers.index_vector_dim]
    update_order = [d for d in range(len(updates)) if d not in numbers.update_window_dims]
    summed: list[int] = []
    for index_dim, update_dim in zip(index_order, update_order, strict=True):
        if index_dim in batching:
            factor = batching[index_dim]
        else:
            sizes.append(indices[index_dim])
            factor = len(sizes) - 1
            summed.append(factor)
        index_dims[index_dim] = update_dims[update_dim] = (factor,)
    whole: Dims = tuple((d,) for d in range(len(table)))
    return Rule(tuple(sizes), (whole, tuple(index_dims), tuple(update_dims)), (whole,), tuple(summed), tuple(blocked))


def top_k_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """The last dim must be whole; the others are shared."""
    (shape,), last = operands, len(operands[0]) - 1
    shared: Dims = tuple((i,) for i in range(last))
    dims = (*shared, (last + 1,))
    return Rule((*shape, results[0][last]), ((*shared, (last,)),), (dims, dims), blocked=(last, last + 1))


def ragged_dot_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Rows of one operand, each against one expert's matrix: rows and groups must be whole, the rest is a matmul."""
    text = str(op.attributes["ragged_dot_dimension_numbers"])

    def dims(name: str) -> list[int]:
        match = re.search(rf"{name} = \[([\d, ]*)\]", text)
        return [int(n) for n in match[1].split(",") if n.strip()] if match else []

    lhs, rhs = operands[0], operands[1]
    batch, contract = (
        list(zip(dims("lhs_batching_dimensions"), dims("rhs_batching_dimensions"), strict=True)),
        list(zip(dims("lhs_contracting_dimensions"), dims("rhs_contracting_dimensions"), strict=True)),
    )
    groups, ragged = dims("rhs_group_dimensions"), dims("lhs_ragged_dimensions")
    sizes = list(lhs)
    rhs_of = {r: left for left, r in (*batch, *contract)}
    rhs_dims: list[tuple[int, ...]] = []
    for d, size in enumerate(rhs):
        if d not in rhs_of:
            sizes.append(size)
            rhs_of[d] = len(sizes) - 1
        rhs_dims.append((rhs_of[d],))
    contracted = [left for left, _ in contract]
    lhs_free = [d for d in range(len(lhs)) if d not in contracted and d not in [b for b, _ in batch]]
    rhs_free = [d for d in range(len(rhs)) if d not in [r for _, r in (*batch, *contract)] and d not in groups]
    result: list[tuple[int, ...]] = [(b,) for b, _ in batch]
    result += [(d,) for d in lhs_free] + [rhs_dims[d] for d in rhs_free]
    blocked = [*ragged, *(rhs_of[d] for d in groups)]
    if set(ragged) <= set(contracted):  # gradient of the experts' matrices: one slab per group in the result
        sizes.append(operands[2][-1])
        result.insert(0, (len(sizes) - 1,))
        blocked.append(len(sizes) - 1)
    whole: Dims = tuple((d,) for d in range(len(lhs)))
    group_dims: Dims = tuple(() for _ in operands[2])
    return Rule(tuple(sizes), (whole, tuple(rhs_dims), group_dims), (tuple(result),), tuple(contracted), tuple(blocked))


OWN_RULES: Mapping[str, Callable[[ir.Operation, tuple[Shape, ...], tuple[Shape, ...]], Rule]] = {
    "stablehlo.constant": source_rule,
    "stablehlo.iota": source_rule,
    "stablehlo.dynamic_slice": slice_rule,
    "stablehlo.dynamic_update_slice": slice_rule,
    "stablehlo.scatter": scatter_rule,
    "chlo.top_k": top_k_rule,
    "chlo.ragged_dot": ragged_dot_rule,
}


def attributes_of(op: ir.Operation) -> dict[str, tuple[int, ...]]:
    """The attributes that the cost of an op depends on."""
    if op.name == "stablehlo.dot_general":
        numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
        return {"lhs_contracting": tuple(numbers.lhs_contracting_dimensions)}
    if op.name == "chlo.ragged_dot":
        text = str(op.attributes["ragged_dot_dimension_numbers"])
        contracting = [int(n) for n in re.findall(r"lhs_contracting_dimensions = \[(\d+)", text)]
        ragged = [int(n) for n in re.findall(r"lhs_ragged_dimensions = \[(\d+)", text)]
        return {"lhs_contracting": tuple(contracting), "group_in_result": (1,) if contracting == ragged else ()}
    if op.name == "stablehlo.convolution":
        conv = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
        dilation = tuple(ir.DenseI64ArrayAttr(op.attributes["lhs_dilation"])) if "lhs_dilation" in op.attributes else ()
        return {"kernel_output_feature": (conv.kernel_output_feature_dimension,), "lhs_dilation": dilation}
    if op.name == "stablehlo.sort":
        return {"dimension": (ir.IntegerAttr(op.attributes["dimension"]).value,)}
    if op.name == "stablehlo.reduce_window":
        return {"window": tuple(ir.DenseI64ArrayAttr(op.attributes["window_dimensions"]))}
    return {}
