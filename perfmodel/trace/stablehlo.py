"""The one door to JAX's private parts: lowering to StableHLO and reading what Shardy says about each op."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.interpreters.mlir import make_ir_context
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import sdy, stablehlo

from perfmodel.errors import PerfModelError, TraceError, told
from perfmodel.graph import DTYPE_BYTES
from perfmodel.trace.donated import check_results
from perfmodel.trace.program import Program, StableHLO

TESTED = ((0, 10, 1), (0, 11, 0))  # from, below
RULES = "builtin.module(inline,symbol-dce,func.func(sdy-populate-op-sharding-rules))"
# A platform on which JAX keeps ragged matmuls and Pallas kernels whole; nothing is compiled for it.
PLATFORM = "tpu"

MAIN, TOKEN = "main", "none"
BYTECODE, PORTABLE, PRODUCER = b"ML\xefR", b"StableHLO_v", 32
"""How MLIR bytecode starts, and the producer that a portable artifact names within so many bytes."""

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
MODELS, COMMANDS = (os.path.join(PACKAGE, name, "") for name in ("models", "cli"))
"""Where our own frames lie; those of `MODELS` are a program's, what calls `COMMANDS` is none."""
FILE = re.compile(r'"([^"]+)":(\d+):\d+')
TEXT = "-"
"""How MLIR calls text that it reads a module from, for ops without a location."""


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
    module = parse(program.fn) if isinstance(program.fn, StableHLO) else _lowered(program, program.fn)
    with module.context:
        passmanager.PassManager.parse(RULES).run(module.operation)
    return module


def _lowered(program: Program, fn: Callable[..., Any]) -> ir.Module:
    trees = [argument.tree for argument in program.arguments]
    donated = [i for i, argument in enumerate(program.arguments) if argument.name in program.donated]
    try:
        traced = jax.jit(fn, donate_argnums=donated, keep_unused=True).trace(*trees)
    except PerfModelError:
        raise
    except Exception as error:
        raise TraceError(
            f"{program.name}: got {told(error)}, expected a step that JAX can trace with these arguments: mend it"
        ) from error
    check_results(program, jax.tree.leaves(traced.out_info))
    try:
        return on_platform(traced).compiler_ir("stablehlo")
    except Exception as error:  # such as what Pallas has against a kernel
        raise TraceError(
            f"{program.name}: got {told(error)}, expected a step that JAX can lower for {PLATFORM}: mend it"
        ) from error


def on_platform(traced: Any) -> Any:
    """Lowered for `PLATFORM`; what calls back to Python (`jax.debug.print`) only lowers for the backend at hand."""
    try:
        return traced.lower(lowering_platforms=(PLATFORM,))
    except ValueError as error:
        if "lowering platform" not in str(error):
            raise
        return traced.lower(lowering_platforms=(jax.default_backend(),))  # told, since a mesh may have no devices


def parse(source: StableHLO) -> ir.Module:
    """The module in a file: StableHLO as text or bytecode, a portable artifact, or what `jax.export` serialises.

    Raises TraceError for anything else.
    """
    data = source.data
    if not data.startswith(BYTECODE) and not _is_text(data):
        data = _exported(source)
    context = make_ir_context()
    try:
        if PORTABLE in data[:PRODUCER]:
            return stablehlo.deserialize_portable_artifact(context, data)
        return ir.Module.parse(data if data.startswith(BYTECODE) else data.decode(), context=context)
    except Exception as error:  # MLIR's errors have no base class of their own
        lines = [line.strip() for line in str(error).splitlines()]
        said = next((line for line in lines if line.startswith("error:")), "bytecode of another version")
        raise _unreadable(source, said.removeprefix("error: ")) from None


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _exported(source: StableHLO) -> bytes:
    """The portable artifact in what `jax.export` serialises."""
    from jax import export  # these files only

    try:
        return bytes(export.deserialize(bytearray(source.data)).mlir_module_serialized)
    except ImportError:
        raise TraceError(
            f"{source.path}: got a file of jax.export, which JAX reads with flatbuffers: install it"
        ) from None
    except Exception:  # whatever flatbuffers makes of other bytes
        raise _unreadable(source, f"{len(source.data)} bytes of no known form") from None


def _unreadable(source: StableHLO, got: str) -> TraceError:
    return TraceError(
        f"{source.path}: got {got}, expected StableHLO (text, bytecode or portable artifact) or what jax.export "
        f"serialises: check the file"
    )


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


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and element type of an array, as StableHLO spells it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> float:
        """Its size [B]."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def is_array(value: Any) -> bool:
    """Whether a value is an array, and not a token, which orders side effects, or a tuple."""
    return isinstance(value.type, ir.RankedTensorType)


def tensor_type(value: Any) -> tuple[tuple[int, ...], str]:
    """Shape and element type of a value; a token or tuple has shape () and type `TOKEN`."""
    if not is_array(value):
        return (), TOKEN
    shape = tuple(value.type.shape)
    if any(size < 0 for size in shape):
        raise TraceError(f"program: got a dynamic shape {value.type}, expected static shapes: fix the sizes")
    return shape, str(value.type.element_type)


def argument_attributes(function: ir.Operation) -> list[Any]:
    """What a function says about each of its arguments, by name."""
    (block,) = function.regions[0].blocks
    if "arg_attrs" not in function.attributes:
        return [{}] * len(block.arguments)
    return [ir.DictAttr(each) for each in ir.ArrayAttr(function.attributes["arg_attrs"])]


def scope_of(location: ir.Location) -> str:
    """JAX's name stack for an op, such as `transpose(jvp())/dot_general`."""
    return location.name_str if isinstance(location, ir.NameLoc) else ""


def line_of(location: ir.Location) -> str | None:
    """`path/of/file.py:line` of the innermost frame of the program that a location knows, or of what had it traced.

    None where there is neither. An op of StableHLO text without locations is told by its line there.
    """
    for frame in FILE.finditer(str(location)):
        if not frame[1].startswith(PACKAGE) or frame[1].startswith(MODELS):
            return f"line {frame[2]}" if frame[1] == TEXT else f"{frame[1]}:{frame[2]}"
        if frame[1].startswith(COMMANDS):
            return None
    return None


def multiplied_in(op: ir.Operation) -> str | None:
    """The type in which a matmul is asked to multiply, where that is another than its operands are in, as `tf32`."""
    if "algorithm" not in op.attributes:
        return None
    return str(stablehlo.DotAlgorithm(op.attributes["algorithm"]).lhs_precision_type)


def splat(op: ir.Operation) -> float | None:
    """The one number a constant holds, or None if it holds several."""
    try:
        match = re.match(r"dense<([^\[\]\">]+)>", str(op.attributes["value"]))
        return float(match[1]) if match and not match[1].startswith("0x") else None
    except (TypeError, ValueError):  # MLIR's bindings can't read complex constants
        return None
