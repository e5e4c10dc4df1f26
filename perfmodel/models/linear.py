"""The matmuls of a layer's weights: plain, or of narrow operands in all three directions.

Of the narrow ones, an input is made narrow once for all weights that it meets, for the backward pass too, which is all
that is kept of it. Weights are made narrow once a step, before its microbatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from perfmodel.models.experts import grouped, matmul
from perfmodel.models.precision import Scaling
from perfmodel.models.scaled import Equation, Narrow, cast, in_blocks, scaled_matmul
from perfmodel.models.weights import DENSE, ROUTED, Tree


class Slot(NamedTuple):
    """Of a tensor that is scaled by its past: its scale, and where the largest magnitudes that it now has are left, as
    the gradient of `seen` [batch].
    """

    scale: Any
    seen: Any


@dataclass(frozen=True)
class Linears:
    """How a layer multiplies with its weights."""

    scaling: Scaling | None = None

    def __call__(self, x: Array, w: Tree, *names: str) -> list[Array]:
        """What weights, by name, make of `x`."""
        return self._multiplied(x, w, names, DENSE)

    def _multiplied(
        self, x: Array, w: Tree, names: Sequence[str], equations: Mapping[str, str], counts: Array | None = None
    ) -> list[Array]:
        texts, weights = tuple(equations[name] for name in names), [w[name] for name in names]
        if self.scaling is None:
            return [jnp.einsum(text, x, weight) for text, weight in zip(texts, weights, strict=True)]
        slots = [w[SLOTS][name] for name in slot_names(names)] if SLOTS in w else []
        return _scaled(self.scaling, texts, x, weights, [w[NARROW][name] for name in names], slots, counts)

    def grouped(self, rows: Array, counts: Array, w: Tree, names: Sequence[str]) -> list[Array]:
        """What experts' weights, by name, make of their rows, with their biases.

        rows [batch, rows, in], `counts` [batch, experts] of them for each expert, or [batch, experts, capacity, in].
        """
        if self.scaling is None:
            return [matmul(rows, counts, w[name], w.get(f"{name}_bias")) for name in names]
        ragged = rows.ndim == 3
        parts = rows.reshape(rows.shape[0], counts.shape[1], -1, rows.shape[-1])
        made = self._multiplied(parts, w, names, ROUTED, counts if ragged else None)
        flat = [out.reshape(*rows.shape[:-1], -1) for out in made]
        return [self._biased(out, counts, w.get(f"{name}_bias")) for name, out in zip(names, flat, strict=True)]

    def _biased(self, out: Array, counts: Array, bias: Array | None) -> Array:
        """Rows with their expert's bias, which of a ragged matmul's is that with ones."""
        if bias is None:
            return out
        if out.ndim == 4:
            return out + bias[:, None, :]
        return out + grouped(jnp.ones((*out.shape[:2], 1), out.dtype), bias[:, None, :], counts)


SLOTS, NARROW = "slots", "narrow"
"""What a layer's tree calls its slots, and the narrow copies of its weights."""


def slot_names(names: Sequence[str]) -> list[str]:
    """Names of the slots of weights that meet one input: of the input, and of the gradient behind each."""
    return [f"{names[0]}_input", *(f"{name}_gradient" for name in names)]


class Copies(NamedTuple):
    """A weight made narrow for the forward pass, and for the gradient of the input."""

    forth: Narrow
    back: Narrow


def narrow_copies(scaling: Scaling, text: str, weights: Array, scales: Array | None) -> Copies:
    """The weights of equal layers [layer, ...], whose equation is `text`, made narrow."""
    equation = Equation.of(text)
    if not scaling.block:
        assert scales is not None
        narrow = cast(weights, scales.reshape(-1, *[1] * (weights.ndim - 1)), scaling.forward)[0]
        return Copies(*[Narrow(narrow.values, 1.0 / scales, "")] * 2)
    ways = equation, equation.to_left
    cuts = [next(letter for letter in reversed(way.contracted) if letter in way.right) for way in ways]
    cuts = ["".join(cuts)] if scaling.square else cuts
    made = in_blocks(weights, LAYER + equation.right, cuts, scaling, scaling.forward)
    return Copies(made[0], made[-1])


LAYER = "l"
"""Letter of the dim that stacks layers."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scaled(
    scaling: Scaling,
    texts: tuple[str, ...],
    x: Array,
    weights: list[Array],
    copies: list[Copies],
    slots: list[Slot],
    counts: Array | None,
) -> list[Array]:
    """Products of `x` with narrow copies of weights, whose own gradients these get."""
    return _forward(scaling, texts, x, weights, copies, slots, counts)[0]


def _forward(
    scaling: Scaling,
    texts: tuple[str, ...],
    x: Array,
    weights: list[Array],
    copies: list[Copies],
    slots: list[Slot],
    counts: Array | None,
) -> tuple[list[Array], Any]:
    first = Equation.of(texts[0])
    cuts = first.contracted[-1], first.to_right.contracted[-1]
    (forth, back), seen = _narrow(scaling, x, first.left, cuts, scaling.forward, slots[:1])
    made = [
        scaled_matmul(Equation.of(text), forth, copy.forth, x.dtype, scaling.block, counts)
        for text, copy in zip(texts, copies, strict=True)
    ]
    return made, (back, seen, copies, slots, counts)


def _backward(scaling: Scaling, texts: tuple[str, ...], saved: Any, gradients: list[Array]) -> tuple[Any, ...]:
    back, seen, copies, slots, counts = saved
    to_input: list[Array] = []
    to_weights: list[Array] = []
    noted = [seen]
    for i, (text, gradient) in enumerate(zip(texts, gradients, strict=True)):
        ways = Equation.of(text).to_left, Equation.of(text).to_right
        cuts = ways[0].contracted[-1], ways[1].contracted[-1]
        own = slots[1 + i : 2 + i]
        (forth, beside), seen = _narrow(scaling, gradient, ways[0].left, cuts, scaling.backward, own)
        to_input.append(scaled_matmul(ways[0], forth, copies[i].back, gradient.dtype, scaling.block, counts))
        to_weights.append(scaled_matmul(ways[1], back, beside, gradient.dtype, scaling.block, counts))
        noted.append(seen)
    seen_now = [Slot(None, each) for each in noted] if slots else []
    return sum(to_input[1:], to_input[0]), to_weights, None, seen_now, None


_scaled.defvjp(_forward, _backward)


def _narrow(
    scaling: Scaling, x: Array, letters: str, cuts: tuple[str, str], dtype: str, slot: list[Slot]
) -> tuple[list[Narrow], Array | None]:
    """An activation, or its gradient, for the two matmuls that read it, and the largest magnitudes in it."""
    if scaling.block:
        return in_blocks(x, letters, cuts, scaling, dtype), None
    values, seen = cast(x, slot[0].scale, dtype)
    return [values, values], seen
