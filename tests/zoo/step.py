"""What the programs share: arrays described by words, and a training step that ends in an update with momentum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from perfmodel.trace import Argument, Program

Described: TypeAlias = Any
"""A pytree of texts with a word for each dim: `name=size`, `name` of a known size, or the size of a nameless dim."""


def arrays(described: Described, sizes: Mapping[str, int] | None = None, *, dtype: Any = jnp.float32) -> Any:
    """(abstract arrays, axis names) of a pytree of descriptions such as `"batch=8 seq embed"`."""

    def read(text: str) -> list[tuple[str | None, int]]:
        return [_dim(word, sizes or {}) for word in text.split()]

    tree = jax.tree.map(lambda text: jax.ShapeDtypeStruct([size for _, size in read(text)], dtype), described)
    return tree, jax.tree.map(lambda text: tuple(name for name, _ in read(text)), described)


def _dim(word: str, sizes: Mapping[str, int]) -> tuple[str | None, int]:
    name, _, size = word.partition("=")
    return (None, int(name)) if name.isdecimal() else (name, int(size) if size else sizes[name])


def unnamed(tree: Any) -> Any:
    """Axis names of arrays of which nothing is known."""
    return jax.tree.map(lambda leaf: (None,) * len(leaf.shape), tree)


def training(
    name: str,
    loss: Callable[[Any, Any], Any],
    *,
    weights: tuple[Any, Any],
    batch: tuple[Any, Any],
    recompute: str = "none",
) -> Program:
    """A step of momentum on `loss(weights, batch)`; weights and batch are pairs of abstract arrays and axis names."""

    def step(weights: Any, moments: Any, batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(weights, batch)
        return (*momentum(weights, moments, gradients), value)

    return Program(
        name=name,
        fn=step,
        arguments=(
            Argument(name="weights", role="parameters", tree=weights[0], axes=weights[1]),
            Argument(name="moments", role="optimizer", tree=weights[0], axes=weights[1]),
            Argument(name="batch", role="batch", tree=batch[0], axes=batch[1]),
        ),
        donated=("weights", "moments"),
        recompute=recompute,
    )


def momentum(weights: Any, moments: Any, gradients: Any) -> tuple[Any, Any]:
    """New weights and moments."""
    moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, gradients)
    return jax.tree.map(lambda w, m: w - 1e-3 * m, weights, moments), moments
