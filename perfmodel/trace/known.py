"""What a trace knows about values beside their shapes: which hold one number or zero, which follow a loop's counter."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxlib.mlir import ir

from perfmodel.trace.ops import Shape
from perfmodel.trace.raw import RawOp
from perfmodel.trace.stablehlo import splat

HANDS_ZERO_ON = ("broadcast_in_dim", "convert", "reshape", "sharding_constraint")


@dataclass(slots=True)
class Known:
    """Values by what is known about them.

    uniform:  hold one number throughout
    constant: written in the program
    zero:     hold zero throughout
    counters: scalar that follows a loop's counter -> trip node of that loop
    """

    uniform: set[int] = field(default_factory=set)
    constant: set[int] = field(default_factory=set)
    zero: set[int] = field(default_factory=set)
    counters: dict[int, int] = field(default_factory=dict)

    def track(self, op: ir.Operation, raw: RawOp, shape: Shape) -> None:
        """Learn what an op tells about its first result, of `shape`; an op that makes zeros is called that."""
        result = raw.results[0]
        if raw.kind == "constant":
            self._written(result, splat(op))
        elif shape == () and raw.operands:
            self._count(result, raw.operands)
        if shape == () or (raw.operands and all(v in self.uniform for v in raw.operands)):
            self.uniform.add(result)
        self.hand_on(raw)

    def hand_on(self, raw: RawOp) -> None:
        """An op that only moves zeros makes zeros."""
        (result, *_), first = raw.results, next(iter(raw.operands), None)
        if raw.kind in HANDS_ZERO_ON and first in self.zero:
            self.zero.add(result)
        if result in self.zero:
            raw.kind = "zeros"

    def _written(self, value: int, number: float | None) -> None:
        self.constant.add(value)
        if number is not None:
            self.uniform.add(value)
        if number == 0.0:
            self.zero.add(value)

    def _count(self, value: int, operands: list[int]) -> None:
        loops = {self.counters[v] for v in operands if v in self.counters}
        rest = [v for v in operands if v not in self.counters]
        if len(loops) == 1 and all(v in self.constant for v in rest):
            self.counters[value] = loops.pop()
