"""Seconds that a machine predicts for measured rows, by the formulas that price a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

Seconds: TypeAlias = Callable[[Machine], Floats]
"""Seconds that a machine predicts for some rows [s], shape (rows,)."""


def predicted(rows: Sequence[Row], machine: Machine, launches: Launches) -> Floats:
    """Seconds of each row [s], shape (rows,)."""
    return predictor(rows)(machine, launches)


def predictor(rows: Sequence[Row]) -> Callable[[Machine, Launches], Floats]:
    """`predicted` for many machines: what depends on the rows alone is worked out once."""
    parts = list(_parts(rows))
    sources, harness = np.unique([row.source for row in rows], return_inverse=True)

    def seconds(machine: Machine, launches: Launches) -> Floats:
        found = np.array([launches.get(source, 0.0) for source in sources])[harness]
        for chosen, each in parts:
            found[chosen] += each(machine)
        return found

    return seconds


def _parts(rows: Sequence[Row]) -> Iterator[tuple[Sequence[int], Seconds]]:
    """Positions of rows that one formula predicts, and that formula."""
    groups: dict[tuple[type, str], list[int]] = {}
    for i, row in enumerate(rows):
        what = row.what
        groups.setdefault((type(what), what.kind if isinstance(what, Collective) else what.dtype), []).append(i)
    for (kernel, name), chosen in groups.items():
        if kernel is Collective:
            yield chosen, _collectives(name, [rows[i].what for i in chosen])
        else:
            yield chosen, _kernels(_gemm(name) if kernel is Gemm else _attention(name), [rows[i] for i in chosen])


def _collectives(kind: str, found: Sequence[Collective | Gemm | Attention]) -> Seconds:
    """Groups are as the measurements have them: contiguous ranks, or as many on each of several servers."""
    each = [what for what in found if isinstance(what, Collective)]
    ranks, nodes, bytes = np.array([(c.ranks, c.nodes, c.bytes) for c in each], dtype=np.float64).T

    def seconds(machine: Machine) -> Floats:
        server = machine.chips_per_instance * machine.ranks_per_chip
        stride = np.where(nodes > 1.0, np.maximum(server * nodes / ranks, 1.0), 1.0)
        return np.asarray(collective_seconds(kind, bytes, ranks, stride, machine))

    return seconds


def _kernels(asked: Demand, rows: Sequence[Row]) -> Seconds:
    """Kernels of one kind; on a share of a rank's units, as much work for all of them takes as long."""
    columns = np.array([_sizes(row) for row in rows]).T
    evaluate = Evaluator(dict.fromkeys(SYMBOLS, 1.0) | dict(zip((M, N, K, BATCH), columns, strict=True)))
    return lambda machine: np.asarray(reduce(np.maximum, kernel_seconds(asked, evaluate, machine).values()))


def _sizes(row: Row) -> tuple[float, float, float, float]:
    """m, n, k and batch of a matmul; queries, keys, head size and heads of attention."""
    what = row.what
    if isinstance(what, Gemm):
        return what.m, what.n, what.k, what.batch / row.share
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
