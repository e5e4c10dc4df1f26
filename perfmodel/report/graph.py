"""A graph in numbers: operations, work and bytes in all, by loop, by source line, and the factors it ranges over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType

from perfmodel.graph import Graph, Loop, Node, Op
from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes, format_count

LINES = 12
"""Source lines shown, by work."""


@dataclass(slots=True)
class Tally:
    """Executed ops, their FLOPs by engine and the bytes that they read and write [B], before fusion; their phases."""

    ops: float = 0.0
    flops: float = 0.0
    vector_flops: float = 0.0
    bytes: float = 0.0
    phases: tuple[str, ...] = ()

    def add(self, graph: Graph, op: Op, times: float) -> None:
        """Count an op that runs `times` times."""
        self.ops += times
        for work in op.work:
            if work.engine == "tensor":
                self.flops += times * work.flops
            else:
                self.vector_flops += times * work.flops
        self.bytes += times * graph.traffic(op)
        if op.phase not in self.phases:
            self.phases += (op.phase,)


@dataclass(slots=True)
class Summary:
    """Tallies of a graph: `loops` by (depth, trips, source), `lines` by source line and `phases` by phase."""

    total: Tally = field(default_factory=Tally)
    loops: list[tuple[int, int, str, Tally]] = field(default_factory=list)
    lines: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    phases: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))


def summarise(graph: Graph) -> Summary:
    """Walk a graph once."""
    summary = Summary()

    def visit(nodes: Sequence[Node], times: float, around: list[Tally]) -> None:
        for node in nodes:
            if isinstance(node, Loop):
                trips = graph.factors[node.trip].size
                tally = Tally()
                summary.loops.append((len(around), trips, node.source, tally))
                visit(node.body, times * trips, [*around, tally])
            else:
                for tally in (summary.total, summary.lines[node.source], summary.phases[node.phase], *around):
                    tally.add(graph, node, times)

    visit(graph.nodes, 1.0, [])
    return summary


def graph_json(graph: Graph) -> dict[str, Any]:
    """The numbers of a graph as plain dicts and lists."""
    summary = summarise(graph)
    return {
        "name": graph.name,
        "recompute": graph.recompute,
        "parameters": graph.parameter_count(),
        "model_flops": graph.model_flops(),
        "total": asdict(summary.total),
        "phases": {phase: asdict(tally) for phase, tally in summary.phases.items()},
        "loops": [
            {"depth": depth, "trips": trips, "source": source, **asdict(tally)}
            for depth, trips, source, tally in summary.loops
        ],
        "lines": {line: asdict(tally) for line, tally in summary.lines.items()},
        "factors": [
            {"name": name, "size": size, "origin": origin, "ranges": count}
            for name, size, origin, count in named_factors(graph)
        ],
    }


def named_factors(graph: Graph) -> list[tuple[str, int, str, int]]:
    """(axis name, size, where the name was given, how many separate index ranges carry it)."""
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for factor in graph.factors:
        if factor.name is not None:
            origin, count = found.get((factor.name, factor.size), (factor.origin or "", 0))
            found[factor.name, factor.size] = origin, count + 1
    return [(name, size, origin, count) for (name, size), (origin, count) in found.items()]


def graph_report(graph: Graph) -> Iterator[RenderableType]:
    """The tables of a graph, in reading order."""
    summary = summarise(graph)
    sizes = ", ".join(f"{name} {graph.size(name)}" for name in ("microbatch", "batch", "seq") if name in graph.named())
    yield pairs(
        [
            ("program", f"{graph.name}, recompute {graph.recompute}"),
            ("traced with", sizes or "the sizes of its arguments"),
            ("parameters", format_count(graph.parameter_count())),
            ("matrix FLOPs", format_count(summary.total.flops, "FLOP")),
            ("model FLOPs", f"{format_count(graph.model_flops(), 'FLOP')}, as MFU counts them"),
            ("vector FLOPs", format_count(summary.total.vector_flops, "FLOP")),
            ("bytes", f"{format_bytes(summary.total.bytes)} read and written by ops, before fusion"),
            ("ops", f"{summary.total.ops:,.0f} executed"),
        ]
    )
    yield table(("phase", *TALLY), [(phase, *_cells(tally)) for phase, tally in summary.phases.items()])
    loops = [
        (f"{'  ' * depth}{source}", "+".join(tally.phases), f"{trips:,}", *_cells(tally))
        for depth, trips, source, tally in summary.loops
    ]
    yield table(("loop", "phases", ">trips", *TALLY), loops, title="By loop")
    lines = sorted(summary.lines.items(), key=lambda item: (-item[1].flops, -item[1].bytes))[:LINES]
    yield table(("line", *TALLY), [(line, *_cells(tally)) for line, tally in lines], title="By source line")
    factors = [(name, f"{size:,}", origin, str(count)) for name, size, origin, count in named_factors(graph)]
    yield table(("axis name", ">size", "given at", ">index ranges"), factors, title="Factors")


TALLY = (">ops", ">matrix FLOPs", ">vector FLOPs", ">bytes")


def _cells(tally: Tally) -> tuple[str, str, str, str]:
    return (
        f"{tally.ops:,.0f}",
        format_count(tally.flops, "FLOP"),
        format_count(tally.vector_flops, "FLOP"),
        format_bytes(tally.bytes),
    )
