"""What a search is after: one number of an estimate, to be made small or large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfmodel import Estimate


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A field of `Estimate` and whether more of it is better (`sense` +1: minimise, -1: maximise)."""

    name: str
    field: str
    sense: int

    def value(self, estimate: Estimate) -> Any:
        """The number itself, a float or an array."""
        return getattr(estimate, self.field)

    def score(self, estimate: Estimate) -> Any:
        """The number with its sign turned so that less is better; infinite where a layout does not fit."""
        return np.where(estimate.fits, self.sense * np.asarray(self.value(estimate)), np.inf)


OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(name="throughput", field="tokens_per_s", sense=-1),
        Objective(name="step-time", field="step_time_s", sense=1),
        Objective(name="cost", field="usd_per_million_tokens", sense=1),
        Objective(name="memory", field="memory_bytes", sense=1),
    )
}
