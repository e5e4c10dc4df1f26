"""A search result as text: the ranked layouts, what became of the others, and where the study is."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from perfmodel import Layout
from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes, format_count, format_seconds
from tuner.result import Candidate, Result

COLUMNS = (">#", "layout", ">step", ">MFU", ">tokens/s", ">memory", ">$/M tokens", "bound by")


def report(result: Result, heading: str) -> Iterator[RenderableType]:
    """The parts of a report, in reading order."""
    if result.top:
        batches = {candidate.layout.global_batch for candidate in result.top}
        rows = [_row(i, candidate, show_batch=len(batches) > 1) for i, candidate in enumerate(result.top, 1)]
        yield table(COLUMNS, rows, title=heading)
    else:
        yield Text(f"{heading}\nnothing fits", style="bold")
    yield pairs(_facts(result))


def _row(place: int, candidate: Candidate, *, show_batch: bool) -> tuple[str, ...]:
    e, layout = candidate.estimate, candidate.layout
    batch = f", global batch {layout.global_batch:.0f}" if show_batch else ""
    return (
        str(place),
        f"{short(layout)}{batch}",
        format_seconds(float(e.step_time_s)),
        f"{100 * float(e.mfu):.1f} %",
        format_count(float(e.tokens_per_s)),
        f"{format_bytes(float(e.memory_bytes))} of {format_bytes(float(e.memory_capacity_bytes))}",
        f"{float(e.usd_per_million_tokens):.3g}",
        str(e.bound),
    )


def short(layout: Layout) -> str:
    """The layout as `--layout` reads it, without what it takes for granted."""
    default = Layout(mb=0).notation().split(",")  # the microbatch is always said
    return ",".join(part for part in layout.notation().split(",") if part not in default)


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    yield "layouts", f"{result.evaluated:,} priced in {format_seconds(result.seconds)}, {result.feasible:,} fit"
    for rule, count in result.fallen.items():
        yield "dropped", f"{count:,}: {rule}"
    if result.nearest is not None:
        why = "; ".join(result.nearest.estimate.reasons)
        yield "nearest miss", f"{short(result.nearest.layout)}: {why}"
    if result.best is not None:
        yield "left out", "axes of size 1, zero=3, sp=1, recompute=full"
        yield "cost", f"${float(result.best.estimate.cost_usd_per_hour):,.2f} per hour"
    if result.study is not None:
        yield "study", result.study
