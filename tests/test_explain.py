"""Claims about a step: each is what pricing again says, the best there is among neighbours, and legal."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from machines import fake_machine, tier
from programs import mlp_graph

from perfmodel import (
    Explanation,
    Graph,
    Layout,
    LayoutError,
    explain,
    load_machine,
    load_program,
    predict,
    trace,
)
from perfmodel.explain import LINES
from perfmodel.layout import AXES
from perfmodel.neighbours import difference, parts
from perfmodel.predict import _structure
from perfmodel.report.explain import explain_lines

G = 96


@cache
def mlp() -> Graph:
    return mlp_graph()


@cache
def llama(recompute: str = "full") -> Graph:
    return trace(load_program("llama3.2-1b", seq_len=2048, recompute=recompute))


def on_fake(layout: Layout, **changes: Any) -> Explanation:
    return explain(mlp(), layout, fake_machine(**changes))


FREE_BUT_MATMULS = {"memory_bandwidth": 1e30, "elementwise": dict.fromkeys(("vector", "scalar", "gpsimd"), 1e30)}
MLP: dict[str, Any] = {"zero": 0, "sp": False, "recompute": "none", "global_batch": G}

LAYOUTS = {
    "sharded": Layout(fsdp=8, tp=8, global_batch=256),
    "pipelined": Layout(pp=4, tp=4, dp=4, zero=0, global_batch=256),
    "interleaved": Layout(pp=4, vpp=2, tp=4, dp=4, zero=0, global_batch=256),
    "in one": Layout(dp=64, zero=0, sp=False, global_batch=256),
    "context": Layout(cp=4, fsdp=16, sp=False, global_batch=256),
}


@cache
def explained(name: str, machine: str = "trn2") -> Explanation:
    return explain(llama(), LAYOUTS[name], load_machine(machine))


# -- what is claimed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["trn2", "h100"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_that_is_named_costs_what_is_said(name: str, machine: str) -> None:
    found = explained(name, machine)
    for change in found.changes:
        if not change.imagined:
            priced = predict(llama(), change.layout, load_machine(machine))
            assert change.estimate.step_time_s == priced.step_time_s
            assert change.estimate.memory_bytes == priced.memory_bytes
            assert change.saves == pytest.approx(1 - priced.step_time_s / found.estimate.step_time_s)
            assert change.layout.ranks == found.layout.ranks
            assert change.layout.settled() == change.layout


@pytest.mark.parametrize("machine", ["trn2", "h100"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_there_are_few_lines_each_of_its_own_kind_and_the_largest_saving_first(name: str, machine: str) -> None:
    found = explained(name, machine)
    lines = list(explain_lines(found))
    assert 2 <= len(lines) <= LINES
    assert len(set(lines)) == len(lines)
    assert [c.saves for c in found.changes] == sorted((c.saves for c in found.changes), reverse=True)
    if found.estimate.fits:
        kinds = [c.kind for c in (*found.changes, *filter(None, [found.remedy]))]
        assert len(set(kinds)) == len(kinds)
        assert all(c.estimate.fits for c in found.changes)


def exchanges(layout: Layout) -> list[Layout]:
    """Every layout with one axis halved and another one doubled, with three microbatches, and other microbatches."""
    moved = [
        replace(layout, **{a: getattr(layout, a) // 2, b: getattr(layout, b) * 2})
        for a, b in permutations(AXES, 2)
        if getattr(layout, a) % 2 == 0 and b != "ep"
    ]
    return [
        each
        for near in (*moved, layout)
        for each in (near, replace(near, mb=2 * near.mb), replace(near, mb=max(near.mb // 2, 1)))
        if each != layout
    ]


@pytest.mark.parametrize("name", ["sharded", "pipelined"])
def test_no_exchange_of_axes_saves_more_than_the_best_that_is_told(name: str) -> None:
    layout, machine = LAYOUTS[name], load_machine("trn2")
    opened = replace(layout, zero=layout.zero or 3)
    priced = [predict(llama(), each, machine) for each in exchanges(opened)]
    best = min(float(estimate.step_time_s) for estimate in priced if estimate.fits)
    told = [c for c in explained(name).changes if not c.imagined]
    assert min(float(c.estimate.step_time_s) for c in told) <= best


def test_where_no_neighbour_is_faster_the_nearest_is_named() -> None:
    """On a machine without a network every rank more is a gain but for what is repeated: nothing beats dp alone."""
    found = on_fake(Layout(dp=4, **MLP), **FREE_BUT_MATMULS, tiers=(tier(bandwidth=1e30),))
    assert [c.imagined for c in found.changes] == [False]
    assert found.changes[0].saves <= 0.0
    assert list(explain_lines(found))[-1].endswith(": no neighbour is faster")


# -- what bounds a step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "changes", "bound", "saves"),
    [
        (Layout(**MLP), FREE_BUT_MATMULS, "matrix engine", 0.5),
        (
            Layout(**MLP),
            {"tensor_flops": {"bf16": 1e30}, "elementwise": {"vector": 1e30, "scalar": 1e30, "gpsimd": 1e30}},
            "memory bandwidth",
            0.5,
        ),
        (
            Layout(**MLP),
            {**FREE_BUT_MATMULS, "tensor_flops": {"bf16": 1e30}, "step_overhead_seconds": 1.0},
            "step overhead",
            1.0,
        ),
    ],
)
def test_twice_what_a_step_is_bound_by_saves_half_of_it(
    layout: Layout, changes: dict[str, Any], bound: str, saves: float
) -> None:
    found = on_fake(layout, **changes)
    assert found.estimate.bound == bound
    assert found.share == pytest.approx(1.0)
    assert found.remedy is not None
    assert found.remedy.saves == pytest.approx(saves)


def test_collectives_that_bound_a_step_could_hide_behind_its_compute() -> None:
    """All of the traffic is exposed; behind all of the compute as much of it could hide as there is compute."""
    slow = {"tiers": (tier(bandwidth=1e-3),)}
    found = on_fake(Layout(tp=8, **MLP), **slow)
    assert found.estimate.bound == "tensor-parallel collectives"
    assert found.share == found.estimate.breakdown["tensor"] / found.estimate.step_time_s
    compute = sum(float(found.estimate.breakdown[phase]) for phase in ("forward", "backward"))
    assert found.remedy is not None
    assert found.remedy.saves * found.estimate.step_time_s == pytest.approx(compute, rel=0.05)
    tiers = [c for c in found.changes if c.kind.endswith("bandwidth") and c.imagined]
    assert tiers[0].saves == pytest.approx(found.share / 2)


def test_a_bubble_is_answered_by_a_pipeline_that_has_less_of_it() -> None:
    found = on_fake(Layout(pp=6, **{**MLP, "global_batch": 2}, mb=2), **FREE_BUT_MATMULS)
    assert found.estimate.bound == "pipeline bubble"
    assert found.remedy is not None
    assert found.remedy.kind in ("mb", "vpp", "schedule", "pp")
    assert found.remedy.saves > 0.0
    assert found.remedy.estimate.breakdown["bubble"] < found.estimate.breakdown["bubble"]
    assert found.remedy not in found.changes


# -- memory -------------------------------------------------------------------------------------------------------


def test_a_layout_that_does_not_fit_is_told_what_does_the_cheapest_first() -> None:
    layout = LAYOUTS["in one"]
    found = explained("in one")
    assert not found.estimate.fits
    assert found.changes
    assert all(c.estimate.fits for c in found.changes)
    part, share = found.largest
    assert part == "optimizer"
    assert share == found.estimate.memory_parts[part] / found.estimate.memory_bytes
    lines = list(explain_lines(found))
    assert lines[0].startswith("out of memory: needs ")
    assert lines[0].endswith(" % of it optimizer")
    assert all(" fits: needs " in line for line in lines[2:])
    assert any(c.layout.zero == 3 and c.layout.fsdp > 1 for c in found.changes)
    assert {c.layout.ranks for c in found.changes} == {layout.ranks}


def test_where_no_neighbour_fits_the_nearest_is_told() -> None:
    machine = replace(load_machine("trn2"), memory_bytes=1e6)
    found = explain(llama(), LAYOUTS["sharded"], machine)
    (nearest,) = found.changes
    assert not nearest.estimate.fits
    assert nearest.estimate.memory_bytes < found.estimate.memory_bytes
    assert list(explain_lines(found))[-1].startswith("no neighbour fits; ")


# -- what it takes ------------------------------------------------------------------------------------------------


def test_another_policy_is_traced_only_where_it_could_gain_something() -> None:
    asked: list[str] = []

    def retrace(policy: str) -> Graph | None:
        asked.append(policy)
        return llama(policy)

    roomy = replace(load_machine("trn2"), memory_bytes=1e15)
    layout = Layout(fsdp=16, sp=False, global_batch=256)
    found = explain(llama(), layout, roomy, retrace=retrace)
    assert asked == ["selective"]
    (change,) = (c for c in found.changes if c.kind == "recompute")
    assert change.what == "recompute=selective"
    expected = predict(llama("selective"), replace(layout, recompute="selective"), roomy)
    assert change.estimate.step_time_s == expected.step_time_s
    explain(llama("none"), replace(layout, recompute="none"), roomy, retrace=retrace)
    assert asked == ["selective"]


def test_a_program_with_one_policy_keeps_it() -> None:
    found = explain(llama(), LAYOUTS["sharded"], load_machine("trn2"), retrace=lambda policy: None)
    assert not [c for c in found.changes if c.kind == "recompute"]


def test_sizes_are_priced_without_sharding_the_program_again() -> None:
    """ZeRO is another sharding; that alone is worked out anew, as its collectives cost something here."""
    layout = Layout(fsdp=4, tp=2, sp=False, recompute="none", global_batch=G)
    graph, machine = mlp_graph(), fake_machine()
    estimate = predict(graph, layout, machine)
    before = _structure.cache_info().misses
    explain(graph, layout, machine, estimate=estimate)
    assert _structure.cache_info().misses - before <= 2  # less ZeRO, and sequence parallelism


def test_a_program_without_microbatches_keeps_its_batch_whole() -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=512))
    whole = replace(graph, factors=tuple(replace(f, name=None) if f.name == "microbatch" else f for f in graph.factors))
    layout = Layout(dp=4, fsdp=2, tp=2, mb=8, global_batch=64)
    changes = [change for change in explain(whole, layout, load_machine("trn2")).changes if not change.imagined]
    assert changes
    assert {change.layout.mb * change.layout.data for change in changes} == {64}


def test_choices_that_change_nothing_are_no_change() -> None:
    plain = Layout(dp=4, tp=1, **MLP)
    idle = replace(plain, zero=3, sp=True, schedule="gpipe")
    found = on_fake(idle, **FREE_BUT_MATMULS)
    assert found.layout == plain
    assert found.remedy is not None
    assert found.remedy.saves == pytest.approx(0.5, rel=0.01)
    assert all(change.what for change in found.changes)


def test_a_layout_that_breaks_another_rule_is_told_so() -> None:
    found = on_fake(Layout(tp=3, **MLP))
    assert next(iter(explain_lines(found))) == "mlp 64 not divisible by tp"


def test_arrays_of_layouts_are_an_error() -> None:
    with pytest.raises(LayoutError, match="got arrays of layouts, expected one to explain"):
        explain(mlp(), Layout(dp=np.array([1, 2]), **MLP), fake_machine())


@pytest.mark.parametrize(
    ("size", "steps", "found"),
    [(1, 3, []), (8, 1, [2]), (8, 3, [2, 4, 8]), (12, 3, [2, 4, 12]), (15, 2, [3, 15]), (7, 3, [7])],
)
def test_axes_are_divided_by_their_smallest_factors(size: int, steps: int, found: list[int]) -> None:
    assert parts(size, steps) == found


def test_a_change_is_told_in_the_keys_of_the_notation() -> None:
    before = Layout(tp=8, fsdp=4, sp=True)
    after = replace(before, tp=4, fsdp=8, sp=False, recompute="none", zero=1)
    assert difference(before, after) == "tp 8 -> 4, fsdp 4 -> 8, zero 3 -> 1, sp 1 -> 0, recompute=none"
