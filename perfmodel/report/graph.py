"""A graph in numbers: operations, work and bytes in all, by loop, by source line, and the factors it ranges over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perfmodel.graph import Graph, Loop, Node, Op
from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes, format_count

LINES = 12
"""Source lines shown, by work."""
RANGES = 20
"""Factors shown, by work."""


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
        "factors": [asdict(row) for row in factor_rows(graph)],
        "notes": list(graph.notes),
    }


@dataclass(slots=True, kw_only=True)
class FactorRow:
    """Index ranges of one axis name and size, or one unnamed range of an argument.

    origin:     the first dim of an argument that ranges so
    ranges:     how many separate index ranges these are
    share:      of the matrix FLOPs, how much ranges over one of them [1]
    parameters: how many arguments have a dim that does
    bound:      mesh axes that the program itself spreads it over
    """

    name: str | None
    size: int
    origin: str | None
    ranges: int = 0
    share: float = 0.0
    parameters: int = 0
    bound: tuple[str, ...] = ()


def factor_rows(graph: Graph) -> list[FactorRow]:
    """The factors that a name or an argument tells apart, those with the largest share of the work first."""
    rows: dict[Hashable, FactorRow] = {}
    row_of: dict[int, Hashable] = {}
    for i, factor in enumerate(graph.factors):
        if factor.name is not None or factor.origin is not None:
            key: Hashable = (factor.name, factor.size) if factor.name is not None else i
            row_of[i] = key
            row = FactorRow(name=factor.name, size=factor.size, origin=factor.origin, bound=factor.bound)
            rows.setdefault(key, row).ranges += 1
    total = graph.flops() or 1.0
    for factors, flops in _spread(graph, graph.nodes, 1.0, frozenset()):
        for key in {row_of[factor] for factor in factors if factor in row_of}:
            rows[key].share += flops / total
    for parameter in graph.parameters:
        dims = graph.values[parameter.value].dims
        for key in {row_of[factor] for dim in dims for factor in dim if factor in row_of}:
            rows[key].parameters += 1
    return sorted(rows.values(), key=lambda row: (-row.share, -row.parameters))


def _spread(
    graph: Graph, nodes: Sequence[Node], times: float, around: frozenset[int]
) -> Iterator[tuple[frozenset[int], float]]:
    """Matrix FLOPs of each op, with the factors that they range over, those of the loops around among them."""
    for node in nodes:
        if isinstance(node, Loop):
            yield from _spread(graph, node.body, times * graph.factors[node.trip].size, around | {node.trip})
        else:
            for work in node.work:
                if work.engine == "tensor":
                    yield around | {node.local[i] for i in work.over}, times * work.flops


def proposal(names: Mapping[str, str]) -> Iterator[RenderableType]:
    """Axis names that are proposed for a program without any, as options of the commands."""
    if names:
        options = "\n".join(f"  --assign '{pattern}={name}'" for pattern, name in names.items())
        yield Text(f"No dim has an axis name. The work suggests these, or --assign auto for all of them:\n{options}")


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
    rows = factor_rows(graph)
    yield table(
        ("axis name", ">size", "first at", ">index ranges", ">matrix FLOPs", ">arguments"),
        [_factor_cells(row) for row in rows[:RANGES]],
        title=f"Factors ({RANGES} of {len(rows)})" if len(rows) > RANGES else "Factors",
    )
    for note in graph.notes:
        yield Text(note)


def _factor_cells(row: FactorRow) -> tuple[str, ...]:
    name = row.name or "-"
    bound = f" ({'*'.join(row.bound)})" if row.bound else ""
    return (
        f"{name}{bound}",
        f"{row.size:,}",
        row.origin or "-",
        str(row.ranges),
        f"{row.share:.1%}",
        str(row.parameters),
    )


TALLY = (">ops", ">matrix FLOPs", ">vector FLOPs", ">bytes")


def _cells(tally: Tally) -> tuple[str, str, str, str]:
    return (
        f"{tally.ops:,.0f}",
        format_count(tally.flops, "FLOP"),
        format_count(tally.vector_flops, "FLOP"),
        format_bytes(tally.bytes),
    )
