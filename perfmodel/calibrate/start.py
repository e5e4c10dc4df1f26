"""Where a fit starts that has no calibration to start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perfmodel.calibrate.parameters import Data
from perfmodel.calibration_spec import GATHERS
from perfmodel.machine_spec import MachineSpec


def uncalibrated(spec: MachineSpec) -> Data:
    """A calibration to start from where a machine has none: on every tier a ring, and for all-reduces halving and
    doubling.
    """

    def number(value: Any, unit: str = "1") -> Data:
        return {"value": value, "unit": unit, "kind": "assumed", "source": "where the fit starts"}

    def algorithm(name: str, kinds: Sequence[str]) -> Data:
        return {
            "name": name,
            "base": number(10.0, "us"),
            "latency": number(2.0, "us"),
            "copies": number(1.0),
            **{kind: number(0.8) for kind in kinds},
            "curve": number([[1.0, 0.5], [16.0, 0.8], [256.0, 1.0]], "MiB"),
        }

    engines = {name: number(0.8) for name in ("tensor", "vector", "memory")}
    shapes = {name: number(x) for name, x in (("fill", 2.0), ("operands", 20.0), ("query_keys", 256.0))}
    dtypes = {"f8": number(0.7)} if "f8" in spec.chip.tensor else {}
    overlap = {name: number(0.0) for name in ("tensor", "context", "expert", "pipeline")}
    behind = {name: number(0.5) for name in ("fsdp", "data")}
    return {
        "machine": spec.name,
        "fit": {"date": "never", "data": "none", "residuals": "none"},
        "efficiency": {**engines, "attention": number(0.5), **shapes, "by_dtype": dtypes},
        "overlap": overlap | behind,
        "pipeline_depth": number(16.0),
        "tiers": [
            {"name": tier.name, "algorithms": [algorithm("ring", GATHERS), algorithm("recursive", ["all_reduce"])]}
            for tier in spec.tiers
        ],
    }
