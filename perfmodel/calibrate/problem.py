"""Measured rows and a calibration as a least-squares problem: residuals, starts and bounds of what rows depend on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfmodel.calibrate.model import predictor
from perfmodel.calibrate.parameters import Data, parameters
from perfmodel.calibrate.rows import Collective, Row
from perfmodel.machine_file import variations
from perfmodel.machine_spec import MachineSpec
from perfmodel.spec_file import parse_calibration
from perfmodel.work import Floats

MOVED = 1e-3
"""A parameter that changes no row's logarithm by so much for a tenth of itself is not fitted."""

LAUNCH = (1e-6, 1e-3)
"""Bounds of what a harness adds to a kernel's time [s]; the start is their middle."""


class Problem:
    """Logarithms of predicted over measured, as a function of those of parameters and of the harnesses' launches."""

    def __init__(self, spec: MachineSpec, start: Data, rows: Sequence[Row], keep: Sequence[str] = ()) -> None:
        self._machine = variations(spec, parse_calibration(start, "calibration", spec, inherited=True))
        self._predicted = predictor(rows)
        self._rows = rows
        self._measured = np.log([row.seconds for row in rows])
        self.sources = sorted({row.source for row in rows if not isinstance(row.what, Collective)})
        middle = np.sqrt(LAUNCH[0] * LAUNCH[1])
        launches = np.log([(middle, middle, *LAUNCH)] * len(self.sources)).reshape(-1, 4)
        self.parameters = [parameter for parameter in parameters(start) if parameter.path not in keep]
        known = np.log([(p.start, p.neutral, *p.bounds) for p in self.parameters])
        telling = self._telling(np.concatenate([known, launches]))
        self.parameters = [self.parameters[i] for i in telling]
        self.start, self.neutral, self.lower, self.upper = np.concatenate([known[telling], launches]).T

    def _telling(self, limits: Floats) -> list[int]:
        """Parameters that some row depends on."""
        rows, start = range(len(self._measured)), limits[:, 0]
        base = self.residuals(start, rows)
        moved = (start - 0.1 * (np.arange(len(start)) == i) for i in range(len(self.parameters)))
        return [i for i, logs in enumerate(moved) if np.max(np.abs(self.residuals(logs, rows) - base)) > MOVED]

    def completed(self, logs: Floats, seen: Sequence[int]) -> Floats:
        """With the launches of harnesses of which no row was seen as those of the others are, their median."""
        count = len(self.parameters)
        harnesses = {self._rows[i].source for i in seen}
        known = [source in harnesses for source in self.sources]
        if all(known) or not any(known):
            return logs
        launches = np.where(known, logs[count:], np.median(logs[count:][known]))
        return np.concatenate([logs[:count], launches])

    def residuals(self, logs: Floats, which: Sequence[int]) -> Floats:
        """Of the rows at given positions, shape (rows,)."""
        values = np.exp(logs)
        count = len(self.parameters)
        machine = self._machine({p.path: x for p, x in zip(self.parameters, values[:count], strict=True)})
        launches = dict(zip(self.sources, values[count:], strict=True))
        return np.asarray(np.log(self._predicted(machine, launches)) - self._measured)[list(which)]
