"""The answer: step time with bounds, memory, feasibility with reasons, breakdown and cost; floats or arrays.

Arrays broadcast: one that depends on few of the layout's dims may be small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from perfmodel.costs import CollectiveCost, KernelCost
from perfmodel.rules import reason
from perfmodel.work import Again, Number, largest

ARRAYS = (
    "step_time_s",
    "lower_s",
    "upper_s",
    "mfu",
    "tokens_per_s",
    "memory_bytes",
    "memory_capacity_bytes",
    "fits",
    "cost_usd_per_hour",
    "usd_per_million_tokens",
)
TABLES = ("violations", "breakdown", "stage_layers", "memory_parts", "engines", "communication")
UNPRINTED = ("engines", "communication", "kernels")
"""What is in no JSON document unless it is asked for."""


ENGINES = {
    "tensor": "matrix engine",
    "attention": "matrix engine in attention",
    "vector": "vector engine",
    "scalar": "scalar engine (transcendental functions)",
    "gpsimd": "gpsimd engine (indices and sorting)",
    "memory": "memory bandwidth",
}
LABELS = {
    "tensor": "tensor-parallel collectives",
    "context": "context-parallel collectives",
    "expert": "expert-parallel collectives",
    "fsdp": "FSDP collectives",
    "batch": "collectives across the batch",
    "pipeline": "pipeline sends",
    "data": "gradient reduction",
    "bubble": "pipeline bubble",
    "overhead": "step overhead",
    "host": "launches by the host",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one step of a program costs under a layout on a machine.

    step_time_s, lower_s, upper_s: expected seconds, with perfect overlap, with none [s]
    interval:              factors on step_time_s between which four of five measured runs were, that no fit had seen;
                           None where no run of such a machine was ever compared [1]
    mfu:                   model FLOPs over quoted peak [1]
    tokens_per_s:          of the whole job [1/s]; `counted` says whether these are tokens or samples
    memory_bytes:          on the fullest rank, against memory_capacity_bytes of a rank [B]
    fits:                  whether the layout breaks no rule; `violations` says which it breaks, `reasons` why (only of
                           a scalar estimate: take one with `at`)
    breakdown:             seconds by phase, exposed collective class, bubble and overhead; sums to step_time_s
    stage_layers:          of the first stage of a pipeline, the fullest of those between (middle) and the last
    memory_parts:          bytes by what holds them; sums to memory_bytes
    warnings:              what one layout asks too much of a compiler or runtime, without being illegal
    engines:               seconds of the kernels by what decides them: an engine or the memory
    communication:         seconds of the collectives by class before overlap, on the stage that decides the step; what
                           `breakdown` has of them is exposed
    kernels:               those of that stage; their seconds sum to the phases of `breakdown`
    collectives:           of every stage, before overlap

    Of arrays, `breakdown`, `memory_parts`, `engines`, `communication`, `bound`, `kernels` and `collectives` are worked
    out each time that they are asked for.
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
    breakdown: Mapping[str, Number]
    stage_layers: Mapping[str, Number]
    memory_parts: Mapping[str, Number]
    engines: Mapping[str, Number]
    communication: Mapping[str, Number]
    kernels: Iterable[KernelCost] = field(compare=False, repr=False)
    collectives: Iterable[CollectiveCost]
    cost_usd_per_hour: Number
    usd_per_million_tokens: Number
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    counted: str = "tokens"
    interval: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layouts; () for one."""
        return np.broadcast_shapes(*(np.shape(getattr(self, name)) for name in ARRAYS))

    @property
    def likely_s(self) -> tuple[Number, Number]:
        """Seconds between which a measurement lies with a probability of four in five; the bounds of overlap where
        nothing is known of errors [s].
        """
        if self.interval is None:
            return self.lower_s, self.upper_s
        faster, longer = self.interval
        return self.step_time_s * faster, self.step_time_s * longer

    @property
    def bound(self) -> Any:
        """Name of what takes the largest part of the step: what decides most of the compute, a collective class, the
        bubble or the overhead.
        """
        parts = {"compute": 0.0, **{name: self.breakdown[name] for name in LABELS}}
        for phase in self.breakdown.keys() - LABELS.keys():
            parts["compute"] = parts["compute"] + self.breakdown[phase]
        names = np.array([LABELS.get(name, name) for name in parts])
        engines = np.array(list(ENGINES.values()))
        part = largest(list(parts.values()))
        engine = largest([self.engines.get(name, 0.0) for name in ENGINES])
        bound = np.where(part == 0, engines[engine], names[part])
        return bound if bound.ndim else str(bound)

    def at(self, i: int) -> Estimate:
        """The i-th estimate of arrays, as plain numbers and with reasons: what `predict` answers for that layout.

        Layouts of several dims are counted in row-major order.
        """
        pick = _Pick(self.shape, i)
        picked: dict[str, Any] = {name: pick(getattr(self, name)) for name in ARRAYS}
        for name in TABLES:
            picked[name] = {key: pick(value) for key, value in getattr(self, name).items()}
        picked["kernels"] = Again(lambda: _pick_kernels(self.kernels, pick))
        picked["collectives"] = tuple(_pick_collective(c, pick) for c in self.collectives)
        needed, capacity = picked["memory_bytes"], picked["memory_capacity_bytes"]
        broken = (rule for rule, breaks in picked["violations"].items() if breaks)
        return replace(self, **picked, reasons=tuple(reason(rule, needed, capacity) for rule in broken))

    def to_json(self) -> dict[str, Any]:
        """A scalar estimate as plain dicts and lists, but for its kernels; collectives that never run are left out."""
        apart = {"collectives", *TABLES, *UNPRINTED}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        unknown = {name: None for name, x in plain.items() if isinstance(x, float) and math.isnan(x)}
        return {
            **plain,
            **unknown,
            "interval": list(self.interval) if self.interval else None,
            "likely_s": list(self.likely_s),
            "bound": self.bound,
            **{name: dict(getattr(self, name)) for name in TABLES if name not in UNPRINTED},
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
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
                    "optimum": c.optimum,
                }
                for c in self.collectives
                if c.seconds > 0.0
            ],
        }


class _Pick:
    """Takes one layout's element out of anything that broadcasts to `shape`, as a plain number."""

    def __init__(self, shape: tuple[int, ...], i: int) -> None:
        self._shape, self._index = shape, np.unravel_index(i, shape) if shape else ()

    def __call__(self, value: Any) -> Any:
        item = np.broadcast_to(value, self._shape)[self._index] if np.ndim(value) else value
        return item.item() if hasattr(item, "item") else item


def _pick_kernels(kernels: Iterable[KernelCost], pick: _Pick) -> Iterator[KernelCost]:
    """One layout's kernels, without those that never run there."""
    for k in kernels:
        if pick(k.count):
            picked = {name: pick(getattr(k, name)) for name in ("decides", "count", "seconds", "flops", "bytes")}
            yield replace(k, **picked)


def _pick_collective(c: CollectiveCost, pick: _Pick) -> CollectiveCost:
    """One layout's collective, over those of its axes that have more than one rank there."""
    sizes = {axis: size for axis, size in ((axis, pick(size)) for axis, size in c.sizes.items()) if size > 1.0}
    picked = {name: pick(getattr(c, name)) for name in ("bytes", "count", "seconds", "optimum")}
    return replace(c, axis="+".join(sizes), sizes=sizes, **picked)
