"""The names that others may rely on."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("package", ["perfmodel", "tuner"])
def test_public_names_are_sorted_and_there(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_public_names_are_these() -> None:
    import perfmodel
    import tuner

    assert perfmodel.__all__ == [
        *("Argument", "AxisNameError", "Calibration", "Cost", "Estimate", "Explanation", "Graph", "Hints", "Layout"),
        *("LayoutError", "Machine", "MachineError", "Mesh", "ModelError", "PerfModelError", "Program", "StudyError"),
        *("TraceError", "Validation", "Verification", "calibrate", "check_chips", "explain", "load_graph"),
        *("load_machine", "load_program", "named", "predict", "propose", "slice_of", "trace", "validate", "verify"),
    ]
    assert tuner.__all__ == ["Candidate", "Objective", "Result", "Space", "search"]


@pytest.mark.parametrize("package", ["perfmodel", "tuner"])
def test_other_names_are_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


def test_trace_is_the_function_after_its_room_was_imported() -> None:
    import perfmodel
    import perfmodel.trace.program

    assert callable(perfmodel.trace)
