"""From seconds by place to the time of a step: overlap, pipeline, bounds.

A step is M microbatches through pp stages (1F1B), then what happens once: the reduction of gradients and the update.

    step = (M + pp - 1) t_microbatch + t_once + overhead

t_microbatch is that of the slowest stage, compute plus the communication that compute does not hide. How much it may
hide is one number per class of collective and machine: the share of the compute time that can run meanwhile. What
happens once hides behind what the last microbatch leaves. The bounds are the same formula with every share at 1 (lower)
and at 0 (upper), so lower <= expected <= upper always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perfmodel.machine import Machine
from perfmodel.price import Costs, Place
from perfmodel.work import Number

CLASSES = ("tensor", "context", "expert", "fsdp", "pipeline")
PHASES = ("forward", "recompute", "backward", "update")
VIEWS = ("only", "first", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step, its bounds, and its parts; the parts sum to `expected`."""

    expected: Number
    lower: Number
    upper: Number
    parts: Mapping[str, Number]


def step_time(costs: Costs, sizes: Mapping[str, Number], machine: Machine) -> StepTime:
    """Time of one training step for given costs and axis sizes."""
    parts = _step(costs, sizes, machine, machine.overlap)
    return StepTime(
        expected=_total(parts),
        lower=_total(_step(costs, sizes, machine, dict.fromkeys((*CLASSES, "data"), 1.0))),
        upper=_total(_step(costs, sizes, machine, dict.fromkeys((*CLASSES, "data"), 0.0))),
        parts=parts,
    )


def _step(
    costs: Costs, sizes: Mapping[str, Number], machine: Machine, overlap: Mapping[str, float]
) -> dict[str, Number]:
    views = {view: _stage_parts(costs, sizes, view, overlap) for view in VIEWS}
    slowest = np.where(
        np.asarray(sizes["pp"]) > 1.0,
        np.where(_total(views["first"]) >= _total(views["last"]), 1, 2),
        0,
    )
    parts: dict[str, Number] = {
        name: np.choose(slowest, [np.broadcast_to(views[view][name], slowest.shape) for view in VIEWS])
        for name in views["only"]
    }
    parts["overhead"] = parts["bubble"] * 0.0 + machine.step_overhead_seconds
    return parts


def _stage_parts(
    costs: Costs, sizes: Mapping[str, Number], view: str, overlap: Mapping[str, float]
) -> dict[str, Number]:
    """Seconds per step of one stage, by part."""
    repeated = {phase: _sum(costs.compute, view, phase, repeated=True) for phase in PHASES}
    once = {phase: _sum(costs.compute, view, phase, repeated=False) for phase in PHASES}
    microbatch = _total(repeated)
    traffic = {klass: _sum(costs.communication, view, klass, repeated=True) for klass in CLASSES}
    data = _sum(costs.communication, view, "data", repeated=False)
    exposed = exposed_seconds({**traffic, "data": data}, microbatch, overlap)
    waited = {klass: exposed[klass] for klass in CLASSES}
    count = sizes["microbatch"]
    return {
        **{phase: count * repeated[phase] + once[phase] for phase in PHASES},
        **{klass: count * seconds for klass, seconds in waited.items()},
        "data": exposed["data"],
        "bubble": (sizes["pp"] - 1.0) * (microbatch + _total(waited)),
    }


def exposed_seconds(traffic: Mapping[str, Number], compute: Number, overlap: Mapping[str, float]) -> dict[str, Number]:
    """Communication that is left to wait for: each class hides behind its share of the compute time, as far as the
    classes before it have not used that time up.
    """
    hidden_so_far: Number = 0.0
    exposed: dict[str, Number] = {}
    for klass, seconds in traffic.items():
        room = np.maximum(overlap.get(klass, 0.0) * compute - hidden_so_far, 0.0)
        hidden = np.minimum(seconds, room)
        hidden_so_far = hidden_so_far + hidden
        exposed[klass] = seconds - hidden
    return exposed


def _sum(seconds: Mapping[Place, Number], view: str, part: str, *, repeated: bool) -> Number:
    total: Number = 0.0
    for place, value in seconds.items():
        here = view == "only" or not place.stages or view in place.stages
        if here and place.repeated == repeated and place.part == part:
            total = total + value
    return total


def _total(parts: Mapping[str, Number]) -> Number:
    total: Number = 0.0
    for value in parts.values():
        total = total + value
    return total
