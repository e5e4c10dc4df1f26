"""A verification as tables: the verdict, every kind of collective side by side, and the differences that are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from perfmodel.report.layout import pairs, table
from perfmodel.units import format_bytes
from perfmodel.verify.compare import SMALL, Difference, Row, Verification


def verify_report(found: Verification) -> Iterator[RenderableType]:
    """The tables of a verification, in reading order."""
    yield pairs(summary(found))
    compilers = dict.fromkeys(row.compiler for row in found.rows)
    for compiler in compilers:
        yield _rows(compiler, [row for row in found.rows if row.compiler == compiler])
    large = [each for each in found.differences if abs(each.after - each.before) >= SMALL * step_bytes(found)]
    if large:
        yield _differences(large)
        yield pairs([(name, why) for name, why in {each.name: each.why for each in large}.items()])


def step_bytes(found: Verification) -> float:
    """Bytes that a compiler's collectives carry in a step, the least of several compilers'."""
    compilers = {row.compiler for row in found.rows}
    return min(
        (sum(row.compiler_bytes for row in found.rows if row.compiler == each) for each in compilers), default=0.0
    )


def summary(found: Verification) -> Iterator[tuple[str, str]]:
    """The verdict in words."""
    yield "program", found.program
    yield "layout", f"{found.layout}, {found.ranks} ranks"
    compared = [row for row in found.rows if row.compared]
    wrong = [row for row in compared if not row.agrees]
    if not compared:
        yield "verdict", "nothing to compare"
    elif wrong:
        names = dict.fromkeys(f"{_kind(row.kind)} over {row.axis} ({row.compiler})" for row in wrong)
        yield "verdict", f"differs: {', '.join(names)}"
    else:
        yield "verdict", f"agrees: {len(compared)} of {len(compared)} kinds within {100 * found.tolerance:g} %"
    yield (
        "compared",
        f"bytes per step and rank of each kind and axis with at least {100 * SMALL:g} % of the compiler's bytes, after "
        f"the known differences; counts are shown only",
    )
    for note in found.notes:
        yield "note", note


def _kind(kind: str) -> str:
    return kind.replace("_", "-")


def _rows(compiler: str, rows: Sequence[Row]) -> RenderableType:
    cells = [
        (
            _kind(row.kind),
            row.axis,
            format_bytes(row.derived_bytes),
            format_bytes(row.compiler_bytes),
            _difference(row),
            f"{row.derived_count:,.0f}",
            f"{row.compiler_count:,.0f}",
            ("agrees" if row.agrees else "DIFFERS") if row.compared else "small",
        )
        for row in rows
    ]
    columns = (
        "collective",
        "axes",
        ">derived",
        ">compiler",
        ">difference",
        ">derived runs",
        ">compiler runs",
        "verdict",
    )
    return table(columns, cells, title=f"Against {compiler}", spare=("derived runs", "compiler runs"))


def _difference(row: Row) -> str:
    if row.compiler_bytes == 0.0:
        return "only derived"
    return (
        f"{100 * row.difference:+.2f} %".replace("-0.00", "0.00").replace("+0.00", "0.00")
        if row.derived_bytes
        else "only compiler"
    )


def _differences(differences: Sequence[Difference]) -> RenderableType:
    rows = [
        (each.name, each.of, _kind(each.kind), each.axis, format_bytes(each.before), format_bytes(each.after))
        for each in differences
    ]
    columns = ("known difference", "of", "collective", "axes", ">bytes before", ">bytes after")
    return table(columns, rows, title="Known differences taken into account")
