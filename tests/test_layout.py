"""The notation of layouts: what is read, what is written, what is refused, and the sizes that follow."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import mlp_graph

from perfmodel.errors import LayoutError
from perfmodel.graph import Factor, Graph
from perfmodel.layout import AXES, RECOMPUTE, WHOLE, Assignment, Layout, assignment, axis_names

sizes = st.integers(1, 512)
layouts = st.builds(
    Layout,
    **dict.fromkeys((*AXES, "mb"), sizes),
    global_batch=sizes,
    zero=st.integers(0, 3),
    sp=st.booleans(),
    recompute=st.sampled_from(RECOMPUTE),
)


@cache
def graph() -> Graph:
    return mlp_graph()


def heads_graph(kv_heads: int) -> Graph:
    """A graph of which only the number of key/value heads is known."""
    factors = (Factor(size=kv_heads, name="kv_heads"),)
    return Graph(name="heads", recompute="full", factors=factors, values=(), parameters=(), nodes=(), results=())


# -- reading and writing ------------------------------------------------------------------------------------------


@given(layout=layouts)
def test_a_layout_survives_its_notation(layout: Layout) -> None:
    ranks, batch = int(layout.ranks), int(layout.global_batch)
    assert Layout.parse(layout.notation(), ranks=ranks, global_batch=batch) == layout.settled()


def test_axes_left_out_are_one_and_dp_fills_the_rest() -> None:
    layout = Layout.parse("fsdp=4,tp=8", ranks=256, global_batch=64)
    assert layout == Layout(dp=256 // (4 * 8), fsdp=4, tp=8, cp=1, pp=1, mb=1, global_batch=64)


def test_nothing_given_is_data_parallel() -> None:
    assert Layout.parse("", ranks=16) == Layout(dp=16, zero=0, sp=False)


@pytest.mark.parametrize(
    ("notation", "field", "value"),
    [
        ("sp=0", "sp", False),
        ("tp=2,sp=1", "sp", True),
        ("zero=0", "zero", 0),
        ("recompute=none", "recompute", "none"),
        ("mb=16", "mb", 16),
        ("ep=2", "dp", 4),
        ("vpp=1,pp=2", "pp", 2),
        ("vpp=4,pp=2", "vpp", 4),
        ("vpp=4", "vpp", 1),
        ("schedule=gpipe,pp=2", "schedule", "gpipe"),
        ("schedule=gpipe", "schedule", "1f1b"),
        (" tp=2 , pp=2,", "tp", 2),
    ],
)
def test_a_key_sets_its_field(notation: str, field: str, value: object) -> None:
    read = getattr(Layout.parse(notation, ranks=8), field)
    assert read == value
    assert type(read) is type(value)


def test_read_keys_returns_only_what_was_given() -> None:
    assert Layout.read_keys("tp=8,sp=0,ring=1,vpp=1") == {"tp": 8, "sp": False, "ring": True, "vpp": 1}


@pytest.mark.parametrize(
    ("notation", "got", "expected", "to_do"),
    [
        (
            "tq=8",
            "'tq'",
            "one of tp, cp, ep, fsdp, dp, pp, vpp, mb, zero, sp, ring, experts, recompute, schedule",
            "correct or remove it",
        ),
        ("tp=2,tp=4", "'tp' twice", "once", "remove one"),
        ("tp", "'tp'", "key=value", "write it as tp=8"),
        ("tp=", "'tp='", "key=value", "write it as tp=8"),
        ("tp=eight", "tp=eight", "a whole number", "tp=8"),
        ("tp=-2", "tp=-2", "a whole number", "tp=8"),
        ("tp=2.0", "tp=2.0", "a whole number", "tp=8"),
        ("tp=0", "tp=0", "at least 1", "change tp"),
        ("mb=0", "mb=0", "at least 1", "change mb"),
        ("zero=4", "zero=4", "0 to 3", "change zero"),
        ("sp=2", "sp=2", "0 to 1", "change sp"),
        ("recompute=foo", "recompute=foo", "one of none, selective, full", "choose"),
        ("schedule=dualpipe", "schedule=dualpipe", "one of 1f1b, gpipe, zb-h1", "choose"),
        ("tp=3", "3", "a divisor of 64 ranks", "change an axis"),
        ("tp=128", "128", "a divisor of 64 ranks", "change an axis"),
        ("dp=8,tp=4", "32", "64 ranks", "leave dp out"),
    ],
)
def test_a_wrong_notation_says_what_was_got_what_was_expected_and_what_to_do(
    notation: str, got: str, expected: str, to_do: str
) -> None:
    message = rf"^layout.*: got .*{re.escape(got)}.*{re.escape(expected)}.*: .*{re.escape(to_do)}"
    with pytest.raises(LayoutError, match=message):
        Layout.parse(notation, ranks=64)


# -- sizes --------------------------------------------------------------------------------------------------------


def test_ranks_data_ranks_and_microbatches_are_products_of_the_sizes() -> None:
    layout = Layout(dp=2, fsdp=3, ep=19, tp=5, cp=7, pp=11, mb=13, global_batch=2 * 3 * 19 * 13 * 17)
    assert layout.data == 2 * 3 * 19
    assert layout.ranks == 2 * 3 * 19 * 5 * 7 * 11
    assert layout.microbatches == 17


@pytest.mark.parametrize("kv_heads", [1, 4, 8])
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16, 64])
def test_tp_splits_heads_of_keys_first_and_the_queries_of_each_with_what_is_left(kv_heads: int, tp: int) -> None:
    found = Layout(tp=tp).sizes(heads_graph(kv_heads))
    assert (found["tp_kv"], found["tp_q"]) == (min(tp, kv_heads), max(1, tp // kv_heads))


def test_a_program_without_heads_gives_all_of_tp_to_the_first_half() -> None:
    found = Layout(tp=8).sizes(graph())
    assert (found["tp_kv"], found["tp_q"]) == (8, 1)


def test_batch_is_what_all_data_ranks_take_at_once() -> None:
    found = Layout(dp=2, fsdp=4, mb=3, global_batch=48).sizes(graph())
    assert (found["batch"], found["microbatch"]) == (2 * 4 * 3, 48 / (2 * 4 * 3))


@pytest.mark.parametrize(
    ("names", "given", "mb"),
    [
        (("batch",), (), 48 // 8),
        (("batch",), ("mb",), 1),
        (("batch", "microbatch"), (), 1),
    ],
)
def test_a_batch_that_no_loop_takes_apart_is_one_microbatch(
    names: tuple[str, ...], given: tuple[str, ...], mb: int
) -> None:
    factors = tuple(Factor(size=2, name=name) for name in names)
    layout = Layout(dp=2, fsdp=4, global_batch=48)
    assert layout.suited(replace(graph(), factors=factors), given).mb == mb
    uneven = replace(layout, global_batch=49)
    assert uneven.suited(replace(graph(), factors=factors), given).mb == 1


def test_a_program_with_one_policy_decides_and_refuses_another() -> None:
    program = replace(graph(), recompute="selective")
    assert Layout(recompute="full").suited(program, given=()).recompute == "selective"
    assert Layout(recompute="selective").suited(program, given=("recompute",)).recompute == "selective"
    with pytest.raises(LayoutError, match=r"got recompute=full, expected selective, the only .* mlp has: leave"):
        Layout(recompute="full").suited(program, given=("recompute",))


def test_an_array_holds_the_layouts_that_at_takes_out() -> None:
    many = Layout(dp=np.array([1, 2, 4]), tp=np.array([8, 4, 2]), mb=2, global_batch=64, recompute="none")
    assert [many.at(i) for i in range(3)] == [
        Layout(dp=dp, tp=tp, mb=2, global_batch=64, recompute="none") for dp, tp in [(1, 8), (2, 4), (4, 2)]
    ]


# -- assignments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", range(4))
def test_each_zero_stage_shards_one_more_role_over_fsdp(zero: int) -> None:
    stored = assignment(zero=zero, sp=True).stored
    sharded = {role for role, rules in stored.items() if rules == (("experts", ("ep",)), ("embed", ("fsdp", "ep")))}
    assert sharded == set(("optimizer", "gradients", "parameters")[:zero])
    assert all(rules == () for role, rules in stored.items() if role not in sharded)


def test_sequence_parallelism_is_the_sequence_over_tp_after_cp() -> None:
    with_it, without = (dict(assignment(zero=0, sp=sp).compute) for sp in (True, False))
    assert with_it.pop("seq") == ("cp", "tp_kv", "tp_q")
    assert without.pop("seq") == ("cp",)
    assert with_it == without


def test_every_name_that_an_assignment_shards_or_a_layout_resizes_is_an_axis_name() -> None:
    """And one that none of them touches."""
    known = {name for zero in range(4) for sp in (True, False) for name in _sharded_by(assignment(zero=zero, sp=sp))}
    assert set(axis_names()) == known | {"batch", "microbatch", WHOLE}
    assert WHOLE not in known


def _sharded_by(found: Assignment) -> set[str]:
    return {name for rules in (found.compute, *found.stored.values()) for name, _ in rules}


def test_a_choice_about_an_axis_of_one_rank_is_off() -> None:
    assert Layout(fsdp=1, tp=4, zero=3, sp=True).settled() == Layout(fsdp=1, tp=4, zero=0, sp=True)
    assert Layout(fsdp=4, tp=1, zero=3, sp=True).settled() == Layout(fsdp=4, tp=1, zero=3, sp=False)


@pytest.mark.parametrize(("key", "close"), [("TP", "tp"), ("fspd", "fsdp"), ("recompte", "recompute")])
def test_a_misspelt_key_is_recognised(key: str, close: str) -> None:
    with pytest.raises(LayoutError, match=rf"got key '{key}', expected one of .*: did you mean {close}\?"):
        Layout.parse(f"{key}=4", ranks=8)


def test_a_layout_is_picked_from_a_grid_in_row_major_order() -> None:
    grid = Layout(dp=np.array([[1], [2]]), tp=np.array([[4, 8, 16]]), mb=3)
    picked = [grid.at(i) for i in range(6)]
    assert [(layout.dp, layout.tp, layout.mb) for layout in picked] == [
        *((1, tp, 3) for tp in (4, 8, 16)),
        *((2, tp, 3) for tp in (4, 8, 16)),
    ]
