"""The matmuls of a layer's weights: plain, or of narrow operands in all three directions.

Of the narrow ones, an input is made narrow once for all weights that it meets, for the backward pass too, which is all
that is kept of it; weights are made narrow where they are used, from what is stored.
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
from perfmodel.models.weights import Tree

STORED = "dn"
"""Letters of equations for the dims that layouts store in parts (`embed`): blocks would reach across the parts."""


class Slot(NamedTuple):
    """Of a tensor that is scaled by its past: its scale, and of all but weights where the largest magnitudes that it
    now has are left, as the gradient of `seen` [batch].
    """

    scale: Any
    seen: Any


@dataclass(frozen=True)
class Linears:
    """How a layer multiplies with its weights."""

    scaling: Scaling | None = None

    def __call__(self, x: Array, w: Tree, equations: Mapping[str, str], counts: Array | None = None) -> list[Array]:
        """What weights, by name, make of `x`, each by its equation.

        counts [batch, experts]: of rows `berk`, as in `perfmodel.models.scaled`.
        """
        weights = [w[name] for name in equations]
        if self.scaling is None:
            made = [jnp.einsum(text, x, weight) for text, weight in zip(equations.values(), weights, strict=True)]
        else:
            slots = slots_of(w.get(SLOTS, {}), tuple(equations))
            made = _scaled(self.scaling, tuple(equations.values()), x, weights, slots, counts)
        return made

    def grouped(self, rows: Array, counts: Array, w: Tree, names: Sequence[str]) -> list[Array]:
        """What experts' weights, by name, make of their rows, with their biases.

        rows [batch, rows, in], `counts` [batch, experts] of them for each expert, or [batch, experts, capacity, in].
        """
        if self.scaling is None:
            return [matmul(rows, counts, w[name], w.get(f"{name}_bias")) for name in names]
        ragged = rows.ndim == 3
        parts = rows.reshape(rows.shape[0], counts.shape[1], -1, rows.shape[-1])
        made = self(parts, w, {name: EXPERTS[name] for name in names}, counts if ragged else None)
        flat = [out.reshape(*rows.shape[:-1], -1) for out in made]
        return [self._biased(out, counts, w.get(f"{name}_bias")) for name, out in zip(names, flat, strict=True)]

    def _biased(self, out: Array, counts: Array, bias: Array | None) -> Array:
        """Rows with their expert's bias, which of a ragged matmul's is that with ones."""
        if bias is None:
            return out
        if out.ndim == 4:
            return out + bias[:, None, :]
        return out + grouped(jnp.ones((*out.shape[:2], 1), out.dtype), bias[:, None, :], counts)


EXPERTS = {**dict.fromkeys(("gate", "up"), "berd,edf->berf"), "down": "berf,efd->berd"}
"""Equations of the experts' weights, of rows expert by expert."""

SLOTS = "slots"
"""What a layer's tree calls its slots."""


def slot_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the slots of weights that meet one input: of the input, of each, and of the gradient behind each."""
    return (f"{names[0]}_input", *names, *(f"{name}_gradient" for name in names))


def slots_of(slots: Tree, names: tuple[str, ...]) -> list[Slot]:
    """The slots of some weights, none where blocks need no past."""
    return [slots[name] for name in slot_names(names)] if slots else []


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scaled(
    scaling: Scaling, texts: tuple[str, ...], x: Array, weights: list[Array], slots: list[Slot], counts: Array | None
) -> list[Array]:
    return _forward(scaling, texts, x, weights, slots, counts)[0]


def _forward(
    scaling: Scaling, texts: tuple[str, ...], x: Array, weights: list[Array], slots: list[Slot], counts: Array | None
) -> tuple[list[Array], Any]:
    first = Equation.of(texts[0])
    (forth, back), seen = _narrow(
        scaling, x, first.left, (first.contracted[-1], first.to_right.contracted[-1]), scaling.forward, slots[:1]
    )
    own = _weights(scaling, texts, weights, slots[1:], to="out")
    made = [
        scaled_matmul(Equation.of(text), forth, weight, x.dtype, scaling.block, counts)
        for text, weight in zip(texts, own, strict=True)
    ]
    return made, (back, seen, weights, slots, counts)


def _backward(scaling: Scaling, texts: tuple[str, ...], saved: Any, gradients: list[Array]) -> tuple[Any, ...]:
    back, seen, weights, slots, counts = saved
    own = _weights(scaling, texts, weights, slots[1:], to="left")
    to_input: list[Array] = []
    to_weights: list[Array] = []
    noted = [seen]
    for i, (text, gradient) in enumerate(zip(texts, gradients, strict=True)):
        equation = Equation.of(text)
        ways = equation.to_left, equation.to_right
        cuts = ways[0].contracted[-1], ways[1].contracted[-1]
        (forth, beside), seen = _narrow(
            scaling, gradient, equation.out, cuts, scaling.backward, slots[1 + len(texts) + i :][:1]
        )
        to_input.append(scaled_matmul(ways[0], forth, own[i], gradient.dtype, scaling.block, counts))
        to_weights.append(scaled_matmul(ways[1], back, beside, weights[i].dtype, scaling.block, counts))
        noted.append(seen)
    return sum(to_input[1:], to_input[0]), to_weights, _noted(slots, noted), None


_scaled.defvjp(_forward, _backward)


def _narrow(
    scaling: Scaling, x: Array, letters: str, cuts: tuple[str, str], dtype: str, slot: list[Slot]
) -> tuple[list[Narrow], Array | None]:
    """An activation, or its gradient, for the two matmuls that read it, and the largest magnitudes in it."""
    if scaling.block:
        return in_blocks(x, letters, cuts, scaling, dtype, ""), None
    values, seen = cast(x, slot[0].scale, dtype)
    return [values, values], seen


def _weights(
    scaling: Scaling, texts: tuple[str, ...], weights: list[Array], slots: list[Slot], to: str
) -> list[Narrow]:
    """Weights for the forward pass, or for the gradient of the input."""
    made = []
    for i, (text, weight) in enumerate(zip(texts, weights, strict=True)):
        equation = Equation.of(text)
        if not scaling.block:
            made.append(cast(weight, slots[i].scale, scaling.forward)[0])
            continue
        ways = (equation, equation.to_left)
        cuts = [next(letter for letter in reversed(way.contracted) if letter in way.right) for way in ways]
        cut = "".join(cuts) if scaling.square else cuts[to == "left"]
        made += in_blocks(weight, equation.right, [cut], scaling, scaling.forward, STORED)
    return made


def _noted(slots: list[Slot], noted: list[Array | None]) -> list[Slot]:
    """Gradients of slots: what was seen of the input and of the gradients; weights are looked at when they change."""
    if not slots:
        return []
    found = [noted[0], *[None] * (len(noted) - 1), *noted[1:]]
    return [Slot(None, seen) for seen in found]
