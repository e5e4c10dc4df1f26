"""Which dims range over the same index: union-find whose members can split into a major and a minor part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from perfmodel.errors import AxisNameError


class FactorSpace:
    """Index ranges under unification.

    A node is a range of some size. Unifying two lists of nodes (a dim on either side of an op) merges ranges of
    equal size and splits the larger one where a reshape takes it apart, so that every dim ends as a list of leaves.
    """

    def __init__(self) -> None:
        self._size: list[int] = []
        self._parent: list[int] = []
        self._parts: list[tuple[int, int] | None] = []
        self._name: list[str | None] = []
        self._origin: list[str | None] = []

    def new(self, size: int, name: str | None = None, origin: str | None = None) -> int:
        """A fresh range of `size`, with the axis name given to it at `origin`."""
        self._size.append(size)
        self._parent.append(len(self._parent))
        self._parts.append(None)
        self._name.append(name)
        self._origin.append(origin)
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
        if not self._nest(a, b):
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
        if math.prod(self._size[n] for n in a) != math.prod(self._size[n] for n in b):
            return False
        cuts = sorted({*self._cuts(a), *self._cuts(b)})
        return all(high % low == 0 for low, high in pairwise(cuts))

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
        if self._name[x] is not None and self._name[y] is not None and self._name[x] != self._name[y]:
            raise AxisNameError(
                f"axis names: got {self._name[x]!r} (from {self._origin[x]}) and {self._name[y]!r} (from "
                f"{self._origin[y]}) on one index of size {self._size[x]}, expected one name: give both dims the same "
                f"name, or leave one unnamed (None)"
            )
        if self._name[x] is None:
            x, y = y, x
        self._parent[y] = x

    def hand_down_names(self) -> None:
        """Give the name of a range that was split to its parts: the major one keeps it, the others get a suffix."""
        for node in range(len(self._size)):
            if self._name[node] is None or self._parts[node] is None or self._find(node) != node:
                continue
            for i, leaf in enumerate(self.leaves([node])):
                if self._name[leaf] is None:
                    self._name[leaf] = self._name[node] if i == 0 else f"{self._name[node]}.{i}"
                    self._origin[leaf] = self._origin[node]

    def label(self, leaf: int) -> tuple[str | None, str | None]:
        """Axis name of a leaf and where it came from."""
        root = self._find(leaf)
        return self._name[root], self._origin[root]
