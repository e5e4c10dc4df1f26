"""Pipeline schedules as tables: what each stage runs in which order; and their evaluation, for any seconds of a task.

The closed forms of `perfmodel.formulas.pipeline` are for stages that are alike; this is for those that are not, and for
drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Task:
    """One microbatch through the layers of one chunk of a stage: F forward, B backward, W the gradients of weights
    where they are run apart (otherwise B has them).
    """

    kind: str
    microbatch: int
    chunk: int = 0


Order: TypeAlias = Sequence[Task]
Timeline: TypeAlias = Mapping[tuple[int, Task], tuple[float, float]]
"""(stage, task) -> start and end [s]."""


def orders(schedule: str, p: int, m: int, v: int = 1) -> list[Order]:
    """What each of p stages runs for m microbatches with v chunks each; interleaving needs m to be a multiple of p."""
    if schedule == "gpipe":
        return [[Task(kind, i) for kind in "FB" for i in range(m)] for _ in range(p)]
    found: list[Order] = [list(_one_by_one(s, p, m, v)) for s in range(p)]
    return [list(_delayed(order, s)) for s, order in enumerate(found)] if schedule == "zb-h1" else found


def _one_by_one(s: int, p: int, m: int, v: int) -> Iterator[Task]:
    """Forwards until stage s is warm, then one forward, one backward, then the backwards that are left."""
    behind = p - s - 1
    warm = min(behind if v == 1 else 2 * behind + (v - 1) * p, m * v)
    forward, backward = ([_chunk(kind, k, p, v) for k in range(m * v)] for kind in "FB")
    yield from forward[:warm]
    for f, b in zip(forward[warm:], backward, strict=False):
        yield from (f, b)
    yield from backward[m * v - warm :]


def _chunk(kind: str, k: int, p: int, v: int) -> Task:
    """The k-th task of a kind: p microbatches through one chunk, the same through the next; back, the last first."""
    group, within = divmod(k, p * v)
    chunk, place = divmod(within, p)
    return Task(kind, group * p + place, v - 1 - chunk if kind == "B" else chunk)


def _delayed(order: Order, delay: int) -> Iterator[Task]:
    """The gradients of weights `delay` microbatches after the backward, as far as memory for the activations allows."""
    backward = [task for task in order if task.kind == "B"]
    done = 0
    for task in order:
        yield task
        if task.kind == "B":
            done += 1
            if done > delay:
                yield Task("W", backward[done - delay - 1].microbatch)
    for task in backward[max(len(backward) - delay, 0) :]:
        yield Task("W", task.microbatch)


def lay_out(orders: Sequence[Order], seconds: Callable[[int, Task], float], v: int = 1) -> Timeline:
    """When each stage runs each of its tasks: in order, and once what it needs has arrived."""
    p = len(orders)
    timeline: dict[tuple[int, Task], tuple[float, float]] = {}
    clock, position = [0.0] * p, [0] * p
    moved = True
    while moved:
        moved = False
        for s, order in enumerate(orders):
            while position[s] < len(order):
                task = order[position[s]]
                needed = _needed(s, task, p, v)
                if needed is not None and needed not in timeline:
                    break
                start = max(clock[s], timeline[needed][1] if needed is not None else 0.0)
                clock[s] = start + seconds(s, task)
                timeline[s, task] = start, clock[s]
                position[s] += 1
                moved = True
    assert all(place == len(order) for place, order in zip(position, orders, strict=True)), "a schedule that stalls"
    return timeline


def _needed(s: int, task: Task, p: int, v: int) -> tuple[int, Task] | None:
    """What a task waits for: the chunk before it, or behind it on the way back; the stage's own where it turns."""
    if task.kind == "W":
        return s, Task("B", task.microbatch, task.chunk)
    step = 1 if task.kind == "B" else -1
    place = task.chunk * p + s + step
    if place == p * v:
        return s, Task("F", task.microbatch, task.chunk)
    chunk, stage = divmod(place, p)
    return (stage, Task(task.kind, task.microbatch, chunk)) if place >= 0 else None


def makespan(timeline: Timeline) -> float:
    """When the last task ends [s]."""
    return max(end for _, end in timeline.values())
