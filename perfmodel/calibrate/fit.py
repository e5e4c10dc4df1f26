"""Least squares on the logarithm of predicted over measured: a robust loss, bounds, groups left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from perfmodel.work import Floats

Residuals: TypeAlias = Callable[[Floats, Sequence[int]], Floats]
"""(logarithms of the parameters, rows) -> log of predicted over measured, of each row."""

OUTLIER = 0.15
"""Residual beyond which a row counts linearly rather than by its square."""

PRIOR = 0.02
"""Weight of staying where the calibration was, against rows: it decides only what they do not."""

SLOPE = np.array([1e-3])
"""Relative change by which slopes are taken."""

FOLDS = 12
"""Groups are left out in at most so many turns."""

NEAR = 1e-3
"""Distance of a logarithm from its bound within which it lies on it."""

Completed: TypeAlias = Callable[[Floats, Sequence[int]], Floats]
"""(logarithms of the parameters, rows that they were fitted to) -> the same, with what those rows cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Logarithms of the parameters, and residuals: before, after, and of each row by a fit that never saw its group.

    spread: standard error of each logarithm; a parameter that others can stand in for has a large one
    bound:  whether the parameter lies on one of its bounds
    """

    logs: Floats
    spread: Floats
    bound: NDArray[np.bool_]
    before: Floats
    after: Floats
    held_out: Floats


def fit(
    residuals: Residuals,
    start: Floats,
    neutral: Floats,
    lower: Floats,
    upper: Floats,
    groups: Sequence[str],
    completed: Completed,
) -> Fitted:
    """Fit all rows from `start`, and once for each part of the groups that is left out, from `neutral`: a calibration
    may have seen the rows that are left out.
    """
    rows = list(range(len(groups)))
    logs, slopes = _solve(residuals, start, lower, upper, rows)
    held_out = np.full(len(rows), np.nan)
    for left_out in _folds(groups):
        kept = [i for i in rows if i not in left_out]
        if kept:
            chosen = sorted(left_out)
            found, _ = _solve(residuals, neutral, lower, upper, kept)
            held_out[chosen] = residuals(completed(found, kept), chosen)
    after = residuals(logs, rows)
    return Fitted(
        logs=logs,
        spread=_spread(slopes, after),
        bound=(logs - lower < NEAR) | (upper - logs < NEAR),
        before=residuals(start, rows),
        after=after,
        held_out=held_out,
    )


def _spread(slopes: Floats, residuals: Floats) -> Floats:
    """Standard errors from the slopes at the solution, for the scatter of the rows that are no outliers."""
    scatter = 1.4826 * np.median(np.abs(residuals))
    return np.asarray(scatter * np.sqrt(np.diag(np.linalg.pinv(slopes.T @ slopes))))


def _folds(groups: Sequence[str]) -> list[set[int]]:
    """Rows by group, several groups together where there are many."""
    names = list(dict.fromkeys(groups))
    count = min(len(names), FOLDS)
    fold = {name: i % count for i, name in enumerate(names)}
    return [{i for i, name in enumerate(groups) if fold[name] == k} for k in range(count)]


def _solve(
    residuals: Residuals, start: Floats, lower: Floats, upper: Floats, rows: Sequence[int]
) -> tuple[Floats, Floats]:
    """The logarithms and the slopes there; in steps from the start, so that every parameter is moved by the same share
    when slopes are taken.
    """

    def costs(steps: Floats) -> Floats:
        return np.concatenate([residuals(start + steps - 1.0, rows), PRIOR * (steps - 1.0)])

    bounds = lower - start + 1.0, upper - start + 1.0
    inside = np.clip(np.ones_like(start), bounds[0] + 1e-6, bounds[1] - 1e-6)
    found = least_squares(costs, inside, bounds=bounds, loss="soft_l1", f_scale=OUTLIER, diff_step=SLOPE)
    return np.asarray(start + found.x - 1.0), np.asarray(found.jac)
