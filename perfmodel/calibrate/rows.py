"""Measured collectives and kernels from a table (CSV), as what a machine would have to predict; nothing is dropped
silently.

Tables may name their columns as `COLUMNS` lists; a kernel's shape may stand in columns of its own (m, n, k, ...) or in
one text such as `1024x4096x4096` or `B4 q_len 4096 heads GQA 80/8 head_dim 128`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perfmodel.errors import MachineError
from perfmodel.table import SURPLUS, Cells, pattern, read_table

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "op": ("op", "kernel"),
    "ranks": ("group_size", "n_devices"),
    "nodes": ("nodes",),
    "per_node": ("devices_per_node",),
    "bytes": ("size_bytes",),
    "time": ("time_us", "latency_us"),
    "hardware": ("hardware",),
    "source": ("source",),
}
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "permute": "permute",
    "send_recv": "permute",
}
SIZE = (1, 10**9)
BOUNDS: Mapping[str, tuple[float, float]] = {"time": (1e-3, 10**12), "bytes": (1, 10**15)}
"""Least and most that is taken for a measurement, in the table's units; everything else is a whole number of `SIZE`."""

DTYPES = {"bf16": "bf16", "fp16": "f16", "f16": "f16", "fp32": "f32", "f32": "f32", "fp8": "f8", "fp8 e5m2": "f8"}
UNUSABLE = {
    "SUSPECT": "the table's note calls it suspect",
    "not a fabric number": "the table's note says that it is not a fabric number",
    "hardware not stated": "the table's note says that the hardware is not stated",
    "not a measurement": "the table's note says that it is not a measurement",
    "may be out of date": "the table's note says that it may be out of date",
    "noisy sample": "the table's note calls it noisy",
    "includes the runtime per-execution barrier": "it times whole graph executions",
}
"""What a note says of a row that is no measurement of what it seems to be -> why it is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective as measured: ranks of the group on so many servers, bytes as this package counts them."""

    kind: str
    ranks: int
    nodes: int
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """A matmul as measured, or `batch` of them in one kernel."""

    dtype: str
    m: int
    n: int
    k: int
    batch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """A causal attention kernel as measured, forward."""

    dtype: str
    batch: int
    seq: int
    heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured row: what ran, its seconds, and where it stands.

    share: of a rank's matrix units that it ran on (one of two cores: 0.5)
    model: whose expectation the time is, where nothing ran; empty of a measurement
    """

    id: str
    what: Collective | Gemm | Attention
    seconds: float
    source: str
    hardware: str
    share: float = 1.0
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that is left out, and why."""

    id: str
    reason: str


def read_rows(path: str | Path, hardware: str) -> tuple[list[Row], list[Skipped]]:
    """Rows of a table whose hardware matches the regular expression `hardware`, and those left out.

    Raises MachineError where the file cannot be read or lacks the columns.
    """
    wanted = pattern("hardware", hardware, MachineError)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for line, cells in read_table(Path(path), "a table", MachineError, partial(_check_columns, str(path))):
        name = cells.get("id") or f"{Path(path).name}:{line}"
        try:
            rows.append(_row(name, cells, wanted))
        except _UnusableError as reason:
            skipped.append(Skipped(id=name, reason=str(reason)))
    return rows, skipped


class _UnusableError(Exception):
    """Why a row is left out."""


def _check_columns(where: str, columns: Sequence[str]) -> None:
    for name in ("op", "time", "hardware"):
        if not set(COLUMNS[name]) & set(columns):
            raise MachineError(
                f"{where}: got the columns {', '.join(columns) or 'none'}, expected one of "
                f"{', '.join(COLUMNS[name])}: name the column"
            )


def _get(cells: Cells, name: str) -> str:
    return cells.get(_column(cells, name), "")


def _column(cells: Cells, name: str) -> str:
    """The column that says something of `name`, or else the first that might."""
    columns = COLUMNS.get(name, (name,))
    return next((column for column in columns if cells.get(column)), columns[0])


def _number(cells: Cells, name: str) -> float:
    """A number within its `BOUNDS`."""
    column, (least, most) = _column(cells, name), BOUNDS.get(name, SIZE)
    kind = "a number" if name in BOUNDS else "a whole number"
    text = cells.get(column, "").strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most or (name not in BOUNDS and number % 1):
        raise _UnusableError(f"{column}: got {text or 'nothing'}, expected {kind} from {least:g} to {most:g}")
    return number


def _whole(cells: Cells, name: str) -> int:
    return int(_number(cells, name))


UNTUNED = ("ladder", "generated", "without NKI", "baseline")
"""Words in the name of a kernel that is a stage of somebody's tuning, not what the machine reaches."""


def _row(name: str, cells: Cells, wanted: re.Pattern[str]) -> Row:
    if not wanted.search(_get(cells, "hardware")):
        raise _UnusableError("other hardware")
    if surplus := cells.get(SURPLUS):
        raise _UnusableError(f"row: got {', '.join(surplus)} beyond the last column, expected a cell for each column")
    if cells.get("exclude"):
        raise _UnusableError(cells["exclude"])
    notes = cells.get("notes", "")
    for words, reason in UNUSABLE.items():
        if words.lower() in notes.lower():
            raise _UnusableError(reason)
    op = _get(cells, "op").removesuffix(" (inferred)")
    if any(word in op for word in UNTUNED):
        raise _UnusableError(f"{op!r} is a stage of tuning")
    if op in COLLECTIVES:
        what: Collective | Gemm | Attention = _collective(cells, COLLECTIVES[op])
    elif "gemm" in op.lower() or "matmul" in op.lower():
        what = _gemm(cells)
    elif "attention" in op.lower():
        what = _attention(cells, op)
    else:
        raise _UnusableError(f"{op!r} is neither a collective nor a matmul nor attention")
    return Row(
        id=name,
        what=what,
        seconds=_number(cells, "time") * 1e-6,
        source=_harness(cells, op, what),
        hardware=_get(cells, "hardware"),
        share=0.5 if "one physical NeuronCore" in _get(cells, "hardware") else 1.0,
        model=_get(cells, "source") if _kind(cells) == "derived" else "",
    )


def _kind(cells: Cells) -> str:
    """Whether a row was measured, as it is where the table does not say, or derived."""
    kind = cells.get("kind", "").strip() or "measured"
    if kind not in ("measured", "derived"):
        raise _UnusableError(f"kind: got {kind}, expected measured or derived")
    return kind


def _harness(cells: Cells, op: str, what: Collective | Gemm | Attention) -> str:
    """What timed the row; that of a kernel may also depend on how it was built, and an 8-bit one quantises."""
    source = _get(cells, "source")
    if isinstance(what, Collective):
        return source
    return f"{source}: {op}{' in f8' if what.dtype == 'f8' else ''}"


def _collective(cells: Cells, kind: str) -> Collective:
    ranks, nodes = _whole(cells, "ranks"), _nodes(cells)
    if ranks == 1:
        raise _UnusableError(
            f"{_column(cells, 'ranks')}: got 1, expected at least 2 ranks, that have something to send"
        )
    if ranks % nodes:
        expected = f"a divisor of the {ranks} ranks: as many on each server"
        raise _UnusableError(f"{_column(cells, 'nodes')}: got {nodes}, expected {expected}")
    if ranks == nodes:
        raise _UnusableError("one rank of each server, alone on links that all groups of a step would share")
    return Collective(kind=kind, ranks=ranks, nodes=nodes, bytes=_number(cells, "bytes"))


def _nodes(cells: Cells) -> int:
    """Servers of a group: as the table says, or as many as its ranks fill."""
    if _get(cells, "nodes"):
        return _whole(cells, "nodes")
    if not _get(cells, "per_node"):
        return 1
    ranks, each = _whole(cells, "ranks"), _whole(cells, "per_node")
    if ranks > each and ranks % each:
        expected = f"a divisor of the {ranks} ranks: as many on each server"
        raise _UnusableError(f"{_column(cells, 'per_node')}: got {each}, expected {expected}")
    return max(ranks // each, 1)


def _dtype(cells: Cells) -> str:
    text = cells.get("dtype", "").strip()
    if text not in DTYPES:
        raise _UnusableError(f"element type {text!r}")
    return DTYPES[text]


MATMUL = re.compile(r"(?P<m>\d+)\s*x\s*(?P<k>\d+)\s*x\s*(?P<n>\d+)")
"""M x K x N: rows of the result, the contraction, columns of the result."""

LETTERS = {name: re.compile(rf"\b{name}\s*=?\s*(?P<{name}>\d+)", re.IGNORECASE) for name in "mkn"}
ATTENTION = re.compile(
    r"B(?P<batch>\d+) (?:q_len )?(?P<seq>\d+) .*?(?P<heads>\d+)/\d+ (?:head_dim |d)(?P<head_dim>\d+)"
)


def _gemm(cells: Cells) -> Gemm:
    shape = cells.get("shape", "")
    if not any(cells.get(name) for name in "mnk"):
        parts = [MATMUL.match(shape)] if MATMUL.match(shape) else [letter.search(shape) for letter in LETTERS.values()]
        if not all(parts):
            raise _UnusableError(f"no sizes of a matmul in {shape!r}")
        cells = {**cells, **{name: text for found in parts if found for name, text in found.groupdict().items()}}
    m, n, k = (_whole(cells, name) for name in "mnk")
    return Gemm(dtype=_dtype(cells), m=m, n=n, k=k, batch=_whole(cells, "batch") if cells.get("batch") else 1)


def _attention(cells: Cells, op: str) -> Attention:
    """A kernel whose sizes stand in columns of their own is in bf16 where no column says otherwise."""
    if cells.get("seq"):
        causal = cells.get("causal", "").strip().lower() in ("1", "1.0", "true")
        if cells.get("direction", "forward") not in ("", "forward") or not causal:
            raise _UnusableError("not a forward pass of causal attention")
        cells = {**cells, "dtype": cells.get("dtype") or "bf16"}
    else:
        shape = cells.get("shape", "")
        if "causal" not in f"{op} {shape}" or "without NKI" in op or "decode" in op:
            raise _UnusableError(f"no causal attention kernel: {op}, {shape}")
        found = ATTENTION.search(shape)
        if not found:
            raise _UnusableError(f"no sizes of attention in {shape!r}")
        cells = {**cells, **found.groupdict()}
    batch, seq, heads, head_dim = (_whole(cells, name) for name in ("batch", "seq", "heads", "head_dim"))
    return Attention(dtype=_dtype(cells), batch=batch, seq=seq, heads=heads, head_dim=head_dim)
