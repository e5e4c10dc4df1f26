"""What a search found: the best layouts, and why the others fell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel import Estimate, Layout


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout and what it would cost."""

    layout: Layout
    estimate: Estimate

    def to_json(self) -> dict[str, Any]:
        """The layout string and the estimate as plain dicts and lists."""
        batch = int(self.layout.global_batch)
        return {"layout": self.layout.notation(), "global_batch": batch, "estimate": self.estimate.to_json()}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a search.

    top:         the best layouts that fit, best first
    evaluated:   layouts priced; `feasible` of them fit
    tried:       different layouts that a sampler chose among those that fit; None for an exhaustive search
    fallen:      how many layouts fell to each rule (the first that each one breaks)
    nearest:     the layout that misses by least, when nothing fits
    seconds:     wall time of the search [s]
    study:       where the study was written, or None
    study_error: why it could not be written, or None
    interrupted: whether the search was stopped before its end
    """

    top: tuple[Candidate, ...]
    evaluated: int
    feasible: int
    fallen: Mapping[str, int]
    tried: int | None = None
    nearest: Candidate | None = None
    seconds: float = 0.0
    study: str | None = None
    study_error: str | None = None
    interrupted: bool = False

    @property
    def best(self) -> Candidate | None:
        """The best layout, or None when nothing fits."""
        return self.top[0] if self.top else None

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        best, nearest = (c.to_json() if c else None for c in (self.best, self.nearest))
        return {
            "best": best,
            "top": [candidate.to_json() for candidate in self.top],
            "evaluated": self.evaluated,
            "feasible": self.feasible,
            "tried": self.tried,
            "fallen": dict(self.fallen),
            "nearest": nearest,
            "seconds": self.seconds,
            "study": self.study,
            "study_error": self.study_error,
            "interrupted": self.interrupted,
        }
