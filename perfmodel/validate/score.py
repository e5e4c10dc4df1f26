"""How well predictions agree with measurements: sizes of errors, what bounds cover, and whether layouts rank alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from perfmodel.work import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of predicted over measured, minus 1, over rows.

    mape, median_ape, p90_ape: mean, median and 90th percentile of their absolute values [1]
    bias:     their median [1]
    coverage: share of measurements within the bounds, NaN where there are none [1]
    """

    rows: int
    mape: float
    median_ape: float
    p90_ape: float
    bias: float
    coverage: float


def errors(predicted: Sequence[float], measured: Sequence[float], bounds: Sequence[tuple[float, float]] = ()) -> Errors:
    """Errors of predictions [s] against measurements [s], equally long; NaN for no rows."""
    if not len(measured):
        return Errors(rows=0, **dict.fromkeys(("mape", "median_ape", "p90_ape", "bias", "coverage"), np.nan))
    seen = np.asarray(measured)
    error: Floats = np.asarray(predicted) / seen - 1.0
    sizes = np.abs(error)
    inside = [low <= x <= high for (low, high), x in zip(bounds, measured, strict=True)] if bounds else [np.nan]
    return Errors(
        rows=len(seen),
        mape=float(np.mean(sizes)),
        median_ape=float(np.median(sizes)),
        p90_ape=float(np.quantile(sizes, 0.9)),
        bias=float(np.median(error)),
        coverage=float(np.mean(inside)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Agreement over groups of runs that differ only in layout.

    kendall_tau: mean over groups, -1 to 1; NaN without groups [1]
    pick_cost, worst_pick: measured time of the layout predicted to be the fastest over that of the fastest, minus 1:
                           mean over groups, and the worst [1]
    """

    groups: int
    kendall_tau: float
    pick_cost: float
    worst_pick: float


def ranking(groups: Iterable[Iterable[Sequence[tuple[float, float]]]]) -> Ranking:
    """Ranking of groups of layouts, each (predicted, measured) pairs: runs of one layout count once, by their means.

    Groups of one layout, and those where every layout took equally long, rank nothing and are left out.
    """
    taus, costs = [], []
    for group in groups:
        predicted, measured = np.array([np.mean(pairs, axis=0) for pairs in group]).reshape(-1, 2).T
        if len(np.unique(measured)) < 2:
            continue
        # a prediction that cannot tell layouts apart agrees with no order of them
        taus.append(float(kendalltau(predicted, measured).statistic) if len(np.unique(predicted)) > 1 else 0.0)
        costs.append(float(measured[np.argmin(predicted)] / measured.min() - 1.0))
    if not taus:
        return Ranking(groups=0, kendall_tau=np.nan, pick_cost=np.nan, worst_pick=np.nan)
    return Ranking(
        groups=len(taus),
        kendall_tau=float(np.mean(taus)),
        pick_cost=float(np.mean(costs)),
        worst_pick=float(np.max(costs)),
    )
