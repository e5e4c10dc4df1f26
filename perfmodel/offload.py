"""Optimizer state kept in the memory of the host: what its update costs where it must pass the link to the chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from perfmodel.machine import Machine
from perfmodel.memory import FIRST, LAST, ONLY, MemoryPlan
from perfmodel.price import Costs, Place
from perfmodel.stage import EVERY, Stages
from perfmodel.work import Evaluator, Number

UPDATE = "update"
VIEWS: Mapping[str, Stages] = {ONLY: EVERY, FIRST: frozenset({FIRST}), LAST: frozenset({LAST})}
"""Stages that wait for their own state: the single one, or either end of a pipeline."""


def over_host_link(costs: Costs, memory: MemoryPlan, sizes: Mapping[str, Number], machine: Machine) -> Costs:
    """Costs of a step whose optimizer state is fetched from the host, updated, and sent back.

    Both directions of the link work at once while the kernels run, so that the slowest of the three decides: the update
    takes at least the bytes of a rank's state over its share of the link in one direction. A machine that states no
    link is left as it is: no layout with offload is legal there.
    """
    if not machine.host_link:
        return costs
    evaluate, pipelined = Evaluator(sizes), np.asarray(sizes["pp"]) > 1.0
    compute = dict(costs.compute)
    for view, stages in VIEWS.items():
        state = evaluate.amount(memory.stages[view].kept["optimizer"])
        waiting = np.maximum(state / machine.host_link - _update_seconds(costs, view), 0.0)
        place = Place(repeated=False, stages=stages, part=UPDATE)
        compute[place] = compute.get(place, 0.0) + np.where(pipelined == (view != ONLY), waiting, 0.0)
    return replace(costs, compute=compute)


def _update_seconds(costs: Costs, view: str) -> Number:
    """Seconds of the kernels that run once per step, on the stages of a view."""
    seconds: Number = 0.0
    for place, spent in costs.compute.items():
        if not place.repeated and place.part == UPDATE and (view == ONLY or not place.stages or view in place.stages):
            seconds = seconds + spent
    return seconds
