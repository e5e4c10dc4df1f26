"""A search result as text: the ranked layouts, what became of the others, and where the study is."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from perfmodel import Layout
from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes, format_count, format_seconds
from tuner.result import Candidate, Result
from tuner.space import AXES

ONES = tuple(f"{axis}=1" for axis in AXES)
COLUMNS = (
    ">#",
    "layout",
    ">step",
    ">MFU",
    ">tokens/s",
    ">memory",
    ">of",
    ">$/hour",
    ">$/M tokens",
    "bound by",
)


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
        format_bytes(float(e.memory_bytes)),
        format_bytes(float(e.memory_capacity_bytes)),
        f"{float(e.cost_usd_per_hour):,.2f}",
        f"{float(e.usd_per_million_tokens):.3g}",
        str(e.bound),
    )


def short(layout: Layout) -> str:
    """The layout as `--layout` reads it, without axes of size 1."""
    return ",".join(part for part in layout.notation().split(",") if part not in ONES)


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    yield "layouts", f"{result.evaluated:,} priced in {format_seconds(result.seconds)}, {result.feasible:,} fit"
    for rule, count in result.fallen.items():
        yield "dropped", f"{count:,}: {rule}"
    if result.nearest is not None:
        why = "; ".join(result.nearest.estimate.reasons)
        yield "nearest miss", f"{short(result.nearest.layout)}: {why}"
    if result.study is not None:
        yield "study", result.study
