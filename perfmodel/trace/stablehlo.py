"""The one door to JAX's private parts: lowering to StableHLO and reading what Shardy says about each op."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import sdy

from perfmodel.errors import TraceError
from perfmodel.trace.program import Program

TESTED = ((0, 10, 1), (0, 11, 0))  # from, below
RULES = "builtin.module(inline,symbol-dce,func.func(sdy-populate-op-sharding-rules))"
# A platform on which JAX keeps ragged matmuls and Pallas kernels whole; nothing is compiled for it.
PLATFORM = "tpu"

FILE = re.compile(r'"([^"]+)":(\d+):\d+')


def check_version(version: str = jax.__version__) -> None:
    """Raise TraceError unless `version` of JAX is in the tested range."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    low, high = TESTED
    if not low <= numbers < high:
        expected = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        raise TraceError(
            f"jax: got version {version}, expected {expected} (the range this release was tested with): "
            f"pip install 'jax{expected}'"
        )


def lower(program: Program) -> ir.Module:
    """StableHLO of a program, each op annotated with its sharding rule; no array is ever allocated."""
    check_version()
    trees = [argument.tree for argument in program.arguments]
    donated = [i for i, argument in enumerate(program.arguments) if argument.name in program.donated]
    traced = jax.jit(program.fn, donate_argnums=donated, keep_unused=True).trace(*trees)
    module = traced.lower(lowering_platforms=(PLATFORM,)).compiler_ir("stablehlo")
    with module.context:
        passmanager.PassManager.parse(RULES).run(module.operation)
    return module


@dataclass(frozen=True, slots=True)
class Rule:
    """Factors of one op: sizes, the factors of each operand's and result's dims, and which of them are special."""

    sizes: tuple[int, ...]
    operands: tuple[tuple[tuple[int, ...], ...], ...]
    results: tuple[tuple[tuple[int, ...], ...], ...]
    reduced: tuple[int, ...] = ()
    blocked: tuple[int, ...] = ()


def read_rule(op: ir.Operation) -> Rule | None:
    """The sharding rule that Shardy gave an op, or None."""
    if "sdy.sharding_rule" not in op.attributes:
        return None
    attribute = sdy.OpShardingRuleAttr(op.attributes["sdy.sharding_rule"])
    return Rule(
        sizes=tuple(attribute.factor_sizes),
        operands=_mappings(attribute.operand_mappings),
        results=_mappings(attribute.result_mappings),
        reduced=tuple(attribute.reduction_factors),
        blocked=(*attribute.need_replication_factors, *attribute.permutation_factors),
    )


def _mappings(tensors: Sequence[Any]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(
        tuple(tuple(sdy.DimMappingAttr(dim).factor_indices) for dim in sdy.TensorMappingAttr(tensor).dim_mappings)
        for tensor in tensors
    )


def tensor_type(value: Any) -> tuple[tuple[int, ...], str]:
    """Shape and element type of a value; a token or tuple has shape () and type "none"."""
    if not isinstance(value.type, ir.RankedTensorType):
        return (), "none"
    shape = tuple(value.type.shape)
    if any(size < 0 for size in shape):
        raise TraceError(f"program: got a dynamic shape {value.type}, expected static shapes: fix the sizes")
    return shape, str(value.type.element_type)


def scope_of(location: ir.Location) -> str:
    """JAX's name stack for an op, such as `transpose(jvp())/dot_general`."""
    return location.name_str if isinstance(location, ir.NameLoc) else ""


def source_of(location: ir.Location) -> str:
    """`file.py:line` of the innermost frame that a location knows, or "?"."""
    match = FILE.search(str(location))
    return f"{match[1].rsplit('/', 1)[-1]}:{match[2]}" if match else "?"


def splat(op: ir.Operation) -> float | None:
    """The one number a constant holds, or None if it holds several."""
    match = re.match(r"dense<([^\[\]\">]+)>", str(op.attributes["value"]))
    try:
        return float(match[1]) if match and not match[1].startswith("0x") else None
    except ValueError:
        return None
