"""A program with a layout stated to a compiler, as users state theirs: shardings of arguments and results, and a
sharding constraint on every activation, each where the assignment says (no compiler is asked to guess activations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jaxlib.mlir import ir

from perfmodel.errors import LayoutError
from perfmodel.graph import Dim, Graph, Parameter
from perfmodel.layout import Assignment
from perfmodel.placement import Placement
from perfmodel.rules import PADDED
from perfmodel.state import Axes
from perfmodel.trace import Argument, Program
from perfmodel.trace.program import StableHLO
from perfmodel.trace.stablehlo import PLATFORM, check_version
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


def state_layout(
    program: Program, graph: Graph, assignment: Assignment, sizes: Mapping[str, Number], mesh: Mesh
) -> Stated:
    """A program, traced to `graph`, lowered with a layout of it stated, batch dims resized, the vocabulary padded where
    it must be.

    Raises LayoutError where JAX refuses the layout.
    """
    check_version()
    if isinstance(program.fn, StableHLO):
        raise LayoutError(
            f"{program.name}: got a step that is lowered already, expected a function, which can be lowered again with "
            f"the layout: give package.module:function"
        )
    lowering = _Lowering(program, program.fn, graph, assignment, {name: int(n) for name, n in sizes.items()}, mesh)
    try:
        module = lowering.module()
    except Exception as error:
        raise LayoutError(
            f"{program.name}: got {type(error).__name__} on lowering it with this layout "
            f"({(str(error).splitlines() or [''])[0]}), expected a layout that JAX takes: change it"
        ) from error
    return Stated(module=module, mesh=mesh, unsaid=constrain(module, program, assignment, mesh))


class _Lowering:
    """A program, where its arguments lie, and how large the mesh axes are."""

    def __init__(
        self,
        program: Program,
        fn: Callable[..., Any],
        graph: Graph,
        assignment: Assignment,
        sizes: Mapping[str, int],
        mesh: Mesh,
    ) -> None:
        self.program = program
        self.fn = fn
        self.graph = graph
        self.place = Placement(graph, assignment)
        self.sizes = sizes
        self.mesh = mesh

    def module(self) -> ir.Module:
        """The program lowered with its arguments and results placed."""
        mesh = self.mesh.abstract()
        arguments, parameters = self.program.arguments, iter(self.graph.parameters)
        own = {each.name: list(islice(parameters, len(jax.tree.leaves(each.tree)))) for each in arguments}
        trees = [_leaves(each, own[each.name], self.resized) for each in arguments]
        inputs = {each.name: _leaves(each, own[each.name], self.sharding(mesh)) for each in arguments}
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

    def sharding(self, mesh: AbstractMesh) -> Callable[[Any, Parameter], Any]:
        def make(_: Any, parameter: Parameter) -> Any:
            state = self.place.resting_state(parameter.value, parameter.role)
            dims = (tuple(axis for axes in dim for axis in axes) for dim in state.dims)
            return jax.NamedSharding(mesh, jax.P(*map(self.mesh.on, dims)))

        return make


def _leaves(argument: Argument, parameters: Sequence[Parameter], make: Callable[[Any, Parameter], Any]) -> Any:
    """An argument's tree with each leaf made from its abstract value and what it was traced to."""
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten(argument.tree)
    return structure.unflatten(list(map(make, leaves, parameters)))
