"""Prices of collectives against the exact optimum of the links: linear programs over the flows on the fabric."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import fake_machine, fat_tree, tier
from optimum import alike_exchange_rate, exchange_rate, flow_rate, gather_rate, largest_flow

from perfmodel.allocation import slice_of
from perfmodel.calibration_spec import GATHERS
from perfmodel.collective import KINDS, axis_cost
from perfmodel.fabric import fabric
from perfmodel.machine import Machine
from perfmodel.machine_file import load_machine
from perfmodel.mesh import Mesh
from perfmodel.topology import Algorithm, Tier

GB = 1e9
LARGE = 1e15


def oversubscribed(name: str, share: float) -> Machine:
    """A machine whose instances send out less than their ports could."""
    machine = load_machine(name)
    network = machine.tiers[-1]
    less = replace(network, bandwidth=(network.bandwidth[0] / share,), oversubscription=share)
    return replace(machine, tiers=(*machine.tiers[:-1], less))


def torus(*shape: int, network: Tier | None = None) -> Machine:
    """One rank a chip, 1 B/s in each direction to each neighbour."""
    level = replace(tier(1, bandwidth=2.0, kind="torus", dims=len(shape)), extents=shape)
    return fake_machine(tiers=(level, network or tier()))


FABRICS: dict[str, tuple[Callable[[], Machine], int]] = {
    "ring of 4": (lambda: torus(4), 4),
    "4x4": (lambda: load_machine("trn2"), 16),
    "4x4 of Trainium1": (lambda: load_machine("trn1"), 16),
    "4x4x4, Z at half speed": (lambda: load_machine("trn2-ultraserver"), 64),
    "4x4x4, equal links": (lambda: load_machine("tpu-v4"), 64),
    "8x8": (lambda: torus(8, 8), 64),
    "two instances": (lambda: load_machine("trn2"), 32),
    "four instances": (lambda: load_machine("trn2"), 64),
    "two instances, uplinks 2:1": (lambda: oversubscribed("trn2", 2.0), 32),
    "two instances, uplinks 1.3:1": (lambda: oversubscribed("trn2", 1.3), 32),
    "fat tree, spine 2:1": (lambda: fat_tree("trn2", instances=2, oversubscription=2.0), 64),
    "fat tree of GPUs": (lambda: fat_tree("h100", instances=2, oversubscription=2.0), 32),
    "switch": (lambda: load_machine("h100"), 8),
    "switch and network": (lambda: load_machine("h100"), 16),
    "switch of 72": (lambda: load_machine("gb200-nvl72"), 72),
    "full mesh": (lambda: load_machine("mi300x"), 8),
    "full mesh and network": (lambda: load_machine("mi300x"), 16),
    "two racks of switches": (lambda: load_machine("trn3-gen2"), 144),
    "half an instance: columns without wrap": (lambda: load_machine("trn2"), 8),
    "4x4 on rails": (lambda: torus(4, 4, network=replace(tier(bandwidth=2.0), rails=True)), 32),
    "4x4 on a network as fast as a ring": (lambda: torus(4, 4, network=tier(bandwidth=2.0)), 32),
    "4x4 without wrap": (lambda: load_machine("tpu-v5e"), 16),
    "2x2x4 without wrap": (lambda: load_machine("tpu-v4"), 16),
    "2x4 without wrap": (lambda: load_machine("tpu-v5e"), 8),
}
LINES = tuple(name for name in FABRICS if name.endswith("without wrap"))
"""Fabrics on which chips are not alike: some are at an end."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The best that a fabric's chips can do all together [B/s]."""

    injection: float
    gather: float
    exchange: float
    broadcast: float


@cache
def job(name: str) -> tuple[Machine, int, nx.DiGraph]:
    """A machine, the part of it that a job has, and its links."""
    build, chips = FABRICS[name]
    machine = build()
    return slice_of(machine, chips * machine.ranks_per_chip), chips, fabric(machine, chips)


@cache
def rates(name: str) -> Rates:
    _, chips, graph = job(name)
    every = range(chips)
    return Rates(
        injection=min(sum(data["bandwidth"] for _, _, data in graph.out_edges(chip, data=True)) for chip in every),
        gather=gather_rate(graph, every, every if name in LINES else every[:1]),
        exchange=exchange_rate(graph, every) if name in LINES else alike_exchange_rate(graph, every),
        broadcast=gather_rate(graph, every[:1], every[1:]),
    )


def optimum(kind: str, name: str) -> float:
    """Seconds per byte of a collective over all chips, one group for each rank of a chip."""
    machine, chips, _ = job(name)
    best = rates(name)
    gather = machine.ranks_per_chip / (chips * best.gather)
    return {
        "all_gather": gather,
        "reduce_scatter": gather,  # the same backwards: every link has its like the other way
        "all_reduce": 2 * gather,
        "all_to_all": machine.ranks_per_chip / (chips * best.exchange),
        "broadcast": machine.ranks_per_chip / best.broadcast,
    }[kind]


# -- the programs themselves ------------------------------------------------------------------------------------------

PUBLISHED = {
    "ring of 4": (2, 2, 2 * 3 / 4),
    "4x4": (512, 512, 0.469 * 512),
    "4x4x4, Z at half speed": (640, 640, 0.197 * 640),
    "4x4x4, equal links": (6 * 45, 6 * 45, 0.328 * 6 * 45),
    "8x8": (4, 4, 0.246 * 4),
    "two instances": (537, 537, 48.4),
    "four instances": (537, 525, 32.8),
    "two instances, uplinks 2:1": (537, 387.5, 24.2),
    "half an instance: columns without wrap": (384, 384, 224),
    "4x4 without wrap": (2 * 50, 2 * 50, 0.234 * 4 * 50),
}
"""Injection, all-gather and all-to-all of a chip [GB/s], as computed independently of this code."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_programs_find_the_optima_that_are_known(name: str) -> None:
    chips, found = job(name)[1], rates(name)
    unit = GB if found.injection > GB else 1.0
    numbers = [found.injection / unit, (chips - 1) * found.gather / unit, (chips - 1) * found.exchange / unit]
    assert numbers == pytest.approx(PUBLISHED[name], rel=3e-3)


@pytest.mark.parametrize("name", ["4x4", "switch and network", "fat tree of GPUs"])
def test_at_the_best_rate_and_not_beyond_a_chip_can_take_in_every_part(name: str) -> None:
    _, chips, graph = job(name)
    best = rates(name).gather
    assert largest_flow(graph, best, range(chips), 0) == pytest.approx(chips * best, rel=1e-9, abs=0.0)
    assert largest_flow(graph, 1.01 * best, range(chips), 0) < 1.01 * chips * best * (1 - 1e-6)


ALIKE = ["ring of 4", "4x4", "switch", "full mesh", "switch and network", "full mesh and network", "two instances"]
SLOW = ["fat tree of GPUs", "4x4x4, Z at half speed", "four instances", "fat tree, spine 2:1"]


@pytest.mark.parametrize("name", [*ALIKE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_one_chip_speaks_for_all_where_all_are_alike(name: str) -> None:
    _, chips, graph = job(name)
    assert rates(name).exchange == pytest.approx(exchange_rate(graph, range(chips)), rel=1e-7, abs=0.0)


@pytest.mark.parametrize("name", ["4x4", "switch and network", "fat tree of GPUs", "full mesh and network"])
def test_all_chips_gather_as_fast_as_one_where_all_are_alike(name: str) -> None:
    _, chips, graph = job(name)
    assert rates(name).gather == pytest.approx(gather_rate(graph, range(chips)), rel=1e-9, abs=0.0)


# -- prices against them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "broadcast"])
@pytest.mark.parametrize("name", FABRICS)
def test_the_bound_of_the_closed_form_is_the_optimum(kind: str, name: str) -> None:
    machine, chips, _ = job(name)
    bound = float(axis_cost(kind, chips, machine.ranks_per_chip, machine).optimum(1.0))
    assert bound == pytest.approx(optimum(kind, name), rel=1e-7, abs=0.0)


@pytest.mark.parametrize("name", ["4x4", "4x4x4, Z at half speed", "two instances", "fat tree, spine 2:1"])
def test_a_group_of_all_ranks_is_bound_by_what_its_chips_send(name: str) -> None:
    machine, chips, _ = job(name)
    ranks = chips * machine.ranks_per_chip
    gather, exchange = (axis_cost(kind, ranks, 1, machine) for kind in ("all_gather", "all_to_all"))
    assert float(gather.optimum(1.0)) == pytest.approx(
        optimum("all_gather", name) / machine.ranks_per_chip, rel=1e-7, abs=0.0
    )
    assert float(exchange.optimum(1.0)) == pytest.approx(optimum("all_to_all", name), rel=1e-7, abs=0.0)


def ideal(machine: Machine, *, depth: float) -> Machine:
    """The machine with perfect algorithms, its phases pipelined so deep."""
    perfect = Algorithm(name="recursive", latency=0.0, efficiency=dict.fromkeys(GATHERS, 1.0))
    tiers = tuple(replace(level, algorithms=(perfect,), relay=0.0) for level in machine.tiers)
    return replace(machine, tiers=tiers, pipeline_depth=depth)


WAYS: dict[str, Callable[[Machine], Machine]] = {
    "calibrated": lambda machine: machine,
    "one after another": lambda machine: ideal(machine, depth=1.0),
    "all at once": lambda machine: ideal(machine, depth=math.inf),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FABRICS)
def test_no_price_beats_the_optimum(way: str, name: str) -> None:
    machine, chips, _ = job(name)
    for kind in set(KINDS) - {"permute"}:
        cost = axis_cost(kind, chips, machine.ranks_per_chip, WAYS[way](machine))
        wire = float(cost.seconds(2 * LARGE) - cost.seconds(LARGE)) / LARGE
        assert wire >= optimum(kind, name) * (1 - 1e-6)


SYMMETRIC = ["ring of 4", "4x4", "4x4x4, equal links", "8x8", "switch", "switch of 72", "full mesh", *LINES]


@pytest.mark.parametrize("name", SYMMETRIC)
def test_perfect_algorithms_reach_the_optimum_on_one_tier_of_equal_links(name: str) -> None:
    machine, chips, _ = job(name)
    for kind in set(KINDS) - {"permute"}:
        cost = axis_cost(kind, chips, machine.ranks_per_chip, ideal(machine, depth=1.0))
        assert float(cost.seconds(LARGE)) / LARGE == pytest.approx(optimum(kind, name), rel=1e-7, abs=0.0)


@pytest.mark.parametrize("name", [name for name, (_, chips) in FABRICS.items() if chips <= 32])
def test_no_permute_beats_the_optimum(name: str) -> None:
    machine, chips, graph = job(name)
    rate = flow_rate(graph, [(chip, (chip + 1) % chips) for chip in range(chips)])
    cost = axis_cost("permute", chips, machine.ranks_per_chip, machine)
    least = machine.ranks_per_chip / rate
    assert float(cost.optimum(1.0)) <= least * (1 + 1e-9)
    assert float(cost.seconds(LARGE)) / LARGE >= least * (1 - 1e-9)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=2),
    around=st.integers(1, 3),
    speed=st.sampled_from([0.5, 1.0, 4.0]),
    port=st.sampled_from([0.5, 1.0, 8.0]),
    share=st.sampled_from([1.0, 1.3, 2.0]),
    instances=st.integers(1, 2),
)
def test_the_optimum_of_any_tori_and_network_is_between_bound_and_price(
    shape: list[int], around: int, speed: float, port: float, share: float, instances: int
) -> None:
    """A torus of links of 1 B/s, rings of other links around it, and ports of the network."""
    inner = replace(tier(kind="torus", bandwidth=2.0, dims=len(shape)), extents=tuple(shape))
    outer = tier(around, kind="torus", bandwidth=2 * speed)
    network = replace(tier(bandwidth=port / share), oversubscription=share)
    machine = fake_machine(tiers=(inner, outer, network))
    chips = math.prod(shape) * around * instances
    graph = fabric(machine, chips)
    gather = 1 / (chips * gather_rate(graph, range(chips), [0]))
    exchange = 1 / (chips * alike_exchange_rate(graph, range(chips)))
    for kind, least in (("all_gather", gather), ("all_to_all", exchange)):
        cost = axis_cost(kind, chips, 1, ideal(machine, depth=math.inf))
        assert float(cost.optimum(1.0)) <= least * (1 + 1e-7)
        assert float(cost.seconds(1.0)) >= least * (1 - 1e-7)
    if instances == 1 and speed <= 1.0:
        assert float(axis_cost("all_gather", chips, 1, machine).optimum(1.0)) == pytest.approx(
            gather, rel=1e-7, abs=0.0
        )


# -- all groups of an axis at once ----------------------------------------------------------------------------------

ON_TORI = [
    (size, stride, shape)
    for shape in ((2,), (4,), (8,), (4, 4), (2, 4))
    for size, stride in itertools.product((2, 4, 8, 16), (1, 2, 4, 8))
    if size * stride <= math.prod(shape)
]


def groups(size: int, stride: int, machine: Machine, chips: int) -> list[tuple[int, ...]]:
    """Groups of an axis on chips of one rank."""
    return Mesh({"inner": stride, "axis": size, "outer": chips // (size * stride)}).groups("axis")


def per_byte(kind: str, size: float, stride: float, machine: Machine) -> float:
    return float(axis_cost(kind, size, stride, machine).seconds(LARGE)) / LARGE


@pytest.mark.parametrize(("size", "stride", "shape"), [*ON_TORI, (3, 1, (3,)), (5, 1, (5,)), (3, 1, (3, 3))])
def test_all_to_all_on_a_torus_is_the_optimal_flow_with_all_groups_at_work(
    size: int, stride: int, shape: tuple[int, ...]
) -> None:
    machine, chips = torus(*shape), math.prod(shape)
    pairs = [pair for group in groups(size, stride, machine, chips) for pair in itertools.permutations(group, 2)]
    rate = flow_rate(fabric(machine, chips), pairs)  # of messages of 1/size byte
    assert per_byte("all_to_all", size, stride, machine) == pytest.approx(1 / size / rate, rel=1e-9, abs=0.0)


OWN_LINKS = [
    *((2, 1, (2,)), (2, 1, (4,)), (4, 1, (4,)), (4, 1, (8,))),
    *((16, 1, (4, 4)), (8, 1, (4, 4)), (2, 4, (4, 4)), (4, 4, (4, 4))),
]


@pytest.mark.parametrize(("size", "stride", "shape"), OWN_LINKS)
def test_all_gather_on_a_torus_is_the_optimal_flow_over_the_links_of_the_group(
    size: int, stride: int, shape: tuple[int, ...]
) -> None:
    machine, chips = torus(*shape), math.prod(shape)
    group = groups(size, stride, machine, chips)[0]
    rate = gather_rate(fabric(machine, chips).subgraph(group), group)
    assert per_byte("all_gather", size, stride, machine) == pytest.approx(1 / size / rate, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(("k", "s"), [(8, 2), (8, 4), (6, 2), (6, 3), (4, 2)])
def test_a_permute_between_every_so_many_places_of_a_ring_is_the_optimal_flow(k: int, s: int) -> None:
    rate = flow_rate(fabric(torus(k), k), [(i, (i + s) % k) for i in range(k)])
    assert per_byte("permute", k // s, s, torus(k)) == pytest.approx(max(1 / rate, 1.0), rel=1e-9, abs=0.0)
