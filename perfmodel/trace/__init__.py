"""JAX function -> Graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from perfmodel.errors import TraceError
from perfmodel.graph import Graph
from perfmodel.trace.build import finish
from perfmodel.trace.program import ROLES, Argument, Hints, Program
from perfmodel.trace.raw import RawNode
from perfmodel.trace.stablehlo import lower, tensor_type
from perfmodel.trace.walk import Walker

__all__ = ["Argument", "Hints", "Program", "trace"]


def trace(program: Program) -> Graph:
    """Trace a training step into a computation graph; nothing is compiled and no array is allocated.

    Raises TraceError for an op or a loop that is unknown and not hinted at, AxisNameError where two axis names meet.
    """
    leaves = [leaf for argument in program.arguments for leaf in _leaves(argument)]
    module = lower(program)
    walker = Walker(module, program.hints)
    inputs: list[tuple[int, str, str]] = []
    for name, role, struct, axes in leaves:
        value = walker.new_value(tuple(struct.shape), _spelling(walker, module, len(inputs)))
        walker.nodes[value] = [
            walker.space.new(size, axis, f"{name} dim {d}")
            for d, (size, axis) in enumerate(zip(struct.shape, axes, strict=True))
        ]
        inputs.append((value, name, role))
    nodes: list[RawNode] = []
    results = walker.function("main", [value for value, _, _ in inputs], "", nodes)
    aliases = _aliases(program, [name for _, name, _ in inputs])
    parameters = [(value, name, role, aliases.get(i)) for i, (value, name, role) in enumerate(inputs)]
    graph = finish(walker, nodes, parameters, results, name=program.name, recompute=program.recompute)
    return replace(graph, global_batch=program.global_batch or graph.size("batch") * graph.size("microbatch"))


def _leaves(argument: Argument) -> list[tuple[str, str, Any, tuple[str | None, ...]]]:
    """(name, role, abstract value, axis names) of every array in an argument."""
    if argument.role not in ROLES:
        raise TraceError(f"argument {argument.name}: got role {argument.role!r}, expected one of {', '.join(ROLES)}")
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(argument.tree)
    try:
        axes: list[Any] = structure.flatten_up_to(argument.axes)
    except ValueError as error:
        raise TraceError(
            f"argument {argument.name}: axes do not match the tree ({error}): give a tuple of names per array"
        ) from None
    found = []
    for (path, struct), names in zip(paths, axes, strict=True):
        name = argument.name + jax.tree_util.keystr(path)
        names = (None,) * len(struct.shape) if names is None else tuple(names)
        if len(names) != len(struct.shape):
            raise TraceError(
                f"{name}: got {len(names)} axis names {names}, expected {len(struct.shape)}, one for each dim of "
                f"{tuple(struct.shape)}: use None for a dim without a name"
            )
        found.append((name, argument.role, struct, names))
    return found


def _spelling(walker: Walker, module: Any, index: int) -> str:
    (block,) = walker.functions["main"].regions[0].blocks
    return tensor_type(block.arguments[index])[1]


def _aliases(program: Program, names: list[str]) -> dict[int, int]:
    """Parameter position -> result position, for donated arguments: their updates come first, in order."""
    kept = [
        i
        for i, name in enumerate(names)
        for donated in program.donated
        if name == donated or name.startswith((f"{donated}[", f"{donated}."))
    ]
    return {parameter: result for result, parameter in enumerate(kept)}
