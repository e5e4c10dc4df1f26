"""The arrays of a program's arguments, each by its name and its dotted path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
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
    return [_leaf(argument, *each) for each in zip(paths, axes, strict=True)]


def _leaf(argument: Argument, place: tuple[Any, Any], names: Sequence[str | None] | None) -> Leaf:
    path, array = place
    name = argument.name + keystr(path)
    shape = _shape(name, array)
    if names is not None and len(shape) > len(array.shape):
        names = (*names, *(None for _ in shape[len(array.shape) :]))
    names = (None,) * len(shape) if names is None else tuple(names)
    if len(names) != len(shape):
        raise TraceError(
            f"{name}: got {len(names)} axis names {names}, expected {len(shape)}, one for each dim of {shape}: use "
            f"None for a dim without a name"
        )
    resized = shape if argument.role == "batch" else (size for size, axis in zip(shape, names, strict=True) if axis)
    if 0 in resized:
        raise TraceError(f"{name}: got shape {shape}, expected at least 1 of everything: trace with other sizes")
    dotted = (_dotted(argument.name), keystr(path, simple=True, separator="."))
    return Leaf(name=name, path=".".join(filter(None, dotted)), role=argument.role, shape=shape, axes=names)


def _shape(name: str, array: Any) -> Shape:
    """The shape that an array has once it is lowered: a typed key of random numbers is a row of whole numbers."""
    if not hasattr(array, "shape"):
        raise TraceError(f"{name}: got {array!r}, expected an array or a jax.ShapeDtypeStruct: close over constants")
    typed = isinstance(array, jax.Array | jax.ShapeDtypeStruct)
    if typed and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.eval_shape(jax.random.key_data, array)
    return tuple(array.shape)


def _dotted(name: str) -> str:
    """`params['w'][0]`, as JAX writes it, with dots: `params.w.0`."""
    return re.sub(r"\[['\"]?(.*?)['\"]?\]", r".\1", name)
