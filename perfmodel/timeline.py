"""The pipeline of one estimate laid out task by task: what each stage runs when.

found = timeline(graph, layout, machine, microbatches=32)
found.end + found.behind  # the step, where all microbatches are laid out and the stages are alike
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.cut import Cut
from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.machine import Machine
from perfmodel.pipeline import Task, lay_out, orders
from perfmodel.predict import part_for, priced, structure_of
from perfmodel.schedule import Pace, seconds_behind, task_seconds

MOST = 32
"""Microbatches that a picture shows."""


@dataclass(frozen=True, slots=True)
class Run:
    """A task on a stage, from `start` to `end` [s]."""

    task: Task
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The first microbatches of a step, or all of them.

    stages:       what each stage runs, in order
    layers:       of each stage, where stages share layers
    microbatches: laid out, `of` so many in a step; for each data-parallel rank
    behind:       seconds that follow the last microbatch: reduction of gradients, update, overhead
    """

    schedule: str
    stages: Sequence[Sequence[Run]]
    layers: Sequence[int]
    microbatches: int
    of: int
    behind: float

    @property
    def end(self) -> float:
        """When the last task ends [s]."""
        return max(runs[-1].end for runs in self.stages)

    def busy(self, stage: int) -> float:
        """Share of the time up to `end` in which a stage works [1]."""
        return sum(run.end - run.start for run in self.stages[stage]) / self.end if self.end else 0.0


def timeline(graph: Graph, layout: Layout, machine: Machine, microbatches: int = MOST) -> Timeline:
    """Lay out a step under one layout (scalar sizes), but no more than so many `microbatches` of it.

    With interleaved stages microbatches come in groups of pp, of which one at least is laid out.
    """
    machine = part_for(machine, layout)
    structure = structure_of(graph, layout, machine.framework)
    sizes, pace = layout.sizes(graph), Pace.of(machine)
    costs, cut = priced(structure, layout, sizes, machine)
    pp, vpp, count = int(layout.pp), int(layout.vpp), max(int(layout.microbatches), 1)
    drawn = min(count, microbatches if vpp == 1 else pp * max(microbatches // pp, 1))
    layers = stage_layers(cut, pp)
    shares = [n * pp / sum(layers) for n in layers] or [1.0] * pp
    views = ["only"] if pp == 1 else ["first", *["middle"] * (pp - 2), "last"]
    seconds = [
        {kind: float(value) for kind, value in task_seconds(costs, sizes, pace, view, share).items()}
        for view, share in zip(views, shares, strict=True)
    ]
    apart = layout.schedule == "zb-h1"

    def of_task(stage: int, task: Task) -> float:
        weights = seconds[stage]["W"] if task.kind == "B" and not apart else 0.0
        return (seconds[stage][task.kind] + weights) / vpp

    found = lay_out(orders(layout.schedule, pp, drawn, vpp), of_task, vpp)
    stages: list[list[Run]] = [[] for _ in range(pp)]
    for (stage, task), (start, end) in found.items():
        stages[stage].append(Run(task, start, end))
    behind = float(seconds_behind(costs, sizes, pace, layout.schedule, cut))
    return Timeline(schedule=layout.schedule, stages=stages, layers=layers, microbatches=drawn, of=count, behind=behind)


def stage_layers(cut: Cut, pp: int) -> list[int]:
    """Layers of every stage; where those between the ends cannot have equally many, the earlier ones have more."""
    if not cut.layers or pp == 1:
        return [int(n) for n in list(cut.layers.values())[:1]]
    first, middle, last = (float(cut.layers[stage]) for stage in ("first", "middle", "last"))
    share, more = divmod(round(float(cut.between) * middle), pp - 2) if pp > 2 else (0, 0)
    return [int(first), *(share + (i < more) for i in range(pp - 2)), int(last)]
