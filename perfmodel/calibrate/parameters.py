"""Numbers of a calibration that measurements can tell, as a vector of parameters with bounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, TypeAlias

from perfmodel.spec_file import point_paths
from perfmodel.units import UNITS

Data: TypeAlias = dict[str, Any]

TIMES = ("latency", "inner", "base")
ENGINES = ("tensor", "attention", "vector", "memory", "fill", "operands", "query_keys")
BOUNDS: Mapping[str, tuple[float, float]] = {
    "latency": (1e-8, 1e-3),
    "inner": (1e-8, 1e-3),
    "base": (1e-7, 1e-2),
    "pipeline_depth": (1.0, 64.0),
    "copies": (1e-2, 20.0),
    "fill": (1e-2, 100.0),
    "operands": (1e-1, 500.0),
    "query_keys": (1.0, 65536.0),
}
"""Last part of a path -> bounds of the number there, in SI; everything else is a share of a peak."""

NEUTRAL: Mapping[str, float] = {
    "latency": 5e-6,
    "inner": 2e-6,
    "base": 1e-5,
    "pipeline_depth": 16.0,
    "copies": 1.0,
    "fill": 1.0,
    "operands": 10.0,
    "query_keys": 512.0,
    "attention": 0.5,
}
"""Last part of a path -> what one would guess there before any measurement, in SI; everything else is `GUESS`."""

GUESS = 0.7
SHARE = (0.01, 1.0)
CURVE = (0.07, 1.0)
"""Of points of a curve that are a factor of 16 apart in size, so that shares rise no faster than sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A number to be fitted: its keys in the parsed file, start, a guess that has seen no row, and bounds [SI]; `scale`
    turns its unit to SI.
    """

    path: str
    keys: tuple[str | int, ...]
    start: float
    neutral: float
    bounds: tuple[float, float]
    scale: float


def parameters(data: Data) -> list[Parameter]:
    """Efficiencies, pipeline depth and collective constants of a calibration; what a datasheet says is not fitted, nor
    is the last point of a curve, which the others are shares of.
    """
    found = []
    for path, keys, value, unit in _numbers(data):
        if at(data, number_of(keys))["kind"] == "datasheet":
            continue
        name = path.rpartition(".")[2]
        scale = UNITS[unit] if name in TIMES else 1.0
        low, high = CURVE if ".curve." in path else BOUNDS.get(name, SHARE)
        found.append(
            Parameter(
                path=path,
                keys=keys,
                start=min(max(value * scale, low), high),
                neutral=NEUTRAL.get(name, GUESS),
                bounds=(low, high),
                scale=scale,
            )
        )
    return found


def _numbers(data: Data) -> Iterator[tuple[str, tuple[str | int, ...], float, str]]:
    for name in ENGINES:
        if name in data["efficiency"]:
            number = data["efficiency"][name]
            yield f"efficiency.{name}", ("efficiency", name, "value"), float(number["value"]), number["unit"]
    for name, number in data["efficiency"].get("by_dtype", {}).items():
        keys: tuple[str | int, ...] = ("efficiency", "by_dtype", name, "value")
        yield f"efficiency.by_dtype.{name}", keys, float(number["value"]), number["unit"]
    depth = data["pipeline_depth"]
    yield "pipeline_depth", ("pipeline_depth", "value"), float(depth["value"]), depth["unit"]
    for i, tier in enumerate(data["tiers"]):
        for j, algorithm in enumerate(tier["algorithms"]):
            where = f"tiers.{tier['name']}.algorithms.{algorithm['name']}"
            keys = ("tiers", i, "algorithms", j)
            for name in (*TIMES, "copies", "all_gather", "reduce_scatter", "all_reduce", "all_to_all"):
                if name in algorithm:
                    number = algorithm[name]
                    yield f"{where}.{name}", (*keys, name, "value"), float(number["value"]), number["unit"]
            curve = algorithm.get("curve", {}).get("value", ())
            for p, (at, (_, share)) in enumerate(zip(point_paths(f"{where}.curve", curve), curve[:-1], strict=False)):
                yield at, (*keys, "curve", "value", p, 1), float(share), "1"


def with_values(data: Data, found: Sequence[Parameter], values: Sequence[float]) -> Data:
    """A calibration with other numbers [SI]."""
    changed = copy.deepcopy(data)
    for parameter, value in zip(found, values, strict=True):
        place, last = parent(changed, parameter)
        place[last] = value / parameter.scale
    return changed


def parent(data: Any, parameter: Parameter) -> tuple[Any, str | int]:
    """The table or list that holds a parameter's number, and its key there."""
    *places, last = parameter.keys
    return at(data, places), last


def number_of(keys: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Keys of the table of a number: what holds its value, or the curve that it is a point of."""
    return keys[: keys.index("value")]


def at(data: Any, keys: Sequence[str | int]) -> Any:
    """What parsed data has at some keys."""
    return reduce(getitem, keys, data)


def rounded(value: float) -> float:
    """Three significant digits: what a fit can tell."""
    return float(round(value, 2 - math.floor(math.log10(abs(value))))) if value else 0.0
