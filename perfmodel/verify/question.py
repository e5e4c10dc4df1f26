"""The question that a program and a layout ask of a compiler: legal, without what compilers do not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.errors import LayoutError
from perfmodel.graph import Graph
from perfmodel.layout import AXES, Layout
from perfmodel.rules import constraints, misfits
from perfmodel.shard import shard
from perfmodel.sharded import ShardedGraph
from perfmodel.trace import Program
from perfmodel.verify.mesh import Mesh, mesh_of
from perfmodel.work import Number


@dataclass(frozen=True, kw_only=True)
class Question:
    """A program under a layout that a compiler can be asked about; `notes` say how it differs from the given one."""

    program: Program
    given: Layout
    layout: Layout
    sharded: ShardedGraph
    sizes: Mapping[str, Number]
    mesh: Mesh
    notes: tuple[str, ...]


def pose(program: Program, graph: Graph, layout: Layout) -> Question:
    """The question of a layout; raises LayoutError where it breaks a rule."""
    _scalar(layout)
    asked, notes = layout, []
    for applies, changes, note in _changes(graph, layout):
        if applies:
            asked = replace(asked, **changes)
            notes.append(note)
    sharded = shard(graph, asked.assignment)
    sizes = asked.sizes(graph)
    misfit = misfits(graph, constraints(sharded), asked, sizes, layers=0)
    if broken := [rule for rule, breaks in misfit.items() if breaks]:
        raise LayoutError(
            f"layout {asked.notation()}: got {'; '.join(broken)} (global batch {asked.global_batch:g}), expected a "
            f"layout that breaks no rule: change it, or name more dims"
        )
    return Question(
        program=program,
        given=layout,
        layout=asked,
        sharded=sharded,
        sizes=sizes,
        mesh=mesh_of(program, sizes, stated=_states_a_mesh(graph)),
        notes=tuple(notes),
    )


def _states_a_mesh(graph: Graph) -> bool:
    return any(factor.bound for factor in graph.factors) or any(op.pinned for _, op in graph.walk())


def _scalar(layout: Layout) -> None:
    if any(np.ndim(getattr(layout, axis)) for axis in (*AXES, "mb", "global_batch")):
        raise LayoutError("verify: got an array of layouts, expected one layout: give it one at a time")


def _changes(graph: Graph, layout: Layout) -> Iterator[tuple[bool, dict[str, Any], str]]:
    """Where compilers are asked about another layout: whether, what is changed, and how to say it."""
    yield (
        bool(layout.pp > 1),
        {"pp": 1},
        f"compilers know no pipelines: the layout of one stage is verified, pp=1 instead of pp={layout.pp:g}",
    )
    yield (
        layout.ring,
        {"ring": False},
        "compilers know no rings: keys and values are gathered, as with ring=0",
    )
    yield (
        bool(layout.data * layout.mb == 1) and "batch" in graph.named(),
        {"mb": 2, "global_batch": 2 * layout.global_batch},
        "compilers drop dims of size 1: microbatches of two sequences are verified, mb=2 instead of mb=1",
    )
