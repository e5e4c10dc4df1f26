"""Cuts of layers into stages: against every other cut there is, and against what published runs had."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.formulas.cut import balanced


def cuts(L: int, p: int, v: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut layers: whole chunks between the ends, equally many on each stage where there are several
    chunks, and at most a chunk missing at an end.
    """
    for first, last in product(range(v - 1, L + 1), repeat=2):
        left = L - first - last
        if p == 2 and left == 0:
            yield first, last
        elif v == 1:
            yield from (
                (first, *between, last)
                for between in combinations_with_replacement(range(1, left + 1), p - 2)
                if sum(between) == left and p > 2
            )
        elif p > 2 and left > 0 and left % ((p - 2) * v) == 0:
            yield (first, *[left // (p - 2)] * (p - 2), last)


def slowest(cut: tuple[int, ...], e: float, h: float) -> float:
    return max(cut[0] + e, cut[-1] + h, *cut[1:-1], 0)


beside = st.one_of(st.integers(0, 6).map(float), st.floats(0.0, 12.0), st.floats(0.0, 1.0))


@given(p=st.integers(2, 6), more=st.integers(0, 12), v=st.integers(1, 3), e=beside, h=beside)
def test_no_cut_has_a_faster_slowest_stage(p: int, more: int, v: int, e: float, h: float) -> None:
    L = p * v - 2 + more
    first, middle, last = (float(n) for n in balanced(float(L), float(p), float(v), e, h))
    if L == 0:
        return
    assert all(n >= least and n == int(n) for n, least in ((first, v - 1), (last, v - 1)))
    between = L - first - last
    assert between == 0 if p == 2 else (p - 2) * v <= between <= (p - 2) * middle
    assert middle == (math.ceil(between / (p - 2)) if p > 2 else 0)
    best = min(slowest(cut, e, h) for cut in cuts(L, p, v))
    assert max(first + e, last + h, middle) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(
    ("L", "p", "v", "cut"),
    [
        (126, 16, 1, (7, 8, 7)),  # Llama 3 405B: one layer less at the ends (Llama Team 2024, section 3.3.2)
        (126, 8, 8, (15, 16, 15)),  # the same in MLPerf: of 64 chunks of 2 layers, an end's has one
        (30, 4, 8, (7, 8, 7)),  # of 32 chunks of a layer, one is the embedding alone, one the head alone
        (70, 12, 1, (5, 6, 5)),  # BLOOM 176B: 72 blocks with embedding and head (Le Scao et al. 2022, section 3.3)
        (94, 8, 3, (11, 12, 11)),  # Qwen3 235B
    ],
)
def test_published_runs_were_cut_so(L: int, p: int, v: int, cut: tuple[int, int, int]) -> None:
    """Embedding and head count as a layer, or less."""
    for beside in (0.1, 0.4, 0.9, 1.0):
        assert tuple(map(float, balanced(L, p, v, beside, beside))) == cut


def test_an_array_of_cuts_is_each_cut_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    p, v = rng.integers(2, 20, 500).astype(float), rng.integers(1, 4, 500).astype(float)
    e, h = rng.random(500) * 3, rng.random(500) * 9
    many = np.array(balanced(60.0, p, v, e, h))
    for i in range(500):
        one = balanced(60.0, float(p[i]), float(v[i]), float(e[i]), float(h[i]))
        assert many[:, i].tolist() == [float(n) for n in one]
