"""Layouts one step away from a layout: one axis smaller and another one larger, another microbatch, other chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from perfmodel.graph import Graph
from perfmodel.layout import AXES, KEYS, Layout
from perfmodel.work import MICROBATCH


def neighbours(graph: Graph, layout: Layout, *, steps: int = 1) -> list[tuple[str, Layout]]:
    """Layouts of one structure, each once, with the key that is changed: of two axes the one that gives way.

    An axis gives one of its smallest prime factors, or the product of its `steps` smallest. All have the ZeRO stage and
    the sequence parallelism that their new axes would want, and are not `settled`.
    """
    looped = MICROBATCH in graph.named()
    kinds: dict[Layout, str] = {}
    for key, each in _steps(_opened(layout), "experts" in graph.named(), steps):
        whole = each if looped else replace(each, mb=each.whole_batch or each.mb)
        if whole.settled() != layout:
            kinds.setdefault(whole, key)
    return [(key, each) for each, key in kinds.items()]


def _steps(layout: Layout, experts: bool, steps: int) -> Iterator[tuple[str, Layout]]:
    for axis in AXES:
        for part in parts(int(getattr(layout, axis)), steps):
            for other in AXES:
                if other != axis and (other != "ep" or experts):
                    yield from _keyed(axis, _with_microbatches(_moved(layout, axis, other, part), part))
    yield from _keyed("mb", _with_microbatches(layout, 2))
    if layout.pp > 1:
        yield "vpp", replace(layout, vpp=2 * layout.vpp)
        yield "vpp", replace(layout, vpp=max(layout.vpp // 2, 1))


def _keyed(key: str, layouts: Iterable[Layout]) -> Iterator[tuple[str, Layout]]:
    return ((key, layout) for layout in layouts)


def _opened(layout: Layout) -> Layout:
    """A layout with what an axis would be used for that it does not have yet: ZeRO, sequence parallelism."""
    zero = 3 if layout.fsdp * layout.ep == 1 else layout.zero
    return replace(layout, zero=zero, sp=layout.sp or layout.tp == 1)


def _moved(layout: Layout, axis: str, other: str, part: int) -> Layout:
    """A layout with one axis smaller and another one larger."""
    sizes: dict[str, Any] = {axis: getattr(layout, axis) // part, other: getattr(layout, other) * part}
    return replace(layout, **sizes)


def parts(size: int, steps: int) -> list[int]:
    """Numbers to divide a size by: its smallest prime factor, the product of its two smallest, ..."""
    found: list[int] = []
    part = 1
    while size > 1 and len(found) < steps:
        prime = next(n for n in range(2, size + 1) if size % n == 0)
        size, part = size // prime, part * prime
        found.append(part)
    return found


def _with_microbatches(layout: Layout, part: int) -> Iterator[Layout]:
    """A layout with its own microbatch, with a smaller one and with a larger one."""
    mb = int(layout.mb)
    yield layout
    yield replace(layout, mb=mb * part)
    if mb % part == 0:
        yield replace(layout, mb=mb // part)


def difference(before: Layout, after: Layout) -> str:
    """`tp 8 -> 4, fsdp 32 -> 64`: what is different in the notation."""
    pairs = ((key, getattr(before, key), getattr(after, key)) for key in KEYS)
    return ", ".join(
        f"{key}={new}" if isinstance(new, str) else f"{key} {int(old)} -> {int(new)}"
        for key, old, new in pairs
        if old != new
    )


def changed(before: Layout, after: Layout) -> frozenset[str]:
    """Keys that are different, beside the microbatch."""
    return frozenset(key for key in KEYS if key != "mb" and getattr(before, key) != getattr(after, key))
