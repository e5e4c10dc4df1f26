"""Where results, notes and progress go: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

FULL_WIDTH = 10_000
"""Columns of a table in a pipe, where nothing may be cut or folded."""


class Output:
    """The streams of one command: `as_json` asks for one JSON document, `quiet` for no notes."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, document: Callable[[], Any], *renderables: RenderableType) -> None:
        """Print a result: `document()` as JSON if that was asked for, else the renderables."""
        if self.as_json:
            print(json.dumps(_plain(document()), indent=2, allow_nan=False))
        else:
            console = self._console()
            for renderable in renderables:
                console.print(renderable)

    def note(self, text: str) -> None:
        """A line for a person who watches."""
        if not self.quiet:
            print(text, file=sys.stderr)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar on a terminal, to be told how much is done; elsewhere nothing."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done: None
            return
        from rich.progress import Progress

        with Progress(console=self._console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda done: bar.update(task, completed=done)

    def _console(self, *, stderr: bool = False) -> Console:
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        if stream.isatty():
            return Console(stderr=stderr, highlight=False)
        return Console(stderr=stderr, highlight=False, width=FULL_WIDTH, color_system=None, emoji=False)


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def silence_broken_pipe() -> None:
    """After `| head` has closed the pipe, let the interpreter end without complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
