"""Arrays on a mesh: a leading dim per mesh axis, a device being one index into those, then a dim per index range.

Where several axes share an index range, each takes a digit of its own of the index, whatever the order: which elements
a device holds does not depend on the order in which axes came to a dim or left it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from recorded import Array, Shape

from perfmodel.state import Axes, Sharding, State
from perfmodel.work import MESH

LEAD = len(MESH)


def close(left: Array, right: Array) -> bool:
    """Whether two arrays agree but for rounding."""
    if left.dtype != np.float64:
        return np.array_equal(left, right)
    with np.errstate(invalid="ignore"):
        agree = (left == right) | (np.abs(left - right) <= 1e-9 * (1.0 + np.abs(right)))
        agree |= np.isnan(left) & np.isnan(right)  # what a lookup out of bounds would read
    return bool(agree.all())


def positions(axes: Iterable[str]) -> list[int]:
    return [MESH.index(axis) for axis in axes]


def replicate(x: Array, mesh: Shape) -> Array:
    return np.broadcast_to(x, mesh + x.shape[LEAD:])


def take(x: Array, leaf: int, axes: Iterable[str], digits: Axes, mesh: Shape) -> Array:
    """Each device keeps, of an index range, what has the device's own place in the digits of `axes`."""
    x, left = _spread(x, leaf, digits, mesh), list(digits)
    for axis in axes:
        place = MESH.index(axis)
        x = np.moveaxis(np.diagonal(x, 0, place, LEAD + leaf + left.index(axis)), -1, place)
        left.remove(axis)
    return _merge(x, leaf, len(left))


def gather(x: Array, leaf: int, axes: Iterable[str], digits: Axes, mesh: Shape) -> Array:
    """Each device gets what all devices along `axes` have of an index range; `digits` are those it then has."""
    x = _spread(x, leaf, tuple(axis for axis in digits if axis not in axes), mesh)
    x = np.expand_dims(x, [LEAD + leaf + k for k, axis in enumerate(digits) if axis in axes])
    for axis in axes:
        x = np.swapaxes(x, MESH.index(axis), LEAD + leaf + digits.index(axis))
    return replicate(_merge(x, leaf, len(digits)), mesh)


def padded(x: Array, leaf: int, axes: Iterable[str], digits: Axes, mesh: Shape) -> Array:
    """Each device puts what it has of an index range among zeros, where it belongs in what the devices along `axes`
    have together.
    """
    whole = gather(x, leaf, axes, digits, mesh)
    own = np.zeros_like(whole)
    for device in np.ndindex(mesh):
        mine = np.zeros_like(x)
        mine[device] = 1
        own[device] = gather(mine, leaf, axes, digits, mesh)[device]
    return np.where(own != 0, whole, np.zeros((), x.dtype))


def _spread(x: Array, leaf: int, digits: Axes, mesh: Shape) -> Array:
    """An index as one digit per mesh axis and what is left."""
    sizes = [mesh[i] for i in positions(digits)]
    rest = x.shape[LEAD + leaf] // math.prod(sizes)
    assert rest * math.prod(sizes) == x.shape[LEAD + leaf], f"a range of {x.shape[LEAD + leaf]} over {digits}: {sizes}"
    return x.reshape(*x.shape[: LEAD + leaf], *sizes, rest, *x.shape[LEAD + leaf + 1 :])


def _merge(x: Array, leaf: int, digits: int) -> Array:
    first = LEAD + leaf
    return x.reshape(*x.shape[:first], math.prod(x.shape[first : first + digits + 1]), *x.shape[first + digits + 1 :])


def reduced(x: Array, axes: Iterable[str], combine: np.ufunc, mesh: Shape) -> Array:
    return replicate(combine.reduce(x, axis=tuple(positions(axes)), keepdims=True), mesh)


def masked(x: Array, axes: Iterable[str]) -> Array:
    """Only the first device along each axis keeps its value."""
    first = tuple(slice(0, 1) if i in positions(axes) else slice(None) for i in range(LEAD))
    kept = np.zeros_like(x)
    kept[first] = x[first]
    return kept


def flat(state: State) -> list[Axes]:
    """Mesh axes of every factor of a value, dim after dim."""
    return [axes for dim in state.dims for axes in dim]


def alike(left: Sharding, right: Sharding) -> bool:
    """Whether two values lie alike: each axis takes a digit of its own, so that the order of axes says nothing."""
    return [[set(axes) for axes in dim] for dim in left] == [[set(axes) for axes in dim] for dim in right]
