"""Tables of measurements (CSV): their rows as cells by column, with the line that each ends on."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeAlias

from perfmodel.errors import PerfModelError

Cells: TypeAlias = Mapping[str, str]
Fault: TypeAlias = type[PerfModelError]

SURPLUS = "surplus"
"""Key of the cells of a row beyond the columns."""


def read_table(
    file: Path | Traversable, what: str, fault: Fault, check: Callable[[Sequence[str]], None]
) -> Iterator[tuple[int, Cells]]:
    """(line, cells) of each row of a table of `what`, whose columns pass `check`.

    Raises `fault` where the file cannot be read.
    """
    try:
        lines = io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")
        table = csv.DictReader(lines, restkey=SURPLUS, restval="")
        check(tuple(table.fieldnames or ()))
        for cells in table:
            yield table.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise fault(f"{file}: got {why}, expected {what} (CSV): check the path") from None


def pattern(column: str, text: str, fault: Fault) -> re.Pattern[str]:
    """What a column is searched for; raises `fault` for text that is no regular expression."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise fault(f"{column}: got {text!r} ({error}), expected a regular expression: mend it") from None
