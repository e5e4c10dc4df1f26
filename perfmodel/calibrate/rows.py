"""Measured collectives and kernels from a table (CSV), as what a machine would have to predict; nothing is dropped
silently.

Tables may name their columns as `COLUMNS` lists; a kernel's shape may stand in columns of its own (m, n, k, ...) or in
one text such as `1024x4096x4096` or `B4 q_len 4096 heads GQA 80/8 head_dim 128`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from perfmodel.errors import MachineError

Cells: TypeAlias = Mapping[str, str]

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
    """A matmul as measured."""

    dtype: str
    m: int
    n: int
    k: int


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
    """

    id: str
    what: Collective | Gemm | Attention
    seconds: float
    source: str
    hardware: str
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that is left out, and why."""

    id: str
    reason: str


def read_rows(path: str | Path, hardware: str) -> tuple[list[Row], list[Skipped]]:
    """Rows of a table whose hardware matches the regular expression `hardware`, and those left out.

    Raises MachineError where the file cannot be read or lacks the columns.
    """
    wanted = _pattern(hardware)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for name, cells in _cells(path):
        try:
            rows.append(_row(name, cells, wanted))
        except _UnusableError as reason:
            skipped.append(Skipped(id=name, reason=str(reason)))
    return rows, skipped


class _UnusableError(Exception):
    """Why a row is left out."""


def _pattern(hardware: str) -> re.Pattern[str]:
    try:
        return re.compile(hardware, re.IGNORECASE)
    except re.error as error:
        raise MachineError(f"hardware: got {hardware!r} ({error}), expected a regular expression: mend it") from None


def _cells(path: str | Path) -> Iterator[tuple[str, Cells]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or ()
            for name in ("op", "time", "hardware"):
                if not set(COLUMNS[name]) & set(columns):
                    raise MachineError(
                        f"{path}: got the columns {', '.join(columns) or 'none'}, expected one of "
                        f"{', '.join(COLUMNS[name])}: name the column"
                    )
            for i, cells in enumerate(table, start=2):
                yield cells.get("id") or f"line {i}", {key: value or "" for key, value in cells.items() if key}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MachineError(f"{path}: got {_why(error)}, expected a table (CSV): check the path") from None


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _get(cells: Cells, name: str) -> str:
    return next((cells[column] for column in COLUMNS[name] if cells.get(column)), "")


def _number(cells: Cells, name: str, default: float | None = None) -> float:
    text = _get(cells, name)
    if not text and default is not None:
        return default
    try:
        number = float(text)
    except ValueError:
        raise _UnusableError(f"no {name}") from None
    if number <= 0:
        raise _UnusableError(f"{name} is {text}")
    return number


UNTUNED = ("ladder", "generated", "without NKI", "baseline")
"""Words in the name of a kernel that is a stage of somebody's tuning, not what the machine reaches."""


def _row(name: str, cells: Cells, wanted: re.Pattern[str]) -> Row:
    if not wanted.search(_get(cells, "hardware")):
        raise _UnusableError("other hardware")
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
    )


def _harness(cells: Cells, op: str, what: Collective | Gemm | Attention) -> str:
    """What timed the row; that of a kernel may also depend on how it was built, and an 8-bit one quantises."""
    source = _get(cells, "source")
    if isinstance(what, Collective):
        return source
    return f"{source}: {op}{' in f8' if what.dtype == 'f8' else ''}"


def _collective(cells: Cells, kind: str) -> Collective:
    ranks = int(_number(cells, "ranks"))
    nodes = _number(cells, "nodes", default=0.0) or max(1.0, ranks / _number(cells, "per_node", default=float(ranks)))
    if nodes > 1 and ranks == nodes:
        raise _UnusableError("one rank of each server, alone on links that all groups of a step would share")
    return Collective(kind=kind, ranks=ranks, nodes=int(nodes), bytes=_number(cells, "bytes"))


def _dtype(cells: Cells) -> str:
    text = cells.get("dtype", "").strip()
    if text not in DTYPES:
        raise _UnusableError(f"element type {text!r}")
    return DTYPES[text]


NUMBERS = re.compile(r"(\d+)\s*x\s*(\d+)\s*x\s*(\d+)")
LETTERS = {name: re.compile(rf"\b{name}\s*=?\s*(\d+)", re.IGNORECASE) for name in "mkn"}


def _gemm(cells: Cells) -> Gemm:
    if all(cells.get(name) for name in "mnk"):
        m, n, k = (int(float(cells[name])) for name in "mnk")
        return Gemm(dtype=_dtype(cells), m=m, n=n, k=k)
    shape = cells.get("shape", "")
    if found := NUMBERS.match(shape):
        m, k, n = map(int, found.groups())
        return Gemm(dtype=_dtype(cells), m=m, n=n, k=k)
    parts = {name: pattern.search(shape) for name, pattern in LETTERS.items()}
    if all(parts.values()):
        m, k, n = (int(found.group(1)) for found in parts.values() if found)
        return Gemm(dtype=_dtype(cells), m=m, n=n, k=k)
    raise _UnusableError(f"no sizes of a matmul in {shape!r}")


def _attention(cells: Cells, op: str) -> Attention:
    if cells.get("seq"):
        if cells.get("direction", "forward") not in ("", "forward") or cells.get("causal") not in ("1", "1.0", "true"):
            raise _UnusableError("not a forward pass of causal attention")
        sizes = (int(float(cells[name] or 1)) for name in ("batch", "seq", "heads", "head_dim"))
        batch, seq, heads, head_dim = sizes
        return Attention(dtype="bf16", batch=batch, seq=seq, heads=heads, head_dim=head_dim)
    shape = cells.get("shape", "")
    if "causal" not in f"{op} {shape}" or "without NKI" in op or "decode" in op:
        raise _UnusableError(f"no causal attention kernel: {op}, {shape}")
    found = re.search(r"B(\d+) (?:q_len )?(\d+) .*?(\d+)/\d+ (?:head_dim |d)(\d+)", shape)
    if not found:
        raise _UnusableError(f"no sizes of attention in {shape!r}")
    batch, seq, heads, head_dim = map(int, found.groups())
    return Attention(dtype=_dtype(cells), batch=batch, seq=seq, heads=heads, head_dim=head_dim)
