"""Passes that accelerators' compilers run after partitioning and the partitioners asked here do not, by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, combinations
from typing import Any

from perfmodel.verify.collective import Collective, Instruction
from perfmodel.verify.flow import SHAPES, SILENT, Flow
from perfmodel.work import TP

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
REORDERED = (*SHAPES, "reverse")
"""Ops that leave the same elements on each rank."""
BROADCASTS = ("broadcast_in_dim", "broadcast")
"""What Shardy and XLA call a value that is repeated along dims."""
MOVES = ("all-to-all", "collective-permute")
"""Collectives that leave a value as large as it was."""

MERGED, NARROWED, SLICED, JOINED, SCATTERED, REASSOCIATED, NESTED, IN_PLACE, RANKED, EXCHANGED, SCALED = REWRITES = (
    "equal collectives merged",
    "converts moved before all-gathers",
    "slices taken in parts",
    "all-reduces in a row joined",
    "reduce-scatter creation",
    "all-reduce reassociation",
    "all-reduce reassociation over nested axes",
    "scatters done in place",
    "top_k done in place",
    "idle ranks left idle",
    "scales taken before sums",
)
WHY: Mapping[str, str] = {
    MERGED: "a value moved twice in the same way within one loop body is moved once; gathered, in whatever order",
    NARROWED: "an all-gather of which only a narrower type is used gathers that",
    SLICED: "an all-gather of which slices are used, half of it at most, is a sum of what each rank has of these",
    JOINED: "an all-reduce that only feeds another, over other axes, as a whole or a part of it, is one with it",
    SCATTERED: "an all-reduce of which each rank only keeps its part is a reduce-scatter (and a sum of that part)",
    REASSOCIATED: "reductions of which only the sum is used are one reduction, of the sum",
    NESTED: "a sum over some axes that is only added to sums over more is counted once, and reduced with them",
    IN_PLACE: "a scatter's table that is moved to where the indices lie, and moved back, stays where it is",
    RANKED: "scores gathered for a top_k alone, along another dim than it ranks, are ranked where they are",
    EXCHANGED: (
        "where an axis has no part in a sum, XLA has its ranks sum different parts, and exchanges these; perfmodel has "
        "each rank sum all and keep its own part, by a reduce-scatter"
    ),
    SCALED: "a sum times a broadcast scale is a sum of what was scaled before, as matmuls of narrow types leave it",
}


SLICED_FIRST = ("fsdp", "ep", *TP, "cp", "dp", "pp")
"""Where a compiler does not say along which axes it slices, and several would do: those that store values in parts."""


@dataclass(frozen=True)
class Reduction:
    """An all-reduce, and the axes along which each rank only keeps its part of the result."""

    collective: Collective
    kept: tuple[str, ...]

    @property
    def axes(self) -> frozenset[str]:
        """What it sums over."""
        return frozenset(self.collective.axes)


def collectives_of(
    instructions: Sequence[Instruction], sizes: Mapping[str, int], rewrites: Collection[str] = REWRITES
) -> list[Collective]:
    """The collectives of a program after `rewrites`, with how often each runs."""
    return list(_visit(instructions, sizes, rewrites, 1.0))


def _visit(
    instructions: Sequence[Instruction], sizes: Mapping[str, int], rewrites: Collection[str], times: float
) -> Iterator[Collective]:
    for collective in Body(instructions, sizes, rewrites).collectives():
        yield replace(collective, times=times)
    for instruction in instructions:
        for body, trips in instruction.runs:
            yield from _visit(body, sizes, rewrites, times * trips)


class Body:
    """One loop body of a partitioned program, and its collectives after the given rewrites."""

    def __init__(
        self, instructions: Sequence[Instruction], sizes: Mapping[str, int], rewrites: Collection[str]
    ) -> None:
        flow = Flow(instructions)
        self.flow = Flow([_scaled_before(each, flow) for each in flow]) if SCALED in rewrites else flow
        self.sizes = sizes
        self.rewrites = rewrites

    def collectives(self) -> Iterator[Collective]:
        """Each collective once; how often the body runs is not known here."""
        moves: dict[Any, Collective] = {}
        sums: dict[str, list[Reduction]] = defaultdict(list)
        for instruction in self.flow:
            if instruction.opcode == "all-reduce":
                if self.next_sum(instruction) is None:
                    reduction = self.reduction(instruction)
                    sums[self.end(instruction, reduction)].append(reduction)
            elif instruction.opcode in KINDS and not self.is_detour(instruction):
                moves.setdefault(self.identity(instruction), self.narrowed(instruction))
        yield from moves.values()
        for summands in sums.values():
            yield from self.parts(max(summands, key=lambda each: len(each.axes)), len(summands))

    def is_detour(self, instruction: Instruction) -> bool:
        """Whether a collective could be left out."""
        return instruction.name in self.detours or instruction.name in self.exchanges or self.ranked(instruction)

    def parts(self, reduction: Reduction, summands: int) -> Iterator[Collective]:
        """A reduction of which each rank keeps its part along some axes: a scatter, then a sum of the part."""
        whole = replace(reduction.collective, summands=summands)
        kept = tuple(axis for axis in whole.axes if axis in reduction.kept)
        if kept:
            yield replace(whole, kind="reduce_scatter", axes=kept)
        if rest := tuple(axis for axis in whole.axes if axis not in kept):
            yield replace(whole, axes=rest, bytes=whole.bytes / self._ranks(kept))

    def collective(self, instruction: Instruction) -> Collective:
        """A collective as it stands; a reduce-scatter counts what goes in."""
        scatters = instruction.opcode == "reduce-scatter"
        return Collective(
            kind=instruction.opcode.replace("-", "_"),
            axes=instruction.axes,
            dtype=instruction.dtype,
            bytes=instruction.bytes * (self._ranks(instruction.axes) if scatters else 1),
            name=instruction.label,
        )

    def narrowed(self, instruction: Instruction) -> Collective:
        """A collective, but of an all-gather what is used of it."""
        found = self.collective(instruction)
        if slices := self.slices(instruction):
            return replace(found, kind="all_reduce", bytes=sum(each.bytes for each in slices))
        uses = list(self.flow.uses(instruction, SHAPES)) if NARROWED in self.rewrites else []
        narrow = max((use.bytes for use in uses), default=0.0)
        converts = uses and all(use.opcode == "convert" for use in uses)
        if instruction.opcode == "all-gather" and converts and 0.0 < narrow < found.bytes:
            return replace(found, bytes=narrow, dtype=uses[0].dtype)
        return found

    def slices(self, gather: Instruction) -> Sequence[Instruction]:
        """What uses an all-gather of Shardy's, if only slices along its dims do, which keep half of it at most."""
        uses = self.flow.users[gather.name] if SLICED in self.rewrites and gather.dims else []
        if any(use.opcode != "slice" or not set(gather.dims) <= set(use.dims) for use in uses):
            return ()
        return uses if 2 * sum(use.bytes for use in uses) <= gather.bytes else ()

    def identity(self, instruction: Instruction) -> Any:
        """Equal for collectives that do the same to the same operands."""
        if MERGED not in self.rewrites:
            return instruction.name
        if instruction.opcode == "all-gather":
            part = self.flow.origin(self.flow.operand(instruction), REORDERED)
            return instruction.opcode, part.name, instruction.axes
        return instruction.opcode, instruction.operands, instruction.axes, instruction.detail

    def ranked(self, instruction: Instruction) -> bool:
        """Whether scores are gathered for a top_k alone, which needs no more than those it ranks."""
        if RANKED not in self.rewrites or instruction.opcode != "all-gather" or instruction.minor:
            return False
        return {use.opcode for use in self.flow.uses(instruction)} == {"topk"}

    @cached_property
    def detours(self) -> Collection[str]:
        """Collectives that move a scatter's table, and those that move the result back."""
        scatters = [each for each in self.flow if each.opcode == "scatter" and IN_PLACE in self.rewrites]
        found: set[str] = set()
        for scatter in scatters:
            there = self.moves(self.flow.operand(scatter), self.flow.source)
            back = self.moves(scatter, self.flow.only_use)
            if sorted(map(_movement, there)) == sorted(map(_movement, back)):
                found.update(each.name for each in (*there, *back))
        return found

    def moves(self, value: Instruction, follow: Callable[[Instruction], Instruction | None]) -> list[Instruction]:
        """The collectives that a value only passes through, in one direction."""
        found: list[Instruction] = []
        step: Instruction | None = value if value.opcode != "scatter" else follow(value)
        while step is not None and step.opcode in (*SILENT, *MOVES):
            found += [step] if step.opcode in MOVES else []
            step = follow(step)
        return found

    def _ranks(self, axes: Sequence[str]) -> int:
        return math.prod(self.sizes[axis] for axis in axes)

    # -- reductions -----------------------------------------------------------------------------------------------

    def next_sum(self, instruction: Instruction) -> Instruction | None:
        """The all-reduce, over other axes, that one only feeds, as a whole or a part of it."""
        uses = list(self.flow.uses(instruction)) if JOINED in self.rewrites else []
        if [use.opcode for use in uses] == ["dynamic-slice"]:
            uses = list(self.flow.uses(uses[0]))
        return uses[0] if [use.opcode for use in uses] == ["all-reduce"] else None

    def fed_by(self, instruction: Instruction) -> Instruction | None:
        """The all-reduce that only feeds this one."""
        before = self.flow.origin(self.flow.operand(instruction), (*SILENT, "dynamic-slice"))
        return before if before.opcode == "all-reduce" and self.next_sum(before) is instruction else None

    def exchange(self, instruction: Instruction) -> Instruction | None:
        """The permutation by which ranks, some of them idle in a sum, exchange its parts, if that is its only use."""
        summed = instruction.opcode == "all-reduce" and EXCHANGED in self.rewrites
        uses = list(self.flow.uses(instruction)) if summed else []
        if [use.opcode for use in uses] != ["collective-permute"]:
            return None
        axes, exchanged = set(instruction.axes), set(uses[0].axes)
        return uses[0] if axes & exchanged and exchanged - axes else None

    @cached_property
    def exchanges(self) -> Collection[str]:
        """Collectives that only exchange parts of a sum."""
        found = map(self.exchange, self.flow)
        return {each.name for each in found if each is not None}

    def reduction(self, instruction: Instruction) -> Reduction:
        """An all-reduce with those that only feed it, and what each rank keeps of it."""
        found = self.collective(instruction)
        if (exchange := self.exchange(instruction)) is not None:
            kept = tuple(axis for axis in found.axes if axis in exchange.axes)
            return Reduction(replace(found, bytes=exchange.bytes * self._ranks(kept)), kept)
        before = self.fed_by(instruction)
        if before is None:
            return Reduction(found, self.kept(instruction, found.axes) if SCATTERED in self.rewrites else ())
        first = self.reduction(before)
        whole = replace(first.collective, axes=(*first.collective.axes, *found.axes))
        return Reduction(whole, first.kept or self.kept(instruction, whole.axes) if SCATTERED in self.rewrites else ())

    def kept(self, reduced: Instruction, axes: Sequence[str]) -> tuple[str, ...]:
        """Axes along which each rank only keeps its part of a reduced value."""
        uses = list(self.flow.uses(reduced))
        if not uses or any(use.opcode != "dynamic-slice" for use in uses):
            return ()
        told = {(use.axes, use.elements) for use in uses}
        if len(told) > 1:
            return ()
        ((sliced, elements),) = told
        likely = sorted(self.sizes, key=SLICED_FIRST.index)
        inside, others = [[axis for axis in likely if (axis in axes) is summed] for summed in (True, False)]
        beyond = ((*inside, *more) for more in _subsets(others))
        choices = [sliced] if sliced else chain(_subsets(inside), beyond)
        return next((c for c in choices if elements * self._ranks(c) == reduced.elements), ())

    def end(self, value: Instruction, reduction: Reduction) -> str:
        """The last sum of like reductions that `value`, the result of one, goes into and is only used for."""
        uses = list(self.flow.uses(value)) if REASSOCIATED in self.rewrites else []
        while len(uses) == 1 and self.sums_only(uses[0], reduction):
            (value,) = uses
            uses = list(self.flow.uses(value))
        return value.name

    def like(self, one: Reduction, other: Reduction) -> bool:
        """Whether the sum of both results could be reduced in their place."""
        nested = NESTED in self.rewrites and (one.axes < other.axes or other.axes < one.axes)
        return set(one.kept) == set(other.kept) and (nested or one.axes == other.axes)

    def sums_only(self, value: Instruction, reduction: Reduction) -> bool:
        """Whether a value is a sum of reductions like the given one, each used once, or a part of it."""
        if value.opcode == "all-reduce":
            return self.like(self.reduction(value), reduction)
        if value.opcode == "dynamic-slice" and reduction.kept:
            summands = value.operands[:1]
        else:
            summands = value.operands if value.opcode in ("add", "subtract") else ()
        operands = [self.flow.instructions[name] for name in summands]
        return bool(operands) and all(
            len(list(self.flow.uses(operand))) == 1 and self.sums_only(self.flow.origin(operand), reduction)
            for operand in operands
        )


def _scaled_before(product: Instruction, flow: Flow) -> Instruction:
    """A product of a sum over ranks and a broadcast scale, as an op of the sum alone."""
    if product.opcode != "multiply":
        return product
    origins = {name: flow.origin(flow.instructions[name]).opcode for name in product.operands}
    sums = [name for name, opcode in origins.items() if opcode == "all-reduce"]
    if len(sums) != 1 or not any(opcode in BROADCASTS for opcode in origins.values()):
        return product
    return replace(product, opcode="convert", operands=(sums[0],))


def _movement(instruction: Instruction) -> tuple[str, float]:
    return instruction.opcode, instruction.bytes


def _subsets(axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every choice of some of the axes, few and early ones first."""
    return chain.from_iterable(combinations(axes, count) for count in range(1, len(axes) + 1))
