"""The best layouts seen so far, and why the others fell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perfmodel import Estimate, Layout
from tuner.objective import Objective


@dataclass(kw_only=True)
class Ranking:
    """What remains of a pass over layouts.

    keep:    how many of the best to hold
    best:    (score, layout), best first
    fallen:  layouts by the first rule that each one breaks
    nearest: of the layouts that break fewest rules, but one at least, the one that needs least memory
    """

    objective: Objective
    keep: int
    best: list[tuple[float, Layout]] = field(default_factory=list)
    evaluated: int = 0
    feasible: int = 0
    fallen: Counter[str] = field(default_factory=Counter)
    nearest: Layout | None = None
    _distance: tuple[float, float] = (np.inf, np.inf)

    def add(self, layouts: Layout, estimate: Estimate) -> NDArray[np.bool_]:
        """Take in an array of layouts with its estimate; tells which of them fit."""
        scores = self.objective.score(estimate)
        fits = np.broadcast_to(estimate.fits, scores.shape)
        broken = np.stack([np.broadcast_to(mask, scores.shape) for mask in estimate.violations.values()])
        self.evaluated += scores.size
        self.feasible += int(np.count_nonzero(fits))
        found = [(float(scores[i]), layouts.at(int(i))) for i in _least(scores, self.keep) if np.isfinite(scores[i])]
        self.best = sorted(self.best + found, key=lambda pair: pair[0])[: self.keep]
        counts = np.bincount(np.argmax(broken, axis=0)[~fits], minlength=len(broken))
        self.fallen.update({rule: int(n) for rule, n in zip(estimate.violations, counts, strict=True) if n})
        self._note_nearest(layouts, broken.sum(axis=0), np.broadcast_to(estimate.memory_bytes, scores.shape))
        return fits

    def _note_nearest(self, layouts: Layout, misses: NDArray[np.int64], memory: NDArray[np.float64]) -> None:
        fewest = np.min(misses, where=misses > 0, initial=np.iinfo(misses.dtype).max)
        i = int(np.argmin(np.where(misses == fewest, memory, np.inf)))
        distance = (float(misses[i]), float(memory[i]))
        if misses[i] and distance < self._distance:
            self._distance, self.nearest = distance, layouts.at(i)


def _least(scores: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Where the least scores stand, least first; equal ones in order, so that every search gives the same list."""
    if count < scores.size:
        near = np.flatnonzero(scores <= np.partition(scores, count)[count])
    else:
        near = np.arange(scores.size)
    return near[np.argsort(scores[near], kind="stable")][:count]
