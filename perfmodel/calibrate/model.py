"""Seconds that a machine predicts for measured rows, by the formulas that price a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np

from perfmodel.calibrate.rows import Attention, Collective, Gemm, Row
from perfmodel.collective import collective_seconds
from perfmodel.engine import Matmul
from perfmodel.kernel import Demand
from perfmodel.machine import Machine
from perfmodel.price import kernel_seconds
from perfmodel.work import SYMBOLS, Evaluator, Floats, Term, amount

BYTES = {"bf16": 2.0, "f16": 2.0, "f32": 4.0, "f8": 1.0}
DTYPES = {"f8": "f8E4M3FN"}
M, N, K, BATCH = "cp", "ep", "fsdp", "dp"
"""Symbols that stand for the sizes of kernels, so that a formula of a layout is one of a table of kernels."""

Launches: TypeAlias = Mapping[str, float]
"""Source of kernel rows -> what its harness adds to each launch [s]."""


def predicted(rows: Sequence[Row], machine: Machine, launches: Launches) -> Floats:
    """Seconds of each row [s], shape (rows,)."""
    seconds = np.empty(len(rows))
    for kind in {row.what.kind for row in rows if isinstance(row.what, Collective)}:
        chosen = [i for i, row in enumerate(rows) if isinstance(row.what, Collective) and row.what.kind == kind]
        seconds[chosen] = _collectives(kind, [rows[i].what for i in chosen], machine)
    for dtype, kernel in ((dtype, kernel) for dtype in BYTES for kernel in (Gemm, Attention)):
        chosen = [i for i, row in enumerate(rows) if isinstance(row.what, kernel) and row.what.dtype == dtype]
        if chosen:
            seconds[chosen] = _kernels(dtype, [rows[i] for i in chosen], machine)
            seconds[chosen] += [launches.get(rows[i].source, 0.0) for i in chosen]
    return seconds


def _collectives(kind: str, found: Sequence[Collective | Gemm | Attention], machine: Machine) -> Floats:
    """Groups are as the measurements have them: contiguous ranks, or as many on each of several servers."""
    each = [what for what in found if isinstance(what, Collective)]
    server = machine.chips_per_instance * machine.ranks_per_chip
    size, bytes = (np.array(column, dtype=np.float64) for column in ([c.ranks for c in each], [c.bytes for c in each]))
    stride = np.array([max(server * c.nodes / c.ranks, 1.0) if c.nodes > 1 else 1.0 for c in each])
    return np.asarray(collective_seconds(kind, bytes, size, stride, machine))


def _kernels(dtype: str, rows: Sequence[Row], machine: Machine) -> Floats:
    """Kernels of one kind; on a share of a rank's units, as much work for all of them takes as long."""
    gemms = all(isinstance(row.what, Gemm) for row in rows)
    columns = np.array([_sizes(row) for row in rows]).T
    sizes = dict.fromkeys(SYMBOLS, 1.0) | dict(zip((M, N, K, BATCH), columns, strict=True))
    asked = _gemm(dtype) if gemms else _attention(dtype)
    found = kernel_seconds(asked, Evaluator(sizes), machine).values()
    return np.asarray(reduce(np.maximum, found))


def _sizes(row: Row) -> tuple[float, float, float, float]:
    """m, n, k and batch of a matmul; queries, keys, head size and heads of attention."""
    what = row.what
    if isinstance(what, Gemm):
        return what.m, what.n, what.k, 1.0 / row.share
    assert isinstance(what, Attention)
    return what.seq, what.seq, what.head_dim, what.batch * what.heads / row.share


def _gemm(dtype: str) -> Demand:
    m, n, k, batch = (Term(1.0).times((symbol,)) for symbol in (M, N, K, BATCH))
    name = DTYPES.get(dtype, dtype)
    return Demand(
        flops={("tensor", name): amount([Term(2.0).times((M, N, K, BATCH))])},
        bytes=amount(Term(BYTES[dtype]).times((*pair, BATCH)) for pair in ((M, K), (K, N), (M, N))),
        matmul=Matmul(dtype=name, m=m, n=n, k=k, batch=batch),
    )


def _attention(dtype: str) -> Demand:
    """Two matmuls of each query with half of the keys; queries, keys, values and results cross the boundary."""
    return Demand(
        flops={("attention", dtype): amount([Term(0.5 * 4.0).times((M, N, K, BATCH))])},
        bytes=amount([Term(4.0 * BYTES[dtype]).times((M, K, BATCH))]),
        keys=Term(0.5).times((N,)),
    )
