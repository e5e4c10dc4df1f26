"""A pipeline as a picture: rows of letters for a terminal, a file by Matplotlib, and a trace for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from perfmodel.errors import ModelError
from perfmodel.timeline import Run, Timeline
from perfmodel.units import format_seconds

KINDS = {"F": "forward", "B": "backward", "W": "gradients of weights"}
COLOURS = {"F": ("#9ecae1", "#4292c6"), "B": ("#a1d99b", "#41ab5d"), "W": ("#fdd0a2", "#f16913")}
"""Of the first chunk of a stage, then of every second; readable under black letters."""

WIDEST = 160
"""Columns of a row of letters, also where the terminal has more."""

PICTURES, TRACES = (".png", ".svg", ".pdf"), (".json",)


def write(found: Timeline, path: str) -> None:
    """Write a picture or a trace, as the name of the file ends; raises ModelError where it cannot."""
    check(path)
    try:
        if Path(path).suffix in TRACES:
            Path(path).write_text(json.dumps(trace_events(found)) + "\n", encoding="utf-8")
        else:
            _draw(found).savefig(path, dpi=150)
    except OSError as error:
        why = error.strerror or str(error)
        raise ModelError(f"timeline: got {why} for {path}, expected a file to write: change --timeline") from None


def check(path: str) -> None:
    """Raises ModelError for a file that cannot be drawn, before anything is worked out."""
    if Path(path).suffix not in (*PICTURES, *TRACES):
        known = ", ".join((*PICTURES, *TRACES))
        raise ModelError(f"timeline: got {path}, expected a name that ends in one of {known}: change --timeline")
    if Path(path).suffix in PICTURES and find_spec("matplotlib") is None:
        raise ModelError("timeline: got no matplotlib, expected it: pip install 'rainier-perfmodel[plots]'")


def caption(found: Timeline) -> str:
    """What is shown, in a line."""
    part = "" if found.microbatches == found.of else f"the first {found.microbatches} of "
    end = "they end" if found.of > 1 else "it ends"
    return (
        f"{found.schedule}, {part}{found.of} microbatches on {len(found.stages)} stages: {end} after "
        f"{format_seconds(found.end)}, then {format_seconds(found.behind)} once per step"
    )


def name_of(found: Timeline, stage: int) -> str:
    """A stage and its layers."""
    layers = f" ({found.layers[stage]} layers)" if found.layers else ""
    return f"stage {stage + 1}{layers}"


# -- a terminal -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """A row of letters for each stage; what is long enough has the number of its microbatch, and dots are idle."""

    found: Timeline

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [name_of(self.found, stage) for stage in range(len(self.found.stages))]
        head = max(map(len, names)) + 1
        columns = max(min(options.max_width, WIDEST) - head - len(" 100 %"), 10)
        yield Text(caption(self.found), style="bold")
        for stage, name in enumerate(names):
            row = Text(name.ljust(head), no_wrap=True, overflow="ignore")
            row.append_text(self._row(stage, columns))
            row.append(f" {100 * self.found.busy(stage):3.0f} %")
            yield row
        kinds = dict.fromkeys(run.task.kind for run in self.found.stages[0])
        yield Text("; ".join((*(f"{kind} {KINDS[kind]}" for kind in kinds), ". idle; right: share of time at work")))

    def _row(self, stage: int, columns: int) -> Text:
        """Each column shows what runs in its middle."""
        row, filled, scale = Text(), 0, columns / (self.found.end or 1.0)
        for run in self.found.stages[stage]:
            start, end = (round(time * scale) for time in (run.start, run.end))
            row.append("." * (start - filled), style="dim")
            row.append(_label(run, end - start), style=f"black on {_colour(run)}")
            filled = end
        return row.append("." * (columns - filled), style="dim")


def _label(run: Run, width: int) -> str:
    """Its kind, and the number of its microbatch where there is room."""
    label = f"{run.task.kind}{run.task.microbatch + 1}"
    return (label if len(label) <= width else run.task.kind[:width]).ljust(width, "-")


def _colour(run: Run) -> str:
    return COLOURS[run.task.kind][run.task.chunk % 2]


# -- files ----------------------------------------------------------------------------------------------------------


def _draw(found: Timeline) -> Any:
    """One row for each stage, the first at the top; the rest is idle."""
    from matplotlib.figure import Figure  # needed for nothing else
    from matplotlib.patches import Patch

    figure = Figure(figsize=(14, 1.6 + 0.45 * len(found.stages)), layout="constrained")
    axes = figure.subplots()
    for stage, runs in enumerate(found.stages):
        spans = [(run.start, run.end - run.start) for run in runs]
        colours = [_colour(run) for run in runs]
        axes.broken_barh(spans, (stage - 0.46, 0.92), facecolors=colours, edgecolor="white", linewidth=0.4)
        for run in runs:
            if run.end - run.start > 0.012 * found.end:
                middle, number = (run.start + run.end) / 2, str(run.task.microbatch + 1)
                axes.text(middle, stage, number, ha="center", va="center", fontsize=7)
    axes.broken_barh([(found.end, found.behind)], (-0.46, len(found.stages) - 0.08), facecolors="#bdbdbd")
    names = [name_of(found, stage) for stage in range(len(found.stages))]
    axes.set_yticks(range(len(names)), labels=names)
    axes.set(
        xlim=(0.0, found.end + found.behind), ylim=(len(names) - 0.4, -0.6), xlabel="seconds", title=caption(found)
    )
    kinds = dict.fromkeys(run.task.kind for run in found.stages[0])
    patches = [Patch(color=COLOURS[kind][0], label=KINDS[kind]) for kind in kinds]
    patches.append(Patch(color="#bdbdbd", label="once per step"))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    return figure


def trace_events(found: Timeline) -> dict[str, Any]:
    """The Trace Event Format, which Perfetto and chrome://tracing read: complete events ("X"), times in us."""
    return {"displayTimeUnit": "ms", "otherData": {"caption": caption(found)}, "traceEvents": list(_events(found))}


def _events(found: Timeline) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "pipeline"}}
    for stage, runs in enumerate(found.stages):
        yield {"ph": "M", "pid": 0, "tid": stage, "name": "thread_name", "args": {"name": name_of(found, stage)}}
        for run in runs:
            task = run.task
            where = {"microbatch": task.microbatch + 1, "chunk": task.chunk + 1}
            yield _event(f"{task.kind}{task.microbatch + 1}", KINDS[task.kind], stage, run.start, run.end, where)
        yield _event("once per step", "once", stage, found.end, found.end + found.behind, {})


def _event(name: str, kind: str, stage: int, start: float, end: float, where: dict[str, int]) -> dict[str, Any]:
    span = {"ts": 1e6 * start, "dur": 1e6 * (end - start)}
    return {"ph": "X", "pid": 0, "tid": stage, "name": name, "cat": kind, **span, "args": where}
