"""Predicted memory against the buffers of a compiler that targets accelerators: XLA for TPUs, ahead of time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perfmodel.errors import LayoutError
from perfmodel.layout import Layout
from perfmodel.memory import memory_use, plan_memory
from perfmodel.shard import shard
from perfmodel.trace import Program, trace
from perfmodel.trace.program import StableHLO
from perfmodel.trace.stablehlo import lower
from perfmodel.verify import tpu
from perfmodel.verify.constrain import unmark_kernels
from perfmodel.verify.groups import numbers
from perfmodel.verify.hlo import ARRAY, BYTES
from perfmodel.verify.passes import bytecode, copied
from perfmodel.verify.question import Question, pose
from perfmodel.verify.stated import state_layout, step_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """What a compiler allocates on each device [B].

    arguments:   of the arguments, as their shapes have it
    padding:     what their tiles add
    results:     of results that take over no argument's memory
    temporaries: the heap
    gaps:        the part of the heap that holds nothing when most is live
    largest:     the largest buffers of the heap, and what is in them by turns
    """

    arguments: float
    padding: float
    results: float
    temporaries: float
    gaps: float
    largest: tuple[tuple[float, str], ...]

    @property
    def total(self) -> float:
        """Everything but the code."""
        return self.arguments + self.padding + self.results + self.temporaries


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryVerification:
    """What perfmodel predicts for a rank and what a compiler allocates, for one program under one layout [B].

    notes: where the question that was asked differs from the layout
    """

    program: str
    layout: str
    ranks: int
    parts: Mapping[str, float]
    total: float
    compiled: Buffers
    notes: tuple[str, ...] = ()

    @property
    def arguments(self) -> float:
        """Predicted bytes of the arguments."""
        return self.parts["parameters"] + self.parts["optimizer"] + self.parts["inputs"]

    @property
    def difference(self) -> float:
        """Predicted / allocated - 1, of the total."""
        return self.total / self.compiled.total - 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return {**asdict(self), "difference": self.difference}


def verify_memory(questions: Iterable[tuple[Program, Layout]]) -> list[MemoryVerification]:
    """Compare predicted memory with the TPU compiler's, for programs whose marked kernels are opened.

    Raises LayoutError where a layout breaks a rule, the compiler is not installed, or it refuses a program.
    """
    if not tpu.installed():
        raise LayoutError("TPU compiler: got no package libtpu, expected one: pip install 'rainier-perfmodel[tpu]'")
    asked = []
    for program, layout in questions:
        step_of(program)  # before anything else is wrong with it
        asked.append(pose(program, trace(program), layout))
    return [_verification(each, buffers) for each, buffers in zip(asked, _ask(asked), strict=True)]


def _verification(asked: Question, compiled: Buffers) -> MemoryVerification:
    graph = trace(opened(asked.program))
    use = memory_use(plan_memory(shard(graph, asked.layout.assignment)), asked.sizes, 0.0, asked.layout.schedule)
    return MemoryVerification(
        program=asked.program.name,
        layout=asked.given.notation(),
        ranks=asked.mesh.ranks,
        parts={name: float(part) for name, part in use.parts.items()},
        total=float(use.total),
        compiled=compiled,
        notes=asked.notes,
    )


def opened(program: Program) -> Program:
    """A program without marked kernels: a compiler that does not have them takes them apart."""
    module = copied(lower(program))
    unmark_kernels(module)
    return replace(program, fn=StableHLO(path=program.name, data=bytecode(module)))


def _ask(questions: Sequence[Question]) -> list[Buffers]:
    """The compiler's answers; one child process for each number of ranks."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.mlirbc") for i in range(len(questions))]
        by_topology: dict[str, list[Path]] = {}
        for path, asked in zip(paths, questions, strict=True):
            stated = state_layout(
                asked.program, asked.sharded.graph, asked.layout.assignment, asked.sizes, asked.mesh, donated=True
            )
            path.write_bytes(bytecode(stated.module))
            by_topology.setdefault(_topology(asked.mesh.ranks), []).append(path)
        for topology, some in by_topology.items():
            tpu.run_child(topology, some)
        return [_answer(path) for path in paths]


def _topology(ranks: int) -> str:
    if ranks not in tpu.TOPOLOGIES:
        known = ", ".join(map(str, tpu.TOPOLOGIES))
        raise LayoutError(f"TPU compiler: got {ranks} ranks, expected one of {known}: verify a layout of that size")
    return tpu.TOPOLOGIES[ranks]


def _answer(path: Path) -> Buffers:
    refusal = path.with_suffix(".error")
    if refusal.exists():
        said = " ".join(refusal.read_text().split())[:300]
        raise LayoutError(f"TPU compiler: got {said}, expected a step that it compiles: change the layout")
    found = json.loads(path.with_suffix(".json").read_text())
    arguments = sum(BYTES[dtype] * math.prod(numbers(shape)) for dtype, shape in ARRAY.findall(found["parameters"]))
    results = found["results"] - found["replaced"]
    return Buffers(
        arguments=arguments,
        padding=found["arguments"] - arguments,
        results=results,
        temporaries=found["temporaries"],
        gaps=found["arguments"] + results + found["temporaries"] - found["peak"],
        largest=tuple((size, shapes) for size, shapes in found["largest"]),
    )
