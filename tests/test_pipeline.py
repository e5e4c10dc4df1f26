"""Pipeline schedules: laid out task by task against published closed forms, and timelines drawn by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.formulas.pipeline import SCHEDULES, bubble, in_flight
from perfmodel.pipeline import Order, Task, lay_out, makespan, orders

SIZES = (1, 2, 3, 4, 8, 16)


def cases() -> Iterator[tuple[str, int, int, int]]:
    """Schedules with p stages, m >= p microbatches, v chunks; only 1F1B is interleaved."""
    for schedule in SCHEDULES:
        for p in SIZES:
            for m in sorted({p, 2 * p, 16}):
                for v in SIZES if schedule == "1f1b" and m % p == 0 and p > 1 else (1,):
                    yield schedule, p, m, v


CASES = list(cases())


def most_kept(order: Order, done: str) -> int:
    """The most microbatches (or chunks of them) that are through their forward and not yet done with."""
    kept, most = 0, 0
    for task in order:
        kept += (task.kind == "F") - (task.kind == done)
        most = max(most, kept)
    return most


@pytest.mark.parametrize(("schedule", "p", "m", "v"), CASES)
def test_stages_that_are_alike_take_what_is_published(schedule: str, p: int, m: int, v: int) -> None:
    seconds = {"F": 1.0, "B": 1.25, "W": 0.75} if schedule == "zb-h1" else {"F": 1.0, "B": 2.0}
    found = lay_out(orders(schedule, p, m, v), lambda _, task: seconds[task.kind] / v, v)
    whole = sum(seconds.values())
    waits = bubble(schedule, (p - 1) * whole, (p - 1) * seconds.get("W", 0.0), v)
    assert makespan(found) == pytest.approx(m * whole + waits, rel=1e-12)


@pytest.mark.parametrize(("schedule", "p", "m", "v"), CASES)
def test_stages_keep_as_many_microbatches_as_is_published(schedule: str, p: int, m: int, v: int) -> None:
    found = orders(schedule, p, m, v)
    done = "W" if schedule == "zb-h1" else "B"
    first, second, last = in_flight(schedule, p, m, v)
    assert (most_kept(found[0], done) / v, most_kept(found[-1], done) / v) == pytest.approx((first, last))
    if p > 1:
        assert most_kept(found[1], done) / v == pytest.approx(second)


@pytest.mark.parametrize(("schedule", "p", "m", "v"), CASES)
def test_every_stage_runs_every_task_once(schedule: str, p: int, m: int, v: int) -> None:
    kinds = "FBW" if schedule == "zb-h1" else "FB"
    wanted = Counter(Task(kind, i, chunk) for kind in kinds for i in range(m) for chunk in range(v))
    assert [Counter(order) for order in orders(schedule, p, m, v)] == [wanted] * p


def test_two_stages_with_three_microbatches() -> None:
    """A forward takes 1 s, a backward 2 s:

    stage 1 | f1 f2 .  .  b1 b1 f3 b2 b2 .  b3 b3 |
    stage 2 | .  f1 b1 b1 f2 b2 b2 f3 b3 b3 .  .  |
    """
    found = lay_out(orders("1f1b", 2, 3), lambda _, task: {"F": 1.0, "B": 2.0}[task.kind])
    backward = [[found[s, Task("B", i)] for i in range(3)] for s in range(2)]
    assert backward == [[(4, 6), (7, 9), (10, 12)], [(2, 4), (5, 7), (8, 10)]]
    assert found[0, Task("F", 2)] == (6, 7)
    assert makespan(found) == 12


def test_two_chunks_on_each_of_two_stages() -> None:
    """Tasks of a second each; the second chunk in capitals:

    stage 1 | f1 f2 F1 F2 .  B1 .  B2 b1 b2 |
    stage 2 | .  f1 f2 F1 B1 F2 B2 b1 b2 .  |
    """
    found = lay_out(orders("1f1b", 2, 2, 2), lambda *_: 1.0, 2)
    assert (found[1, Task("B", 0, 1)], found[1, Task("B", 1, 1)]) == ((4, 5), (6, 7))
    assert (found[0, Task("B", 0, 1)], found[0, Task("B", 1, 1)]) == ((5, 6), (7, 8))
    assert makespan(found) == 10


@given(ends=st.tuples(st.floats(1.0, 3.0), st.floats(1.0, 3.0)), between=st.integers(0, 8), rounds=st.integers(1, 6))
def test_what_is_waited_for_at_a_slow_end_is_a_microbatch_on_the_other_stages(
    ends: tuple[float, float], between: int, rounds: int
) -> None:
    """Exact where the last stage is the slowest; a slow first stage finds some of it done when it comes round."""
    seconds = (ends[0], *[1.0] * between, ends[1])
    m = rounds * len(seconds)
    found = makespan(lay_out(orders("1f1b", len(seconds), m), lambda s, task: seconds[s] * (1 + (task.kind == "B"))))
    closed = 3 * ((m - 1) * max(seconds) + sum(seconds))
    assert 3 * m * max(seconds) <= found * (1 + 1e-12)
    assert found <= closed * (1 + 1e-12)
    if ends[1] >= ends[0]:
        assert found == pytest.approx(closed, rel=1e-12)


@given(
    layers=st.lists(st.integers(1, 4), min_size=3, max_size=6),
    ends=st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 2.0)),
    rounds=st.integers(1, 5),
)
def test_stages_with_any_numbers_of_layers_take_no_longer_than_the_closed_form(
    layers: list[int], ends: tuple[float, float], rounds: int
) -> None:
    """A microbatch on every stage, and the others at the pace of the slowest one, wherever it is."""
    seconds = [float(n) for n in layers]
    seconds[0], seconds[-1] = seconds[0] + ends[0], seconds[-1] + ends[1]
    m = rounds * len(seconds)
    found = makespan(lay_out(orders("1f1b", len(seconds), m), lambda s, task: seconds[s] * (1 + (task.kind == "B"))))
    closed = 3 * ((m - 1) * max(seconds) + sum(seconds))
    assert 3 * m * max(seconds) <= found * (1 + 1e-12)
    assert found <= closed * (1 + 1e-12)
    if seconds[-1] == max(seconds):
        assert found == pytest.approx(closed, rel=1e-12)
