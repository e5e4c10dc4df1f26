"""What the values of one loop body are made from and what uses them, seen through ops that only change their shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

from perfmodel.verify.collective import Instruction

SHAPES = ("reshape", "bitcast", "copy", "transpose")
SILENT = (*SHAPES, "convert")
"""Ops through which a value is followed to what uses it."""


class Flow:
    """The instructions of a body by name, and the ways between them."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = {instruction.name: instruction for instruction in instructions}

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """Who uses each instruction."""
        found: defaultdict[str, list[Instruction]] = defaultdict(list)
        for instruction in self:
            for name in dict.fromkeys(instruction.operands):
                found[name].append(instruction)
        return found

    def operand(self, value: Instruction) -> Instruction:
        """What a value is made from, by an op whose first operand it is."""
        return self.instructions[value.operands[0]]

    def source(self, value: Instruction) -> Instruction | None:
        """What a value is made from, by an op of one operand."""
        return self.operand(value) if len(value.operands) == 1 else None

    def only_use(self, value: Instruction) -> Instruction | None:
        """What uses a value, if there is only one."""
        return self.users[value.name][0] if len(self.users[value.name]) == 1 else None

    def uses(self, value: Instruction, through: Collection[str] = SILENT) -> Iterator[Instruction]:
        """What uses a value, looking through ops that do not change it."""
        for user in self.users[value.name]:
            if user.opcode in through:
                yield from self.uses(user, through)
            else:
                yield user

    def origin(self, value: Instruction, through: Collection[str] = SILENT) -> Instruction:
        """A value, looking back through ops that do not change it."""
        while value.opcode in through:
            value = self.operand(value)
        return value
