"""StableHLO files as programs: what a file tells about its arguments, and what is inferred from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jaxlib.mlir import ir

from perfmodel.errors import TraceError
from perfmodel.graph import Graph
from perfmodel.trace.program import Argument, Program, StableHLO
from perfmodel.trace.stablehlo import MAIN, Tensor, argument_attributes, is_array, parse, scope_of, tensor_type

ALIASED, DONATED = "tf.aliasing_output", "jax.buffer_donor"
REMAT = b"rematted_computation"

# Whole words of an argument's path, first match first.
ROLE_WORDS = {
    "optimizer": "opt optimizer opt_state optimizer_state adam momentum moments mu nu trace count",
    "parameters": "params param parameters weights model variables kernel bias embedding",
    "batch": "batch inputs input tokens targets labels data images",
}

NO_PARAMETERS = (
    "no argument of the file is known to be a parameter, by its name or as donated, so that none counts as one: lower "
    "the step with donated arguments, or give them roles in the Program that load_program returns"
)
NO_LOCATIONS = (
    "the file has no locations, so that all of it counts as the forward pass: write it with enable_debug_info=True"
)


def read_program(path: str) -> Program:
    """The step in a StableHLO file or in what `jax.export` wrote.

    An argument is called as its location says (JAX writes `params['w']`), else arg0, arg1...; its role follows from
    words of its name. Without such a word, an argument whose buffer a result takes over is a parameter, any other is
    of no role. No dim has an axis name.

    Raises TraceError for a file that cannot be read.
    """
    try:
        source = StableHLO(path=path, data=Path(path).read_bytes())
    except OSError as error:
        raise TraceError(f"{path}: got {error.strerror}, expected a file that can be read: check the path") from None
    module = parse(source)
    if (function := _entry(module)) is None:
        raise TraceError(f"{path}: got no function named {MAIN}, expected the step under that name: rename it")
    aliases = aliases_of(module)
    (block,) = function.regions[0].blocks
    arrays = enumerate(filter(is_array, block.arguments))
    arguments = tuple(_argument(argument, i, i in aliases) for i, argument in arrays)
    recompute = "full" if REMAT in source.data else "none"
    return Program(name=Path(path).stem, fn=source, arguments=arguments, recompute=recompute)


def _entry(module: ir.Module) -> ir.Operation | None:
    for op in module.body.operations:
        if "sym_name" in op.attributes and ir.StringAttr(op.attributes["sym_name"]).value == MAIN:
            return op.operation
    return None


def _argument(argument: Any, position: int, taken_over: bool) -> Argument:
    shape, dtype = tensor_type(argument)
    name = scope_of(argument.location) or f"arg{position}"
    axes = (None,) * len(shape)
    return Argument(name=name, role=_role(name, taken_over), tree=Tensor(shape, dtype), axes=axes)


def _role(name: str, taken_over: bool) -> str:
    words = set(re.findall(r"[a-z_]+", name.lower()))
    for role, known in ROLE_WORDS.items():
        if words & set(known.split()):
            return role
    return "parameters" if taken_over else "other"


def aliases_of(module: ir.Module) -> dict[int, int]:
    """Array among the arguments -> array among the results that takes over its buffer: as the module says, or the first
    of a donor's type.
    """
    function = _entry(module)
    assert function is not None
    (block,) = function.regions[0].blocks
    taken = zip(block.arguments, argument_attributes(function), strict=True)
    arrays = [(value.type, attributes) for value, attributes in taken if is_array(value)]
    returned = list(block.operations[len(block.operations) - 1].operands)
    results = [value.type for value in returned if is_array(value)]
    aliases = {
        i: sum(map(is_array, returned[: ir.IntegerAttr(attributes[ALIASED]).value]))
        for i, (_, attributes) in enumerate(arrays)
        if ALIASED in attributes
    }
    for i, (type_, attributes) in enumerate(arrays):
        if DONATED in attributes:
            fitting = [r for r, result in enumerate(results) if result == type_ and r not in aliases.values()]
            aliases |= {i: fitting[0]} if fitting else {}
    return aliases


def doubts_of(graph: Graph) -> tuple[str, ...]:
    """What a file left untold, and what to do about it."""
    doubts = []
    if graph.parameters and not any(parameter.role == "parameters" for parameter in graph.parameters):
        doubts.append(NO_PARAMETERS)
    if not any(op.scope for _, op in graph.walk()):
        doubts.append(NO_LOCATIONS)
    return tuple(doubts)
