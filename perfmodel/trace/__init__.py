"""JAX function or StableHLO file -> Graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from perfmodel.errors import TraceError
from perfmodel.graph import Graph
from perfmodel.trace.build import finish
from perfmodel.trace.donated import check_names, taken_over
from perfmodel.trace.leaves import Leaf, leaves_of
from perfmodel.trace.naming import named, read_mesh_axes, read_names
from perfmodel.trace.program import Argument, Cost, Hints, Program, StableHLO
from perfmodel.trace.raw import RawNode
from perfmodel.trace.source import aliases_of, doubts_of, read_program
from perfmodel.trace.stablehlo import MAIN, TOKEN, argument_attributes, is_array, lower, tensor_type
from perfmodel.trace.walk import Walker

SHARDING = "sdy.sharding"

__all__ = ["Argument", "Cost", "Hints", "Program", "named", "read_mesh_axes", "read_names", "read_program", "trace"]


def trace(program: Program) -> Graph:
    """Trace a training step into a computation graph; nothing is compiled and no array is allocated.

    Raises TraceError for an op or a loop that is unknown and not hinted at, for donated arguments that no result takes
    over, or where dims named batch (or microbatch) differ in size; AxisNameError where two axis names meet.
    """
    check_names(program)
    leaves = [leaf for argument in program.arguments for leaf in leaves_of(argument)]
    module = lower(program)
    walker = Walker(module, program.hints)
    walker.mesh.check()
    inputs = _inputs(walker, leaves)
    if placed := sum(SHARDING in each for each in argument_attributes(walker.functions[MAIN])):
        walker.notes[f"shardings of {placed} arguments are left to the layout"] = None
    nodes: list[RawNode] = []
    results = _arrays(walker, walker.function(MAIN, inputs, "", nodes))
    aliases = aliases_of(module) if isinstance(program.fn, StableHLO) else taken_over(program)
    parameters = [
        (value, leaf.name, leaf.role, aliases.get(i))
        for i, (value, leaf) in enumerate(zip(_arrays(walker, inputs), leaves, strict=True))
    ]
    graph = finish(walker, nodes, parameters, results, name=program.name, recompute=program.recompute)
    doubts = doubts_of(graph) if isinstance(program.fn, StableHLO) else ()
    batch = [_size(leaves, name) for name in ("batch", "microbatch")]
    return replace(graph, global_batch=program.global_batch or batch[0] * batch[1], notes=(*graph.notes, *doubts))


def _inputs(walker: Walker, leaves: Sequence[Leaf]) -> list[int]:
    """Values for what the main function takes: arrays, their dims named, and tokens, which nobody gives it."""
    (block,) = walker.functions[MAIN].regions[0].blocks
    arrays = iter(leaves)
    return [
        _input(walker, next(arrays), tensor_type(each)[1]) if is_array(each) else walker.new_value((), TOKEN)
        for each in block.arguments
    ]


def _input(walker: Walker, leaf: Leaf, dtype: str) -> int:
    """The value of an argument, its dims named."""
    value = walker.new_value(leaf.shape, dtype)
    named = enumerate(zip(leaf.shape, leaf.axes, strict=True))
    walker.nodes[value] = [walker.space.new(size, axis, f"{leaf.path}.{d}") for d, (size, axis) in named]
    return value


def _arrays(walker: Walker, values: Sequence[int]) -> list[int]:
    return [value for value in values if walker.dtypes[value] != TOKEN]


def _size(leaves: Sequence[Leaf], name: str) -> int:
    """The size of the dims of arguments with an axis name, 1 if there is none.

    Raises TraceError where they differ: a layout resizes them all alike.
    """
    named = ((size, leaf) for leaf in leaves for size, axis in zip(leaf.shape, leaf.axes, strict=True) if axis == name)
    sizes = {size: leaf.name for size, leaf in named if size > 1}
    if len(sizes) > 1:
        found = ", ".join(f"{size} in {where}" for size, where in sorted(sizes.items()))
        raise TraceError(
            f"axis name {name}: got {found}, expected one size, since a layout chooses it: rename the others"
        )
    return next(iter(sizes), 1)
