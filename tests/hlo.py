"""The collectives of a partitioned HLO module: what devices each spans, how many bytes, how often a step runs it."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Devices: TypeAlias = NDArray[np.int64]

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
INSTRUCTION = re.compile(r"(?:ROOT )?%?[\w.\-]+ = (?P<result>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\(")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
GROUPS = re.compile(
    r"(?:replica_groups|source_target_pairs)="
    r"(?:(?P<iota>\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)|(?P<listed>\{\{[\d,{} ]*\}\})"
    r"|mesh\[(?P<mesh>[^\]]*)\](?:, ?device_ids=\((?P<order>\[[\d,]+\](?:T\([\d,]+\))?)\))? ?\{(?P<over>[^}]*)\})"
)
IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
SUB_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
SILENT = ("reshape", "bitcast", "copy", "transpose", "convert")
"""Ops through which a value is followed to what uses it."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """A collective of a step: `bytes` on each rank as in `perfmodel.shard.Reshard`, and how many `times` it runs.

    `summands` collectives were merged into this one, because only their sum (or difference) is used.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: float
    name: str
    times: float = 1.0
    summands: int = 1


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]


def device_groups(text: str) -> list[list[int]]:
    """The groups of devices of a collective, in any of the notations of HLO text."""
    match = GROUPS.search(text)
    assert match is not None, text
    if match["listed"]:
        return [_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", match["listed"])]
    if match["mesh"]:
        return _mesh_groups(match["mesh"], match["order"], match["over"])
    shape, counted, order = IOTA.findall(match["iota"])[0]
    return _lists(_turned(_numbers(counted), order).reshape(_numbers(shape)))


def _lists(devices: Devices) -> list[list[int]]:
    return [[int(device) for device in group] for group in devices]


def _turned(shape: Sequence[int], order: str) -> Devices:
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose(_numbers(order)) if order else devices


def _mesh_groups(mesh: str, order: str | None, over: str) -> list[list[int]]:
    """Groups over axes, or over parts `'a':(before)size` of axes, of a mesh `'a'=2,'b'=4` of devices in some order."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts = [(name, int(before or 1), int(size or sizes[name])) for name, before, size in SUB_AXIS.findall(over)]
    shape: list[int] = []
    inside: list[bool] = []
    for name, size in sizes.items():
        mine = [(before, before * part) for owner, before, part in parts if owner == name]
        for low, high in itertools.pairwise(sorted({1, size, *itertools.chain(*mine)})):
            shape.append(high // low)
            inside.append(any(start <= low and high <= end for start, end in mine))
    devices = np.arange(math.prod(shape))
    if order is not None:
        counted, _, turned = IOTA.findall(order)[0]
        devices = _turned(_numbers(counted), turned)
    axes = sorted(range(len(shape)), key=lambda i: inside[i])
    size = math.prod(length for length, is_inside in zip(shape, inside, strict=True) if is_inside)
    return _lists(devices.reshape(shape).transpose(axes).reshape(-1, size))


def axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which groups of devices vary."""
    places = np.stack(np.unravel_index(np.asarray(groups), tuple(mesh.values())))
    varies = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, along in zip(mesh, varies, strict=True) if along)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """An instruction of an HLO computation; operands and users by name."""

    name: str
    opcode: str
    dtype: str
    elements: int
    bytes: float
    operands: tuple[str, ...]
    users: tuple[str, ...]
    text: str


def read_instruction(raw: Any) -> Instruction:
    """An instruction read off its text."""
    text = raw.to_string()
    match = INSTRUCTION.match(text)
    assert match is not None, text
    arrays = [(dtype, math.prod(_numbers(dims))) for dtype, dims in ARRAY.findall(match["result"])]
    return Instruction(
        name=raw.name,
        opcode=match["opcode"],
        dtype=arrays[0][0] if arrays else "",
        elements=sum(size for _, size in arrays),
        bytes=float(sum(BYTES.get(dtype, 0) * size for dtype, size in arrays)),
        operands=tuple(operand.name for operand in raw.operands()),
        users=tuple(user.name for user in raw.users()),
        text=text,
    )


def read_module(module: Any, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a partitioned module over the devices of a mesh, with how often each runs."""
    bodies = {
        computation.name: Body([read_instruction(raw) for raw in computation.instructions()], mesh)
        for computation in module.computations()
    }

    def visit(body: Body, times: float) -> Iterator[Collective]:
        for collective in body.collectives():
            yield replace(collective, times=times)
        for instruction in body.instructions.values():
            for name, trips in called(instruction):
                yield from visit(bodies[name], times * trips)

    entry = re.search(r"^ENTRY %?([\w.\-]+)", module.to_string(), re.MULTILINE)
    assert entry is not None
    return list(visit(bodies[entry[1]], 1.0))


def called(instruction: Instruction) -> list[tuple[str, int]]:
    """Computations that an instruction runs, and how often."""
    if instruction.opcode in ("call", "fusion"):
        return [(name, 1) for name in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", instruction.text)]
    if instruction.opcode != "while":
        return []
    trips = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.text)
    assert trips is not None, f"a loop of unknown trip count: {instruction.text}"
    return [(name, int(trips[1])) for name in re.findall(r"body=%?([\w.\-]+)", instruction.text)]


class Body:
    """The collectives of one computation, after rewrites that accelerators' pipelines make and the CPU's lacks.

    - all-gathers of one value over one set of groups are one (the CPU's pipeline tells them apart by their channels);
    - an all-reduce that only feeds another is one with it;
    - an all-reduce of which each device only keeps its part is a reduce-scatter (reduce-scatter-creator);
    - reductions of which only the sum is needed are one reduction, of the sum (all-reduce-reassociate).
    """

    def __init__(self, instructions: Sequence[Instruction], mesh: Mapping[str, int]) -> None:
        self.instructions = {instruction.name: instruction for instruction in instructions}
        self.mesh = mesh

    def collectives(self) -> Iterator[Collective]:
        gathers: dict[Any, Collective] = {}
        sums: dict[str, list[Collective]] = defaultdict(list)
        for instruction in self.instructions.values():
            if instruction.opcode == "all-reduce":
                if not self.continued(instruction):
                    reduction = self.reduction(instruction)
                    sums[self.end(instruction, reduction)].append(reduction)
            elif instruction.opcode in KINDS:
                gathers.setdefault(self.identity(instruction), self.collective(instruction))
        yield from gathers.values()
        for summands in sums.values():
            yield replace(summands[0], summands=len(summands))

    def collective(self, instruction: Instruction) -> Collective:
        scatters = instruction.opcode == "reduce-scatter"
        size = sum(self.instructions[name].bytes for name in instruction.operands) if scatters else instruction.bytes
        name = re.search(r'op_name="([^"]*)"', instruction.text)
        return Collective(
            kind=instruction.opcode.replace("-", "_"),
            axes=axes_of(device_groups(instruction.text), self.mesh),
            dtype=instruction.dtype,
            bytes=size,
            name=name[1] if name else "",
        )

    def identity(self, instruction: Instruction) -> Any:
        """Equal for collectives that do the same to the same operands."""
        dims = re.search(r"dimensions=\{([\d,]*)\}", instruction.text)
        groups = tuple(sorted(map(tuple, device_groups(instruction.text))))
        return instruction.opcode, instruction.operands, groups, dims and dims[1]

    # -- reductions -----------------------------------------------------------------------------------------------

    def uses(self, instruction: Instruction) -> Iterator[Instruction]:
        """What uses a value, looking through ops that do not change it."""
        for user in (self.instructions[name] for name in instruction.users):
            if user.opcode in SILENT:
                yield from self.uses(user)
            else:
                yield user

    def origin(self, instruction: Instruction) -> Instruction:
        """A value, looking back through ops that do not change it."""
        while instruction.opcode in SILENT:
            instruction = self.instructions[instruction.operands[0]]
        return instruction

    def continued(self, instruction: Instruction) -> bool:
        """Whether an all-reduce only feeds another, over other axes."""
        return [use.opcode for use in self.uses(instruction)] == ["all-reduce"]

    def reduction(self, instruction: Instruction) -> Collective:
        """An all-reduce with those that only feed it, as the reduce-scatter it may be."""
        found = self.collective(instruction)
        fed_by = self.origin(self.instructions[instruction.operands[0]])
        if fed_by.opcode == "all-reduce" and self.continued(fed_by):
            found = replace(found, axes=(*self.reduction(fed_by).axes, *found.axes))
        parts = math.prod(self.mesh[axis] for axis in found.axes)
        uses = list(self.uses(instruction))
        scattered = all(u.opcode == "dynamic-slice" and u.elements * parts == instruction.elements for u in uses)
        return replace(found, kind="reduce_scatter") if uses and scattered else found

    def end(self, value: Instruction, reduction: Collective) -> str:
        """The last sum of like reductions that `value`, the result of one, goes into and is only used for."""
        uses = list(self.uses(value))
        while len(uses) == 1 and self.sums_only(uses[0], reduction):
            (value,) = uses
            uses = list(self.uses(value))
        return value.name

    def sums_only(self, value: Instruction, reduction: Collective) -> bool:
        """Whether a value is a sum of reductions like the given one, each used once, or a part of it."""
        if value.opcode == "all-reduce":
            own = self.reduction(value)
            return (own.kind, set(own.axes)) == (reduction.kind, set(reduction.axes))
        if value.opcode == "dynamic-slice" and reduction.kind == "reduce_scatter":
            summands = value.operands[:1]
        else:
            summands = value.operands if value.opcode in ("add", "subtract") else ()
        operands = [self.instructions[name] for name in summands]
        return bool(operands) and all(
            len(list(self.uses(operand))) == 1 and self.sums_only(self.origin(operand), reduction)
            for operand in operands
        )
