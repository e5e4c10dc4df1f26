"""Sharding rules of the ops that Shardy leaves to us, written as it writes the others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from perfmodel.trace.ops import CHLO_ELEMENTWISE, CHLO_FREE, Shape
from perfmodel.trace.stablehlo import Rule, read_rule

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


def elementwise_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Each element of the result from those at its place."""
    (shape,) = results
    dims: Dims = tuple((i,) for i in range(len(shape)))
    return Rule(shape, (dims,) * len(operands), (dims,))


def drawn_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Random numbers within bounds: each rank draws its own part."""
    (shape,) = results
    bounds: tuple[Dims, ...] = tuple(((len(shape),),) if operand else () for operand in operands)
    return Rule((*shape, len(shape)), bounds, (tuple((i,) for i in range(len(shape))),), blocked=(len(shape),))


def slice_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """`dynamic_slice` and `dynamic_update_slice`: equal dims are shared, sliced ones are not."""
    large, small = (operands[0], results[0]) if "update" not in op.name else (operands[0], operands[1])
    whole: Dims = tuple((i,) for i in range(len(large)))
    part: Dims = tuple((i,) if large[i] == small[i] else () for i in range(len(large)))
    cut = tuple(i for i in range(len(large)) if large[i] != small[i])
    if "update" not in op.name:
        return Rule(large, (whole, *((),) * (len(operands) - 1)), (part,), blocked=cut)
    return Rule(large, (whole, part, *((),) * (len(operands) - 2)), (whole,), blocked=cut)


def part_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """`slice`: dims that it cuts must be whole; but if all slices of a value keep half of it at most, they are sums
    over these dims, of what each rank has of them: adding up half of a value moves as much as gathering it.
    """
    rule = read_rule(op) or identity_rule(operands, results)
    kept = sum(math.prod(use.owner.result.type.shape) for use in op.operands[0].uses if use.owner.name == op.name)
    if 2 * kept > math.prod(operands[0]):
        return rule
    cut = {i for dim in rule.operands[0] for i in dim}.intersection(rule.blocked)
    return replace(rule, reduced=tuple(cut), blocked=tuple(i for i in rule.blocked if i not in cut))


def convolution_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Dims along which a window slides must be whole, also where the gradient of weights sums over them: in its part
    alone, no rank has all that its windows reach.
    """
    rule = read_rule(op) or identity_rule(operands, results)
    numbers = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    spatial = zip(numbers.input_spatial_dimensions, numbers.output_spatial_dimensions, strict=True)
    slid = {i for before, after in spatial if results[0][after] > 1 for i in rule.operands[0][before]}
    reduced = tuple(i for i in rule.reduced if i not in slid)
    return replace(rule, reduced=reduced, blocked=tuple(sorted(slid.union(rule.blocked))))


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


def sort_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """The sorted dim must be whole, and ranges over another index afterwards; the others are shared."""
    dim, shape = ir.IntegerAttr(op.attributes["dimension"]).value, operands[0]
    last = len(shape)
    before: Dims = tuple((i,) for i in range(last))
    after: Dims = tuple((last,) if i == dim else (i,) for i in range(last))
    return Rule((*shape, shape[dim]), (before,) * len(operands), (after,) * len(results), blocked=(dim, last))


def ragged_dot_rule(op: ir.Operation, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> Rule:
    """Rows of one operand, each against one group's matrix: a matmul whose ragged dim is (group, row of the group).

    Sharding the groups takes their rows along, evenly: the load is taken to be balanced. Where the groups do not
    divide the rows, both must be whole.
    """
    lhs, rhs, groups = operands
    numbers = _ragged_numbers(op)
    group = len(lhs)  # factors: the dims of lhs, the groups, then what only rhs has
    nested = lhs[numbers.ragged] % groups[-1] == 0 and numbers.ragged not in numbers.batch.values()
    rows = {numbers.ragged: (group, numbers.ragged)} if nested else {}
    lhs_dims = [rows.get(d, (d,)) for d in range(len(lhs))]
    shared = {d: lhs_dims[its] for d, its in (numbers.batch | numbers.contract).items()}
    shared |= dict.fromkeys(numbers.groups, (group,))
    own = {d: (group + 1 + i,) for i, d in enumerate(d for d in range(len(rhs)) if d not in shared)}
    sizes = [*lhs, groups[-1], *(rhs[d] for d in own)]
    sizes[numbers.ragged] //= groups[-1] if nested else 1
    slabs = [(group,)] if numbers.ragged in numbers.contract.values() else []  # gradient of the matrices: one per group
    free = [d for d in range(len(lhs)) if d not in (*numbers.batch.values(), *numbers.contract.values())]
    result = (*slabs, *((d,) for d in numbers.batch.values()), *(lhs_dims[d] for d in free), *own.values())
    prefix = lhs_dims[: len(groups) - 1] if len(groups) - 1 == numbers.ragged else [()] * (len(groups) - 1)
    return Rule(
        tuple(sizes),
        (tuple(lhs_dims), tuple((shared | own)[d] for d in range(len(rhs))), (*prefix, (group,))),
        (result,),
        reduced=tuple(numbers.contract.values()),
        blocked=() if nested else (numbers.ragged, group),
    )


@dataclass(frozen=True, slots=True)
class _RaggedNumbers:
    """The ragged dim of lhs, dims of rhs with their counterparts in lhs, and the dim of rhs over the groups, if any."""

    ragged: int
    batch: dict[int, int]
    contract: dict[int, int]
    groups: list[int]


def _ragged_numbers(op: ir.Operation) -> _RaggedNumbers:
    text = str(op.attributes["ragged_dot_dimension_numbers"])

    def dims(name: str) -> list[int]:
        match = re.search(rf"{name} = \[([\d, ]*)\]", text)
        return [int(n) for n in match[1].split(",") if n.strip()] if match else []

    batch, contract = (
        dict(zip(dims(f"rhs_{kind}_dimensions"), dims(f"lhs_{kind}_dimensions"), strict=True))
        for kind in ("batching", "contracting")
    )
    (ragged,) = dims("lhs_ragged_dimensions")
    return _RaggedNumbers(ragged, batch, contract, dims("rhs_group_dimensions"))


OWN_RULES: Mapping[str, Callable[[ir.Operation, tuple[Shape, ...], tuple[Shape, ...]], Rule]] = {
    **{f"chlo.{name}": elementwise_rule for name in (*CHLO_ELEMENTWISE.split(), *CHLO_FREE.split())},
    "chlo.constant": source_rule,
    "stablehlo.constant": source_rule,
    "stablehlo.convolution": convolution_rule,
    "stablehlo.rng": drawn_rule,
    "stablehlo.iota": source_rule,
    "stablehlo.dynamic_slice": slice_rule,
    "stablehlo.dynamic_update_slice": slice_rule,
    "stablehlo.scatter": scatter_rule,
    "stablehlo.slice": part_rule,
    "chlo.top_k": top_k_rule,
    "chlo.ragged_dot": ragged_dot_rule,
    "stablehlo.sort": sort_rule,
}


NOTES: Mapping[str, str] = {
    "chlo.ragged_dot": "every group of a ragged matmul, such as an expert, has equally many rows",
}
"""What a rule takes for granted of the values that an op works on."""


def attributes_of(op: ir.Operation) -> dict[str, tuple[int, ...]]:
    """The attributes that the cost of an op depends on."""
    if op.name == "stablehlo.dot_general":
        numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
        return {"lhs_contracting": tuple(numbers.lhs_contracting_dimensions)}
    if op.name == "chlo.ragged_dot":
        ragged = _ragged_numbers(op)
        contracting = tuple(ragged.contract.values())
        return {"lhs_contracting": contracting, "group_in_result": (1,) if ragged.ragged in contracting else ()}
    if op.name == "stablehlo.convolution":
        conv = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
        dilation = tuple(ir.DenseI64ArrayAttr(op.attributes["lhs_dilation"])) if "lhs_dilation" in op.attributes else ()
        return {"kernel_output_feature": (conv.kernel_output_feature_dimension,), "lhs_dilation": dilation}
    if op.name == "stablehlo.sort":
        return {"dimension": (ir.IntegerAttr(op.attributes["dimension"]).value,)}
    if op.name == "stablehlo.fft":
        return {"fft_length": tuple(ir.DenseI64ArrayAttr(op.attributes["fft_length"]))}
    if op.name == "stablehlo.reduce_window":
        return {"window": tuple(ir.DenseI64ArrayAttr(op.attributes["window_dimensions"]))}
    return {}
