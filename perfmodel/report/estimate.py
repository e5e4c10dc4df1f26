"""An estimate as tables: the answer, where the time goes, what fills the memory, which collectives run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from rich.console import RenderableType

from perfmodel.estimate import Estimate
from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes, format_count, format_seconds
from perfmodel.work import Number

COLLECTIVES = 8
"""Collectives shown; the others are added up in one row."""

PARTS: Mapping[str, str] = {
    "forward": "forward compute",
    "recompute": "recomputation",
    "backward": "backward compute",
    "update": "optimizer update",
    "host": "waiting for kernels to be launched",
    "tensor": "tensor-parallel collectives, exposed",
    "context": "context-parallel collectives, exposed",
    "expert": "expert-parallel collectives, exposed",
    "fsdp": "FSDP collectives, exposed",
    "batch": "collectives across the batch, exposed",
    "pipeline": "pipeline sends, exposed",
    "data": "gradient reduction, exposed",
    "bubble": "pipeline bubble",
    "overhead": "fixed overhead of a step",
}


def estimate_report(estimate: Estimate) -> Iterator[RenderableType]:
    """The tables of a scalar estimate, in reading order."""
    yield pairs(summary(estimate))
    yield _shares("Where the time goes", estimate.breakdown, format_seconds, PARTS)
    yield _shares("What fills the memory of a rank", estimate.memory_parts, format_bytes, {})
    yield _collectives(estimate)
    if estimate.warnings:
        yield pairs([("", line) for line in estimate.warnings], title="Warnings")
    yield pairs([("", line) for line in estimate.assumptions], title="Assumptions")


def summary(estimate: Estimate) -> Iterator[tuple[str, str]]:
    """The answer in words."""
    lower, upper = (format_seconds(float(x)) for x in (estimate.lower_s, estimate.upper_s))
    low, high = (format_seconds(float(x)) for x in estimate.likely_s)
    needed, capacity = float(estimate.memory_bytes), float(estimate.memory_capacity_bytes)
    yield (
        "step time",
        f"{format_seconds(float(estimate.step_time_s))}  ({lower} with perfect overlap, {upper} with none)",
    )
    known = estimate.interval is not None
    yield (
        "likely",
        f"{low} to {high} (four of five runs)" if known else "unknown: no run of such a machine was compared",
    )
    yield "MFU", f"{100 * float(estimate.mfu):.1f} %"
    yield "throughput", f"{format_count(float(estimate.tokens_per_s))} {estimate.counted}/s"
    yield "memory", f"{format_bytes(needed)} of {format_bytes(capacity)} per rank ({100 * needed / capacity:.0f} %)"
    yield (
        "cost",
        f"{dollars(float(estimate.cost_usd_per_hour))} per hour, "
        f"{dollars(float(estimate.usd_per_million_tokens))} per million {estimate.counted}",
    )
    if len(set(estimate.stage_layers.values())) > 1:
        yield "layers", _layers(estimate.stage_layers)
    yield "bound by", str(estimate.bound)
    yield "fits", "yes" if estimate.fits else f"no: {'; '.join(estimate.reasons)}"


def _layers(layers: Mapping[str, Number]) -> str:
    """Layers of the stages of a pipeline that are not alike."""
    first, middle, last = (f"{float(layers[stage]):g}" for stage in ("first", "middle", "last"))
    between = f", up to {middle} on each between" if float(layers["middle"]) else ""
    return f"{first} on the first stage{between}, {last} on the last"


def dollars(amount: float) -> str:
    """`$143.04`, `$0.0421`."""
    if math.isnan(amount):
        return "no published price"
    return f"${amount:,.2f}" if amount >= 1.0 else f"${amount:.3g}"


def _shares(
    title: str, parts: Mapping[str, Number], form: Callable[[float], str], names: Mapping[str, str]
) -> RenderableType:
    """Parts of a whole, largest first."""
    amounts = {names.get(name, name): float(value) for name, value in parts.items() if value > 0.0}
    whole = sum(amounts.values())
    ordered = sorted(amounts.items(), key=lambda item: -item[1])
    rows = [(name, form(amount), f"{100 * amount / whole:.1f} %") for name, amount in ordered]
    return table(("part", ">amount", ">share"), rows, title=title)


def _collectives(estimate: Estimate) -> RenderableType:
    """What runs, equal collectives of all phases together, the longest first."""
    merged: dict[tuple[str, str, float], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for c in estimate.collectives:
        if c.seconds > 0.0:
            entry = merged[c.kind.replace("_", "-"), c.axis, float(c.bytes)]
            entry[0] += float(c.count)
            entry[1] += float(c.seconds)
            entry[2] += float(c.optimum)
    ordered = sorted(merged.items(), key=lambda item: -item[1][1])
    rows = [
        (kind, axis, format_bytes(size), f"{count:,.0f}", format_seconds(seconds), f"{100 * optimum / seconds:.0f} %")
        for (kind, axis, size), (count, seconds, optimum) in ordered[:COLLECTIVES]
    ]
    if rest := ordered[COLLECTIVES:]:
        count, seconds, optimum = (sum(entry[i] for _, entry in rest) for i in (0, 1, 2))
        share = f"{100 * optimum / seconds:.0f} %"
        rows.append((f"{len(rest)} smaller kinds", "", "", f"{count:,.0f}", format_seconds(seconds), share))
    columns = ("collective", "axes", ">bytes each", ">per step", ">seconds in all", ">of optimum")
    return table(columns, rows, title="Collectives on one rank, before overlap")
