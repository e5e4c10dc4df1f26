"""The mesh that a compiler is told: that of the layout, or the program's own where it states one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jax.sharding import AbstractMesh, AxisType
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from perfmodel.errors import LayoutError
from perfmodel.trace import Program
from perfmodel.trace.stablehlo import lower
from perfmodel.verify.collective import axis_name
from perfmodel.work import MESH, Number


@dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes, major to minor, by the names of `perfmodel.work`; and what the compiler calls them."""

    sizes: Mapping[str, int]
    names: Mapping[str, str]

    @property
    def ranks(self) -> int:
        """Number of devices."""
        return math.prod(self.sizes.values())

    @property
    def symbols(self) -> Mapping[str, str]:
        """Names of `perfmodel.work` by what the compiler calls them."""
        return {name: symbol for symbol, name in self.names.items()}

    def abstract(self) -> AbstractMesh:
        """The mesh as JAX knows it."""
        names = tuple(self.names[symbol] for symbol in self.sizes)
        return AbstractMesh(tuple(self.sizes.values()), names, axis_types=(AxisType.Auto,) * len(names))

    def on(self, axes: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        """Compiler's names of those axes that the mesh has."""
        return tuple(self.names[axis] for axis in axes if axis in self.sizes)


def mesh_of(program: Program, sizes: Mapping[str, Number], *, stated: bool) -> Mesh:
    """The mesh of a layout with axes of these sizes; `stated` tells whether the program has a mesh of its own.

    Raises LayoutError where the program's own mesh is another.
    """
    wanted = {axis: int(size) for axis, size in sizes.items() if axis in MESH and size > 1}
    if not stated or not (own := _own(lower(program))):
        return Mesh(wanted, {axis: axis for axis in wanted})
    names = {axis: _name(program, own, axis) for axis in wanted}
    symbols = {name: symbol for symbol, name in names.items()}
    found = {symbols.get(name, name): size for name, size in own.items()}
    if found != wanted:
        raise LayoutError(
            f"{program.name}: got a layout with {_listed(wanted)}, expected {_listed(own)}, the mesh that the program "
            f"states itself: change it"
        )
    return Mesh(found, {symbol: names[symbol] for symbol in found})


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis_name([axis]) or axis}={size}" for axis, size in sizes.items()) or "one rank"


def _own(module: ir.Module) -> dict[str, int]:
    """Axes of the largest mesh in a module, major to minor."""
    attributes = [op.attributes["mesh"] for op in module.body.operations if op.operation.name == "sdy.mesh"]
    meshes = [{axis.name: axis.size for axis in map(sdy.MeshAxisAttr, sdy.MeshAttr(a).axes)} for a in attributes]
    return max(meshes, key=lambda mesh: math.prod(mesh.values()), default={})


def _name(program: Program, own: Mapping[str, int], symbol: str) -> str:
    """What the program calls an axis of the layout."""
    axis = axis_name([symbol])
    called = [name for name in own if program.hints.mesh.get(name, (name,)) == (axis,)]
    return called[0] if called else axis
