"""The arrays of a program's arguments, each by its name and its dotted path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.tree_util import keystr

from perfmodel.errors import TraceError
from perfmodel.trace.ops import Shape
from perfmodel.trace.program import ROLES, Argument


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """An array of an argument: its name, dotted path and role, its shape, and the axis names of its dims."""

    name: str
    path: str
    role: str
    shape: Shape
    axes: tuple[str | None, ...]


def leaves_of(argument: Argument) -> list[Leaf]:
    """Every array in an argument."""
    if argument.role not in ROLES:
        raise TraceError(f"argument {argument.name}: got role {argument.role!r}, expected one of {', '.join(ROLES)}")
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(argument.tree)
    try:
        axes: list[Any] = structure.flatten_up_to(argument.axes)
    except ValueError as error:
        raise TraceError(
            f"argument {argument.name}: axes do not match the tree ({error}): give a tuple of names per array"
        ) from None
    found = []
    for (path, struct), names in zip(paths, axes, strict=True):
        name = argument.name + keystr(path)
        names = (None,) * len(struct.shape) if names is None else tuple(names)
        if len(names) != len(struct.shape):
            raise TraceError(
                f"{name}: got {len(names)} axis names {names}, expected {len(struct.shape)}, one for each dim of "
                f"{tuple(struct.shape)}: use None for a dim without a name"
            )
        found.append(
            Leaf(
                name=name,
                path=".".join(filter(None, (_dotted(argument.name), keystr(path, simple=True, separator=".")))),
                role=argument.role,
                shape=tuple(struct.shape),
                axes=names,
            )
        )
    return found


def _dotted(name: str) -> str:
    """`params['w'][0]`, as JAX writes it, with dots: `params.w.0`."""
    return re.sub(r"\[['\"]?(.*?)['\"]?\]", r".\1", name)
