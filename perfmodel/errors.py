"""What can go wrong, as a tree of exceptions.

    PerfModelError
    ├── MachineError      a machine description is unknown, unreadable or inconsistent
    ├── ModelError        a model name, config file or program function cannot be used
    ├── TraceError        a program cannot be turned into a graph
    │   └── AxisNameError two axis names meet on one factor
    ├── LayoutError       a layout is malformed or does not match the program or machine
    └── StudyError        a study cannot be read or written

Every message is one line: where, what was got, what was expected, what to do.
"""

from __future__ import annotations

import importlib
import os
import traceback


class PerfModelError(Exception):
    """Base of every error that is the caller's to mend."""


class MachineError(PerfModelError):
    """A machine description is unknown, unreadable or inconsistent."""


class ModelError(PerfModelError):
    """A model name, configuration file or program function cannot be used."""


class TraceError(PerfModelError):
    """A program cannot be turned into a graph."""


class AxisNameError(TraceError):
    """Two different axis names meet on one factor."""


class LayoutError(PerfModelError):
    """A layout is malformed, or does not match the program or the machine."""


class StudyError(PerfModelError):
    """A study cannot be read or written."""


NOT_THE_USERS = (os.path.dirname(__file__), str(importlib.__file__), "<")
LIBRARIES = tuple(f"{os.sep}{name}{os.sep}" for name in ("jax", "jaxlib"))


def told(error: Exception) -> str:
    """An exception of a user's code on one line: its type, its message's first line, and where it was raised."""
    message = (str(error).splitlines() or [""])[0]
    files = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(NOT_THE_USERS) and not any(name in frame.filename for name in LIBRARIES)
    ]
    where = f" ({os.path.basename(files[-1][0])}:{files[-1][1]})" if files else ""
    return f"{type(error).__name__}: {message}{where}"
