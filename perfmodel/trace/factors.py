"""Which dims range over the same index: union-find whose members can split into a major and a minor part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from perfmodel.errors import AxisNameError
from perfmodel.graph import Factor


class FactorSpace:
    """Index ranges under unification.

    A node is a range of some size. Unifying two lists of nodes (a dim on either side of an op) merges ranges of
    equal size and splits the larger one where a reshape takes it apart, so that every dim ends as a list of leaves.
    A range that the program binds to mesh axes never splits, nor merges with one bound to others.
    """

    def __init__(self) -> None:
        self._size: list[int] = []
        self._parent: list[int] = []
        self._parts: list[tuple[int, int] | None] = []
        self._name: list[str | None] = []
        self._origin: list[str | None] = []
        self._bound: list[tuple[str, ...]] = []
        self._origins: dict[int, str] = {}
        self._wholes: dict[int, int] = {}

    def new(self, size: int, name: str | None = None, origin: str | None = None, *, bound: tuple[str, ...] = ()) -> int:
        """A fresh range of `size`: dim `origin` of an argument, with the axis name given to it there."""
        self._size.append(size)
        self._parent.append(len(self._parent))
        self._parts.append(None)
        self._name.append(name)
        self._origin.append(origin)
        self._bound.append(bound)
        return len(self._size) - 1

    def size(self, node: int) -> int:
        """Length of the range."""
        return self._size[node]

    def leaves(self, nodes: Sequence[int]) -> list[int]:
        """The indivisible ranges that `nodes` consist of, major to minor; ranges of size 1 vanish."""
        found: list[int] = []
        for node in nodes:
            root = self._find(node)
            parts = self._parts[root]
            if parts is not None:
                found.extend(self.leaves(parts))
            elif self._size[root] != 1:
                found.append(root)
        return found

    def unify(self, left: Sequence[int], right: Sequence[int]) -> bool:
        """Declare two dims to range alike; False (and nothing merged) where their ranges do not nest.

        Raises AxisNameError when ranges with two different axis names meet.
        """
        a, b = self.leaves(left), self.leaves(right)
        if not self._nest(a, b) or not self._agree(a, b):
            return False
        while a and b:
            x, y = self._find(a.pop()), self._find(b.pop())
            if self._parts[x] is not None or self._parts[y] is not None:  # a range that stands twice was split
                a, b = self.leaves([*a, x]), self.leaves([*b, y])
            elif self._size[x] == self._size[y]:
                self._merge(x, y)
            else:
                self._split(max(x, y, key=self.size), min(self._size[x], self._size[y]))
                a, b = self.leaves([*a, x]), self.leaves([*b, y])
        return True

    def _nest(self, a: Sequence[int], b: Sequence[int]) -> bool:
        """Whether the minor-to-major cumulative sizes of one list refine the other's."""
        size = math.prod(self._size[n] for n in a)
        if size == 0 or size != math.prod(self._size[n] for n in b):
            return False
        cuts = sorted({*self._cuts(a), *self._cuts(b)})
        return all(high % low == 0 for low, high in pairwise(cuts))

    def _agree(self, a: Sequence[int], b: Sequence[int]) -> bool:
        """Whether every range that is bound to mesh axes stays whole, and meets no range bound to others."""
        if not any(self._bound[node] for node in (*a, *b)):
            return True
        for low, high, axes in self._spans(a):
            for start, stop, others in self._spans(b):
                if low >= stop or start >= high:
                    continue
                split = others if stop - start > high - low else axes if stop - start < high - low else ()
                if split or (axes and others and axes != others):
                    return False
        return True

    def _spans(self, nodes: Sequence[int]) -> list[tuple[int, int, tuple[str, ...]]]:
        """Where each range lies within the dim, counted from the minor end, and the mesh axes that it is bound to."""
        cuts = self._cuts(nodes)
        return [(low, high, self._bound[n]) for (low, high), n in zip(pairwise(cuts), reversed(nodes), strict=True)]

    def _cuts(self, nodes: Sequence[int]) -> list[int]:
        product, cuts = 1, [1]
        for node in reversed(nodes):
            product *= self._size[node]
            cuts.append(product)
        return cuts

    def _split(self, node: int, minor: int) -> None:
        self._parts[node] = (self.new(self._size[node] // minor), self.new(minor))

    def _find(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _merge(self, x: int, y: int) -> None:
        x, y = self._find(x), self._find(y)
        if x == y:
            return
        bound = self._bound[x] or self._bound[y]
        if not bound and None not in (self._name[x], self._name[y]) and self._name[x] != self._name[y]:
            raise AxisNameError(
                f"axis names: got {self._name[x]!r} (from {self._told(x)}) and {self._name[y]!r} (from "
                f"{self._told(y)}) on one index of size {self._size[x]}, expected one name: give both dims the same "
                f"name, or leave one unnamed (None)"
            )
        if self._name[x] is None:
            x, y = y, x
        self._parent[y] = x
        self._bound[x] = bound

    def _told(self, node: int) -> str:
        """The dim that a range comes from, in words."""
        path, _, dim = (self._origin[node] or "?").rpartition(".")
        return f"{path} dim {dim}" if path else dim

    def hand_down_names(self) -> None:
        """Give the name and the origin of a range that was split to its parts: the major one keeps the name, the others
        get a suffix. A range that several dims of arguments share comes from the first of them.
        """
        for node, origin in enumerate(self._origin):
            leaves = self.leaves([node])
            if self._find(node) == node and self._parts[node] is not None and self._name[node] is not None:
                self._wholes.setdefault(leaves[0], self._size[node])
                for i, leaf in enumerate(leaves):
                    self._name[leaf] = self._name[leaf] or (self._name[node] if i == 0 else f"{self._name[node]}.{i}")
            for i, leaf in enumerate(leaves if origin is not None else ()):
                self._origins.setdefault(leaf, f"{origin}/{i}" if len(leaves) > 1 else f"{origin}")

    def factor(self, leaf: int) -> Factor:
        """What is known of a leaf, once names have been handed down."""
        root = self._find(leaf)
        return Factor(
            size=self._size[root],
            name=self._name[root],
            origin=self._origins.get(root),
            bound=self._bound[root],
            whole=self._wholes.get(root),
        )
