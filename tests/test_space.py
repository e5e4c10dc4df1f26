"""The space of layouts: complete, without repetition, and the same for a sampler as for the exhaustive search."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel import Layout
from tuner.space import AXES, POLICIES, SIZES, Space, layouts_of


def all_layouts(space: Space) -> list[Layout]:
    return [layouts_of(structure, rows).at(i) for structure, rows in space.tables.values() for i in range(len(rows))]


def by_hand(ranks: int, batch: int) -> set[Layout]:
    """Every layout by trying all sizes up to the number of ranks."""
    divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
    found = set()
    for sizes in product(divisors, repeat=len(AXES)):
        named = dict(zip(AXES, sizes, strict=True))
        if math.prod(sizes) != ranks:
            continue
        share, rest = divmod(batch, named["fsdp"] * named["dp"])
        microbatches = [1] if rest else [mb for mb in range(1, share + 1) if share % mb == 0]
        for mb, zero, sp, policy in product(microbatches, range(4), (False, True), POLICIES):
            if (zero > 0) == (named["fsdp"] > 1) and (named["tp"] > 1 or not sp):
                found.add(Layout(**named, mb=mb, global_batch=batch, zero=zero, sp=sp, recompute=policy))
    return found


@pytest.mark.parametrize(("ranks", "batch"), [(1, 1), (1, 6), (2, 3), (4, 8), (8, 12), (12, 24)])
def test_every_layout_stands_once(ranks: int, batch: int) -> None:
    found = all_layouts(Space(ranks=ranks, global_batches=(batch,)))
    assert len(found) == len(set(found))
    assert set(found) == by_hand(ranks, batch)


def test_several_batches_are_the_union_of_their_spaces() -> None:
    both = all_layouts(Space(ranks=4, global_batches=(8, 16)))
    assert set(both) == by_hand(4, 8) | by_hand(4, 16)


@pytest.mark.parametrize(
    "fixed",
    [
        {"tp": 4},
        {"dp": 1, "pp": 2},
        {"mb": 2},
        {"zero": 1},
        {"sp": False},
        {"recompute": "none"},
        {"fsdp": 8, "zero": 3},
    ],
)
def test_fixed_keys_filter_the_space(fixed: dict[str, object]) -> None:
    free = Space(ranks=8, global_batches=(16,))
    some = all_layouts(Space(ranks=8, global_batches=(16,), fixed=fixed))
    assert some
    assert all(getattr(layout, key) == value for layout in some for key, value in fixed.items())
    kept = {layout for layout in all_layouts(free) if all(getattr(layout, k) == v for k, v in fixed.items())}
    assert kept <= set(some)


def test_sizes_that_cannot_be_leave_nothing() -> None:
    assert not Space(ranks=8, global_batches=(16,), fixed={"tp": 3}).tables


SPACE = Space(ranks=64, global_batches=(32, 96))


@given(st.sampled_from(sorted(SPACE.tables)), st.lists(st.floats(0.0, 1.0), min_size=len(SIZES), max_size=len(SIZES)))
def test_every_point_of_the_cube_is_a_layout_of_the_space(choices: str, quantiles: list[float]) -> None:
    layout = SPACE.decode(choices, dict(zip(SIZES, quantiles, strict=True)))
    structure, rows = SPACE.tables[choices]
    assert (layout.zero, layout.sp, layout.recompute) == (structure.zero, structure.sp, structure.recompute)
    assert [getattr(layout, name) for name in SIZES] in rows.tolist()


def test_every_layout_has_a_point() -> None:
    for layout in all_layouts(SPACE):
        assert SPACE.decode(*SPACE.encode(layout)) == layout
