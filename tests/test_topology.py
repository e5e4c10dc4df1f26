"""Collectives on tiers against hand counts, against optimal flows, and against published measurements."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import fake_machine, tier
from scipy.optimize import linprog

from perfmodel.machine import GATHERS, Machine, load_machine
from perfmodel.topology import KINDS, Algorithm, AxisCost, Tier, axis_cost, collective_seconds, hops, split_group
from perfmodel.topology import unsupported_group as unsupported

Rank = tuple[int, ...]
WIRED = tuple(kind for kind in KINDS if kind != "permute")
POWERS = st.integers(0, 10).map(lambda i: 2.0**i)


@cache
def trn2(*, calibrated: bool = True) -> Machine:
    return load_machine("trn2", calibrated=calibrated)


def chips_of_4() -> tuple[Tier, ...]:
    """4 ranks a chip at 8 B/s each, rows of 4 and 4 rows on a torus at 2 B/s, any number of instances at 1 B/s."""
    return tier(4, bandwidth=8.0), tier(4, bandwidth=2.0, kind="torus", dims=2), tier(bandwidth=1.0)


def wire(kind: str, size: float, stride: float, machine: Machine) -> float:
    """Seconds per byte of the fastest algorithm."""
    return min(float(per_byte) for _, per_byte in axis_cost(kind, size, stride, machine).alternatives)


# -- groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "parts", "apart"),
    [
        (4, 1, [[4], [1, 1], [1]], [1, 1, 1, 1]),  # a chip
        (16, 1, [[4], [4, 1], [1]], [1, 1, 1, 1]),  # a row of chips
        (64, 1, [[4], [4, 4], [1]], [1, 1, 1, 1]),  # an instance
        (128, 1, [[4], [4, 4], [2]], [1, 1, 1, 1]),  # two instances
        (2, 2, [[2], [1, 1], [1]], [2, 1, 1, 1]),  # every other rank of a chip
        (4, 4, [[1], [4, 1], [1]], [4, 1, 1, 1]),  # the same rank of the chips of a row
        (2, 8, [[1], [2, 1], [1]], [8, 2, 1, 1]),  # every other chip of a row
        (16, 4, [[1], [4, 4], [1]], [4, 1, 1, 1]),  # the same rank of every chip
        (4, 16, [[1], [1, 4], [1]], [16, 4, 1, 1]),  # a column of chips
        (8, 8, [[1], [2, 4], [1]], [8, 2, 1, 1]),  # every other chip of all rows
        (2, 64, [[1], [1, 1], [2]], [64, 16, 4, 1]),  # the same rank of two instances
        (3, 128, [[1], [1, 1], [3]], [128, 32, 8, 2]),  # of every other instance
    ],
)
def test_a_group_spreads_over_the_dims_from_the_inside_out(
    size: int, stride: int, parts: list[list[int]], apart: list[int]
) -> None:
    tiers = trn2().tiers
    assert split_group(float(size), float(stride), tiers) == parts
    assert list(itertools.chain(*hops(float(stride), tiers))) == apart


@given(size=st.integers(1, 10_000), stride=st.integers(1, 10_000))
def test_the_parts_of_a_group_multiply_to_its_size(size: int, stride: int) -> None:
    parts = list(itertools.chain(*split_group(float(size), float(stride), trn2().tiers)))
    assert math.prod(map(float, parts)) == pytest.approx(size, rel=1e-12)
    assert all(part >= 1.0 for part in parts)


# -- seconds by hand ----------------------------------------------------------------------------------------------

BY_HAND = {
    # a chip: 3/4 of the bytes come in at 8 B/s
    ("all_gather", 4, 1): 3 / 4 / 8,
    ("reduce_scatter", 4, 1): 3 / 4 / 8,
    ("all_reduce", 4, 1): 2 * 3 / 4 / 8,
    ("all_to_all", 4, 1): 3 / 4 / 8,
    ("permute", 4, 1): 1 / 8,
    # a row, a ring of 4: both directions together make 2 B/s
    ("all_gather", 4, 4): 3 / 4 / 2,
    ("all_reduce", 4, 4): 2 * 3 / 4 / 2,
    ("all_to_all", 4, 4): 2 * (1 + 1 / 2) / 4 / 2 + 2 / 4 / 4,  # neighbours 1 hop, opposite 2 hops, on 2 links
    ("permute", 4, 4): 1 / 1,
    # two chips of a row: one link between them
    ("all_gather", 2, 4): 1 / 2 / 1,
    ("all_to_all", 2, 4): 1 / 2 / 1,
    # the torus: both dims at once
    ("all_gather", 16, 4): 15 / 16 / 4,
    ("reduce_scatter", 16, 4): 15 / 16 / 4,
    ("all_to_all", 16, 4): 1 / 2,
    ("permute", 16, 4): 1 / 1,
    # two rows: rows closed, columns not
    ("all_gather", 8, 4): 7 / 8 / (2 + 1),
    # two instances
    ("all_gather", 2, 64): 1 / 2 / 1,
    ("permute", 2, 64): 1 / 1,
    # chips and then the row, which carries a quarter
    ("all_gather", 16, 1): 3 / 4 / 8 + 3 / 4 / 2 / 4,
    ("all_reduce", 16, 1): 2 * (3 / 4 / 8 + 3 / 4 / 2 / 4),
    ("all_to_all", 16, 1): 3 / 4 / 8 + 1 / 2,  # every phase carries all
    # everything, twice
    ("all_gather", 128, 1): 3 / 4 / 8 + 15 / 16 / 4 / 4 + 1 / 2 / 1 / 64,
    ("permute", 128, 1): 1 / 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_seconds_of_a_collective_are_those_worked_out_by_hand(kind: str) -> None:
    machine = fake_machine(tiers=chips_of_4())
    cases = {(size, stride): seconds for (name, size, stride), seconds in BY_HAND.items() if name == kind}
    assert cases
    for (size, stride), seconds in cases.items():
        assert collective_seconds(kind, 3.0, size, stride, machine) == pytest.approx(3 * seconds, rel=1e-14)


def test_phases_overlap_as_far_as_the_pipeline_is_deep() -> None:
    phases = [3 / 4 / 8, 15 / 16 / 4 / 4, 1 / 2 / 1 / 64]
    for depth in (1.0, 2.0, 3.0, math.inf):
        machine = fake_machine(tiers=chips_of_4(), pipeline_depth=depth)
        expected = max(phases) + (sum(phases) - max(phases)) / depth
        assert wire("all_gather", 128, 1, machine) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("name", "steps"), [("ring", 3 + 3 + 3 + 1), ("recursive", 2 + 2 + 2 + 1)])
def test_latency_is_paid_for_every_step_of_every_dim(name: str, steps: int) -> None:
    algorithm = Algorithm(name=name, latency=5.0, efficiency=dict.fromkeys(GATHERS, 1.0))
    machine = fake_machine(tiers=tuple(replace(level, algorithms=(algorithm,)) for level in chips_of_4()))
    for kind, times in (("all_gather", 1), ("reduce_scatter", 1), ("all_to_all", 1), ("all_reduce", 2)):
        assert collective_seconds(kind, 0.0, 128, 1, machine) == times * 5.0 * steps


def test_a_permute_pays_the_latency_of_the_slowest_tier_it_crosses() -> None:
    inner, torus, outer = chips_of_4()
    tiers = (replace(inner, latency=1.0), replace(torus, latency=2.0), replace(outer, latency=7.0))
    machine = fake_machine(tiers=tiers)
    paid = {(4, 1): 1.0, (8, 1): 2.0, (4, 16): 2.0, (2, 64): 7.0, (128, 1): 7.0, (1, 1): 0.0}
    for (size, stride), latency in paid.items():
        assert collective_seconds("permute", 0.0, size, stride, machine) == latency


def test_the_runtime_takes_the_faster_algorithm_for_each_size() -> None:
    def algorithm(name: str, latency: float, efficiency: float) -> Algorithm:
        return Algorithm(name=name, latency=latency, efficiency=dict.fromkeys(GATHERS, efficiency))

    quick, thorough = algorithm("recursive", 1.0, 0.1), algorithm("ring", 10.0, 1.0)
    machine = fake_machine(tiers=(replace(tier(), algorithms=(quick, thorough)),))
    small, large = 0.1, 1e6
    assert collective_seconds("all_gather", small, 2, 1, machine) == pytest.approx(1 + small / 2 / 0.1)
    assert collective_seconds("all_gather", large, 2, 1, machine) == pytest.approx(10 + large / 2)


def test_a_tier_relays_faster_than_it_gathers_only_inside_a_larger_group() -> None:
    slow = Algorithm(name="recursive", latency=0.0, efficiency=dict.fromkeys(GATHERS, 0.25))
    inner = replace(tier(4, bandwidth=8.0), algorithms=(slow,), relay=6.0)
    machine = fake_machine(tiers=(inner, tier(bandwidth=1.0)))
    assert wire("all_gather", 4, 1, machine) == pytest.approx(3 / 4 / (8 / 4))
    assert wire("all_gather", 8, 1, machine) == pytest.approx(3 / 4 / 6 + 1 / 2 / 1 / 4)


def test_costs_of_one_collective_after_another_add_up() -> None:
    first, second = AxisCost(((1.0, 2.0), (3.0, 1.0))), AxisCost(((10.0, 4.0),))
    assert (first + second).alternatives == ((11.0, 6.0), (13.0, 5.0))
    assert first.shrunk(2.0).alternatives == ((1.0, 1.0), (3.0, 0.5))


def test_group_sizes_that_the_runtime_lacks_are_marked() -> None:
    machine = fake_machine(group_sizes={"tp": (1, 2, 4)})
    assert unsupported("tp", np.array([1, 2, 3, 4, 8]), machine).tolist() == [False, False, True, False, True]
    assert not unsupported("tp", 4, machine)


# -- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 4, 64, 96])
@pytest.mark.parametrize("name", ["trn2", "trn2-ultraserver", "h100"])
def test_a_group_of_one_costs_exactly_nothing(kind: str, stride: int, name: str) -> None:
    assert collective_seconds(kind, 1e9, 1, stride, load_machine(name)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["trn2", "trn2-ultraserver", "h100"])
def test_an_element_of_an_array_of_groups_is_the_scalar_to_the_last_bit(kind: str, name: str) -> None:
    machine = load_machine(name)

    @settings(max_examples=30)
    @given(st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 4096), st.floats(0.0, 1e12)), min_size=1))
    def check(rows: list[tuple[int, int, float]]) -> None:
        sizes, strides, bytes = (np.array(column) for column in zip(*rows, strict=True))
        together = collective_seconds(kind, bytes, sizes, strides, machine)
        one_by_one = [float(collective_seconds(kind, size, n, stride, machine)) for n, stride, size in rows]
        assert np.array_equal(together, one_by_one)

    check()


@given(size=POWERS, stride=POWERS, bytes=st.floats(0.0, 1e12), more=st.floats(0.0, 1e12))
def test_more_bytes_never_take_less_time(size: float, stride: float, bytes: float, more: float) -> None:
    for kind in KINDS:
        cost = axis_cost(kind, size, stride, trn2())
        assert cost.seconds(bytes) <= cost.seconds(bytes + more)


@given(size=st.integers(1, 4096), stride=st.integers(1, 4096))
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather_by_the_same_algorithm(size: int, stride: int) -> None:
    scatter, gather, reduce = (
        np.array(axis_cost(kind, size, stride, trn2()).alternatives)
        for kind in ("reduce_scatter", "all_gather", "all_reduce")
    )
    assert np.array_equal(reduce, scatter + gather)


@pytest.mark.parametrize("kind", KINDS)
def test_with_infinite_bandwidth_only_latency_is_left(kind: str) -> None:
    tiers = tuple(replace(level, bandwidth=(math.inf,) * len(level.bandwidth)) for level in trn2().tiers)
    machine = replace(trn2(), tiers=tiers)
    for size, stride in ((4, 1), (64, 1), (128, 1), (2, 64)):
        seconds = collective_seconds(kind, 1e12, size, stride, machine)
        assert seconds == collective_seconds(kind, 0.0, size, stride, trn2()) > 0.0


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("kind", WIRED)
def test_no_collective_beats_what_the_ranks_within_any_tier_inject(kind: str, calibrated: bool) -> None:
    """m ranks of a group sit within the tiers below; the rest of it is reached by the links of the tiers above."""
    machine = trn2(calibrated=calibrated)
    outward = np.cumsum([sum(level.bandwidth) for level in machine.tiers][::-1])[::-1]
    reaches = np.cumprod([1, *(math.prod(level.extents) for level in machine.tiers[:-1])])
    times = 2 if kind == "all_reduce" else 1

    @given(size=POWERS, stride=POWERS)
    def check(size: float, stride: float) -> None:
        for reach, bandwidth in zip(reaches, outward, strict=True):
            within = float(np.clip(reach / stride, 1.0, size))
            share = (1 - within / size) / (1 if kind == "all_to_all" else within)
            assert wire(kind, size, stride, machine) >= times * share / bandwidth * (1 - 1e-12)

    check()


# -- tori against optimal flows -----------------------------------------------------------------------------------


def torus(*shape: int) -> dict[tuple[Rank, Rank], float]:
    """Links of a torus, 1 B/s each and in each direction; a ring of two has two."""
    links: defaultdict[tuple[Rank, Rank], float] = defaultdict(float)
    for rank in itertools.product(*map(range, shape)):
        for dim, extent in enumerate(shape):
            for step in (1, -1):
                links[rank, (*rank[:dim], (rank[dim] + step) % extent, *rank[dim + 1 :])] += 1.0
    return dict(links)


def groups(size: int, stride: int, shape: Sequence[int]) -> list[list[Rank]]:
    """Groups of a mesh axis on a torus whose first dim is the innermost."""
    found: defaultdict[tuple[int, int], list[Rank]] = defaultdict(list)
    for backwards in itertools.product(*map(range, shape[::-1])):
        place = int(np.ravel_multi_index(backwards, shape[::-1]))
        found[place // (size * stride), place % stride].append(backwards[::-1])
    return list(found.values())


def flow_rate(links: dict[tuple[Rank, Rank], float], pairs: Iterable[tuple[Rank, Rank]]) -> float:
    """Largest rate at which all pairs can send at once over shared links: a linear program over flows by source."""
    pairs = list(pairs)
    ranks = {rank: i for i, rank in enumerate(dict.fromkeys(itertools.chain(*links)))}
    sources = {source: i for i, source in enumerate(dict.fromkeys(source for source, _ in pairs))}
    count = len(links)
    balance = np.zeros((len(sources), len(ranks), len(sources) * count + 1))
    shared = np.zeros((count, len(sources) * count + 1))
    for i, (start, end) in enumerate(links):
        for j in range(len(sources)):
            balance[j, [ranks[start], ranks[end]], j * count + i] = 1.0, -1.0
            shared[i, j * count + i] = 1.0
    for source, target in pairs:
        balance[sources[source], ranks[source], -1] -= 1.0
        balance[sources[source], ranks[target], -1] += 1.0
    result = linprog(
        c=[*[0.0] * (len(sources) * count), -1.0],
        A_ub=shared,
        b_ub=list(links.values()),
        A_eq=balance.reshape(-1, balance.shape[-1]),
        b_eq=np.zeros(len(sources) * len(ranks)),
    )
    assert result.x is not None
    return float(result.x[-1])


def torus_machine(*shape: int) -> Machine:
    level = tier(1, bandwidth=2.0, kind="torus", dims=len(shape))
    return fake_machine(tiers=(replace(level, extents=shape), tier()))


ON_TORI = [
    (size, stride, shape)
    for shape in ((2,), (4,), (8,), (4, 4), (2, 4))
    for size, stride in itertools.product((2, 4, 8, 16), (1, 2, 4, 8))
    if size * stride <= math.prod(shape)
]


@pytest.mark.parametrize(("size", "stride", "shape"), [*ON_TORI, (3, 1, (3,)), (5, 1, (5,)), (3, 1, (3, 3))])
def test_all_to_all_on_a_torus_is_the_optimal_flow_with_all_groups_at_work(
    size: int, stride: int, shape: tuple[int, ...]
) -> None:
    pairs = [pair for group in groups(size, stride, shape) for pair in itertools.permutations(group, 2)]
    rate = flow_rate(torus(*shape), pairs)  # of messages of 1/size byte
    assert wire("all_to_all", size, stride, torus_machine(*shape)) == pytest.approx(1 / size / rate, rel=1e-9)


@pytest.mark.parametrize(
    ("size", "stride", "shape"),
    [
        (2, 1, (2,)),
        (2, 1, (4,)),
        (4, 1, (4,)),
        (4, 1, (8,)),
        (16, 1, (4, 4)),
        (8, 1, (4, 4)),
        (2, 4, (4, 4)),
        (4, 4, (4, 4)),
    ],
)
def test_all_gather_on_a_torus_is_the_optimal_flow_over_the_links_of_the_group(
    size: int, stride: int, shape: tuple[int, ...]
) -> None:
    """Parts can be gathered at a rate if each rank alone could be sent all parts at that rate (Edmonds)."""
    group = groups(size, stride, shape)[0]
    links = {ends: rate for ends, rate in torus(*shape).items() if set(ends) <= set(group)}
    rate = min(flow_rate(links, [(source, rank) for source in group if source != rank]) for rank in group)
    assert wire("all_gather", size, stride, torus_machine(*shape)) == pytest.approx(1 / size / rate, rel=1e-9)


@pytest.mark.parametrize(("k", "s"), [(8, 2), (8, 4), (6, 2), (6, 3), (4, 2)])
def test_a_permute_between_every_so_many_places_of_a_ring_is_the_optimal_flow(k: int, s: int) -> None:
    rate = flow_rate(torus(k), [((i,), ((i + s) % k,)) for i in range(k)])
    assert wire("permute", k // s, s, torus_machine(k)) == pytest.approx(max(1 / rate, 1.0), rel=1e-9)


# -- measurements -------------------------------------------------------------------------------------------------

MEASURED_US: dict[str, dict[int, float]] = {
    "all_reduce": {1: 51.9, 4: 105.9, 16: 262.5, 64: 724.4, 128: 958.6, 256: 1795, 1024: 6440, 2048: 12930},
    "all_gather": {1: 34.6, 4: 47.2, 16: 117.8, 64: 385.1, 128: 491.0, 256: 808, 1024: 2778, 2048: 5543},
    "reduce_scatter": {1: 30.1, 4: 65.7, 16: 147.4, 64: 400.2, 128: 540.2, 256: 1056, 1024: 3833, 2048: 7675},
}
"""Microseconds by MiB: 64 ranks of one trn2.48xlarge, bf16; cszhz/xpu-perf, nccom-test report of 2026-03-17."""


def test_collectives_of_64_ranks_take_what_was_measured_on_trn2() -> None:
    errors = [
        abs(float(collective_seconds(kind, size * 2**20, 64, 1, trn2())) * 1e6 / measured - 1)
        for kind, row in MEASURED_US.items()
        for size, measured in row.items()
    ]
    assert median(errors) <= 0.10
    assert max(errors) <= 0.35
