"""Derived collectives against those that the compilers' own partitioners insert; no device is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from perfmodel.errors import LayoutError
from perfmodel.trace import Program, trace
from perfmodel.verify.compare import (
    TOLERANCE,
    Difference,
    Row,
    Verification,
    compare,
    differences_of_compiler,
    differences_of_ours,
)
from perfmodel.verify.derived import derived
from perfmodel.verify.limits import limits
from perfmodel.verify.question import Question, pose
from perfmodel.verify.shardy import ask_shardy
from perfmodel.verify.stated import Stated, state_layout, step_of
from perfmodel.verify.xla import ask_xla

if TYPE_CHECKING:
    from perfmodel.graph import Graph
    from perfmodel.layout import Layout
    from perfmodel.verify.collective import Instruction

__all__ = ["Difference", "Row", "Verification", "verify", "verify_all"]

SHARDY, XLA = "Shardy", "XLA"


def verify(program: Program, layout: Layout, *, xla: bool = False, tolerance: float = TOLERANCE) -> Verification:
    """Compare the collectives that perfmodel derives with those of Shardy and, if asked, of XLA's partitioner.

    Raises LayoutError where the layout breaks a rule, or a compiler refuses it.
    """
    (verification,) = verify_all([(program, layout)], xla=xla, tolerance=tolerance)
    return verification


def verify_all(
    questions: Iterable[tuple[Program, Layout]], *, xla: bool = False, tolerance: float = TOLERANCE
) -> list[Verification]:
    """`verify` for many programs and layouts; each program is traced once, and XLA is started once."""
    if tolerance < 0.0:
        raise LayoutError(f"tolerance: got {tolerance:g}, expected a share of at least 0: give one such as 0.01")
    graphs: dict[int, Graph] = {}
    asked = []
    for program, layout in questions:
        step_of(program)  # before anything else is wrong with it
        if id(program) not in graphs:
            graphs[id(program)] = trace(program)
        asked.append(pose(program, graphs[id(program)], layout))
    stated = [_stated(each) if each.mesh.ranks > 1 else None for each in asked]
    told = [each for each in stated if each is not None]
    answers = {SHARDY: [ask_shardy(each) for each in told], **({XLA: ask_xla(told)} if xla else {})}
    found = iter(zip(*answers.values(), strict=True))
    return [
        _verification(each, own, dict(zip(answers, next(found), strict=True)) if own else {}, tolerance)
        for each, own in zip(asked, stated, strict=True)
    ]


def _stated(asked: Question) -> Stated:
    return state_layout(asked.program, asked.sharded.graph, asked.layout.assignment, asked.sizes, asked.mesh)


def _verification(
    asked: Question, stated: Stated | None, answers: dict[str, tuple[Instruction, ...]], tolerance: float
) -> Verification:
    ours = derived(asked.sharded, asked.sizes, eager=True)
    mesh = asked.mesh.sizes
    found = Verification(
        program=asked.program.name,
        layout=asked.given.notation(),
        ranks=asked.mesh.ranks,
        tolerance=tolerance,
        rows=tuple(row for name, answer in answers.items() for row in compare(name, answer, mesh, ours, tolerance)),
        differences=(
            *differences_of_ours(asked.sharded, asked.sizes),
            *(each for name, answer in answers.items() for each in differences_of_compiler(name, answer, mesh)),
        ),
        notes=asked.notes,
    )
    return replace(found, notes=(*found.notes, *_notes(asked, stated, ok=found.ok)))


def _notes(asked: Question, stated: Stated | None, *, ok: bool) -> Iterator[str]:
    if stated is None:
        yield "one rank: there is nothing to communicate"
    elif not ok:
        yield from limits(asked, stated.unsaid)
