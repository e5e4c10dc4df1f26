"""Reading an HLO module that XLA has partitioned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from perfmodel.errors import TraceError
from perfmodel.verify.collective import Instruction, Runs, dearest
from perfmodel.verify.groups import GROUPS, axes_of, device_groups, numbers
from perfmodel.verify.rewrites import KINDS

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
INSTRUCTION = re.compile(r"(?:ROOT )?%?[\w.\-]+ = (?P<result>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\(")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
ENTRY = re.compile(r"^ENTRY %?([\w.\-]+)", re.MULTILINE)


def read_module(module: Any, mesh: Mapping[str, int]) -> tuple[Instruction, ...]:
    """The entry computation of a module (`jaxlib._hlo.HloModule`) partitioned over the devices of a mesh."""
    entry = ENTRY.search(module.to_string())
    assert entry is not None
    return _Reader(module, mesh).body(entry[1])


class _Reader:
    """The computations of a module by name, each read once, and the groups of devices met so far by their text."""

    def __init__(self, module: Any, mesh: Mapping[str, int]) -> None:
        self.computations = {computation.name: computation for computation in module.computations()}
        self.mesh = mesh
        self.bodies: dict[str, tuple[Instruction, ...]] = {}
        self.groups: dict[str, tuple[tuple[str, ...], str]] = {}

    def body(self, name: str) -> tuple[Instruction, ...]:
        """The instructions of a computation."""
        if name not in self.bodies:
            self.bodies[name] = tuple(self.instruction(raw) for raw in self.computations[name].instructions())
        return self.bodies[name]

    def instruction(self, raw: Any) -> Instruction:
        text = raw.to_string()
        match = INSTRUCTION.match(text)
        assert match is not None, text
        opcode, dims = match["opcode"], _found(r"dimensions=.([0-9,]*)", text)
        arrays = [(dtype, numbers(shape)) for dtype, shape in ARRAY.findall(match["result"])]
        axes, groups = self.over(text) if opcode in KINDS else ((), "")
        return Instruction(
            name=raw.name,
            opcode=opcode,
            dtype=arrays[0][0] if arrays else "",
            elements=sum(math.prod(shape) for _, shape in arrays),
            bytes=float(sum(BYTES.get(dtype, 0) * math.prod(shape) for dtype, shape in arrays)),
            operands=tuple(operand.name for operand in raw.operands()),
            axes=axes,
            detail=f"{dims} {groups}",
            minor=opcode == "all-gather" and numbers(dims) == [len(arrays[0][1]) - 1],
            label=_found(r'op_name="([^"]*)"', text),
            runs=self.runs(opcode, text),
        )

    def over(self, text: str) -> tuple[tuple[str, ...], str]:
        """Mesh axes of a collective, and the same text for the same groups, however they are spelled."""
        spelled = GROUPS.search(text)
        if spelled is None:
            return (), ""
        if spelled[0] not in self.groups:
            devices = device_groups(spelled[0])
            self.groups[spelled[0]] = axes_of(devices, self.mesh), str(sorted(devices.tolist()))
        return self.groups[spelled[0]]

    def runs(self, opcode: str, text: str) -> Runs:
        if opcode == "conditional":
            return dearest([self.body(name) for name in branches(text)])
        return tuple((self.body(name), trips) for name, trips in called(opcode, text))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def branches(text: str) -> list[str]:
    """Computations that a conditional chooses from."""
    listed = _found(r"branch_computations=\{([^}]*)\}", text)
    return re.findall(r"[\w.\-]+", listed) or re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", text)


def called(opcode: str, text: str) -> Sequence[tuple[str, float]]:
    """Computations that an instruction runs, and how often."""
    if opcode in ("call", "fusion"):
        return [(name, 1.0) for name in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", text)]
    if opcode != "while":
        return []
    trips = re.search(r'known_trip_count":\{"n":"(\d+)"', text)
    if trips is None:
        raise TraceError("verify: got a loop whose trip count XLA does not know, expected static loops: use lax.scan")
    return [(name, float(trips[1])) for name in re.findall(r"body=%?([\w.\-]+)", text)]
