"""Timelines drawn by hand: overlap, pipeline, bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import fake_machine

from perfmodel.costs import WEIGHTS, Costs, Place
from perfmodel.cut import STAGES, Cut
from perfmodel.machine import Machine
from perfmodel.schedule import CLASSES, PHASES, Pace, StepTime, cut_layers, exposed_seconds, step_time
from perfmodel.stage import EVERY, FIRST, LAST, Stages
from perfmodel.work import SYMBOLS

Seconds = Mapping[Place, Any]


def each(part: str, stages: Stages = EVERY) -> Place:
    """Something that happens in every microbatch."""
    return Place(repeated=True, stages=stages, part=part)


def once(part: str, stages: Stages = EVERY) -> Place:
    """Something that happens once per step."""
    return Place(repeated=False, stages=stages, part=part)


def timed(
    compute: Seconds,
    communication: Seconds,
    *,
    M: Any = 1.0,
    machine: Machine | None = None,
    schedule: str = "1f1b",
    launches: Seconds | None = None,
    **sizes: Any,
) -> StepTime:
    costs = Costs(
        compute=compute,
        launches=launches or {},
        engine={},
        communication=communication,
        collectives=(),
        model_flops=0.0,
    )
    at = {**dict.fromkeys(SYMBOLS, 1.0), "microbatch": M, **sizes}
    return step_time(costs, at, Pace.of(machine or fake_machine()), schedule)


# -- overlap ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traffic", "compute", "overlap", "exposed"),
    [
        ({"fsdp": 3.0}, 10.0, {}, {"fsdp": 3.0}),  # nothing is known to overlap
        ({"fsdp": 3.0}, 10.0, {"fsdp": 1.0}, {"fsdp": 0.0}),
        ({"fsdp": 13.0}, 10.0, {"fsdp": 1.0}, {"fsdp": 3.0}),  # longer than all of the compute
        ({"fsdp": 13.0}, 10.0, {"fsdp": 0.5}, {"fsdp": 8.0}),
        ({"tensor": 4.0, "fsdp": 4.0}, 10.0, {"tensor": 1.0, "fsdp": 1.0}, {"tensor": 0.0, "fsdp": 0.0}),
        ({"tensor": 7.0, "fsdp": 7.0}, 10.0, {"tensor": 1.0, "fsdp": 1.0}, {"tensor": 0.0, "fsdp": 4.0}),
        ({"tensor": 4.0, "fsdp": 4.0}, 10.0, {"tensor": 0.0, "fsdp": 0.5}, {"tensor": 4.0, "fsdp": 0.0}),
        ({"tensor": 4.0, "fsdp": 4.0}, 10.0, {"tensor": 1.0, "fsdp": 0.5}, {"tensor": 0.0, "fsdp": 3.0}),
        ({"tensor": 6.0, "fsdp": 4.0}, 10.0, {"tensor": 1.0, "fsdp": 0.5}, {"tensor": 0.0, "fsdp": 4.0}),
        ({"tensor": 4.0}, 0.0, {"tensor": 1.0}, {"tensor": 4.0}),  # nothing to hide behind
    ],
)
def test_a_class_hides_behind_its_share_of_the_compute_that_those_before_left(
    traffic: dict[str, float], compute: float, overlap: dict[str, float], exposed: dict[str, float]
) -> None:
    assert exposed_seconds(traffic, compute, overlap) == exposed


seconds = st.floats(0.0, 1e3)
shares = st.floats(0.0, 1.0)


@given(
    traffic=st.dictionaries(st.sampled_from(CLASSES), seconds),
    compute=seconds,
    overlap=st.dictionaries(st.sampled_from(CLASSES), shares),
)
def test_no_more_is_hidden_than_there_is_compute_to_hide_behind(
    traffic: dict[str, float], compute: float, overlap: dict[str, float]
) -> None:
    exposed = exposed_seconds(traffic, compute, overlap)
    assert all(0.0 <= exposed[klass] <= traffic[klass] for klass in traffic)
    hidden = sum(traffic.values()) - sum(map(float, exposed.values()))
    assert hidden <= compute * max(overlap.values(), default=0.0) * (1 + 1e-12) + 1e-9


# -- one stage ----------------------------------------------------------------------------------------------------


def test_microbatches_follow_each_other_and_the_update_comes_last() -> None:
    """Two microbatches of 5 s and an update of 1 s:

    | f f b b b | f f b b b | u |
    """
    time = timed({each("forward"): 2.0, each("backward"): 3.0, once("update"): 1.0}, {}, M=2.0)
    assert time.expected == time.lower == time.upper == 2 * (2 + 3) + 1
    assert (time.parts["forward"], time.parts["backward"], time.parts["update"], time.parts["bubble"]) == (4, 6, 1, 0)


def test_exposed_communication_lengthens_every_microbatch() -> None:
    """Of 4 s, what fits in half of the compute (2 s) is hidden.

    | f f f f . . | f f f f . . |
    """
    time = timed({each("forward"): 4.0}, {each("fsdp"): 4.0}, M=2.0, machine=fake_machine(overlap={"fsdp": 0.5}))
    assert time.parts["fsdp"] == 2 * (4 - 2)
    assert (time.lower, time.expected, time.upper) == (8, 12, 16)


def test_gradients_are_reduced_behind_the_last_microbatch_only() -> None:
    """Of 5 s, 2 s run under the last backward pass:

    | b b b b | b b b b | d d d |
                    d d
    """
    time = timed({each("backward"): 4.0}, {once("data"): 5.0}, M=2.0, machine=fake_machine(overlap={"data": 0.5}))
    assert time.parts["data"] == 5 - 2
    assert (time.lower, time.expected, time.upper) == (8 + 1, 8 + 3, 8 + 5)


def test_no_compute_hides_both_a_microbatchs_collectives_and_the_reduction_of_gradients() -> None:
    """3 s of gathers leave 1 s of the last microbatch's compute for 5 s of reduction.

    | b b b b | b b b b | d d d d |
      g g g     g g g d
    """
    machine = fake_machine(overlap={"fsdp": 1.0, "data": 1.0})
    time = timed({each("backward"): 4.0}, {each("fsdp"): 3.0, once("data"): 5.0}, M=2.0, machine=machine)
    assert (time.parts["fsdp"], time.parts["data"]) == (0, 4)
    assert time.expected == time.lower == 2 * 4 + 4


def test_the_overhead_of_a_step_comes_once() -> None:
    time = timed({each("forward"): 2.0}, {}, M=3.0, pp=2.0, machine=fake_machine(step_overhead_seconds=7.0))
    assert time.parts["overhead"] == 7
    assert time.expected == (3 + 2 - 1) * 2 + 7


# -- pipeline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("pp", [1.0, 2.0, 4.0])
def test_a_pipeline_takes_its_stages_less_one_microbatches_longer(M: float, pp: float) -> None:
    """With 3 microbatches on 2 stages, 5 s each:

    stage 1 | 1 | 2 | 3 |   | u |
    stage 2 |   | 1 | 2 | 3 | u |
    """
    time = timed({each("forward"): 2.0, each("backward"): 3.0, once("update"): 1.0}, {}, M=M, pp=pp)
    assert time.expected == (M + pp - 1) * 5 + 1
    assert time.parts["bubble"] == (pp - 1) * 5


def test_sends_between_stages_delay_the_bubble_too() -> None:
    time = timed({each("forward"): 2.0}, {each("pipeline"): 1.0}, M=4.0, pp=2.0)
    assert time.expected == (4 + 1) * (2 + 1)
    assert (time.parts["forward"], time.parts["pipeline"], time.parts["bubble"]) == (8, 4, 3)


@pytest.mark.parametrize(("head", "slowest"), [(1.0, 4.0 + 3.0), (6.0, 4.0 + 6.0)])
def test_the_slowest_stage_sets_the_pace_and_waits_for_what_a_microbatch_takes_on_the_others(
    head: float, slowest: float
) -> None:
    """Layers take 4 s on every stage, the embedding 3 s more on the first, the head on the last."""
    compute = {each("forward"): 4.0, each("forward", FIRST): 3.0, each("forward", LAST): head}
    ends = (4 + 3) + (4 + head)
    assert timed(compute, {}, M=5.0, pp=2.0).expected == 4 * slowest + ends
    assert timed(compute, {}, M=5.0, pp=6.0).expected == 4 * slowest + ends + 4 * 4


def cut_of(counts: Sequence[int], pp: int) -> Cut:
    """A cut with so many layers on each stage."""
    first, *between, last = counts
    layers = dict(zip(STAGES, (first, max(between, default=0), last), strict=True))
    shares = {stage: n * pp / sum(counts) for stage, n in layers.items()}
    return Cut(layers=layers, shares=shares, between=sum(between) / max(layers["middle"], 1))


EMBEDDING, HEAD, LAYER, SEND = 3.0, 5.0, 4.0, 0.5
COSTS = {each("forward"): 10 * LAYER, each("forward", FIRST): EMBEDDING, each("forward", LAST): HEAD}
"""Layers enough for 10 on an even stage."""


@pytest.mark.parametrize("counts", [(5, 10, 15), (15, 10, 5), (2, 14, 14, 2), (10, 11, 9, 10)])
def test_each_stage_takes_as_long_as_its_layers_do(counts: tuple[int, ...]) -> None:
    """And what passes between them, which is the same for all."""
    layers = [LAYER * n / sum(counts) * 10 * len(counts) for n in counts]
    seconds = [own + SEND for own in layers]
    seconds[0], seconds[-1] = seconds[0] + EMBEDDING, seconds[-1] + HEAD
    pp = float(len(counts))
    costs = Costs(
        compute=COSTS, launches={}, engine={}, communication={each("pipeline"): SEND}, collectives=(), model_flops=0.0
    )
    sizes = {**dict.fromkeys(SYMBOLS, 1.0), "microbatch": 6.0, "pp": pp}
    found = step_time(costs, sizes, Pace.of(fake_machine()), cut=cut_of(counts, len(counts)))
    between = counts[1:-1]
    uncounted = SEND * (len(between) - sum(between) / max(between))  # stages between count as fewer, but full ones
    assert float(found.expected) == pytest.approx(5 * max(seconds) + sum(seconds) - uncounted)
    assert sum(map(float, found.parts.values())) == pytest.approx(float(found.expected))


@pytest.mark.parametrize("embedding", [0.0, 1.0, 3.0, 9.0])
@pytest.mark.parametrize("head", [0.0, 2.0, 4.0, 12.0, 40.0])
@pytest.mark.parametrize(("pp", "layers"), [(2, 7), (3, 8), (4, 8), (4, 9), (5, 12), (4, 30)])
def test_no_cut_takes_less_than_a_balanced_one(pp: int, layers: int, embedding: float, head: float) -> None:
    """Of all steps with many microbatches, so that the slowest stage decides."""
    compute = {
        each("forward"): LAYER * layers / pp,
        each("forward", FIRST): embedding,
        each("forward", LAST): head,
    }
    costs = Costs(
        compute=compute, launches={}, engine={}, communication={each("pipeline"): SEND}, collectives=(), model_flops=0.0
    )
    sizes = {**dict.fromkeys(SYMBOLS, 1.0), "microbatch": 1e6, "pp": float(pp)}

    def seconds(cut: Cut) -> float:
        return float(step_time(costs, sizes, Pace.of(fake_machine()), cut=cut).expected)

    every = (
        (first, *between, layers - first - sum(between))
        for first in range(layers + 1)
        for between in combinations_with_replacement(range(1, layers), pp - 2)
        if first + sum(between) <= layers
    )
    found = cut_layers(costs, sizes, Pace.of(fake_machine()), layers, "balanced")
    assert seconds(found) == pytest.approx(min(seconds(cut_of(counts, pp)) for counts in every), rel=1e-5)
    kept = cut_layers(costs, sizes, Pace.of(fake_machine()), layers, "even")
    assert kept.is_even == (layers % pp == 0)
    if not kept.is_even:
        assert seconds(kept) == seconds(found)


def test_chunks_of_layers_cut_the_bubble_and_delayed_weights_fill_it() -> None:
    compute = {each("forward"): 2.0, each("backward"): 3.0, each(WEIGHTS): 1.5}
    found = {
        (schedule, vpp): timed(compute, {}, M=8.0, pp=4.0, schedule=schedule, vpp=vpp).parts
        for schedule, vpp in (("1f1b", 1.0), ("gpipe", 1.0), ("1f1b", 2.0), ("zb-h1", 1.0))
    }
    assert [parts["bubble"] for parts in found.values()] == [3 * 6.5, 3 * 6.5, 3 * 6.5 / 2, 3 * (2 + 3 - 1.5)]
    assert all(parts["backward"] == 8 * (3 + 1.5) for parts in found.values())


def test_a_single_stage_does_the_work_of_first_and_last() -> None:
    compute = {each("forward"): 4.0, each("forward", FIRST): 3.0, each("forward", LAST): 1.0}
    assert timed(compute, {}, M=5.0).expected == 5 * (4 + 3 + 1)


def test_parts_are_those_of_the_slowest_stage() -> None:
    compute = {each("forward", FIRST): 3.0, each("backward", LAST): 5.0}
    parts = timed(compute, {once("data", LAST): 2.0}, M=1.0, pp=2.0).parts
    assert (parts["forward"], parts["backward"], parts["data"], parts["bubble"]) == (0, 5, 2, 3)


# -- any ----------------------------------------------------------------------------------------------------------

stages = st.sampled_from([EVERY, FIRST, LAST, FIRST | LAST])
computes = st.dictionaries(
    st.builds(Place, repeated=st.booleans(), stages=stages, part=st.sampled_from(PHASES)), seconds, max_size=8
)
traffics = st.dictionaries(
    st.builds(each, st.sampled_from(CLASSES), stages) | st.builds(once, st.just("data"), stages), seconds, max_size=8
)
counts = st.integers(1, 64).map(float)
overlaps = st.dictionaries(st.sampled_from([*CLASSES, "data"]), shares)


@given(compute=computes, traffic=traffics, M=counts, pp=counts, overlap=overlaps, overhead=seconds)
def test_bounds_enclose_the_time_and_parts_sum_to_it(
    compute: Seconds, traffic: Seconds, M: float, pp: float, overlap: dict[str, float], overhead: float
) -> None:
    machine = fake_machine(overlap=overlap, step_overhead_seconds=overhead)
    time = timed(compute, traffic, M=M, pp=pp, machine=machine)
    rounding = 1 + 1e-13
    assert time.lower <= time.expected * rounding
    assert time.expected <= time.upper * rounding
    assert sum(time.parts.values()) == time.expected
    assert all(part >= 0.0 for part in time.parts.values())


@given(compute=computes, traffic=traffics, M=counts, pp=counts, overlap=overlaps)
def test_a_step_takes_at_least_its_longest_work_and_at_most_all_of_it_in_turn(
    compute: Seconds, traffic: Seconds, M: float, pp: float, overlap: dict[str, float]
) -> None:
    def total(spent: Seconds, view: str, runs: float) -> float:
        here = {place: s for place, s in spent.items() if pp == 1 or not place.stages or view in place.stages}
        return sum(float(s) * (runs if place.repeated else 1.0) for place, s in here.items())

    def busy(spent: Seconds, runs: float) -> float:
        return max(total(spent, "first", runs), total(spent, "last", runs))

    time = timed(compute, traffic, M=M, pp=pp, machine=fake_machine(overlap=overlap))
    rounding = 1 + 1e-12
    assert max(busy(compute, M), busy(traffic, M)) <= time.lower * rounding
    work = {**compute, **traffic}
    every, last = ({place: s for place, s in work.items() if place.repeated == now} for now in (True, False))
    assert time.upper <= (busy(every, M + pp - 1) + busy(last, 1.0)) * rounding


@given(
    compute=computes,
    traffic=traffics,
    layouts=st.lists(st.tuples(counts, counts), min_size=1, max_size=9),
    overlap=overlaps,
)
def test_an_array_of_layouts_takes_what_each_of_them_takes_to_the_last_bit(
    compute: Seconds, traffic: Seconds, layouts: list[tuple[float, float]], overlap: dict[str, float]
) -> None:
    machine = fake_machine(overlap=overlap)
    M, pp = np.array(layouts).T
    many = timed(compute, traffic, M=M, pp=pp, machine=machine)
    for i, (one_M, one_pp) in enumerate(layouts):
        one = timed(compute, traffic, M=one_M, pp=one_pp, machine=machine)
        assert [many.expected[i], many.lower[i], many.upper[i]] == [one.expected, one.lower, one.upper]  # type: ignore[index]
        assert {name: np.broadcast_to(part, len(layouts))[i] for name, part in many.parts.items()} == dict(one.parts)
