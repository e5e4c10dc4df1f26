"""Predictions by frameworks that never saw the run: fitted again without all that shares its source, or its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from perfmodel.errors import ModelError
from perfmodel.framework_file import read_framework
from perfmodel.validate import Prediction, Validation, grouped
from perfmodel.validate.fit import Measured, held_out, interval
from perfmodel.validate.hardware import machine_name
from perfmodel.work import Floats

LEFT_OUT: Mapping[str, Callable[[Measured], str]] = {
    "source": lambda m: m.source,
    "model": lambda m: m.model,
    "machine": lambda m: m.machine,
}
"""What may be left out together: never single runs, whose siblings would tell."""


def crossed(found: Validation, left_out: str) -> Validation:
    """The same runs, predicted without those that share what is left out; their intervals come from the others too.

    `found` must have kept its runs.
    """
    group = LEFT_OUT[left_out]
    predictions: dict[int, Prediction] = {}
    for name, own in grouped(found.predictions, framework_of).items():
        measured = [measured_of(p) for p in own]
        seconds = held_out(read_framework(name), measured, group)
        for p, s, bounds in zip(own, seconds.tolist(), _bounds(seconds, measured, group), strict=True):
            predictions[id(p)] = replace(p, seconds=s, bounds=bounds)
    return Validation(predictions=[predictions[id(p)] for p in found.predictions], skipped=found.skipped)


def framework_of(p: Prediction) -> str:
    """The framework that ran it."""
    return p.case.machine.framework.name


def measured_of(p: Prediction) -> Measured:
    """A predicted run as one to fit to."""
    assert p.run is not None
    row = p.case.row
    chips = machine_name(row)  # servers of several makers with the same chips run kernels alike
    return Measured(
        run=p.run,
        machine=p.case.machine.name if chips.endswith(".toml") else chips,
        source=row.source,
        model=row.text("model_name") or str(p.case.config),
        seconds=p.case.seconds,
    )


def runs_of(found: Validation, framework: str) -> list[Measured]:
    """Runs that a framework can be fitted to; raises ModelError where there are none."""
    own = [measured_of(p) for p in found.predictions if framework_of(p) == framework]
    if not own:
        known = ", ".join(sorted({framework_of(p) for p in found.predictions})) or "none"
        raise ModelError(f"fit: got no run by {framework}, expected one: the rows have {known}")
    return own


def _bounds(
    seconds: Floats, measured: Sequence[Measured], group: Callable[[Measured], str]
) -> list[tuple[float, float]]:
    """Seconds of four of five runs, each by the errors of the other groups."""
    groups = np.array([group(m) for m in measured])
    found: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(groups.tolist()):
        others = groups != name
        kept = [m for m, other in zip(measured, others, strict=True) if other]
        found[name] = interval(seconds[others], kept) if kept else (0.5, 2.0)
    return [(s * found[g][0], s * found[g][1]) for s, g in zip(seconds.tolist(), groups.tolist(), strict=True)]
