"""StableHLO files as programs: what a file tells about its arguments, and what is inferred from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jaxlib.mlir import ir

from perfmodel.errors import TraceError
from perfmodel.trace.program import Argument, Program, StableHLO
from perfmodel.trace.stablehlo import MAIN, Tensor, argument_attributes, parse, scope_of, tensor_type

ALIASED, DONATED = "tf.aliasing_output", "jax.buffer_donor"
REMAT = b"rematted_computation"

# Whole words of an argument's path, first match first.
ROLE_WORDS = {
    "optimizer": "opt optimizer opt_state optimizer_state adam momentum moments mu nu trace count",
    "parameters": "params param parameters weights model variables kernel bias embedding",
    "batch": "batch inputs input tokens targets labels data images",
}


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
    arguments = [_argument(argument, i, i in aliases) for i, argument in enumerate(block.arguments)]
    recompute = "full" if REMAT in source.data else "none"
    return Program(name=Path(path).stem, fn=source, arguments=tuple(arguments), recompute=recompute)


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
    """Argument position -> result that takes over its buffer: as the module says, or the first of a donor's type."""
    function = _entry(module)
    assert function is not None
    (block,) = function.regions[0].blocks
    attributes = argument_attributes(function)
    aliases = {i: ir.IntegerAttr(each[ALIASED]).value for i, each in enumerate(attributes) if ALIASED in each}
    results = [value.type for value in block.operations[len(block.operations) - 1].operands]
    for i, each in enumerate(attributes):
        if DONATED in each:
            taken = aliases.values()
            fitting = [r for r, type_ in enumerate(results) if type_ == block.arguments[i].type and r not in taken]
            aliases |= {i: fitting[0]} if fitting else {}
    return aliases
