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
