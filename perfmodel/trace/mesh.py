"""Mesh axes of the program, and which axes of a layout they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from perfmodel.errors import TraceError
from perfmodel.layout import AXES

DimAxes: TypeAlias = tuple[tuple[str, ...], bool]
"""Mesh axes of a dim, and whether there can be no others (a closed dim)."""


class MeshAxes:
    """Reads shardings of a module whose `symbols` name its meshes; `meaning` maps its axes to those of layouts."""

    def __init__(self, symbols: Mapping[str, ir.Operation], meaning: Mapping[str, tuple[str, ...]]) -> None:
        self._symbols = symbols
        self._meaning = meaning
        self._sizes: dict[str, int] = {}  # of every axis seen so far
        self.ranks: dict[str, int] = {}  # axes of the mesh of the `shard_map` that we are in, major to minor
        self.manual: frozenset[str] = frozenset()  # those that it spreads its body over

    def dims(self, attribute: Any) -> list[DimAxes]:
        """Mesh axes of each dim of a sharding."""
        sharding = sdy.TensorShardingAttr(attribute)
        self._sizes.update(self.mesh(sharding.mesh_or_ref))
        found = map(sdy.DimensionShardingAttr, sharding.dimension_shardings)
        return [(tuple(sdy.AxisRefAttr(axis).name for axis in dim.axes), dim.is_closed) for dim in found]

    def mesh(self, mesh: Any) -> dict[str, int]:
        """Axis sizes of a mesh that is given in full or by its symbol."""
        if isinstance(mesh, ir.FlatSymbolRefAttr):
            mesh = self._symbols[mesh.value].attributes["mesh"]
        return {axis.name: axis.size for axis in map(sdy.MeshAxisAttr, sdy.MeshAttr(mesh).axes)}

    def layout_axes(self, axis: str, source: str) -> tuple[str, ...]:
        """The axes of a layout that a mesh axis stands for; raises TraceError for one that nobody has explained."""
        axes = self._meaning.get(axis, (axis,) if axis in AXES else None)
        if axes is None and self._sizes.get(axis) != 1:
            raise TraceError(
                f"{source}: got mesh axis {axis!r}, expected one of {', '.join(AXES)}: say what it stands for, "
                f"--mesh-axis {axis}=dp, or Program(..., hints=Hints(mesh={{{axis!r}: ('dp',)}})); nothing to ignore it"
            )
        if unknown := [name for name in axes or () if name not in AXES]:
            raise TraceError(
                f"Hints(mesh={{{axis!r}: {axes}}}): got {unknown[0]!r}, expected one of {', '.join(AXES)}: correct it"
            )
        return axes or ()

    def idle(self, used: Collection[str]) -> list[str]:
        """Manual axes along which an op that differs over `used` does the same on all ranks."""
        return sorted(axis for axis in self.manual if axis not in used and (axis in AXES or self._meaning.get(axis)))

    def bound(self, axis: str, source: str) -> tuple[int, tuple[str, ...]]:
        """Size of a manual axis, and the axes of a layout that it stands for: it cannot be ignored."""
        axes, size = self.layout_axes(axis, source), self.ranks[axis]
        if not axes and size > 1:
            raise TraceError(
                f"{source}: got mesh axis {axis!r} of size {size} ignored, but shard_map splits values over it: say "
                f"what it stands for, --mesh-axis {axis}=dp, or Program(..., hints=Hints(mesh={{{axis!r}: ('dp',)}}))"
            )
        return size, axes
