"""Tables that look right in a terminal of any width and in a pipe, built from rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000
"""A width in which nothing needs to be folded."""


@dataclass(frozen=True)
class _Fitted:
    """The first of several renderables that fits, or the last."""

    choices: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(width=UNBOUNDED)
        fits = (each for each in self.choices if Measurement.get(console, wide, each).maximum <= options.max_width)
        yield next(fits, self.choices[-1])


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, spare: Sequence[str] = ()
) -> RenderableType:
    """A table; a column whose heading starts with `>` is aligned to the right. Nothing is ever cut off.

    Where the terminal is too narrow, the columns of `spare` are left out, the first one first.
    """
    kept = list(rows)
    choices = []
    for count in range(len(spare) + 1):
        shown = [i for i, heading in enumerate(columns) if heading.lstrip(">") not in spare[:count]]
        choices.append(_table([columns[i] for i in shown], [[row[i] for i in shown] for row in kept], title))
    return _Fitted(choices)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None) -> Table:
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    for heading in columns:
        justify: Literal["left", "right"] = "right" if heading.startswith(">") else "left"
        made.add_column(heading.lstrip(">"), justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def pairs(rows: Iterable[tuple[str, str]], *, title: str | None = None) -> Table:
    """Names and values side by side, without headings."""
    made = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold", pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(Text(name), Text(value))
    return made
