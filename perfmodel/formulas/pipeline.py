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


def in_flight(schedule: str, p: Number, m: Number, v: Number) -> tuple[Number, Number]:
    """Microbatches of which the first and the last stage keep activations at once, in whole stages' worth [1].

    1F1B keeps p on the first stage and one on the last, interleaved p + (p - 1) / v and p - (p - 1) / v; a stage that
    delays gradients of weights keeps p wherever it is. Never more than there are.
    """
    if schedule == "gpipe":
        return m, m
    more = (p - 1.0) / v
    first = np.where(np.asarray(v) > 1.0, p + more, p)
    return np.minimum(first, m), np.minimum(p if schedule == "zb-h1" else p - more, m)
