"""Where results, notes and progress go: results to standard output, everything else to standard error."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

FULL_WIDTH = 10_000
"""Columns of a table in a pipe, where nothing may be cut or folded."""


class Output:
    """The streams of one command: `as_json` asks for one JSON document, `quiet` for no notes."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, document: Callable[[], Any], *renderables: RenderableType) -> None:
        """Print a result: `document()` as JSON if that was asked for, else the renderables.

        Raises OutputError where standard output takes no more, BrokenPipeError where its reader has gone.
        """
        if self.as_json:
            write(json.dumps(_plain(document()), indent=2, allow_nan=False) + "\n")
        else:
            write(_text(renderables))

    def note(self, text: str) -> None:
        """A line for a person who watches."""
        if not self.quiet:
            complain(text)

    def error(self, text: str) -> None:
        """What went wrong beside a result that is printed all the same; said also to those who asked for quiet."""
        complain(f"perfmodel: {text}")

    @contextmanager
    def progress(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar on a terminal, to be told how much of how much is done; elsewhere nothing."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def complain(text: str) -> None:
    """A line on standard error, if anybody can hear it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class OutputError(Exception):
    """Standard output cannot be written."""


def write(text: str) -> None:
    """Write to standard output, to the end."""
    if sys.stdout is None:
        raise OutputError("standard output: got a closed stream, expected one that can be written: redirect it")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence()
        raise OutputError(
            f"standard output: got {error.strerror}, expected a stream that can be written: redirect it"
        ) from None


def silence() -> None:
    """After a failed write, let the interpreter end without complaint about what it could not flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _text(renderables: Iterable[RenderableType]) -> str:
    """Renderables as they look on this terminal; in a pipe plain, uncut, and without blanks at line ends."""
    from rich.console import Console

    if sys.stdout is not None and sys.stdout.isatty():
        console = Console(highlight=False)
        with console.capture() as capture:
            console.print(*renderables, sep="\n")
        return capture.get()
    page = io.StringIO()
    Console(file=page, highlight=False, width=FULL_WIDTH, color_system=None).print(*renderables, sep="\n")
    return "".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
