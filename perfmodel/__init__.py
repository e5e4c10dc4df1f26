"""Performance model for JAX programs on AWS Trainium2 and its rivals.

    graph = trace(program)                       # JAX training step -> ops over factors
    estimate = predict(graph, layout, machine)   # step time, memory, cost, and why

Names are imported when first used, so that `import perfmodel` needs neither JAX nor NumPy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfmodel.allocation import check_chips, slice_of
    from perfmodel.calibrate.calibration import Calibration, calibrate
    from perfmodel.errors import (
        AxisNameError,
        LayoutError,
        MachineError,
        ModelError,
        PerfModelError,
        StudyError,
        TraceError,
    )
    from perfmodel.estimate import Estimate
    from perfmodel.explain import Explanation, explain
    from perfmodel.graph import Graph
    from perfmodel.graph_file import load_graph
    from perfmodel.layout import Layout
    from perfmodel.machine import Machine
    from perfmodel.machine_file import load_machine
    from perfmodel.mesh import Mesh
    from perfmodel.models import load_program
    from perfmodel.predict import predict
    from perfmodel.propose import propose
    from perfmodel.trace import Argument, Cost, Hints, Program, named, trace
    from perfmodel.validate import Validation, validate
    from perfmodel.verify import Verification, verify

__version__ = "0.1.0"

_HOMES = {
    "Argument": "trace",
    "AxisNameError": "errors",
    "Calibration": "calibrate.calibration",
    "Cost": "trace",
    "Estimate": "estimate",
    "Explanation": "explain",
    "Graph": "graph",
    "Hints": "trace",
    "Layout": "layout",
    "LayoutError": "errors",
    "Machine": "machine",
    "MachineError": "errors",
    "Mesh": "mesh",
    "ModelError": "errors",
    "PerfModelError": "errors",
    "Program": "trace",
    "StudyError": "errors",
    "TraceError": "errors",
    "Validation": "validate",
    "Verification": "verify",
    "calibrate": "calibrate.calibration",
    "check_chips": "allocation",
    "explain": "explain",
    "load_graph": "graph_file",
    "load_machine": "machine_file",
    "load_program": "models",
    "named": "trace",
    "predict": "predict",
    "propose": "propose",
    "slice_of": "allocation",
    "trace": "trace",
    "validate": "validate",
    "verify": "verify",
}

__all__ = [
    "Argument",
    "AxisNameError",
    "Calibration",
    "Cost",
    "Estimate",
    "Explanation",
    "Graph",
    "Hints",
    "Layout",
    "LayoutError",
    "Machine",
    "MachineError",
    "Mesh",
    "ModelError",
    "PerfModelError",
    "Program",
    "StudyError",
    "TraceError",
    "Validation",
    "Verification",
    "calibrate",
    "check_chips",
    "explain",
    "load_graph",
    "load_machine",
    "load_program",
    "named",
    "predict",
    "propose",
    "slice_of",
    "trace",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'perfmodel' has no attribute {name!r}")
    value = getattr(import_module(f"perfmodel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """`perfmodel.trace` is the function, also after its room of the same name was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
