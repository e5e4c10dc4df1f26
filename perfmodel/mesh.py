"""A mesh: ranks numbered along named axes, the innermost first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perfmodel.errors import LayoutError


@dataclass(frozen=True)
class Mesh:
    """Sizes of axes by name, innermost first: along the first, neighbours are consecutive ranks."""

    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        for axis, size in self.sizes.items():
            if size < 1 or size % 1:
                raise LayoutError(f"mesh: got {axis}={size}, expected a whole number of at least 1: change {axis}")

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return math.prod(self.sizes.values())

    def stride(self, axis: str) -> int:
        """Ranks from one of a group to the next: the product of the axes inside."""
        axes = list(self.sizes)
        if axis not in axes:
            raise LayoutError(f"mesh: got axis {axis!r}, expected one of {', '.join(axes)}: name an axis of the mesh")
        return math.prod(self.sizes[inner] for inner in axes[: axes.index(axis)])

    def groups(self, axis: str) -> list[tuple[int, ...]]:
        """Ranks that differ only in their place along an axis, in its order; every rank is in one group."""
        stride = self.stride(axis)
        ranks = np.arange(self.ranks).reshape(-1, self.sizes[axis], stride)
        return [tuple(group) for group in ranks.swapaxes(1, 2).reshape(-1, self.sizes[axis]).tolist()]
