"""The space of layouts: complete, without repetition, and the same for a sampler as for the exhaustive search."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel import Layout, LayoutError
from tuner.space import AXES, CHUNK, POLICIES, SIZES, Space, Table


def all_layouts(table: Table) -> list[Layout]:
    return [layouts.at(i) for _, layouts in table.chunks() for i in range(np.size(layouts.tp))]


def by_hand(ranks: int, batch: int, experts: int = 1) -> set[Layout]:
    """Every layout by trying all sizes up to the number of ranks."""
    divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
    found = set()
    for sizes in product(divisors, repeat=len(AXES)):
        named: dict[str, Any] = dict(zip(AXES, sizes, strict=True))
        if math.prod(sizes) != ranks or experts % named["ep"]:
            continue
        share, rest = divmod(batch, named["fsdp"] * named["dp"] * named["ep"])
        microbatches = [1] if rest else [mb for mb in range(1, share + 1) if share % mb == 0]
        for mb, zero, sp, policy in product(microbatches, range(4), (False, True), POLICIES):
            if (zero > 0) == (named["fsdp"] * named["ep"] > 1) and (named["tp"] > 1 or not sp):
                found.add(Layout(**named, mb=mb, global_batch=batch, zero=zero, sp=sp, recompute=policy))
    return found


@pytest.mark.parametrize(("ranks", "batch"), [(1, 1), (1, 6), (2, 3), (4, 8), (8, 12), (12, 24)])
def test_every_layout_stands_once(ranks: int, batch: int) -> None:
    found = all_layouts(Space(ranks=ranks, global_batches=(batch,)).table())
    assert len(found) == len(set(found))
    assert set(found) == by_hand(ranks, batch)


@pytest.mark.parametrize("experts", [1, 2, 6])
def test_as_many_ranks_share_experts_as_divide_them(experts: int) -> None:
    found = all_layouts(Space(ranks=12, global_batches=(24,)).table(experts))
    assert len(found) == len(set(found))
    assert set(found) == by_hand(12, 24, experts)
    assert {layout.ep for layout in found} == {n for n in (1, 2, 3, 6) if experts % n == 0}


def test_a_given_ring_stands_where_there_is_context_parallelism() -> None:
    free = all_layouts(Space(ranks=4, global_batches=(4,)).table())
    found = all_layouts(Space(ranks=4, global_batches=(4,), fixed={"ring": True}).table())
    assert set(found) == {replace(layout, ring=True).settled() for layout in free}
    assert {layout.ring for layout in found if layout.cp > 1} == {True}


@pytest.mark.parametrize("experts", ["cp+ep", "tp+cp+ep"])
def test_a_given_way_to_spread_experts_stands_where_there_is_tensor_or_context_parallelism(experts: str) -> None:
    free = all_layouts(Space(ranks=4, global_batches=(4,)).table())
    found = all_layouts(Space(ranks=4, global_batches=(4,), fixed={"experts": experts}).table())
    assert len(found) == len(free)
    assert {layout.settled() for layout in found} == {replace(layout, experts=experts).settled() for layout in free}


def test_several_batches_are_the_union_of_their_spaces() -> None:
    both = all_layouts(Space(ranks=4, global_batches=(8, 16)).table())
    assert set(both) == by_hand(4, 8) | by_hand(4, 16)


@pytest.mark.parametrize(
    "fixed",
    [
        {"tp": 4},
        {"dp": 1, "pp": 2},
        {"mb": 2},
        {"zero": 1},
        {"sp": False},
        {"sp": True},
        {"recompute": "none"},
        {"fsdp": 8, "zero": 3},
    ],
)
def test_fixed_keys_filter_the_space(fixed: dict[str, Any]) -> None:
    free = Space(ranks=8, global_batches=(16,))
    some = all_layouts(Space(ranks=8, global_batches=(16,), fixed=fixed).table())
    assert some
    wanted = {layout for layout in all_layouts(free.table()) if replace(layout, **fixed).settled() == layout}
    assert set(some) == wanted


def test_sizes_that_cannot_be_leave_nothing() -> None:
    with pytest.raises(LayoutError, match=r"got tp=3, with which there is no layout of 8 ranks"):
        Space(ranks=8, global_batches=(16,), fixed={"tp": 3}).table()
    with pytest.raises(LayoutError, match=r"got mb=7, with which there is no layout of 8 ranks and global batch 16"):
        Space(ranks=8, global_batches=(16,), fixed={"mb": 7}).table()
    with pytest.raises(LayoutError, match=r"got ep=4, .* and ep the 6 experts: fix other values"):
        Space(ranks=8, global_batches=(16,), fixed={"ep": 4}).table(experts=6)


TABLE = Space(ranks=64, global_batches=(32, 96)).table()


@given(st.sampled_from(sorted(TABLE.rows)), st.lists(st.floats(0.0, 1.0), min_size=len(SIZES), max_size=len(SIZES)))
def test_every_point_of_the_cube_is_a_layout_of_the_space(choices: str, quantiles: list[float]) -> None:
    layout = TABLE.decode(choices, dict(zip(SIZES, quantiles, strict=True)))
    structure, rows = TABLE.rows[choices]
    assert (layout.zero, layout.sp, layout.recompute) == (structure.zero, structure.sp, structure.recompute)
    assert [getattr(layout, name) for name in SIZES] in rows.tolist()


def test_every_layout_has_a_point() -> None:
    for layout in all_layouts(TABLE):
        assert TABLE.decode(*TABLE.encode(layout)) == layout


def test_a_table_filtered_by_masks_holds_what_they_keep() -> None:
    rng = np.random.default_rng(0)
    masks = {name: rng.random(len(rows)) < 0.1 for name, (_, rows) in TABLE.rows.items()}
    masks[next(iter(masks))][:] = False
    kept = TABLE.where(masks)
    assert len(kept) == sum(int(mask.sum()) for mask in masks.values())
    assert next(iter(masks)) not in kept.rows
    assert set(all_layouts(kept)) <= set(all_layouts(TABLE))


def test_chunks_cover_each_table_in_order() -> None:
    large = Space(ranks=2**12, global_batches=(2**12,), policies=("full",)).table()
    seen: dict[str, list[list[float]]] = {name: [] for name in large.rows}
    for name, layouts in large.chunks():
        assert np.size(layouts.tp) <= CHUNK
        seen[name] += np.column_stack([getattr(layouts, size) for size in SIZES]).tolist()
    assert seen == {name: rows.tolist() for name, (_, rows) in large.rows.items()}


def test_virtual_stages_cut_the_layers_of_a_stage() -> None:
    chunks = {}
    for layers in (8, 7):  # with 7 layers a full stage has as many
        found = all_layouts(Space(ranks=4, global_batches=(8,)).table(layers=layers))
        assert len(found) == len(set(found))
        chunks[layers] = {pp: {layout.vpp for layout in found if layout.pp == pp} for pp in (1, 2, 4)}
    assert chunks[7] == chunks[8] == {1: {1}, 2: {1, 2, 4}, 4: {1, 2}}
    given = all_layouts(Space(ranks=4, global_batches=(8,), fixed={"vpp": 2}).table(layers=8))
    assert {(layout.pp > 1, layout.vpp) for layout in given} == {(False, 1), (True, 2)}


def test_a_given_schedule_stands_where_there_are_stages() -> None:
    found = all_layouts(Space(ranks=4, global_batches=(8,), fixed={"schedule": "zb-h1"}).table(layers=8))
    assert {(layout.pp > 1, layout.schedule, layout.vpp) for layout in found} == {
        (False, "1f1b", 1),
        (True, "zb-h1", 1),
    }


def test_a_given_cut_stands_where_there_are_stages() -> None:
    found = all_layouts(Space(ranks=4, global_batches=(8,), fixed={"cut": "balanced"}).table(layers=8))
    assert {(layout.pp > 1, layout.cut) for layout in found} == {(False, "even"), (True, "balanced")}
