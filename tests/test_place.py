"""Meshes on fabrics: published group shapes, closed forms against walks on the graph, and links that axes share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import fake_machine, fat_tree, tier

from perfmodel import Mesh
from perfmodel.allocation import slice_of
from perfmodel.errors import LayoutError, MachineError
from perfmodel.fabric import fabric
from perfmodel.layout import AXES, Layout
from perfmodel.machine import Machine
from perfmodel.machine_file import load_machine
from perfmodel.place import PlacedAxis, place, placements
from perfmodel.topology import spans

load = cache(load_machine)


def mesh(*sizes: int) -> Mesh:
    """Axes tp, dp, pp, ... of given sizes, innermost first."""
    return Mesh(dict(zip(("tp", "dp", "pp", "cp", "ep", "fsdp"), sizes, strict=False)))


def factorisations(n: int, axes: int = 3) -> Iterator[tuple[int, ...]]:
    """Ordered products of at most so many whole numbers above 1."""
    yield (n,)
    if axes > 1:
        for first in (k for k in range(2, n) if n % k == 0):
            yield from ((first, *rest) for rest in factorisations(n // first, axes - 1))


# -- meshes ---------------------------------------------------------------------------------------------------------


def test_the_first_axis_of_a_mesh_joins_consecutive_ranks() -> None:
    small = Mesh({"tp": 2, "dp": 3, "pp": 2})
    assert small.ranks == 12
    assert [small.stride(axis) for axis in small.sizes] == [1, 2, 6]
    assert small.groups("tp") == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    assert small.groups("dp") == [(0, 2, 4), (1, 3, 5), (6, 8, 10), (7, 9, 11)]
    assert small.groups("pp") == [(i, i + 6) for i in range(6)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_every_rank_is_in_one_group_of_each_axis(sizes: list[int]) -> None:
    any_mesh = mesh(*sizes)
    for axis, size in any_mesh.sizes.items():
        groups = any_mesh.groups(axis)
        assert {len(group) for group in groups} == {size}
        assert sorted(itertools.chain(*groups)) == list(range(any_mesh.ranks))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Mesh({"tp": 0}), "mesh: got tp=0, expected a whole number of at least 1: change tp"),
        (lambda: Mesh({"tp": 2.5}), "mesh: got tp=2.5, expected a whole number"),  # type: ignore[dict-item]
        (lambda: Mesh({"tp": 2, "dp": 4}).groups("pp"), "mesh: got axis 'pp', expected one of tp, dp: name an axis"),
    ],
)
def test_what_is_no_mesh_is_refused(wrong: object, words: str) -> None:
    assert callable(wrong)
    with pytest.raises(LayoutError, match=words):
        wrong()


def test_a_layout_is_a_mesh_with_tp_innermost() -> None:
    layout = Layout(tp=4, cp=2, dp=3, pp=5)
    assert list(layout.mesh.sizes.items()) == list(zip(AXES, (4, 2, 1, 1, 3, 5), strict=True))
    assert layout.mesh.ranks == layout.ranks
    assert not place(Layout(tp=16, dp=4).mesh, load("trn2")).faults


# -- shapes that Trainium's runtime takes ------------------------------------------------------------------------------

CONTIGUOUS: dict[str, dict[tuple[int, ...], bool]] = {
    "trn2": {(64, 1): True, (32, 2): False, (16, 4): True, (8, 8): False, (4, 16): True, (4, 4, 4): True},
    "trn2-lnc1": {(128, 1): True, (64, 2): False, (32, 4): True, (16, 8): False, (8, 16): True, (4, 32): True},
}
"""TP x DP (x PP) on one instance: whether contiguous groups of both families are supported; neuronx-distributed
parallel_state.py. 32x2 (64x2 at LNC=1) and the 8x8 of inference need groups that are not contiguous.
"""


@pytest.mark.parametrize("name", CONTIGUOUS)
def test_both_families_of_groups_must_join_neighbours(name: str) -> None:
    machine = replace(load(name), group_sizes={})
    supported = {sizes: not place(mesh(*sizes), machine, contiguous=True).faults for sizes in CONTIGUOUS[name]}
    assert supported == CONTIGUOUS[name]
    assert not any(place(mesh(*sizes), machine).faults for sizes in CONTIGUOUS[name])


def test_folded_groups_are_those_of_the_runtime() -> None:
    outer = [[*range(row, row + 4), *range(row + 12, row + 16)] for row in range(0, 64, 16)]
    inner = [[*range(row + 4, row + 12)] for row in range(0, 64, 16)]
    groups = place(mesh(8, 8), load("trn2")).axes["tp"].groups
    assert sorted(map(sorted, groups)) == sorted(
        [*outer, *inner]
    )  # neuronx-distributed-inference, attention_process_groups.py

    halves = place(mesh(32, 2), load("trn2")).axes["tp"].groups
    rows = [{rank // 16 for rank in group} for group in halves]
    assert rows == [{0, 3}, {1, 2}]


def test_a_job_on_half_of_an_instance_keeps_its_rows_in_order() -> None:
    for sizes in ((16, 2), (16, 2, 1), (32,), (32, 1)):
        assert place(mesh(*sizes), load("trn2")).seats == tuple(range(32))


def test_faults_are_told_on_one_line_each() -> None:
    far = place(mesh(8, 8), load("trn2"), contiguous=True)
    assert far.faults == (
        "dp: got neighbours 2 places apart on NeuronLink XY, expected them side by side: fold the groups, or change "
        "the order or the sizes of the axes",
    )
    uneven = place(mesh(6, 32), load("trn2"))
    assert uneven.faults[:2] == (
        "tp: got groups of 6 ranks, expected 1, 2, 4, 8, 16, 32, 64 (AWS Trainium2 (trn2.48xlarge)): change tp",
        "tp: got groups of 6 ranks, 1 apart, expected them to divide the 4 places of NeuronLink XY: change tp or the "
        "axes inside it",
    )
    assert uneven.axes["tp"].along == ()
    assert len(uneven.axes["tp"].groups) == 32


def test_jobs_that_a_machine_does_not_have_are_errors() -> None:
    with pytest.raises(LayoutError, match="mesh: got 6 ranks, expected a multiple of 4: fill the chips"):
        place(mesh(6), load("trn2"))
    with pytest.raises(MachineError, match="chips: got 24"):
        place(mesh(4, 24), load("trn2"))


def test_every_order_is_tried_contiguous_and_folded() -> None:
    tried = list(placements(mesh(8, 2, 4), load("trn2")))
    orders = [tuple(each.mesh.sizes) for each in tried]
    assert set(orders) == set(itertools.permutations(("tp", "dp", "pp")))
    assert orders.count(("tp", "dp", "pp")) == 2  # 8 x 2 fills the rows: two columns each
    assert orders.count(("pp", "tp", "dp")) == 2  # 4 x 8 x 2: two rows each
    assert len({(*each.mesh.sizes, each.seats) for each in tried}) == len(tried)


# -- closed forms against walks -------------------------------------------------------------------------------------

JOBS = [
    ("trn2", 64),
    ("trn2", 4),
    ("trn2", 32),
    ("trn2", 256),
    ("trn2-lnc1", 128),
    ("trn2-ultraserver", 256),
    ("h100", 32),
    ("mi300x", 16),
    ("tpu-v5e", 16),
    ("tpu-v5e", 256),
    ("tpu-v4", 64),
    ("tpu-v7", 64),
    ("inf2", 24),
    ("trn3-gen2", 576),
]


@pytest.mark.parametrize(("name", "ranks"), JOBS)
def test_closed_forms_have_the_hops_and_lanes_of_the_walk(name: str, ranks: int) -> None:
    machine = slice_of(load(name), ranks)
    walked: set[tuple[int, int]] = set()
    for sizes in factorisations(ranks):
        for axis in place(mesh(*sizes), machine).axes.values():
            if axis.along and (axis.size, axis.stride) not in walked:
                walked.add((axis.size, axis.stride))
                assert walk(axis) == pytest.approx(closed_form(axis, machine), rel=1e-12)
    powers = ranks.bit_length() - 1
    assert len(walked) >= powers * (powers + 1) / 2 or ranks & (ranks - 1)


def test_six_axes_on_an_instance_are_where_the_closed_forms_have_them() -> None:
    for sizes in factorisations(64, axes=6):
        placed = place(mesh(*sizes), load("trn2"))
        for axis in placed.axes.values():
            assert walk(axis) == pytest.approx(closed_form(axis, load("trn2")), rel=1e-12)


def walk(axis: PlacedAxis) -> list[float]:
    """Ranks, hops and lane along each dim."""
    return [x for each in axis.along for x in (each.ranks, each.hops, each.lane)]


def closed_form(axis: PlacedAxis, machine: Machine) -> list[float]:
    """What `spans` says of an axis; places in a switch are all next to each other."""
    rows = zip(machine.tiers, spans(float(axis.size), float(axis.stride), machine.tiers), strict=True)
    return [
        float(x)
        for tier, row in rows
        for span in row
        if span.ranks > 1
        for x in (span.ranks, span.apart if tier.kind == "torus" else 1, span.lane)
    ]


def test_an_axis_knows_its_rings_and_lines() -> None:
    placed = place(mesh(32, 2), load("trn2"))
    chip, columns, rows = placed.axes["tp"].along
    assert (columns.lines, columns.closed, columns.share) == (((0, 1, 2, 3),), True, 1.0)
    assert (rows.lines, rows.closed, rows.share) == (((3, 0), (1, 2)), False, 0.5)
    assert (chip.tier, chip.share) == ("chip", 1.0)


def test_the_spine_of_a_fat_tree_gives_a_rank_its_part_of_the_uplinks() -> None:
    tree = fat_tree("trn2", instances=2, oversubscription=2.0)
    leaf, spine = (place(mesh(64, 2, 2), tree).axes[axis].along[0] for axis in ("dp", "pp"))
    assert (leaf.tier, leaf.lane) == ("EFA", 25e9 / 4)
    assert (spine.tier, spine.lane) == ("spine", 25e9 / 4 / 2)


# -- sharing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "mine", "theirs"),
    [
        ((4, 16), 1.0, 1.0),  # in chips, and between them
        ((16, 4), 1.0, 1.0),  # rows, and columns
        ((8, 8), 1.0, 1.0),  # folded: two links of each row, the other two and the columns
        ((2, 32), 1 / 2, 1 / 2),  # both go through a rank's port inside its chip
        ((64, 2), 1.0, 1.0),  # in an instance, and between two
    ],
)
def test_axes_share_the_links_that_both_use(sizes: tuple[int, ...], mine: float, theirs: float) -> None:
    placed = place(mesh(*sizes), load("trn2"))
    assert (placed.share("tp", "dp"), placed.share("dp", "tp")) == (mine, theirs)


def test_contiguous_halves_of_rings_are_in_each_others_way() -> None:
    """On a ring of four, pairs of neighbours use links 0-1 and 2-3 once; pairs two apart use every link twice."""
    placed = place(mesh(8, 8), load("trn2"), contiguous=True)
    assert placed.share("tp", "dp") == pytest.approx(1 / 3)
    assert placed.share("dp", "tp") == pytest.approx(2 / 3)


def test_axes_over_the_network_share_its_ports() -> None:
    placed = place(mesh(64, 2, 2, 2), load("trn2"))
    assert placed.share("dp", "pp") == placed.share("pp", "dp") == 1 / 2
    assert placed.share("dp", "pp", "cp") == 1 / 3
    assert placed.share("dp", "tp") == placed.share("dp") == 1.0


def test_every_rank_of_a_chip_uses_the_links_of_its_ring_once() -> None:
    placed, graph = place(mesh(16, 4), load("trn2")), fabric(load("trn2"), 16)
    columns = {edge for edge in graph.edges if graph.edges[edge]["dim"] == 1}
    assert placed.axes["dp"].loads == dict.fromkeys(columns, 4)


def test_links_inside_chips_are_not_those_between_them() -> None:
    inner, outer = tier(4, kind="torus", bandwidth=8.0), tier(4, kind="torus")
    placed = place(mesh(4, 4), fake_machine(ranks_per_chip=4, tiers=(inner, outer, tier())))
    assert [each.lane for axis in placed.axes.values() for each in axis.along] == [8.0, 1.0]
    assert placed.share("tp", "dp") == placed.share("dp", "tp") == 1.0


def test_a_group_of_one_shares_nothing() -> None:
    placed = place(mesh(1, 4), load("trn2"))
    assert placed.axes["tp"].along == ()
    assert placed.share("tp", "dp") == placed.share("dp", "tp") == 1.0


@given(st.permutations([2, 2, 4, 4]), st.booleans())
def test_seats_are_a_permutation_that_every_axis_divides(sizes: list[int], contiguous: bool) -> None:
    placed = place(mesh(*sizes), load("trn2"), contiguous=contiguous)
    assert sorted(placed.seats) == list(range(64))
    for axis in placed.axes.values():
        assert sorted(itertools.chain(*axis.groups)) == list(range(64))


def test_a_torus_of_another_machine_need_not_join_neighbours() -> None:
    torus = fake_machine(tiers=(tier(4, kind="torus", dims=2), tier()))
    assert place(mesh(2, 8), torus).faults == ()
    assert place(mesh(2, 8), torus).axes["dp"].along[0].hops == 2
