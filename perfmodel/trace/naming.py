"""Axis names by pattern, for programs whose arguments have none.

A dim is known by the path of its array and its position: `params.dense.kernel.1`. A pattern is a shell pattern over
such paths. What a name means is the assignment's business (`perfmodel.layout`): `batch` is spread over data-parallel
ranks, `mlp` over tp, and so on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import jax

from perfmodel.errors import AxisNameError
from perfmodel.layout import AXES
from perfmodel.trace.leaves import Leaf, leaves_of
from perfmodel.trace.program import Argument, Program

MAJOR = "/0"
"""How `perfmodel trace` marks the major part of a dim that the program takes apart; the part has the dim's name."""


def read_names(texts: Iterable[str]) -> dict[str, str]:
    """Read `PATTERN=NAME` texts; raises AxisNameError for others, and for a pattern with two names."""
    names: dict[str, str] = {}
    for text in texts:
        pattern, sign, name = (word.strip() for word in text.rpartition("="))
        if not (sign and pattern and name):
            raise AxisNameError(f"axis names: got {text!r}, expected PATTERN=NAME: write '*.kernel.1=mlp'")
        if names.setdefault(pattern, name) != name:
            raise AxisNameError(f"axis names: got {pattern!r} for {names[pattern]} and {name}, expected one: drop one")
    return names


def read_mesh_axes(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read `AXIS=AXES` texts, what axes of a program's own mesh stand for; none for an axis to be ignored.

    Raises AxisNameError for other texts, and for an axis that is to stand for different things.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        axis, sign, axes = (word.strip() for word in text.partition("="))
        names = tuple(name.strip() for name in axes.split(",") if name.strip())
        if not (sign and axis) or any(name not in AXES for name in names):
            raise AxisNameError(
                f"mesh axes: got {text!r}, expected AXIS= and some of {', '.join(AXES)}, or nothing to ignore it: "
                f"write data=dp,fsdp"
            )
        if found.setdefault(axis, names) != names:
            raise AxisNameError(
                f"mesh axes: got {axis!r} for {_listed(found[axis])} and {_listed(names)}, expected one: drop one"
            )
    return found


def _listed(axes: Sequence[str]) -> str:
    return ",".join(axes) or "nothing"


def named(program: Program, names: Mapping[str, str]) -> Program:
    """The program with dims of its arguments named by pattern; where several patterns match, the last one counts.

    Raises AxisNameError for a pattern that matches no dim.
    """
    patterns = {pattern.removesuffix(MAJOR): name for pattern, name in names.items()}
    leaves = [leaves_of(argument) for argument in program.arguments]
    dims = [dim for each in leaves for leaf in each for dim in _dims(leaf)]
    for pattern in patterns:
        if not any(fnmatchcase(dim, pattern) for dim in dims):
            raise AxisNameError(_unmatched(pattern, dims))
    arguments = [_renamed(argument, each, patterns) for argument, each in zip(program.arguments, leaves, strict=True)]
    return replace(program, arguments=tuple(arguments))


def _dims(leaf: Leaf) -> list[str]:
    return [f"{leaf.path}.{d}" for d in range(len(leaf.shape))]


def _renamed(argument: Argument, leaves: Sequence[Leaf], patterns: Mapping[str, str]) -> Argument:
    structure = jax.tree_util.tree_structure(argument.tree)
    axes = []
    for leaf in leaves:
        found = [[name for pattern, name in patterns.items() if fnmatchcase(dim, pattern)] for dim in _dims(leaf)]
        axes.append(tuple(given[-1] if given else own for own, given in zip(leaf.axes, found, strict=True)))
    return replace(argument, axes=jax.tree_util.tree_unflatten(structure, axes))


def _unmatched(pattern: str, dims: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern, dims, n=1, cutoff=0.4)
    remedy = f"did you mean {close[0]}?" if close else "see the origins of factors that perfmodel trace lists"
    return f"axis names: got pattern {pattern!r}, expected one that matches a dim of an argument: {remedy}"
