"""How a value lies on the mesh, and the collectives that lead from one state to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from perfmodel.work import TP

Axes: TypeAlias = tuple[str, ...]
LOCAL = ("slice", "mask")
"""Changes of state that move nothing: dropping all but one's own part; counting a whole value once in a sum, or each
rank its own part among zeros.
"""
Sharding: TypeAlias = tuple[tuple[Axes, ...], ...]  # per dim, per factor of the dim (major to minor)


@dataclass(frozen=True, slots=True)
class State:
    """How a value lies on the mesh: axes per dim and factor, and the axes over which it is a partial sum."""

    dims: Sharding
    partial: frozenset[str] = frozenset()

    @property
    def axes(self) -> frozenset[str]:
        """Every mesh axis that shards a dim."""
        return frozenset(axis for dim in self.dims for axes in dim for axis in axes)


def mesh_axes(names: Sequence[str]) -> Axes:
    """Mesh axes as the assignment sees them: tp is two."""
    return tuple(part for name in names for part in (TP if name == "tp" else (name,)))


def unclaimed(axes: Sequence[str], taken: set[str]) -> Axes:
    """Axes that nothing has claimed yet; the two halves of tp go together where both are wanted."""
    free = tuple(axis for axis in axes if axis not in taken)
    halves = set(TP) <= set(axes) and not set(TP) <= set(free)
    return tuple(axis for axis in free if axis not in TP) if halves else free


class Claims:
    """Mesh axes that an op's local indices have claimed, each axis once; `closed` indices claim nothing more, and those
    in `tied` follow others.
    """

    def __init__(self, indices: int, tied: Sequence[tuple[int, int]], taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)
        self.closed: set[int] = set()
        self._tied = tied
        self._chosen: list[Axes] = [()] * indices

    def claim(self, i: int, axes: Sequence[str]) -> None:
        """Give an index those of `axes` that are left."""
        if axes and i not in self.closed and (won := unclaimed(axes, self.taken)):
            self._chosen[i] = (*self._chosen[i], *won)
            self.taken.update(won)

    def settled(self) -> tuple[Axes, ...]:
        """The axes of each index, followers lying where their leaders lie."""
        for follower, leader in self._tied:
            self._chosen[follower] = self._chosen[leader]
        return tuple(self._chosen)


def sharding(dims: Sequence[Sequence[int]], axes: Sequence[Axes]) -> Sharding:
    """The axes of each dim, given those of each local index."""
    return tuple(tuple(axes[i] for i in dim) for dim in dims)


def _places(state: State) -> dict[str, tuple[int, int]]:
    return {axis: (d, i) for d, dim in enumerate(state.dims) for i, axes in enumerate(dim) for axis in axes}


def steps(have: State, want: State) -> list[tuple[str, Axes]]:
    """Collectives that lead from one state to another, those that shrink the value first.

    In which order several axes lie on one dim is not looked at: an assignment gives each name its axes in one order
    throughout, so that parts of a value have no reason to change places.
    """
    there, goal = _places(have), _places(want)
    resolve = have.partial - want.partial
    kinds: Mapping[str, set[str]] = {
        "mask": set(want.partial - have.partial),
        "slice": {a for a in goal if a not in there and a not in resolve},
        "reduce_scatter": {a for a in resolve if a in goal},
        "all_reduce": {a for a in resolve if a not in goal},
        "all_to_all": {a for a in there if a in goal and there[a] != goal[a]},
        "all_gather": {a for a in there if a not in goal and a not in want.partial},
    }
    return [(kind, tuple(sorted(axes))) for kind, axes in kinds.items() if axes]


def after(have: State, want: State, kind: str, axes: Axes) -> State:
    """The state after one step: `axes` leave where they were, and lie where they are wanted."""
    goal = _places(want)
    rows = []
    for d, (dim, wanted_dim) in enumerate(zip(have.dims, want.dims, strict=True)):
        row = []
        for i, (old, new) in enumerate(zip(dim, wanted_dim, strict=True)):
            kept = {a for a in old if a not in axes} | {a for a in axes if goal.get(a) == (d, i)}
            order = (*(a for a in new if a in kept), *(a for a in old if a in kept and a not in new))
            row.append(tuple(order))
        rows.append(tuple(row))
    partial = have.partial - set(axes) if kind in ("reduce_scatter", "all_reduce") else have.partial
    partial = partial | set(axes) if kind == "mask" else partial
    return State(tuple(rows), partial)
