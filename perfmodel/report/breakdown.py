"""Where the time of a step goes: by kernel or by layer, and what of each class of collective is exposed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType

from perfmodel.costs import KernelCost
from perfmodel.estimate import ENGINES, Estimate
from perfmodel.report.estimate import PARTS
from perfmodel.report.layout import table
from perfmodel.schedule import PHASES
from perfmodel.units import format_bytes, format_count, format_seconds

ROWS = 15
"""Kernels or layers shown; the others are added up in one row."""


@dataclass(slots=True)
class Tally:
    """What the kernels of a layer need together: by phase and by what decides them [s], [FLOP], [B]."""

    phases: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    deciding: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    flops: float = 0.0
    bytes: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(self.phases.values())

    @property
    def decides(self) -> str:
        """What decides most of them."""
        return max(self.deciding, key=lambda name: self.deciding[name])

    def add(self, kernel: KernelCost) -> None:
        """Count a kernel."""
        self.phases[kernel.phase] += float(kernel.seconds)
        self.deciding[kernel.decides] += float(kernel.seconds)
        self.flops += float(kernel.flops)
        self.bytes += float(kernel.bytes)


def by_kernel(estimate: Estimate) -> list[KernelCost]:
    """The kernels of a scalar estimate, the longest first."""
    return sorted(estimate.kernels, key=lambda kernel: -float(kernel.seconds))


def by_layer(estimate: Estimate) -> dict[str, Tally]:
    """The layers of a scalar estimate, the longest first."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for kernel in estimate.kernels:
        tallies[kernel.layer].add(kernel)
    return dict(sorted(tallies.items(), key=lambda item: -item[1].seconds))


def waits(estimate: Estimate) -> dict[str, float]:
    """What a step waits for beside its kernels, the longest first [s]."""
    beside = {name: float(x) for name, x in estimate.breakdown.items() if name not in PHASES and x > 0.0}
    return dict(sorted(beside.items(), key=lambda item: -item[1]))


def exposure(estimate: Estimate) -> dict[str, dict[str, float]]:
    """Collectives of the stage that decides the step by class, before overlap and what is left of them to wait for."""
    return {
        name: {"seconds": float(seconds), "exposed": float(estimate.breakdown[name])}
        for name, seconds in estimate.communication.items()
        if seconds > 0.0
    }


def breakdown_json(estimate: Estimate, by: str) -> dict[str, Any]:
    """The breakdown by kernel or by layer as plain dicts and lists."""
    if by == "kernel":
        kernels = (asdict(kernel) for kernel in by_kernel(estimate))
        found = [{key: value for key, value in kernel.items() if key != "stages"} for kernel in kernels]
    else:
        found = [
            {
                "layer": name,
                "seconds": tally.seconds,
                "phases": dict(tally.phases),
                "deciding": dict(tally.deciding),
                "flops": tally.flops,
                "bytes": tally.bytes,
            }
            for name, tally in by_layer(estimate).items()
        ]
    return {f"{by}s": found, "waits": waits(estimate), "communication": exposure(estimate)}


def breakdown_report(estimate: Estimate, by: str) -> Iterator[RenderableType]:
    """The breakdown by kernel or by layer as tables, all of which sum to the step."""
    yield (_kernels if by == "kernel" else _layers)(estimate)
    classes = exposure(estimate)
    if classes:
        rows = [
            (
                PARTS[name].removesuffix(", exposed"),
                format_seconds(each["seconds"]),
                format_seconds(each["exposed"]),
                f"{each['exposed'] / each['seconds']:.0%}",
            )
            for name, each in classes.items()
        ]
        yield table(("class", ">before overlap", ">exposed", ">share exposed"), rows, title="Collectives by class")


def _kernels(estimate: Estimate) -> RenderableType:
    columns = ("kernel", "line", "layer", "phase", "decided by", ">launches", ">FLOPs", ">bytes", ">seconds", ">share")
    share = _share_of(estimate)

    def amounts(kernels: Sequence[KernelCost]) -> tuple[str, ...]:
        count, flops, size, seconds = (
            sum(float(getattr(kernel, name)) for kernel in kernels) for name in ("count", "flops", "bytes", "seconds")
        )
        cells = f"{count:,.0f}", format_count(flops, "FLOP"), format_bytes(size), format_seconds(seconds)
        return (*cells, share(seconds))

    found = by_kernel(estimate)
    rows: list[tuple[str, ...]] = [
        (k.label, k.source, k.layer, k.phase, ENGINES[k.decides], *amounts([k])) for k in found[:ROWS]
    ]
    if rest := found[ROWS:]:
        rows.append((f"{len(rest)} smaller kernels", "", "", "", "", *amounts(rest)))
    rows += _waiting(estimate, len(columns), share)
    return table(columns, rows, title="The step kernel by kernel", spare=("bytes", "FLOPs", "line"))


def _layers(estimate: Estimate) -> RenderableType:
    columns = (
        "layer",
        *(f">{phase}" for phase in PHASES),
        "mostly decided by",
        ">FLOPs",
        ">bytes",
        ">seconds",
        ">share",
    )
    share = _share_of(estimate)

    def amounts(tallies: Mapping[str, Tally]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        each = tallies.values()
        phases = (sum(tally.phases.get(phase, 0.0) for tally in each) for phase in PHASES)
        flops, size, seconds = (sum(getattr(t, name) for t in each) for name in ("flops", "bytes", "seconds"))
        cells = format_count(flops, "FLOP"), format_bytes(size), format_seconds(seconds), share(seconds)
        return tuple(format_seconds(x) if x else "" for x in phases), cells

    found = list(by_layer(estimate).items())
    rows: list[tuple[str, ...]] = []
    for name, tally in found[:ROWS]:
        phases, cells = amounts({name: tally})
        rows.append((name, *phases, ENGINES[tally.decides], *cells))
    if rest := found[ROWS:]:
        phases, cells = amounts(dict(rest))
        rows.append((f"{len(rest)} smaller layers", *phases, "", *cells))
    rows += _waiting(estimate, len(columns), share)
    return table(columns, rows, title="The step layer by layer", spare=("bytes", "FLOPs"))


def _share_of(estimate: Estimate) -> Callable[[float], str]:
    return lambda seconds: f"{100 * seconds / float(estimate.step_time_s):.1f} %"


def _waiting(estimate: Estimate, columns: int, share: Callable[[float], str]) -> list[tuple[str, ...]]:
    """Rows of what the step waits for."""
    blank = ("",) * (columns - 3)
    return [(PARTS[name], *blank, format_seconds(x), share(x)) for name, x in waits(estimate).items()]
