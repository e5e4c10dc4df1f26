"""Units: what spec files may say, what it means in SI, and how numbers are printed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

GIB = 2.0**30
DIMENSIONS: Mapping[str, Mapping[str, float]] = {
    "rate of FLOPs": {"FLOP/s": 1.0, "GFLOP/s": 1e9, "TFLOP/s": 1e12, "PFLOP/s": 1e15},
    "bandwidth": {"B/s": 1.0, "GB/s": 1e9, "TB/s": 1e12, "Gbit/s": 1.25e8},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": GIB},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "count": {"1": 1.0},
    "price": {"USD/h": 1.0},
    "power": {"W": 1.0},
    "frequency": {"Hz": 1.0, "MHz": 1e6, "GHz": 1e9},
}
"""Dimension -> unit -> factor to SI."""
UNITS = {unit: factor for units in DIMENSIONS.values() for unit, factor in units.items()}
"""Unit -> factor to SI; no unit has two dimensions."""


def to_si(value: float, unit: str, dimension: str) -> float:
    """A number in SI; raises KeyError where `unit` is not of `dimension`."""
    return value * DIMENSIONS[dimension][unit]


def read_bytes(text: str) -> float:
    """A size such as `1MiB`, `1.5 GB` or `4096` [B]; raises ValueError for what is none, or not finite."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    units = {unit.lower(): factor for unit, factor in DIMENSIONS["size"].items()}
    factor = units.get(found[2].lower() or "b") if found else None
    size = float(found[1]) * factor if found and factor else math.nan
    if not math.isfinite(size):
        raise ValueError(f"got {text!r}, expected bytes such as 4096 or 1MiB, in {', '.join(DIMENSIONS['size'])}")
    return size


SECONDS = (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0))
BYTES = (("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", GIB), ("TiB", 2.0**40))
COUNTS = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18))


def format_seconds(seconds: float) -> str:
    """Three significant digits with a fitting unit: `2.41 s`, `31.0 ms`, `12.5 us`."""
    number, unit = _scaled(seconds, SECONDS)
    return f"{number} {unit}" if seconds else "0 s"


def format_bytes(size: float) -> str:
    """Binary units, as memory is printed: `23.4 GiB`; whole bytes below 1 KiB."""
    number, unit = _scaled(size, BYTES)
    return f"{size:.0f} B" if unit == "B" else f"{number} {unit}"


def format_count(count: float, unit: str = "") -> str:
    """Decimal prefixes, as rates and FLOPs are printed: `70.6 G`, `4.93 PFLOP`."""
    number, prefix = _scaled(count, COUNTS)
    return f"{number} {prefix}{unit}".strip()


def _scaled(number: float, scale: Sequence[tuple[str, float]]) -> tuple[str, str]:
    """A number in the first unit in which it does not round up to the next; infinities and NaN in no prefix."""
    if not math.isfinite(number):
        return str(float(number)), next(unit for unit, factor in scale if factor == 1.0)
    unit, factor = scale[0]
    for larger, step in scale[1:]:
        if round(abs(number) / factor) < round(step / factor):
            break
        unit, factor = larger, step
    scaled = number / factor
    return (f"{scaled:.3g}" if factor == scale[0][1] else _three(scaled)), unit


def _three(number: float) -> str:
    size = abs(number)
    digits = 2 if round(size, 2) < 10 else 1 if round(size, 1) < 100 else 0
    return f"{number:.{digits}f}"
