"""Pipelines in closed form: time that a stage idles, and microbatches whose activations it keeps.

Symbols: p stages; m microbatches; v virtual stages (chunks of layers) on each. Each function broadcasts.
"""

from __future__ import annotations

import numpy as np

from perfmodel.work import Number

SCHEDULES = ("1f1b", "gpipe", "zb-h1")
"""One forward, one backward (interleaved where v > 1); all forward, then all backward; gradients of weights delayed."""


def bubble(schedule: str, whole: Number, weights: Number, v: Number) -> Number:
    """Seconds that a stage idles in a step: what a microbatch takes on all other stages, `whole`, by v; the part of it
    that makes gradients of weights fills the wait instead where it is run apart [s].

    Source: Narayanan et al., Efficient Large-Scale Language Model Training, section 2.2; Qi et al., Zero Bubble
    Pipeline Parallelism, table 2.
    """
    return np.maximum(whole - 2.0 * weights, 0.0) if schedule == "zb-h1" else whole / v


def in_flight(schedule: str, p: Number, m: Number, v: Number) -> tuple[Number, Number, Number]:
    """Microbatches of which the first, the second and the last stage keep activations at once, in whole stages' worth
    [1].

    1F1B keeps p on the first stage, one less on each behind it and one on the last, interleaved p + (p - 1) / v, 2 / v
    less on each behind it and p - (p - 1) / v; a stage that delays gradients of weights keeps p wherever it is. Never
    more than there are.
    """
    if schedule == "gpipe":
        return m, m, m
    more, interleaved = (p - 1.0) / v, np.asarray(v) > 1.0
    first = np.where(interleaved, p + more, p)
    if schedule == "zb-h1":
        return np.minimum(first, m), np.minimum(p, m), np.minimum(p, m)
    second = first - np.where(interleaved, 2.0 / v, 1.0)
    return np.minimum(first, m), np.minimum(second, m), np.minimum(p - more, m)
