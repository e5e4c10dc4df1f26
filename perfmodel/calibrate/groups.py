"""Rows that are left out of a fit together; light enough for `perfmodel --help`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from perfmodel.calibrate.rows import Collective, Row


def kind_of(row: Row) -> str:
    """The kind of collective, or of kernel."""
    return row.what.kind if isinstance(row.what, Collective) else type(row.what).__name__.lower()


def _point(row: Row) -> str:
    """Rows that measure the same thing in nearly the same way: other element types, other sharing of keys."""
    what = row.what
    if isinstance(what, Collective):
        return f"{what.kind} {what.ranks} {what.nodes} {what.bytes:g}"
    return str(what).replace("bf16", "f16")


def _ranks(row: Row) -> str:
    return f"{row.what.ranks} {row.what.nodes}" if isinstance(row.what, Collective) else _point(row)


GROUPS: Mapping[str, Callable[[Row], str]] = {
    "point": _point,
    "ranks": _ranks,
    "kind": kind_of,
    "source": lambda row: row.source,
}
"""What may be left out together."""
