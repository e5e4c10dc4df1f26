"""StableHLO on NumPy arrays: what each op of a traced graph computes, on whole values or on one device's shard.

An op is given the shape of its result, because on a device that shape is local. All floats are float64 and all
integers int64, whatever the program says: no rounding hides a wrong sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from recorded import Array, Attributes, Lookup, Recorded, Shape

from perfmodel.graph import Graph, Loop, Op

# -- ops: (attributes, operands, shape of the result, number of leading dims that range over devices) -> result --------

Semantics: TypeAlias = Callable[[Attributes, Sequence[Array], Shape, int], Array]


def _elementwise(function: Callable[..., Array]) -> Semantics:
    def apply(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
        aligned = [x.reshape(x.shape + (1,) * len(shape)) if x.ndim == lead else x for x in operands]
        with np.errstate(all="ignore"):
            return np.asarray(function(*aligned))

    return apply


def _compare(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    functions = {"EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal}
    functions |= {"GT": np.greater, "GE": np.greater_equal}
    return np.asarray(functions[attributes["comparison_direction"]](*operands))


def _divide(left: Array, right: Array) -> Array:
    return left / right if left.dtype == np.float64 else left // right


def _dot_general(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    left, right = operands
    left_batch, right_batch, left_sum, right_sum = attributes["dot_dimension_numbers"]

    def matrices(x: Array, batch: Shape, summed: Shape, last: bool) -> Array:
        free = [d for d in range(x.ndim - lead) if d not in (*batch, *summed)]
        groups = [[*range(-lead, 0)], batch, *((free, summed) if last else (summed, free))]
        x = x.transpose([lead + d for group in groups for d in group])
        sizes = iter(x.shape)
        split = [[next(sizes) for _ in group] for group in groups]
        return x.reshape(*split[0], *split[1], math.prod(split[2]), math.prod(split[3]))

    product = matrices(left, left_batch, left_sum, True) @ matrices(right, right_batch, right_sum, False)
    return product.reshape(product.shape[:lead] + shape)


def _broadcast(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    (x,) = operands
    spread = [1] * len(shape)
    for size, d in zip(x.shape[lead:], attributes["broadcast_dimensions"], strict=True):
        spread[d] = size
    return np.broadcast_to(x.reshape(x.shape[:lead] + tuple(spread)), x.shape[:lead] + shape)


def _transpose(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    return operands[0].transpose([*range(lead), *(lead + d for d in attributes["permutation"])])


def _reshape(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    return operands[0].reshape(operands[0].shape[:lead] + shape)


REDUCERS: Mapping[str, np.ufunc] = {
    "add": np.add,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "multiply": np.multiply,
    "or": np.logical_or,
    "and": np.logical_and,
}


def _reduce(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    x, start = operands
    combine = REDUCERS[attributes["combine"]]
    reduced = combine.reduce(x, axis=tuple(lead + d for d in attributes["dimensions"]))
    return np.asarray(combine(reduced, start.reshape(start.shape + (1,) * len(shape))))


def _concatenate(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    return np.concatenate(operands, axis=lead + attributes["dimension"])


def _slice(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    """A dim that is kept whole is kept whole on a device too."""
    (x,) = operands
    limits = zip(*(attributes[name] for name in ("start_indices", "limit_indices", "strides")), strict=True)
    cut = tuple(slice(None) if x.shape[lead + d] == shape[d] else slice(*each) for d, each in enumerate(limits))
    return x[(slice(None),) * lead + cut]


def _pad(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    x, fill = operands
    steps = [each + 1 for each in attributes["interior_padding"]]
    out = np.array(np.broadcast_to(fill.reshape(fill.shape + (1,) * len(shape)), fill.shape + shape))
    target, source = [slice(None)] * lead, [slice(None)] * lead
    for d, (low, step) in enumerate(zip(attributes["edge_padding_low"], steps, strict=True)):
        where = [(i, low + i * step) for i in range(x.shape[lead + d]) if 0 <= low + i * step < shape[d]]
        source.append(slice(where[0][0], where[-1][0] + 1))
        target.append(slice(where[0][1], where[-1][1] + 1, step))
    out[tuple(target)] = x[tuple(source)]
    return out


def _iota(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    d = attributes["iota_dimension"]
    counted = np.arange(shape[d]).reshape([-1 if i == d else 1 for i in range(len(shape))])
    return np.broadcast_to(counted, shape)


def _reverse(attributes: Attributes, operands: Sequence[Array], shape: Shape, lead: int) -> Array:
    return np.flip(operands[0], axis=tuple(lead + d for d in attributes["dimensions"]))


ELEMENTWISE: Mapping[str, Callable[..., Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": _divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "negate": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "exponential": np.exp,
    "log": np.log,
    "logistic": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
    "sine": np.sin,
    "cosine": np.cos,
    "log_plus_one": np.log1p,
    "exponential_minus_one": np.expm1,
    "is_finite": np.isfinite,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "square": np.square,
    "chlo.square": np.square,
    "select": np.where,
    "convert": np.asarray,
}

SEMANTICS: Mapping[str, Semantics] = {
    **{name: _elementwise(function) for name, function in ELEMENTWISE.items()},
    "compare": _compare,
    "constant": lambda attributes, operands, shape, lead: np.broadcast_to(attributes["value"], shape),
    "iota": _iota,
    "dot_general": _dot_general,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "reduce": _reduce,
    "concatenate": _concatenate,
    "slice": _slice,
    "pad": _pad,
    "reverse": _reverse,
}


def element_type(dtype: str) -> type:
    """What stands for an element type here."""
    return np.float64 if "f" in dtype else np.bool_ if dtype == "i1" else np.int64


def compute(attributes: Attributes, operands: Sequence[Array], shape: Shape, dtype: str, *, lead: int = 0) -> Array:
    """The result of one op; its operands may carry `lead` leading dims that range over devices."""
    result = SEMANTICS[attributes["name"]](attributes, operands, shape, lead)
    return result.astype(element_type(dtype))


def coordinates(numbers: Lookup, indices: Array, shape: Shape, table: Shape) -> list[Array]:
    """Where each element of what a gather reads (of shape `shape`) stands in the table, dim by dim."""
    here = np.indices(shape)
    batch = [d for d in range(len(shape)) if d not in numbers.window]
    looked_up = indices if numbers.vector < indices.ndim else indices[..., None]
    along = [d for d in range(looked_up.ndim) if d != numbers.vector]
    rows = np.moveaxis(looked_up, numbers.vector, -1)[tuple(here[d] for d in batch)]
    offsets = iter(numbers.window)
    batching = dict(numbers.batching)
    found = []
    for d in range(len(table)):
        if d in batching:
            place = here[batch[along.index(batching[d])]]
        elif d in numbers.collapsed:
            place = np.zeros(shape, np.int64)
        else:
            place = here[next(offsets)]
        found.append(place + rows[..., numbers.indexed.index(d)] if d in numbers.indexed else place)
    return found


def look_up(name: str, operands: Sequence[Array], numbers: Lookup, shape: Shape, own: Sequence[Array | None]) -> Array:
    """A gather, or a scatter that adds. `own` says of each dim of the table that is indexed where a device keeps each
    row, -1 for rows that it has not: it reads zeros there, and adds nothing.
    """
    table, indices = operands[:2]
    where = coordinates(numbers, indices, shape if name == "gather" else operands[2].shape, table.shape)
    there = np.ones(where[0].shape, bool)
    for d, rows in enumerate(own):
        if rows is not None:
            inside = (where[d] >= 0) & (where[d] < len(rows))
            where[d] = np.where(inside, rows[np.where(inside, where[d], 0)], -1)
            there &= where[d] >= 0
    spots = tuple(np.where(there, each, 0) for each in where)
    if name == "gather":
        return np.where(there, table[spots], np.zeros((), table.dtype))
    added = np.array(table)
    np.add.at(added, spots, np.where(there, operands[2], 0))
    return added


# -- whole programs ----------------------------------------------------------------------------------------------------


def window(graph: Graph, op: Op, operands: Sequence[Array]) -> tuple[slice, ...]:
    """Where a dynamic slice or update lies in its first operand."""
    update = op.kind == "dynamic_update_slice"
    large, small = graph.shape(op.operands[0]), graph.shape(op.operands[1] if update else op.results[0])
    starts = [int(each) for each in operands[2 if update else 1 :]]
    clamped = [min(max(i, 0), n - m) for i, n, m in zip(starts, large, small, strict=True)]
    return tuple(slice(i, i + m) for i, m in zip(clamped, small, strict=True))


def evaluate(recorded: Recorded, op: Op, operands: Sequence[Array]) -> list[Array]:
    """The results of an op on whole values."""
    attributes = recorded.attributes[op.results[0]]
    if "body" in attributes:
        return run(attributes["body"], operands)
    if op.kind == "dynamic_slice":
        return [operands[0][window(recorded.graph, op, operands)]]
    if op.kind == "dynamic_update_slice":
        updated = np.array(operands[0])
        updated[window(recorded.graph, op, operands)] = operands[1]
        return [updated]
    (result,) = op.results
    shape = recorded.graph.shape(result)
    if op.kind in ("gather", "scatter"):
        return [look_up(op.kind, operands, numbers_of(attributes), shape, everywhere(attributes, operands[0].shape))]
    return [compute(attributes, operands, shape, recorded.graph.values[result].dtype)]


def numbers_of(attributes: Attributes) -> Lookup:
    """Dimension numbers of a gather or of a scatter that adds."""
    gathers = attributes["name"] == "gather"
    assert gathers or attributes["combine"] == "add", attributes
    numbers: Lookup = attributes["dimension_numbers" if gathers else "scatter_dimension_numbers"]
    return numbers


def everywhere(attributes: Attributes, table: Shape) -> list[Array | None]:
    """Rows of a table that is whole."""
    return [np.arange(n) if d in numbers_of(attributes).indexed else None for d, n in enumerate(table)]


def run(recorded: Recorded, arguments: Sequence[Array]) -> list[Array]:
    """The results of a program on whole arrays."""
    graph = recorded.graph
    env = {p.value: x for p, x in zip(graph.parameters, arguments, strict=True)}
    _run(recorded, graph.nodes, env)
    return [env[value] for value in graph.results]


def _run(recorded: Recorded, nodes: Sequence[Op | Loop], env: dict[int, Array]) -> None:
    for node in nodes:
        if isinstance(node, Op):
            env.update(zip(node.results, evaluate(recorded, node, [env[v] for v in node.operands]), strict=True))
            continue
        env.update({p: env[v] for p, v in zip(node.parameters, node.operands, strict=True)})
        for _ in range(recorded.graph.factors[node.trip].size):
            _run(recorded, node.body, env)
            env.update(dict(zip(node.parameters, [env[y] for y in node.yields], strict=True)))
        env.update({r: env[p] for r, p in zip(node.results, node.parameters, strict=True)})
