"""A custom call as one kernel: Pallas, NKI, or any other that is written elsewhere.

What it costs is what the user says (`Hints.kernels`), or what the call says itself, as Pallas kernels with a
`pl.CostEstimate` do. Without a rule it must have its operands whole.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxlib.mlir import ir

from perfmodel.errors import TraceError, told
from perfmodel.graph import Moved
from perfmodel.trace.ops import KINDS
from perfmodel.trace.program import Cost, KernelFunction
from perfmodel.trace.raw import Frame, RawOp, RawWork
from perfmodel.trace.rules import identity_rule
from perfmodel.trace.single import single_op
from perfmodel.trace.stablehlo import Tensor, read_rule, tensor_type
from perfmodel.trace.stated import StatedRule, stated_rule

if TYPE_CHECKING:
    from perfmodel.trace.walk import Walker

KIND = "perfmodel.kernel."
"""How the kinds of such ops start."""

ENGINES = ("tensor", "vector", "scalar", "gpsimd")
BACKEND = "backend_config"
NAMES = ("kernel_name", "func_name", "name")
"""Where the configuration of a call has the name of its kernel: Pallas on TPU, NKI, Triton."""


def custom_op(walker: Walker, op: ir.Operation, target: str, operands: list[int], frame: Frame) -> list[int]:
    """Add a custom call; returns its results.

    Raises TraceError where its cost is not known, or is not what a cost must be.
    """
    config = _config(op)
    name = next((config[key] for key in NAMES if isinstance(config.get(key), str)), target)
    hints = walker.hints
    where = f"{walker.source(op)}: kernel {name!r}"
    function = hints.kernels.get(name, hints.kernels.get(target))
    if function is not None:
        cost = _given(function, op, where)
    elif (estimate := _estimate(config)) is not None:
        cost = estimate
        walker.notes[f"{name}: its FLOPs by its own estimate, all of them the matrix engine's"] = None
    else:
        known = target in hints.costs or target in KINDS
        return single_op(walker, op, target if known else name, operands, frame)
    return walker.add(_raw(walker, op, name, cost, operands, frame, where), frame.out)


def _config(op: ir.Operation) -> dict[str, Any]:
    """What a call says about itself: its name, and the configuration of its backend where that is JSON."""
    found = _texts(op.attributes, (*NAMES, BACKEND))
    if f"mhlo.{BACKEND}" in op.attributes:
        found |= _texts(ir.DictAttr(op.attributes[f"mhlo.{BACKEND}"]), NAMES)
    return {**found, **_parsed(found.get(BACKEND, ""))}


def _texts(attributes: Any, names: Sequence[str]) -> dict[str, str]:
    """The attributes of some names that are text."""
    found = ((name, attributes[name]) for name in names if name in attributes)
    return {name: each.value for name, each in found if isinstance(each, ir.StringAttr)}


def _parsed(text: str) -> dict[str, Any]:
    """A configuration in JSON, in plain or in base 64 as that of NKI; nothing where it is neither."""
    for decode in (str, base64.b64decode):
        try:
            found = json.loads(decode(text))
        except ValueError:
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _estimate(config: Mapping[str, Any]) -> Cost | None:
    """What a Pallas kernel says that it costs, if it says so."""
    try:
        told = config["custom_call_config"]["cost_estimate"]
        flops = {"tensor": float(told["flops"]), "scalar": float(told["transcendentals"])}
        return Cost(flops=flops, bytes=float(told["bytes_accessed"]))
    except (KeyError, TypeError):
        return None


def _given(function: KernelFunction, op: ir.Operation, where: str) -> Cost:
    """The cost of a kernel by the user's function."""
    before, after = (tuple(Tensor(*tensor_type(value)) for value in values) for values in (op.operands, op.results))
    try:
        cost = function(before, after)
    except Exception as error:
        raise TraceError(f"{where}: got {told(error)} from its cost function, expected a Cost: mend it") from error
    if not isinstance(cost, Cost):
        raise TraceError(f"{where}: got {cost!r} from its cost function, expected a perfmodel.Cost: return one")
    if unknown := cost.flops.keys() - set(ENGINES):
        raise TraceError(
            f"{where}: got FLOPs of {', '.join(sorted(unknown))}, expected of {', '.join(ENGINES)}: correct its Cost"
        )
    amounts = {**cost.flops, "bytes": 0.0 if cost.bytes is None else cost.bytes}
    for name, amount in amounts.items():
        if not 0.0 <= amount < math.inf:
            raise TraceError(f"{where}: got {name}={amount}, expected a number from 0: correct its Cost")
    return cost


def _raw(
    walker: Walker, op: ir.Operation, name: str, cost: Cost, operands: list[int], frame: Frame, where: str
) -> RawOp:
    results = walker.results(op, operands)
    before, after = (tuple(walker.shapes[v] for v in values) for values in (operands, results))
    if cost.rule is None:
        rule = read_rule(op) or identity_rule(before, after)
        stated = StatedRule(rule=rule, summed=(rule.reduced,) * len(results), tied=())
    else:
        stated = stated_rule(cost.rule, before, after, where)
    over = stated.spread
    dtype = _dtype(walker, (*operands, *results))
    return RawOp(
        kind=KIND + name,
        operands=operands,
        results=results,
        rule=stated.rule,
        nodes=[walker.space.new(size) for size in stated.rule.sizes],
        summed=list(stated.summed),
        tied=list(stated.tied),
        work=[
            RawWork(engine=engine, flops=float(flops), dtype=dtype, over=over)
            for engine, flops in cost.flops.items()
            if flops
        ],
        moved=None if cost.bytes is None else Moved(float(cost.bytes), over),
        scope=frame.scope,
        source=walker.source(op),
    )


def _dtype(walker: Walker, values: tuple[int, ...]) -> str:
    """What a kernel multiplies in: the type of the first of its largest arrays of numbers that are not whole."""
    floats = [v for v in values if "f" in walker.dtypes[v]] or list(values)
    sizes = [math.prod(walker.shapes[v]) for v in floats]
    return walker.dtypes[floats[sizes.index(max(sizes))]] if floats else "none"
