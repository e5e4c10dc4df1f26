"""Mesh axes of the program, and which axes of a layout they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
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

    def check(self) -> None:
        """Raises TraceError for an explained axis that no mesh has, and for two axes of one mesh that stand
        for one axis of a layout: what is split over one of them would have fewer parts than that axis has ranks.
        """
        meshes = [self.mesh(op.attributes["mesh"]) for op in self._symbols.values() if "mesh" in op.attributes]
        self._check_known(sorted({axis for mesh in meshes for axis in mesh}))
        for mesh in meshes:
            self._check_apart([axis for axis, size in mesh.items() if size > 1])

    def _check_known(self, known: Sequence[str]) -> None:
        for axis in self._meaning.keys() - known:
            close = difflib.get_close_matches(axis, known, n=1)
            raise TraceError(
                f"mesh axes: got {axis!r}, expected an axis of the program's own mesh ({', '.join(known) or 'none'}): "
                f"{f'did you mean {close[0]}?' if close else 'leave it out'}"
            )

    def _check_apart(self, mesh: Sequence[str]) -> None:
        taken: dict[str, str] = {}
        for axis, name in [(each, name) for each in mesh for name in self._meaning.get(each, (each,))]:
            if taken.setdefault(name, axis) != axis:
                raise TraceError(
                    f"mesh axes: got {name} for both {taken[name]!r} and {axis!r}, expected an axis of its own for "
                    f"each: give one of them another of {', '.join(AXES)}, or nothing to ignore it"
                )

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
                f"--mesh-axis {axis}=dp, or Program(..., hints=Hints(mesh={{{axis!r}: ('dp',)}})); leave it empty to "
                f"ignore it"
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
