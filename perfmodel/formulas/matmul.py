"""Time of a matmul on a matrix engine that works on output tiles, in units side by side.

Symbols: m x k by k x n, `batch` of them; an output tile of M x N, and steps of K along the contraction; `units` parts
of the engine that work on tiles of their own. Sizes may be arrays. The same holds for systolic arrays (one unit per
array: stationary columns M, moving columns N, rows K), for GPUs (units are multiprocessors, tiles those of the
library's kernels) and for TPUs (units are matrix units).
"""

from __future__ import annotations

import numpy as np

from perfmodel.work import Number

EXACT = 1e-9
"""Sizes that are whole but for rounding are not rounded up."""


def padded_flops(
    m: Number, n: Number, k: Number, batch: Number, tile: tuple[int, int, int], units: float, fill: float
) -> Number:
    """FLOPs that the engine could do in the time that it takes, at its full rate [FLOP].

    Tiles are worked on whole, in waves of one on each unit; each takes as many steps as its contraction has, and
    `fill` more before its first result. Source: NVIDIA, Matrix Multiplication Background (tile and wave
    quantisation); Neuron docs, NKI architecture guide (LoadStationary and MultiplyMoving).
    """
    rows, columns, depth = tile
    tiles = batch * _whole(m / rows) * _whole(n / columns)
    steps = _whole(k / depth) + fill
    return _whole(tiles / units) * units * steps * (2.0 * rows * columns * depth)


def steps_of(m: float, n: float, k: float, batch: float, tile: tuple[int, int, int]) -> float:
    """Steps of all tiles together [1]."""
    return float(padded_flops(m, n, k, batch, tile, 1.0, 0.0)) / (2.0 * tile[0] * tile[1] * tile[2])


def operand_share(tile: tuple[int, int, int], operands: float) -> float:
    """Share of the rate that a tile reaches for all that it fetches: operands per FLOP go as 1/M + 1/N [1]."""
    rows, columns, _ = tile
    return 1.0 / (1.0 + operands * (1.0 / rows + 1.0 / columns))


def _whole(number: Number) -> Number:
    return np.maximum(np.ceil(number - EXACT), 0.0)
