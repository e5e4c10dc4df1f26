"""Rows of a table of training runs (CSV), each a set of cells by column, read as what is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from perfmodel.errors import ModelError
from perfmodel.table import Cells, read_table

PACKAGE = "hardware_specs"
CORPUS = "training.csv"
"""Published training runs that ship with the package."""

NEEDED = ("hardware", "n_devices", "seq_len", "global_batch_seqs")
MEASURED = ("step_time_s", "tokens_per_s_per_device", "tflops_per_device", "mfu_pct")

OTHER_KINDS = {
    "prefill": "a prefill run: inference is not predicted yet",
    "decode": "a decode run: inference is not predicted yet",
    "lora": "adapters only are trained, which no reference model does",
    "encoder": "an encoder, and the reference models are decoders",
    "encoder-decoder": "an encoder with a decoder, and the reference models are decoders only",
    "vision": "a model of images, and the reference models are decoders of text",
    "hybrid": "a model with state-space layers, which the reference models do not have",
}
"""What a row's category says of a run that is no training of a decoder -> why it is left out."""


class RowError(Exception):
    """Why a row is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A run as its table has it; an empty cell is something that nobody stated."""

    id: str
    cells: Cells

    def text(self, column: str) -> str:
        """A cell; empty where the table does not have the column."""
        return self.cells.get(column, "").strip()

    def number(self, column: str) -> float | None:
        """A number above 0, or None for an empty cell; raises RowError for anything else."""
        text = self.text(column)
        if not text:
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0.0 < number < math.inf:
            raise RowError(f"{column} is {text!r}")
        return number

    def count(self, column: str) -> int | None:
        """A whole number above 0, or None for an empty cell; raises RowError for anything else."""
        number = self.number(column)
        if number is not None and number % 1:
            raise RowError(f"{column} is {self.text(column)!r}, which is no whole number")
        return None if number is None else int(number)

    def need(self, column: str) -> int:
        """A whole number above 0; raises RowError for an empty cell too."""
        if (count := self.count(column)) is None:
            raise RowError(f"no {column}")
        return count

    @property
    def source(self) -> str:
        """Who published the run."""
        return self.text("source") or "not stated"


def read_rows(path: str | Path | None = None) -> Iterator[Row]:
    """Rows of a table, by default of the one that ships with the package.

    Raises ModelError where the file cannot be read or lacks the columns.
    """
    file = resources.files(PACKAGE) / "measurements" / CORPUS if path is None else Path(path)
    for line, cells in read_table(file, "a table of runs", ModelError, partial(_check_columns, str(file))):
        yield Row(id=cells.get("id") or f"line {line}", cells=cells)


def _check_columns(where: str, columns: Sequence[str]) -> None:
    missing = [name for name in NEEDED if name not in columns]
    if not set(MEASURED) & set(columns):
        missing.append(f"one of {', '.join(MEASURED)}")
    if missing:
        raise ModelError(
            f"{where}: got the columns {', '.join(columns) or 'none'}, expected also {' and '.join(missing)}: add them"
        )


def check_kind(row: Row) -> None:
    """Raises RowError for a run that the table itself excludes, and for what is no training of a decoder."""
    if excluded := row.text("exclude"):
        raise RowError(f"contradicts itself: {excluded}")
    kind = row.text("category")
    if kind in OTHER_KINDS:
        raise RowError(OTHER_KINDS[kind])
