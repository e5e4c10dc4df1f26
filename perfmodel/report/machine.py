"""A machine on paper: what a rank has, a drawing of the fabric, prices, every number with its source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perfmodel.machine import Fact, Machine
from perfmodel.report.fabric import fabric
from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes, format_count


def machine_report(machine: Machine) -> Iterator[RenderableType]:
    """The tables of a machine, in reading order."""
    yield pairs([*_engines(machine), *_reached(machine), *_costs(machine), *_limits(machine)])
    yield Text("Fabric, innermost tier first", style="bold")
    yield Text("\n".join(fabric(machine)) + "\n")
    if machine.offers:
        rows = [(o.name, f"{o.usd_per_hour:.2f}", machine.instance, o.region, o.date) for o in machine.offers]
        yield table(
            ("offer", ">USD/h", "of", "region", "date"), rows, title="Offers; costs are reckoned with the first"
        )
    facts = [(path, _value(fact), _kind(fact), fact.source, fact.note) for path, fact in machine.facts.items()]
    yield table(("number", ">value", "kind", "source", "note"), facts, title="Numbers and where they come from")
    yield pairs([("", line) for line in machine.assumptions], title="Assumptions")


def machine_json(machine: Machine) -> dict[str, Any]:
    """The facts of a machine and what follows from them per rank, as plain dicts and lists."""
    return {
        "name": machine.name,
        "title": machine.title,
        "ranks_per_chip": machine.ranks_per_chip,
        "rank": {
            "tensor_flops": dict(machine.tensor_flops),
            "elementwise": dict(machine.elementwise),
            "memory_bytes": machine.memory_bytes,
            "memory_bandwidth": machine.memory_bandwidth,
        },
        "efficiency": dict(machine.efficiency),
        "overlap": dict(machine.overlap),
        "limits": dict(machine.limits),
        "instance": machine.instance,
        "chips_per_instance": machine.chips_per_instance,
        "offers": [
            {"name": o.name, "region": o.region, "date": o.date, "usd_per_hour": o.usd_per_hour} for o in machine.offers
        ],
        "usd_per_chip_hour": machine.usd_per_chip_hour,
        "watts_per_chip": machine.watts_per_chip,
        "facts": {path: _fact(fact) for path, fact in machine.facts.items()},
        "assumptions": list(machine.assumptions),
    }


def _fact(fact: Fact) -> dict[str, Any]:
    """A number as its file states it; confidence only where the file states one."""
    stated = {"value": fact.value, "unit": fact.unit, "kind": fact.kind, "source": fact.source, "note": fact.note}
    return stated | ({"confidence": fact.confidence} if fact.confidence else {})


def _engines(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "machine", f"{machine.name}: {machine.title}"
    yield "ranks per chip", str(machine.ranks_per_chip)
    for dtype, peak in machine.tensor_flops.items():
        yield f"matrix peak, {dtype}", f"{format_count(peak, 'FLOP/s')} per rank"
    for name, rate in machine.elementwise.items():
        yield f"{name} engine", f"{format_count(rate, 'op/s')} per rank"
    speed = format_count(machine.memory_bandwidth, "B/s")
    kept = format_bytes(machine.memory_reserve_bytes)
    yield "memory", f"{format_bytes(machine.memory_bytes)} per rank at {speed}, {kept} of it the runtime's"


def _reached(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "efficiency", _listed(machine.efficiency.items())
    yield "overlap", _listed(machine.overlap.items()) or "none"


def _costs(machine: Machine) -> Iterator[tuple[str, str]]:
    usd = machine.usd_per_chip_hour
    yield "price", "unknown: none is published" if math.isnan(usd) else f"${usd:.3f} per chip and hour"
    confidence = machine.facts["power.chip"].confidence if "power.chip" in machine.facts else None
    vouched = f", confidence {confidence}" if confidence else ""
    yield "power", f"{machine.watts_per_chip:g} W per chip{vouched}"


def _limits(machine: Machine) -> Iterator[tuple[str, str]]:
    if machine.limits:
        yield "limits of a graph", ", ".join(f"{count:,} {name}" for name, count in machine.limits.items())
    for axis, sizes in machine.group_sizes.items():
        yield f"sizes of {axis}", ", ".join(map(str, sizes))


def _listed(shares: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares)


def _value(fact: Fact) -> str:
    number = fact.value if isinstance(fact.value, list) else f"{fact.value:g}"
    return f"{number} {fact.unit}" if fact.unit != "1" else f"{number}"


def _kind(fact: Fact) -> str:
    return f"{fact.kind} ({fact.confidence})" if fact.confidence else fact.kind
