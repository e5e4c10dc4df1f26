"""A program with a layout stated to a compiler, as users state theirs: shardings of arguments and results, and a
sharding constraint on every activation, each where the assignment says (no compiler is asked to guess activations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxlib.mlir import ir

from perfmodel.errors import LayoutError, TraceError, told
from perfmodel.graph import Dim, Graph, Parameter
from perfmodel.layout import Assignment
from perfmodel.placement import Placement
from perfmodel.rules import PADDED
from perfmodel.state import Axes
from perfmodel.trace import Program
from perfmodel.trace.program import StableHLO
from perfmodel.trace.stablehlo import check_version, on_platform
from perfmodel.verify.constrain import constrain
from perfmodel.verify.mesh import Mesh
from perfmodel.verify.passes import copied
from perfmodel.work import RESIZABLE, Number


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A module with shardings on it, for a mesh of abstract devices; `unsaid` activations have none."""

    module: ir.Module
    mesh: Mesh
    unsaid: int


def step_of(program: Program) -> Callable[..., Any]:
    """The function of a program, which can be lowered again; raises LayoutError for one that is lowered already."""
    if isinstance(program.fn, StableHLO):
        raise LayoutError(
            f"{program.name}: got a step that is lowered already, expected a function, since a layout is stated to a "
            f"compiler while it is lowered: give package.module:function"
        )
    return program.fn


def state_layout(
    program: Program,
    graph: Graph,
    assignment: Assignment,
    sizes: Mapping[str, Number],
    mesh: Mesh,
    *,
    donated: bool = False,
) -> Stated:
    """A program, traced to `graph`, lowered with a layout of it stated, batch dims resized, the vocabulary padded where
    it must be; what it donates matters to memory only.

    Raises LayoutError where JAX refuses the layout, TraceError where the program takes no arrays of these sizes.
    """
    check_version()
    lowering = _Lowering(program, graph, assignment, {name: int(n) for name, n in sizes.items()}, mesh)
    names = program.donated if donated else ()
    module = lowering.module([i for i, argument in enumerate(program.arguments) if argument.name in names])
    return Stated(module=module, mesh=mesh, unsaid=constrain(module, program, assignment, mesh))


class _Lowering:
    """A program, where its arguments lie, and how large the mesh axes are."""

    def __init__(
        self, program: Program, graph: Graph, assignment: Assignment, sizes: Mapping[str, int], mesh: Mesh
    ) -> None:
        self.program = program
        self.graph = graph
        self.place = Placement(graph, assignment)
        self.sizes = sizes
        self.mesh = mesh
        self.abstract = mesh.abstract()

    def module(self, donated: Sequence[int]) -> ir.Module:
        """The program lowered with its arguments and results placed, some of the arguments donated."""
        fn, trees = step_of(self.program), self.arguments(self.resized)
        placed = {"in_shardings": self.arguments(self.placed), "out_shardings": self.results(fn, trees)}
        try:
            lowered = on_platform(jax.jit(fn, **placed, keep_unused=True, donate_argnums=donated).trace(*trees))
        except ValueError as error:  # JAX's word for a sharding that does not fit an array
            raise LayoutError(
                f"{self.program.name}: got {told(error)} on lowering it with this layout, expected a layout that JAX "
                f"takes: change it"
            ) from error
        return copied(lowered.compiler_ir("stablehlo"))

    def arguments(self, make: Callable[[Any, Parameter], Any]) -> tuple[Any, ...]:
        """Trees as those of the arguments, each leaf made from its abstract value and what it was traced to."""
        parameters = iter(self.graph.parameters)
        return tuple(
            jax.tree.map(lambda leaf: make(leaf, next(parameters)), argument.tree)
            for argument in self.program.arguments
        )

    def results(self, fn: Callable[..., Any], trees: Sequence[Any]) -> Any:
        """Shardings of the results, as perfmodel leaves them: where the arguments lie that they take the place of, else
        where they are computed.
        """
        try:
            shapes = jax.eval_shape(fn, *trees)
        except Exception as error:  # whatever a user's code raises
            raise TraceError(
                f"{self.program.name}: got {told(error)} for arrays as large as the layout asks for, expected a step "
                f"that takes any number of sequences: read sizes from its arguments"
            ) from error
        roles = {each.alias: each.role for each in self.graph.parameters}
        placed = [self.sharding(value, roles.get(i)) for i, value in enumerate(self.graph.results)]
        return jax.tree.unflatten(jax.tree.structure(shapes), placed)

    def resized(self, leaf: Any, parameter: Parameter) -> Any:
        """An argument's array as large as the layout asks for."""
        dims = self.graph.values[parameter.value].dims
        axes = self.place.resting_state(parameter.value).dims
        return jax.ShapeDtypeStruct([self.size(*each) for each in zip(leaf.shape, dims, axes, strict=True)], leaf.dtype)

    def size(self, traced: int, dim: Dim, axes: Sequence[Axes]) -> int:
        factors = [self.graph.factors[f] for f in dim]
        for factor in factors:
            if factor.name is not None and factor.name in RESIZABLE:
                traced = traced * self.sizes[factor.name] // factor.named_size
        padded = [own for factor, own in zip(factors, axes, strict=True) if factor.name in PADDED]
        parts = math.prod(self.sizes[axis] for own in padded for axis in own)
        return math.ceil(traced / parts) * parts

    def placed(self, _: Any, parameter: Parameter) -> jax.NamedSharding:
        """Where an argument's array lies."""
        return self.sharding(parameter.value, parameter.role)

    def sharding(self, value: int, role: str | None) -> jax.NamedSharding:
        """Where a value rests that is kept as `role`."""
        state = self.place.resting_state(value, role)
        dims = (tuple(axis for axes in dim for axis in axes) for dim in state.dims)
        return jax.NamedSharding(self.abstract, jax.P(*map(self.mesh.on, dims)))
