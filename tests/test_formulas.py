"""Formulas of collectives against counting by hand, link by link and step by step."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pint
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.formulas import collectives as formulas

Formula = Callable[..., Any]

FORMULAS: dict[str, Formula] = {
    name: function
    for name, function in inspect.getmembers(formulas, inspect.isfunction)
    if function.__module__ == formulas.__name__
}
WIRE = {name: f for name, f in FORMULAS.items() if name.endswith("_seconds_per_byte")}
STEPS = {name: f for name, f in FORMULAS.items() if name.endswith("_steps")}
RING = {"s": 1.0, "k": 8.0, "m": 2.0}  # neighbours on a ring of eight, two ranks in each member


def call(formula: Formula, **symbols: Any) -> Any:
    """Call a formula with those of the symbols that it takes."""
    return formula(**{name: symbols[name] for name in inspect.signature(formula).parameters})


def hottest_link(k: int) -> float:
    """Bytes over the busiest link of a ring of k in which every rank sends 1/k byte to every rank, the short way
    round, and half each way where both are equally short.
    """
    load: defaultdict[tuple[int, int], Fraction] = defaultdict(Fraction)
    for source in range(k):
        for distance in range(1, k):
            ways = [(1, distance)] * (2 * distance <= k) + [(-1, k - distance)] * (2 * distance >= k)
            for direction, length in ways:
                for hop in range(length):
                    load[(source + direction * hop) % k, direction] += Fraction(1, k * len(ways))
    return float(max(load.values(), default=Fraction(0)))


@pytest.mark.parametrize("n", [2, 3, 4, 7, 64])
def test_a_rank_gathers_all_parts_but_its_own(n: int) -> None:
    parts = [1 / n] * (n - 1)
    assert formulas.gather_seconds_per_byte(n, 5.0) == pytest.approx(sum(parts) / 5.0, rel=1e-14)


def sent_up_and_down_two_trees(n: int) -> float:
    """Bytes that the busiest of n ranks sends where each of two binary trees reduces and spreads half a byte."""
    sent = [0.0] * n
    other = [n - 1 - i if n % 2 == 0 else (i + 1) % n for i in range(n)]
    for place in (range(n), other):
        for i in range(1, n):
            lowest = i & -i
            parent = (i ^ lowest) | (lowest << 1)
            sent[place[i]] += 0.5
            sent[place[parent if parent < n else i ^ lowest]] += 0.5
    return max(sent)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 64])
def test_the_busiest_rank_of_two_trees_sends_to_a_parent_and_two_children(n: int) -> None:
    both_ways = 2 * formulas.tree_seconds_per_byte(n, 5.0)
    assert both_ways == pytest.approx(sent_up_and_down_two_trees(n) / 5.0, rel=1e-14)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 8), (3, 4), (16, 8)])
def test_every_link_of_a_flat_ring_carries_all_parts_but_one(n: int, m: int) -> None:
    parts = [1 / (n * m)] * (n * m - 1)
    assert formulas.flat_ring_seconds_per_byte(n, m, 5.0) == pytest.approx(sum(parts) / 5.0, rel=1e-14)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 64])
def test_a_rank_sends_all_messages_but_its_own_into_a_switch(n: int) -> None:
    messages = [1 / n] * (n - 1)
    assert formulas.all_to_all_switch_seconds_per_byte(n, 5.0) == pytest.approx(sum(messages) / 5.0, rel=1e-14)


@pytest.mark.parametrize("k", range(1, 13))
def test_all_to_all_on_a_ring_takes_as_long_as_its_hottest_link(k: int) -> None:
    one_direction = 3.0
    expected = hottest_link(k) / one_direction
    assert formulas.all_to_all_ring_seconds_per_byte(k, 2 * one_direction) == pytest.approx(expected, rel=1e-14)


@given(n=st.floats(1.0, 64.0))
def test_all_to_all_on_a_ring_never_beats_what_its_ranks_inject(n: float) -> None:
    assert formulas.all_to_all_ring_seconds_per_byte(n, 1.0) >= (n - 1.0) / n


@pytest.mark.parametrize(
    ("n", "s", "k", "links"),
    [
        (4, 1, 4, 2.0),  # the whole ring: two neighbours
        (2, 1, 2, 2.0),  # a ring of two: both links lead to the other
        (2, 1, 4, 1.0),  # a pair of neighbours: one link between them
        (3, 1, 8, 1.0),  # a line: its ends have one neighbour
        (2, 2, 4, 1.0),  # two interleaved pairs: both ways round, each way shared by two
        (4, 2, 8, 1.0),  # two interleaved rings of four share all links
        (2, 4, 8, 0.5),  # four interleaved pairs
        (2, 2, 8, 0.5),  # a line with another one in between
    ],
)
def test_a_group_has_the_links_of_a_ring_that_it_need_not_share(n: int, s: int, k: int, links: float) -> None:
    one_direction = 3.0
    assert formulas.ring_bandwidth(n, s, k, 2 * one_direction) == links * one_direction


@pytest.mark.parametrize("k", [4, 8])
@pytest.mark.parametrize("s", [1, 2, 3])
def test_a_shift_loads_the_links_of_the_way_it_takes(s: int, k: int) -> None:
    forth = (k - s) / k  # the share that goes forth, so that both directions are equally loaded
    load = 1.0 if s == 1 else max(forth * s, (1 - forth) * (k - s))
    assert formulas.permute_ring_seconds_per_byte(2.0, s, k, 2.0) == pytest.approx(max(load, 1.0), rel=1e-14)


@pytest.mark.parametrize("n", [2, 4, 32])
def test_steps_double_the_gathered_part_or_add_one_part_each(n: int) -> None:
    doublings = next(i for i in range(n) if 2**i == n)
    assert formulas.recursive_steps(n) == doublings
    assert formulas.ring_steps(n) == len(range(1, n))


@pytest.mark.parametrize("name", [*WIRE, *STEPS])
def test_a_single_rank_needs_no_time_and_no_steps(name: str) -> None:
    assert call(FORMULAS[name], n=1.0, b=3.0, **RING) == 0.0


@pytest.mark.parametrize("name", WIRE)
def test_wire_time_vanishes_with_bandwidth_and_is_inverse_to_it(name: str) -> None:
    once, twice, always = (call(WIRE[name], n=6.0, b=b, **RING) for b in (1.0, 2.0, math.inf))
    assert once == 2 * twice > always == 0.0


@pytest.mark.parametrize("name", ["gather_seconds_per_byte", "all_to_all_switch_seconds_per_byte"])
def test_large_groups_take_in_the_whole_buffer(name: str) -> None:
    assert WIRE[name](1e9, 4.0) == pytest.approx(1 / 4.0, rel=1e-8)


@pytest.mark.parametrize("name", [*WIRE, *STEPS])
def test_more_ranks_never_take_less_time(name: str) -> None:
    n = np.arange(1.0, 65.0)
    assert np.all(np.diff(call(FORMULAS[name], n=n, b=1.0, s=1.0, k=64.0, m=2.0)) >= 0.0)


@given(
    rows=st.lists(
        st.tuples(
            *(st.floats(1.0, 4096.0), st.floats(1.0, 64.0), st.integers(1, 64), st.floats(1e-3, 1e15), st.just(8))
        ),
        min_size=1,
        max_size=20,
    )
)
def test_an_element_of_an_array_is_the_scalar_to_the_last_bit(rows: list[tuple[float, ...]]) -> None:
    columns = [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]
    for formula in FORMULAS.values():
        together = call(formula, **dict(zip("nskbm", columns, strict=True)))
        one_by_one = [call(formula, **dict(zip("nskbm", map(float, row), strict=True))) for row in rows]
        assert np.array_equal(np.broadcast_to(together, len(rows)), one_by_one)


@pytest.mark.parametrize("name", FORMULAS)
def test_units_come_out_as_the_name_says(name: str) -> None:
    ureg: Any = pint.UnitRegistry()
    one = ureg.dimensionless
    result = call(FORMULAS[name], n=4.0 * one, s=2.0 * one, k=8.0 * one, m=2.0 * one, b=3.0 * ureg.byte / ureg.second)
    suffixes = {"_seconds_per_byte": "second / byte", "_steps": "dimensionless", "_bandwidth": "byte / second"}
    (expected,) = (unit for suffix, unit in suffixes.items() if name.endswith(suffix))
    assert str(result.units) == expected
