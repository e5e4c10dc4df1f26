"""What bounds a step and what to change, a line for each claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

from perfmodel.explain import Change, Explanation
from perfmodel.report.layout import pairs
from perfmodel.rules import OUT_OF_MEMORY
from perfmodel.units import GIB

TITLE = "What bounds the step, and what to change"


def explain_report(explanation: Explanation) -> Iterator[RenderableType]:
    """The lines of an explanation."""
    yield pairs([("", line) for line in explain_lines(explanation)], title=TITLE)


def explain_lines(explanation: Explanation) -> Iterator[str]:
    """The claims in words: what is wrong with the layout, if anything is, then the bound, then what to change."""
    estimate = explanation.estimate
    if not estimate.fits:
        part, share = explanation.largest
        held = f", {_percent(share)} of it {part}" if estimate.violations[OUT_OF_MEMORY] else ""
        yield f"{'; '.join(estimate.reasons)}{held}"
    yield _bound(explanation)
    for change in explanation.changes:
        yield _imagined(change) if change.imagined else _line(change) if estimate.fits else _fitting(change)


def explain_json(explanation: Explanation) -> dict[str, Any]:
    """An explanation as plain dicts and lists."""
    return {
        "bound": explanation.estimate.bound,
        "share": explanation.share,
        "remedy": explanation.remedy and _plain(explanation.remedy),
        "changes": [_plain(change) for change in explanation.changes],
        "largest": {"part": explanation.largest[0], "share": explanation.largest[1]},
        "lines": list(explain_lines(explanation)),
    }


def _plain(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "what": change.what,
        "of": "machine" if change.imagined else "layout",
        "layout": change.layout.notation(),
        "saves": change.saves,
        "step_time_s": change.estimate.step_time_s,
        "memory_bytes": change.estimate.memory_bytes,
        "fits": change.estimate.fits,
    }


def _bound(explanation: Explanation) -> str:
    text = f"{explanation.estimate.bound}: {_percent(explanation.share)} of the step"
    return text if explanation.remedy is None else f"{text}; {_imagined(explanation.remedy)}"


def _imagined(change: Change) -> str:
    """What another machine, or another layout, would do to the time."""
    return f"{change.what} would save {_percent(change.saves)}"


def _line(change: Change) -> str:
    """What another layout does, beside one that fits: the best there is, if it saves nothing."""
    least = "" if change.saves > 0.0 else ": no neighbour is faster"
    return f"{change.what} {_effect(change)}, and needs {_memory(change.estimate)}{least}"


def _fitting(change: Change) -> str:
    """What another layout does, beside one that does not fit: the nearest there is, if it does not either."""
    if not change.estimate.fits:
        return f"no neighbour fits; {change.what} comes nearest: needs {_memory(change.estimate)}"
    return f"{change.what} fits: needs {_memory(change.estimate)}, and {_effect(change)}"


def _effect(change: Change) -> str:
    return f"saves {_percent(change.saves)}" if change.saves >= 0.0 else f"costs {_percent(-change.saves)}"


def _memory(estimate: Any) -> str:
    return f"{float(estimate.memory_bytes) / GIB:.3g} of {float(estimate.memory_capacity_bytes) / GIB:.3g} GiB"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
