"""XLA's answer: its own SPMD partitioner run on fake CPU devices, in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from perfmodel.errors import LayoutError
from perfmodel.verify.collective import Instruction
from perfmodel.verify.hlo import read_module
from perfmodel.verify.passes import bytecode, hlo_module, run_child
from perfmodel.verify.stated import Stated

LARGEST = 2048


def ask_xla(questions: Sequence[Stated]) -> list[tuple[Instruction, ...]]:
    """The program of one rank as XLA partitions it, for each question; one child process answers them all.

    Raises LayoutError where XLA refuses one.
    """
    if not questions:
        return []
    most = max(question.mesh.ranks for question in questions)
    if most > LARGEST:
        raise LayoutError(
            f"XLA: got {most} ranks, expected at most {LARGEST}, the fake devices that one process can have: ask "
            f"Shardy alone, or verify a smaller layout of the same kind"
        )
    with TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.mlirbc") for i in range(len(questions))]
        for path, question in zip(paths, questions, strict=True):
            path.write_bytes(bytecode(question.module))
        run_child(most, paths)
        return [_answer(path, question) for path, question in zip(paths, questions, strict=True)]


def _answer(path: Path, question: Stated) -> tuple[Instruction, ...]:
    refusal = path.with_suffix(".error")
    if refusal.exists():
        raise LayoutError(
            f"XLA: got {refusal.read_text().splitlines()[0]} on partitioning this layout, expected one that it takes: "
            f"change it, or ask Shardy alone"
        )
    return read_module(hlo_module(path.with_suffix(".hlo").read_bytes()), question.mesh.sizes)
