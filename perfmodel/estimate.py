"""The answer: step time with bounds, memory, feasibility with reasons, breakdown and cost; floats or equal arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from perfmodel.price import CollectiveCost
from perfmodel.rules import reason
from perfmodel.work import Number

ARRAYS = (
    "step_time_s",
    "lower_s",
    "upper_s",
    "mfu",
    "tokens_per_s",
    "memory_bytes",
    "memory_capacity_bytes",
    "fits",
    "bound",
    "cost_usd_per_hour",
    "usd_per_million_tokens",
)
TABLES = ("violations", "breakdown", "memory_parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one step of a program costs under a layout on a machine.

    step_time_s, lower_s, upper_s: expected seconds, with perfect overlap, with none [s]
    mfu:                   model FLOPs over quoted peak [1]
    tokens_per_s:          of the whole job [1/s]
    memory_bytes:          on the fullest rank, against memory_capacity_bytes of a rank [B]
    fits:                  whether the layout breaks no rule; `violations` says which it breaks, `reasons` why (only of
                           a scalar estimate: take one with `at`)
    bound:                 what takes the largest part of the step
    breakdown:             seconds by phase, exposed collective class, bubble and overhead; sums to step_time_s
    memory_parts:          bytes by what holds them; sums to memory_bytes
    """

    step_time_s: Number
    lower_s: Number
    upper_s: Number
    mfu: Number
    tokens_per_s: Number
    memory_bytes: Number
    memory_capacity_bytes: Number
    fits: Any
    violations: Mapping[str, Any]
    reasons: tuple[str, ...]
    bound: Any
    breakdown: Mapping[str, Number]
    memory_parts: Mapping[str, Number]
    collectives: tuple[CollectiveCost, ...]
    cost_usd_per_hour: Number
    usd_per_million_tokens: Number
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]

    def at(self, i: int) -> Estimate:
        """The i-th estimate of arrays, as plain numbers and with reasons: what `predict` answers for that layout."""
        picked: dict[str, Any] = {name: _pick(getattr(self, name), i) for name in ARRAYS}
        for name in TABLES:
            picked[name] = {key: _pick(value, i) for key, value in getattr(self, name).items()}
        picked["collectives"] = tuple(_pick_collective(c, i) for c in self.collectives)
        needed, capacity = picked["memory_bytes"], picked["memory_capacity_bytes"]
        broken = (rule for rule, breaks in picked["violations"].items() if breaks)
        return replace(self, **picked, reasons=tuple(reason(rule, needed, capacity) for rule in broken))

    def to_json(self) -> dict[str, Any]:
        """A scalar estimate as plain dicts and lists; collectives that never run are left out."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("collectives", *TABLES)}
        return {
            **plain,
            **{name: dict(getattr(self, name)) for name in TABLES},
            "reasons": list(self.reasons),
            "assumptions": list(self.assumptions),
            "sources": list(self.sources),
            "collectives": [
                {
                    "kind": c.kind,
                    "axis": c.axis,
                    "class": c.klass,
                    "bytes": c.bytes,
                    "count": c.count,
                    "seconds": c.seconds,
                }
                for c in self.collectives
                if c.seconds > 0.0
            ],
        }


def _pick_collective(c: CollectiveCost, i: int) -> CollectiveCost:
    """One layout's collective, over those of its axes that have more than one rank there."""
    sizes = {axis: size for axis, size in ((axis, _pick(size, i)) for axis, size in c.sizes.items()) if size > 1.0}
    picked = {name: _pick(getattr(c, name), i) for name in ("bytes", "count", "seconds")}
    return replace(c, axis="+".join(sizes), sizes=sizes, **picked)


def _pick(value: Any, i: int) -> Any:
    array = np.asarray(value)
    item = array.reshape(-1)[i if array.ndim else 0]
    return item.item() if hasattr(item, "item") else item
