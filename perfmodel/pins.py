"""How far a program's own sharding constraints reach: backwards from where they stand to what makes the values.

A matmul whose result the program constrains is best run as the constraint asks, and a weight that only such matmuls
read is best kept so. As in Shardy's propagation, an index that no axis name places follows what is asked of the
results it goes into.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeAlias

from perfmodel.graph import Dims, Graph, Loop, Node, Op
from perfmodel.state import Axes, mesh_axes

CONSTRAINT = "sharding_constraint"

Asked: TypeAlias = dict[tuple[int, int], Axes]
"""Axes by (dim, factor of the dim) of a value."""


@dataclass(frozen=True, slots=True)
class Pins:
    """What constraints ask of values, and of factors of parameters where all that ask agree.

    readers: ops that read a value, and as which operand
    kept:    values that loops carry or the program returns
    """

    values: Mapping[int, Asked] = field(default_factory=dict)
    factors: Mapping[int, Axes] = field(default_factory=dict)
    readers: Mapping[int, Sequence[tuple[Op, int]]] = field(default_factory=dict)
    kept: Set[int] = frozenset()


def pins(graph: Graph) -> Pins:
    """Follow every constraint of a graph backwards."""
    if not any(op.kind == CONSTRAINT for _, op in graph.walk()):
        return Pins()
    values: dict[int, Asked] = {}
    _visit(graph.nodes, values)
    asked: dict[int, set[Axes]] = {}
    for parameter in graph.parameters:
        for (d, i), axes in values.get(parameter.value, {}).items():
            asked.setdefault(graph.values[parameter.value].dims[d][i], set()).add(axes)
    agreed = {factor: next(iter(each)) for factor, each in asked.items() if len(each) == 1 and any(each)}
    readers: dict[int, list[tuple[Op, int]]] = {}
    kept = set(graph.results)
    _read(graph.nodes, readers, kept)
    return Pins(values, agreed, readers, kept)


def _read(nodes: Sequence[Node], readers: dict[int, list[tuple[Op, int]]], kept: set[int]) -> None:
    """Note who reads what; what every trip of a loop reads is read where it is in the loop."""
    for node in nodes:
        if isinstance(node, Loop):
            _read(node.body, readers, kept)
            for operand, parameter, given in zip(node.operands, node.parameters, node.yields, strict=True):
                if parameter == given:
                    readers.setdefault(operand, []).extend(readers.get(parameter, ()))
                else:
                    kept.update((operand, given))
        else:
            for k, value in enumerate(node.operands):
                readers.setdefault(value, []).append((node, k))


def _visit(nodes: Sequence[Node], values: dict[int, Asked]) -> None:
    for node in reversed(nodes):
        if isinstance(node, Loop):
            _pass(values, node.results, node.yields)
            _visit(node.body, values)
            _pass(values, node.parameters, node.operands)
        else:
            _through(node, values)


def _pass(values: dict[int, Asked], sources: Sequence[int], targets: Sequence[int]) -> None:
    for source, target in zip(sources, targets, strict=True):
        for place, axes in values.get(source, {}).items():
            _ask(values, target, place, axes)


def _through(op: Op, values: dict[int, Asked]) -> None:
    """From an op's results, or what it pins itself, to its operands."""
    asked = {i: mesh_axes(axes) for i, axes in op.pinned} if op.kind == CONSTRAINT else {}
    for value, dims in zip(op.results, op.result_dims, strict=True):
        for place, i in _places(dims).items():
            if place in values.get(value, {}):
                asked.setdefault(i, values[value][place])
    for value, dims in zip(op.operands, op.operand_dims, strict=True):
        for place, i in _places(dims).items():
            if i in asked and i not in op.blocked and i not in op.stepped:
                _ask(values, value, place, asked[i])


def _ask(values: dict[int, Asked], value: int, place: tuple[int, int], axes: Axes) -> None:
    """Of several that ask, the last in the program counts; a value that is whole in one place may rest in parts."""
    asked = values.setdefault(value, {})
    asked[place] = asked.get(place) or axes


def _places(dims: Dims) -> dict[tuple[int, int], int]:
    return {(d, k): i for d, dim in enumerate(dims) for k, i in enumerate(dim)}
