"""Units: what spec files may say, what it means in SI, and how numbers are printed."""

from __future__ import annotations

from collections.abc import Mapping

GIB = 2.0**30
DIMENSIONS: Mapping[str, Mapping[str, float]] = {
    "rate of FLOPs": {"FLOP/s": 1.0, "GFLOP/s": 1e9, "TFLOP/s": 1e12, "PFLOP/s": 1e15},
    "bandwidth": {"B/s": 1.0, "GB/s": 1e9, "TB/s": 1e12, "Gbit/s": 1.25e8},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": GIB},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "count": {"1": 1.0},
    "price": {"USD/h": 1.0},
    "power": {"W": 1.0},
}
"""Dimension -> unit -> factor to SI."""


def to_si(value: float, unit: str, dimension: str) -> float:
    """A number in SI; raises KeyError where `unit` is not of `dimension`."""
    return value * DIMENSIONS[dimension][unit]


def format_seconds(seconds: float) -> str:
    """Three significant digits with a fitting unit: `2.41 s`, `31.0 ms`, `12.5 us`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{_three(seconds / size)} {unit}"
    return f"{seconds / 1e-9:.3g} ns" if seconds else "0 s"


def format_bytes(size: float) -> str:
    """Binary units, as memory is printed: `23.4 GiB`."""
    for unit, factor in (("TiB", 2.0**40), ("GiB", GIB), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if size >= factor:
            return f"{_three(size / factor)} {unit}"
    return f"{size:.0f} B"


def format_count(count: float, unit: str = "") -> str:
    """Decimal prefixes, as rates and FLOPs are printed: `70.6 G`, `4.93 PFLOP`."""
    for prefix, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= factor:
            return f"{_three(count / factor)} {prefix}{unit}"
    return f"{count:.3g} {unit}".strip()


def _three(number: float) -> str:
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{digits}f}"
