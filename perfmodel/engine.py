"""Which engine of a rank runs an op's work, and in what shape: matmuls with their local sizes, elementwise work by what
kind of function it is, rows that are fetched one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from perfmodel.graph import DTYPE_BYTES, Op, Work
from perfmodel.sharded import LocalOp, ShardedGraph
from perfmodel.work import Term, resized

TRANSCENDENTAL = (
    "atan2 cbrt cosine exponential exponential_minus_one log log_plus_one logistic power rsqrt sine sqrt tan tanh "
    "chlo.acos chlo.acosh chlo.asin chlo.asinh chlo.atan chlo.atanh chlo.bessel_i1e chlo.cosh chlo.digamma chlo.erf "
    "chlo.erf_inv chlo.erfc chlo.lgamma chlo.polygamma chlo.sinh chlo.tan chlo.zeta"
)
SCALAR = frozenset(TRANSCENDENTAL.split())
GPSIMD = frozenset({"sort", "chlo.top_k", "ApproxTopK", "scatter", "select_and_scatter", "rng_bit_generator"})
MATMULS = ("dot_general", "perfmodel.scaled_matmul")
MEASURED = ("perfmodel.attention", "perfmodel.scaled_matmul")
"""How marked kernels are called of which the share of the matrix engine's peak is measured with what else they do."""
ROWS = {"gather": None, "scatter": 2}
"""Ops that fetch or store rows one by one: the operand whose rows they are, or None for the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """`batch` products of an m x k by a k x n matrix, as one rank runs them; m and n may change places."""

    dtype: str
    m: Term
    n: Term
    k: Term
    batch: Term


def matmul(sharded: ShardedGraph, local: LocalOp) -> Matmul | None:
    """The matmul of an op whose first operands are multiplied; of other ops the shape is not known."""
    op = local.op
    if op.kind not in MATMULS:
        return None
    work = next(work for work in op.work if work.engine == "tensor")
    left, right = ({i for dim in dims for i in dim} for dims in op.operand_dims[:2])
    result = {i for dim in op.result_dims[0] for i in dim}

    def size(indices: Iterable[int]) -> Term:
        term = Term(1.0)
        for i in sorted(indices):
            term = term * _local_size(sharded, local, i)
        return term

    m, n = sorted(
        (size((left & result) - right), size((right & result) - left)), key=lambda t: (t.exponents, t.coefficient)
    )
    return Matmul(
        dtype=work.dtype,
        m=m,
        n=n,
        k=size((left | right) - result),
        batch=size(left & right & result),
    )


def _local_size(sharded: ShardedGraph, local: LocalOp, i: int) -> Term:
    factor = sharded.graph.factors[local.op.local[i]]
    term = Term(float(factor.size)).times(local.axes[i], -1)
    return resized(term, factor.name, factor.named_size)


def executed(sharded: ShardedGraph, local: LocalOp) -> list[tuple[str, str, Term]]:
    """(engine, element type, FLOPs that one rank executes) of an op.

    Of marked kernels of attention, and of narrow operands with their scales, only the matmuls are told: the share of
    the matrix engine's peak that such kernels reach is measured with their softmax, or with scaling.
    """
    whole = local.op.kind.startswith(MEASURED)
    return [
        (_engine(local.op, work), work.dtype, _spread(sharded, local, work.flops * work.share, work.over))
        for work in local.op.work
        if work.engine == "tensor" or not whole
    ]


def moved_bytes(sharded: ShardedGraph, local: LocalOp) -> Term | None:
    """Bytes that one rank moves for a kernel that states them; None for other ops [B]."""
    moved = local.op.moved
    return None if moved is None else _spread(sharded, local, moved.bytes, moved.over)


def _spread(sharded: ShardedGraph, local: LocalOp, whole: float, over: Iterable[int]) -> Term:
    """What one rank has of an amount at traced sizes, spread over local indices."""
    term = Term(whole)
    for i in over:
        factor = sharded.graph.factors[local.op.local[i]]
        term = resized(term.times(local.axes[i], -1), factor.name, factor.named_size)
    return term


def _engine(op: Op, work: Work) -> str:
    """The matrix engine reaches another share of its peak inside attention kernels: the softmax stands in its way. What
    a kernel from elsewhere does is told by engine; what other ops do, by their kind.
    """
    if work.engine == "tensor":
        return "attention" if op.kind.startswith("perfmodel.attention") else "tensor"
    if op.kind in SCALAR or work.engine == "scalar":
        return "scalar"
    return "gpsimd" if op.kind in GPSIMD or work.engine == "gpsimd" else "vector"


def attended(sharded: ShardedGraph, local: LocalOp) -> Term | None:
    """Keys that a query of an attention kernel sees on average, on one rank; None for other ops [1]."""
    if not local.op.kind.startswith("perfmodel.attention"):
        return None
    work = next(work for work in local.op.work if work.engine == "tensor")
    term = Term(work.band * work.share)
    for i in local.op.operand_dims[1][1]:
        term = term * _local_size(sharded, local, i)
    return term


def row_bytes(sharded: ShardedGraph, local: LocalOp) -> Term | None:
    """Bytes that lie together of what an op fetches or stores row by row, on one rank; None for other ops [B]."""
    if local.op.kind not in ROWS:
        return None
    operand = ROWS[local.op.kind]
    dims = local.op.result_dims[0] if operand is None else local.op.operand_dims[operand]
    value = local.op.results[0] if operand is None else local.op.operands[operand]
    term = Term(DTYPE_BYTES[sharded.graph.values[value].dtype])
    for i in dims[-1] if dims else ():
        term = term * _local_size(sharded, local, i)
    return term
