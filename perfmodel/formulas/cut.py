"""Layers of the stages of a pipeline in closed form: of all cuts the one whose slowest stage takes least.

Symbols: L layers, all alike; p >= 2 stages; v virtual stages (chunks of layers) on each; e and h, what the first and
the last stage do beside their layers (embedding, head), as long as so many layers take. Each function broadcasts.

Stages between the ends have equally many layers, a multiple of v; with v = 1 some may have one less. An end may lack
the layers of a chunk, which is then the embedding or the head alone.
"""

from __future__ import annotations

import numpy as np

from perfmodel.work import Number

CUTS = ("even", "balanced")
"""Equally many layers in every chunk where pp*vpp divides them, and balanced elsewhere; always balanced."""


def level(L: Number, p: Number, e: Number, h: Number) -> Number:
    """Layers' time of every stage, were layers to be cut anywhere: (L + e + h) / p; an end that takes longer without
    any layer is left out of the account [1].
    """
    between = np.maximum(p - 2.0, 1.0)  # of two stages, both are ends
    with_one = np.minimum(L + e, L + h) / (p - 1.0)
    return np.minimum(np.minimum((L + e + h) / p, with_one), L / between)


def ends(k: Number, L: Number, p: Number, v: Number, e: Number, h: Number) -> tuple[Number, Number]:
    """Layers of the first and the last stage, with at most k on each stage between [1].

    They share what those leave so that the slower end takes least; where those could take more than all, the ends
    have as many as an even cut would give, or as they have time for.
    """
    left, least = L - (p - 2.0) * k, v - 1.0
    last = np.clip(np.floor((left + e - h + 1.0) / 2.0), least, np.maximum(left - least, least))
    even = np.floor(L / p)
    spare = left < 0.0
    return (
        np.where(spare, np.clip(np.floor(k - e), 0.0, even), np.maximum(left - last, 0.0)),
        np.where(spare, np.clip(np.floor(k - h), 0.0, even), last),
    )


def slowest(k: Number, L: Number, p: Number, v: Number, e: Number, h: Number) -> Number:
    """Layers' time of the slowest stage, with at most k layers on each stage between the ends [1]."""
    first, last = ends(k, L, p, v, e, h)
    return np.maximum(np.maximum(first + e, last + h), k)


def balanced(L: Number, p: Number, v: Number, e: Number, h: Number) -> tuple[Number, Number, Number]:
    """Layers of the first stage, of the fullest between and of the last, so that the slowest stage takes least [1].

    More layers between the ends take longer there and less at the ends, so the best k is one of the two around the
    `level`. Chunks want p v - 2 layers at least.
    """
    between = np.maximum(p - 2.0, 1.0)
    most = np.where(v > 1.0, v * np.floor((L - 2.0 * (v - 1.0)) / (between * v)), np.inf)  # whole chunks, none shorter
    below = np.maximum(v * np.floor(level(L, p, e, h) / v), v)
    low, high = (np.maximum(np.minimum(k, most), 0.0) for k in (below, below + v))
    k = np.where(slowest(low, L, p, v, e, h) <= slowest(high, L, p, v, e, h), low, high)
    first, last = ends(k, L, p, v, e, h)
    return first, np.minimum(k, np.ceil((L - first - last) / between)), last
