"""The fabric of a machine in characters, 80 columns wide: rings, grids and planes, buses and meshes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from perfmodel.machine import Machine
from perfmodel.topology import Tier, closes
from perfmodel.units import format_count, format_seconds

WIDTH = 80
ACROSS = 8
"""Members that are drawn side by side; of more, the first ones and the last."""
ROWS = 5
PLANES = 4
NARROW = 4
"""Members of a dim that are drawn where planes stand side by side."""
GAP = ".."


def fabric(machine: Machine) -> Iterator[str]:
    """All tiers, innermost first: a line or two of words for each, then its drawing."""
    member, inner = "ranks" if machine.ranks_per_chip > 1 else "chips", None
    for tier in machine.tiers:
        words = f"{tier.name}: {_shape(tier, member)}, {_speed(tier)}{_wraps(tier)}"
        yield from textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="    ")
        if tier.shapes:
            shapes = f"A job may have {', '.join(_by(shape) for shape in tier.shapes)}."
            yield from textwrap.wrap(shapes, WIDTH, initial_indent="    ", subsequent_indent="    ")
        yield from (f"    {line}".rstrip() for line in drawing(tier, inner))
        member, inner = _whole(tier, member), tier


def drawing(tier: Tier, inner: Tier | None = None) -> list[str]:
    """A tier; a ring of planes is drawn as these, where the tier inside is a plane."""
    if tier.kind != "torus":
        return _bus(tier.extents[0]) if tier.kind == "switch" else _mesh(tier.extents[0])
    rings = [closes(tier, extent) for extent in tier.extents]
    if len(tier.extents) == 3:
        return _planes(_grid(tier.extents[:2], rings[:2], NARROW), tier.extents[2], rings[2])
    if len(tier.extents) == 1 and inner is not None and inner.kind == "torus" and len(inner.extents) == 2:
        closed = [closes(inner, extent) for extent in inner.extents]
        return _planes(_grid(inner.extents, closed, NARROW), tier.extents[0], rings[0])
    if len(tier.extents) == 1:
        return [_line(tier.extents[0], ring=rings[0], most=2 * ACROSS)]
    if len(tier.extents) > 3:
        return [f"{_by(tier.extents)}: more dims than a page has"]
    return _grid(tier.extents, rings, ACROSS)


def _shown(count: int, most: int) -> list[str]:
    """Marks of the members of a dim, some left out where they are many."""
    return ["o"] * count if count <= most else [*["o"] * (most - 2), GAP, "o"]


def _line(count: int, *, ring: bool, most: int) -> str:
    end = "~" if ring else " "
    return end + "--".join(_shown(count, most)) + end


def _grid(extents: Sequence[int], rings: Sequence[bool], most: int) -> list[str]:
    """Rows along the first dim; `~` at the ends of a ring."""
    rows, columns = _shown(extents[0], min(most, ROWS)), _shown(extents[1], most)
    row = _line(extents[1], ring=rings[1], most=most)
    links, ends, gaps = ("  ".join("  " if o == GAP else mark for o in columns) for mark in ("|", "~", ":"))
    lines = [f" {ends} "] if rings[0] else []
    for i, mark in enumerate(rows):
        lines.append(f" {gaps} " if mark == GAP else row)
        if i + 1 < len(rows) and GAP not in (mark, rows[i + 1]):
            lines.append(f" {links} ")
    return [*lines, *([f" {ends} "] if rings[0] else [])]


def _planes(plane: list[str], count: int, ring: bool) -> list[str]:
    """Planes side by side; `==` joins every member to its like on the next plane."""
    shown = _shown(count, PLANES)
    middle = len(plane) // 2
    lines = []
    for i, row in enumerate(plane):
        parts = [GAP if mark == GAP and i == middle else " " * len(GAP) if mark == GAP else row for mark in shown]
        end = "~" if ring and i == middle else " "
        lines.append(end + ("==" if i == middle else "  ").join(parts) + end)
    return lines


def _bus(count: int) -> list[str]:
    """Members below a switch; 0 is any number."""
    members = "  ".join(_shown(count, ACROSS)) if count else "o  o  o  .."
    ties = members.replace("o", "|").replace(GAP, "  ")
    return [f"[{'=' * len(members)}]", f" {ties} ", f" {members} "]


def _mesh(count: int) -> list[str]:
    """Who has a link to whom: all to all."""
    shown = _shown(count, ACROSS)
    half = (len(shown) + 1) // 2
    crossed = " " + " X ".join("|" * min(half, len(shown) - half))
    return ["---".join(shown[:half]), crossed[1:], "---".join(shown[half:])]


def _by(extents: Sequence[int]) -> str:
    return "x".join(map(str, extents))


def _shape(tier: Tier, member: str) -> str:
    if tier.kind == "switch":
        return f"{tier.extents[0] or 'any number of'} {member} on a switch"
    if tier.kind == "full":
        return f"{tier.extents[0]} {member}, each with a link to every other"
    rings = [closes(tier, extent) for extent in tier.extents]
    if len(tier.extents) == 1:
        return f"{'ring' if rings[0] else 'line'} of {tier.extents[0]} {member}"
    return f"{_by(tier.extents)} {'torus' if any(rings) else 'grid'} of {member}"


def _speed(tier: Tier) -> str:
    dims = " along each dim" if len(tier.extents) > 1 else ""
    return f"{format_count(tier.bandwidth[0], 'B/s')} per rank{dims}, {format_seconds(tier.latency)} a step"


def _wraps(tier: Tier) -> str:
    if tier.kind != "torus":
        return ""
    marks = "; ~ closes a ring" if any(closes(tier, extent) for extent in tier.extents) else ""
    if tier.wrap:
        marks += f"; dims below {tier.wrap} are lines" + (", and then the others too" if tier.together else "")
    return marks


def _whole(tier: Tier, member: str) -> str:
    """What the members of the next tier are called: chips, where the ranks of a chip make up this one."""
    return "chips" if member == "ranks" else f"({tier.name})"
