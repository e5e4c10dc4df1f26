"""A program with a layout stated to a compiler, as users state theirs: shardings of arguments and results, and a
sharding constraint on every activation, each where the assignment says (no compiler is asked to guess activations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jaxlib.mlir import ir

from perfmodel.errors import LayoutError
from perfmodel.layout import Assignment, Rules
from perfmodel.rules import PADDED
from perfmodel.state import unclaimed
from perfmodel.trace import Argument, Program
from perfmodel.trace.program import StableHLO
from perfmodel.trace.stablehlo import PLATFORM, check_version
from perfmodel.verify.constrain import constrain
from perfmodel.verify.mesh import Mesh
from perfmodel.verify.passes import copied
from perfmodel.verify.record import axis_names
from perfmodel.work import RESIZABLE, Number


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A module with shardings on it, for a mesh of abstract devices; `unsaid` activations have none."""

    module: ir.Module
    mesh: Mesh
    unsaid: int


def state_layout(program: Program, assignment: Assignment, sizes: Mapping[str, Number], mesh: Mesh) -> Stated:
    """A program lowered with a layout of it stated, batch dims resized, the vocabulary padded where it must be.

    Raises LayoutError where JAX refuses the layout.
    """
    check_version()
    if isinstance(program.fn, StableHLO):
        raise LayoutError(
            f"{program.name}: got a step that is lowered already, expected a function, which can be lowered again with "
            f"the layout: give package.module:function"
        )
    lowering = _Lowering(program, program.fn, assignment, {name: int(size) for name, size in sizes.items()}, mesh)
    try:
        module = lowering.module()
    except Exception as error:
        raise LayoutError(
            f"{program.name}: got {type(error).__name__} on lowering it with this layout "
            f"({(str(error).splitlines() or [''])[0]}), expected a layout that JAX takes: change it"
        ) from error
    return Stated(module=module, mesh=mesh, unsaid=constrain(module, program, assignment, mesh))


def placed(names: Sequence[str | None], rules: Rules) -> list[tuple[str, ...]]:
    """Mesh axes of each dim of an argument, given by name: earlier rules win, each axis once."""
    taken: set[str] = set()
    given: list[tuple[str, ...]] = [()] * len(names)
    for name, axes in rules:
        for d in (d for d, own in enumerate(names) if own == name):
            won = unclaimed(axes, taken)
            given[d] += won
            taken.update(won)
    return given


class _Lowering:
    """A program, where its arguments lie, and how large the mesh axes are."""

    def __init__(
        self,
        program: Program,
        fn: Callable[..., Any],
        assignment: Assignment,
        sizes: Mapping[str, int],
        mesh: Mesh,
    ) -> None:
        self.program = program
        self.fn = fn
        self.assignment = assignment
        self.sizes = sizes
        self.mesh = mesh

    def module(self) -> ir.Module:
        """The program lowered with its arguments and results placed."""
        mesh = self.mesh.abstract()
        arguments = self.program.arguments
        trees = [_leaves(argument, self.resized) for argument in arguments]
        inputs = {argument.name: _leaves(argument, self.sharding(mesh, argument.role)) for argument in arguments}
        outputs = [inputs[name] for name in self.program.donated]
        rest = jax.eval_shape(self.fn, *trees)[len(outputs) :]
        whole = jax.NamedSharding(mesh, jax.P())
        step = jax.jit(
            self.fn,
            in_shardings=tuple(inputs.values()),
            out_shardings=(*outputs, *jax.tree.map(lambda _: whole, tuple(rest))),
            keep_unused=True,
        )
        return copied(step.trace(*trees).lower(lowering_platforms=(PLATFORM,)).compiler_ir("stablehlo"))

    def resized(self, leaf: Any, names: tuple[str | None, ...]) -> Any:
        """An argument's array as large as the layout asks for."""
        axes = placed(names, self.assignment.compute)
        shape = [self.size(*dim) for dim in zip(names, leaf.shape, axes, strict=True)]
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    def size(self, name: str | None, traced: int, axes: Sequence[str]) -> int:
        if name is not None and name in RESIZABLE:
            return self.sizes[name]
        parts = math.prod(self.sizes[axis] for axis in axes) if name in PADDED else 1
        return math.ceil(traced / parts) * parts

    def sharding(self, mesh: AbstractMesh, role: str) -> Callable[[Any, tuple[str | None, ...]], Any]:
        rules = (*self.assignment.stored.get(role, ()), *self.assignment.compute)

        def make(leaf: Any, names: tuple[str | None, ...]) -> Any:
            return jax.NamedSharding(mesh, jax.P(*map(self.mesh.on, placed(names, rules))))

        return make


def _leaves(argument: Argument, make: Callable[[Any, tuple[str | None, ...]], Any]) -> Any:
    """An argument's tree with each leaf made from its abstract value and axis names."""
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten(argument.tree)
    return structure.unflatten(list(map(make, leaves, axis_names(argument))))
