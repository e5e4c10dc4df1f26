"""What a layout asks of the compiler and the runtime of a machine, against what they take in one graph."""

from __future__ import annotations

import math
from collections.abc import Mapping

from perfmodel.formulas.matmul import steps_of
from perfmodel.kernel import Demand
from perfmodel.machine import Machine
from perfmodel.plan import Plan
from perfmodel.units import format_count
from perfmodel.work import Evaluator, Number

WHAT = {"instructions": " of a rank with all its loops unrolled", "communicators": " sets of groups that communicate"}
REMEDY = {"instructions": "compile layers apart, or raise the limit", "communicators": "use fewer mesh axes"}


def warnings(plan: Plan, sizes: Mapping[str, Number], machine: Machine) -> tuple[str, ...]:
    """What one layout (scalar sizes) asks too much of, in a line each; none of it makes the layout illegal."""
    asked = {"instructions": instructions(plan, sizes, machine), "communicators": float(communicators(plan, sizes))}
    return tuple(
        f"{name}: got about {format_count(asked[name])}{WHAT[name]}, expected at most {format_count(limit)} in a graph "
        f"of {machine.name}: {REMEDY[name]}"
        for name, limit in machine.limits.items()
        if asked[name] > limit
    )


def instructions(plan: Plan, sizes: Mapping[str, Number], machine: Machine) -> float:
    """Instructions of one microbatch and of the update on one rank, loops unrolled: one for each step of each tile of a
    matmul, and for each tile of elementwise results [1].
    """
    evaluate = Evaluator(sizes)
    return sum(float(evaluate.amount(c.times)) * _instructions(c, evaluate, machine) for c in plan.computes)


def _instructions(compute: Demand, evaluate: Evaluator, machine: Machine) -> float:
    tile = machine.matrix.tiles[0]
    rows, columns, depth = tile
    count = 0.0
    if compute.matmul is not None:
        shape = compute.matmul
        m, n, k, batch = (float(evaluate.term(size)) for size in (shape.m, shape.n, shape.k, shape.batch))
        count += min(steps_of(a, b, k, batch, tile) for a, b in ((m, n), (n, m)))
    for (engine, _), flops in compute.flops.items():
        if engine == "tensor" and compute.matmul is not None:
            continue
        each = 2.0 * rows * columns * depth if engine in ("tensor", "attention") else float(rows * columns)
        count += math.ceil(float(evaluate.amount(flops)) / each)
    return count


def communicators(plan: Plan, sizes: Mapping[str, Number]) -> int:
    """Sets of mesh axes that some collective runs over together [1]."""
    spans = {tuple(axis for axis in traffic.axes if float(sizes[axis]) > 1.0) for traffic in plan.traffics}
    return len(spans - {()})
