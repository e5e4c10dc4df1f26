"""A search result as text: the ranked layouts, what became of the others, and where the study is."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from perfmodel import Layout
from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes, format_count, format_seconds
from tuner.result import Candidate, Result
from tuner.space import CHOICES

COLUMNS = (">#", "layout", ">step", ">bounds", ">MFU", ">tokens/s", ">memory", ">$/Mtok", "bound by")
DEFAULT = Layout(mb=0).notation().split(",")
"""What a layout is taken to say where it says nothing; the microbatch is always said."""


def report(result: Result, heading: str) -> Iterator[RenderableType]:
    """The parts of a report, in reading order."""
    if result.best is None:
        yield Text(f"{heading}\nnothing fits", style="bold")
        yield pairs(_facts(result))
        return
    several = len({candidate.layout.global_batch for candidate in result.top}) > 1
    rows = [_row(i, candidate, say_batch=several) for i, candidate in enumerate(result.top, 1)]
    yield Text(f"{heading}", style="bold")
    yield table(COLUMNS, rows, spare=("bounds", "tokens/s"))
    yield pairs(_facts(result))
    yield pairs([("", line) for line in result.best.estimate.assumptions], title="Assumptions")


def _row(place: int, candidate: Candidate, *, say_batch: bool) -> tuple[str, ...]:
    e, layout = candidate.estimate, candidate.layout
    batch = f" of {layout.global_batch:.0f}" if say_batch else ""
    lower, upper = float(e.lower_s), float(e.upper_s)
    return (
        str(place),
        f"{short(layout)}{batch}",
        format_seconds(float(e.step_time_s)),
        f"{format_seconds(lower)} - {format_seconds(upper)}",
        f"{100 * float(e.mfu):.1f} %",
        format_count(float(e.tokens_per_s)),
        format_bytes(float(e.memory_bytes)),
        f"{float(e.usd_per_million_tokens):.3g}",
        str(e.bound),
    )


def short(layout: Layout) -> str:
    """The layout as `--layout` reads it, without what that takes for granted or what changes nothing."""
    idle = ("sp=0",) * (layout.tp == 1) + ("zero=0",) * (layout.fsdp == 1)
    return ",".join(part for part in layout.notation().split(",") if part not in (*DEFAULT, *idle))


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    yield "layouts", f"{result.evaluated:,} priced in {format_seconds(result.seconds)}, {result.feasible:,} fit"
    if result.tried is not None:
        yield "tried", f"{result.tried:,} of those that fit"
    for rule, count in result.fallen.items():
        yield "dropped", f"{count:,}: {rule}"
    if result.nearest is not None:
        why = "; ".join(result.nearest.estimate.reasons)
        yield "nearest miss", f"{short(result.nearest.layout)}: {why}"
    if result.best is not None:
        e = result.best.estimate
        choices = [part for part in DEFAULT if part.partition("=")[0] in CHOICES]
        yield "left out", ", ".join(["axes of size 1", *choices])
        yield "memory", f"{format_bytes(float(e.memory_capacity_bytes))} per rank"
        yield (
            "best",
            f"{format_count(float(e.tokens_per_s))} {e.counted}/s for ${float(e.cost_usd_per_hour):,.2f} per hour",
        )
    if result.study is not None:
        yield "study", result.study
