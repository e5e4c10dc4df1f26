"""Price every layout of a space, an array of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from perfmodel import Graph, Layout, Machine, predict
from tuner.ranking import Ranking
from tuner.space import Space, layouts_of

CHUNK = 16_384
"""Layouts priced in one call: enough to amortise it, few enough for the arrays to stay near the processor."""


def price_all(
    graphs: Mapping[str, Graph], space: Space, machine: Machine, ranking: Ranking, progress: Callable[[int], None]
) -> None:
    """Add every layout of `space` to `ranking`; `progress` hears how many there are so far."""
    for layouts in chunks(space):
        ranking.add(layouts, predict(graphs[layouts.recompute], layouts, machine))
        progress(ranking.evaluated)


def chunks(space: Space) -> Iterator[Layout]:
    """The layouts of a space, at most CHUNK of one structure at a time."""
    for structure, rows in space.tables.values():
        for start in range(0, len(rows), CHUNK):
            yield layouts_of(structure, rows[start : start + CHUNK])
