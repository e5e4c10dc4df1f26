"""Optimizer state kept in the memory of the host: what its update costs where it must pass the link to the chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from perfmodel.costs import UPDATE, Costs, Place
from perfmodel.cut import Cut
from perfmodel.machine import Machine
from perfmodel.memory import FIRST, LAST, MIDDLE, ONLY, MemoryPlan, parts_of_stages
from perfmodel.stage import EVERY, Stages, runs_on
from perfmodel.work import Evaluator, Number

VIEWS: Mapping[str, Stages] = {ONLY: EVERY, **{view: frozenset({view}) for view in (FIRST, MIDDLE, LAST)}}
"""Stages that wait for their own state: the single one, or some of a pipeline."""


def over_host_link(costs: Costs, memory: MemoryPlan, sizes: Mapping[str, Number], machine: Machine, cut: Cut) -> Costs:
    """Costs of a step whose optimizer state is fetched from the host, updated, and sent back.

    Both directions of the link work at once while the kernels run, so that the slowest of the three decides: the update
    takes at least the bytes of a rank's state over its share of the link in one direction. A machine that states no
    link is left as it is: no layout with offload is legal there.
    """
    if not machine.host_link:
        return costs
    pipelined = np.asarray(sizes["pp"]) > 1.0
    compute = dict(costs.compute)
    for view, evaluate in parts_of_stages(memory, Evaluator(sizes).sizes, cut).items():
        state = evaluate.amount(memory.stages[view].kept["optimizer"])
        waiting = np.maximum(state / machine.host_link - _update_seconds(costs, view, cut), 0.0)
        place = Place(repeated=False, stages=VIEWS[view], part=UPDATE)
        compute[place] = compute.get(place, 0.0) + np.where(pipelined == (view != ONLY), waiting, 0.0)
    return replace(costs, compute=compute)


def _update_seconds(costs: Costs, view: str, cut: Cut) -> Number:
    """Seconds of the kernels that run once per step, on the stages of a view."""
    seconds: Number = 0.0
    for place, spent in costs.compute.items():
        if not place.repeated and place.part == UPDATE and runs_on(place.stages, view):
            seconds = seconds + (spent if place.stages else spent * cut.share(view))
    return seconds
