"""Reading an HLO module that XLA has partitioned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
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
    computations = {computation.name: computation for computation in module.computations()}
    entry = ENTRY.search(module.to_string())
    assert entry is not None

    @cache
    def read_groups(text: str) -> tuple[tuple[str, ...], str]:
        """Mesh axes, and the same text for the same groups, however they are spelled."""
        groups = device_groups(text)
        return axes_of(groups, mesh), str(sorted(groups.tolist()))

    def read(raw: Any) -> Instruction:
        text = raw.to_string()
        match = INSTRUCTION.match(text)
        assert match is not None, text
        opcode = match["opcode"]
        shapes = [(dtype, numbers(dims)) for dtype, dims in ARRAY.findall(match["result"])]
        arrays = [(dtype, math.prod(shape)) for dtype, shape in shapes]
        dims = _found(r"dimensions=.([0-9,]*)", text)
        spelled = GROUPS.search(text) if opcode in KINDS else None
        axes, groups = read_groups(spelled[0]) if spelled else ((), "")
        return Instruction(
            name=raw.name,
            opcode=opcode,
            dtype=arrays[0][0] if arrays else "",
            elements=sum(size for _, size in arrays),
            bytes=float(sum(BYTES.get(dtype, 0) * size for dtype, size in arrays)),
            operands=tuple(operand.name for operand in raw.operands()),
            axes=axes,
            detail=f"{dims} {groups}",
            minor=opcode == "all-gather" and numbers(dims) == [len(shapes[0][1]) - 1],
            label=_found(r'op_name="([^"]*)"', text),
            runs=runs(opcode, text),
        )

    def runs(opcode: str, text: str) -> Runs:
        if opcode == "conditional":
            return dearest([body(name) for name in branches(text)])
        return tuple((body(name), trips) for name, trips in called(opcode, text))

    @cache
    def body(name: str) -> tuple[Instruction, ...]:
        return tuple(read(raw) for raw in computations[name].instructions())

    return body(entry[1])


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
