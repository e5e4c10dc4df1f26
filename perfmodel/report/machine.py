"""A machine on paper: what a rank has, a drawing of the fabric, every number with its source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perfmodel.machine import Fact, Machine
from perfmodel.report.layout import pairs, table
from perfmodel.topology import Tier
from perfmodel.units import format_bytes, format_count, format_seconds


def machine_report(machine: Machine) -> Iterator[RenderableType]:
    """The tables of a machine, in reading order."""
    yield pairs(
        [
            ("machine", f"{machine.name}: {machine.title}"),
            ("ranks per chip", str(machine.ranks_per_chip)),
            *(
                (f"matrix peak, {dtype}", f"{format_count(x, 'FLOP/s')} per rank")
                for dtype, x in machine.tensor_flops.items()
            ),
            ("vector peak", f"{format_count(machine.vector_flops, 'FLOP/s')} per rank"),
            (
                "memory",
                f"{format_bytes(machine.memory_bytes)} per rank at {format_count(machine.memory_bandwidth, 'B/s')}",
            ),
            ("efficiency", ", ".join(f"{name} {share:g}" for name, share in machine.efficiency.items())),
            ("overlap", ", ".join(f"{name} {share:g}" for name, share in machine.overlap.items()) or "none"),
            ("price", f"${machine.usd_per_chip_hour:.3f} per chip and hour"),
        ]
    )
    yield Text("Fabric, innermost tier first", style="bold")
    yield Text("\n".join(line for tier in machine.tiers for line in drawing(tier)) + "\n")
    rows = [(path, _value(fact), fact.kind, fact.source, fact.note) for path, fact in machine.facts.items()]
    yield table(("number", ">value", "kind", "source", "note"), rows, title="Numbers and where they come from")
    yield pairs([("", line) for line in machine.assumptions], title="Assumptions")


def machine_json(machine: Machine) -> dict[str, Any]:
    """The facts of a machine and what follows from them per rank, as plain dicts and lists."""
    return {
        "name": machine.name,
        "title": machine.title,
        "ranks_per_chip": machine.ranks_per_chip,
        "rank": {
            "tensor_flops": dict(machine.tensor_flops),
            "vector_flops": machine.vector_flops,
            "memory_bytes": machine.memory_bytes,
            "memory_bandwidth": machine.memory_bandwidth,
        },
        "efficiency": dict(machine.efficiency),
        "overlap": dict(machine.overlap),
        "usd_per_chip_hour": machine.usd_per_chip_hour,
        "facts": {
            path: {"value": f.value, "unit": f.unit, "kind": f.kind, "source": f.source, "note": f.note}
            for path, f in machine.facts.items()
        },
        "assumptions": list(machine.assumptions),
    }


def _value(fact: Fact) -> str:
    number = fact.value if isinstance(fact.value, list) else f"{fact.value:g}"
    return f"{number} {fact.unit}" if fact.unit != "1" else f"{number}"


def drawing(tier: Tier) -> Iterator[str]:
    """A tier in characters: a torus dim is a ring, a switch a bus."""
    speed = f"{format_count(tier.bandwidth[0], 'B/s')} per rank"
    if tier.kind == "switch":
        count = tier.extents[0]
        members = " ".join(["o"] * min(count, 8) + ["..."] * (count > 8)) if count else "o o o ..."
        yield f"  {tier.name}: {count or 'any number of'} members on a switch, {speed}, {format_seconds(tier.latency)}"
        yield f"    [{'=' * len(members)}]"
        yield f"     {members}"
        return
    shape = " x ".join(map(str, tier.extents))
    yield f"  {tier.name}: {shape} torus, {speed} along each dim, {format_seconds(tier.latency)} a hop"
    rows = tier.extents[0] if len(tier.extents) > 1 else 1
    columns = tier.extents[-1]
    for row in range(rows):
        yield "    ~" + "--".join(["o"] * columns) + "~"
        if row < rows - 1:
            yield "     " + "  ".join(["|"] * columns)
    if rows > 1:
        yield "     " + "  ".join(["~"] * columns)
    yield "    (~ wraps around)"
