"""Taking tokens to their experts' rows and back, as marked kernels that state how they may be sharded.

`dispatch` sorts the rows of each sequence by expert, `combine` adds up what comes back to each token; each is the
other's gradient. Experts must be whole in both, so that a rank routes its own tokens to all of them; wherever a part of
a sequence lies, a part of every expert's rows lies. Matmuls that want the experts on a mesh axis are what makes a
shuffle between them an all-to-all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


@dataclass(frozen=True)
class Rows:
    """How rows lie: expert by expert, `capacity` for each, or (None) as many as it got, in all padded to a multiple
    of `experts`.
    """

    experts: int
    capacity: int | None = None

    def count(self, tokens: int) -> int:
        """Rows of a sequence whose tokens make `tokens` choices in all."""
        return self.experts * (math.ceil(tokens / self.experts) if self.capacity is None else self.capacity)


def capacity_of(tokens: int, experts: int, factor: float) -> int:
    """Rows for each expert, `factor` times its share of a sequence's choices."""
    return math.ceil(tokens * factor / experts)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatch(rows: Rows, x: Array, chosen: Array) -> tuple[Array, Array]:
    """Copies of each token in the rows of its experts, and how many rows each expert got.

    x [batch, seq, embed]; chosen [batch, seq, k], experts; results [batch, rows, embed] and [batch, experts].
    """
    return _dispatch(rows, x, chosen)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def combine(rows: Rows, outputs: Array, chosen: Array, weights: Array) -> Array:
    """Weighted sum of what each token's experts made of it.

    outputs [batch, rows, embed]; chosen and weights [batch, seq, k]; result [batch, seq, embed].
    """
    return _combine(rows, outputs, chosen, weights)[0]


def _rule(rows: Rows, operands: str, results: str, *clauses: str) -> str:
    text = f"{operands} -> {results}".replace("rows", f"(experts={rows.experts} row)")
    return "; ".join((text, "whole: experts k", "tied: row=seq", *clauses))


def _dispatch(rows: Rows, x: Array, chosen: Array) -> tuple[Array, Array]:
    rule = _rule(rows, "batch seq embed, batch seq k", "batch rows embed, batch experts")
    outputs: tuple[Array, Array] = _dispatch_kernel(x, chosen, rule=rule, **_static(rows))
    return outputs


def _combine(rows: Rows, outputs: Array, chosen: Array, weights: Array) -> tuple[Array, Array]:
    """The sum, and what was summed [batch, seq, k, embed], which lies with the tokens for the backward pass to read."""
    rule = _rule(rows, "batch rows embed, batch seq k, batch seq k", "batch seq embed, batch seq k embed")
    results: tuple[Array, Array] = _combine_kernel(outputs, chosen, weights, rule=rule, **_static(rows))
    return results


def _static(rows: Rows) -> dict[str, int]:
    return {"experts": rows.experts, **({} if rows.capacity is None else {"capacity": rows.capacity})}


def _places(chosen: Array, rows: Rows) -> tuple[Array, Array]:
    """The row of each choice [batch, seq x k], past the end where its expert is full; choices of each expert."""
    flat = chosen.reshape(chosen.shape[0], -1)
    counts = jnp.sum(flat[..., None] == jnp.arange(rows.experts), axis=1, dtype=jnp.int32)
    place = jnp.argsort(jnp.argsort(flat, axis=1, stable=True), axis=1).astype(jnp.int32)
    if rows.capacity is None:
        return place, counts
    starts = jnp.cumsum(counts, axis=1) - counts
    rank = place - jnp.take_along_axis(starts, flat, axis=1)
    held = jnp.where(rank < rows.capacity, flat * rows.capacity + rank, rows.experts * rows.capacity)
    return held, jnp.minimum(counts, rows.capacity)


def _at(values: Array, place: Array) -> Array:
    """Rows at given places [batch, places, embed]; zero past the end."""
    return jax.vmap(lambda v, i: v.at[i].get(mode="fill", fill_value=0))(values, place)


def _put(values: Array, place: Array, count: int) -> Array:
    """`count` rows, of which those at given places are set."""
    empty = jnp.zeros((values.shape[0], count, values.shape[2]), values.dtype)
    return jax.vmap(lambda e, i, v: e.at[i].set(v, mode="drop"))(empty, place, values)


def _dispatch_body(
    x: Array, chosen: Array, *, rule: str, experts: int, capacity: int | None = None
) -> tuple[Array, Array]:
    rows = Rows(experts, capacity)
    place, counts = _places(chosen, rows)
    return _put(jnp.repeat(x, chosen.shape[2], axis=1), place, rows.count(place.shape[1])), counts


def _combine_body(
    outputs: Array, chosen: Array, weights: Array, *, rule: str, experts: int, capacity: int | None = None
) -> tuple[Array, Array]:
    place, _ = _places(chosen, Rows(experts, capacity))
    back = _at(outputs, place).reshape(*chosen.shape, -1)
    return jnp.sum(back.astype(weights.dtype) * weights[..., None], axis=2).astype(outputs.dtype), back


def _combine_backward_body(
    back: Array, chosen: Array, weights: Array, gradient: Array, *, rule: str, experts: int, capacity: int | None = None
) -> tuple[Array, Array]:
    rows = Rows(experts, capacity)
    place, _ = _places(chosen, rows)
    wide = gradient.astype(weights.dtype)[:, :, None]
    doutputs = (wide * weights[..., None]).astype(back.dtype).reshape(*place.shape, -1)
    return _put(doutputs, place, rows.count(place.shape[1])), jnp.sum(back.astype(weights.dtype) * wide, axis=3)


_dispatch_kernel = lax.composite(_dispatch_body, name="perfmodel.dispatch")
_combine_kernel = lax.composite(_combine_body, name="perfmodel.combine")
_combine_backward_kernel = lax.composite(_combine_backward_body, name="perfmodel.combine_backward")


def _dispatch_forward(rows: Rows, x: Array, chosen: Array) -> tuple[tuple[Array, Array], Array]:
    return _dispatch(rows, x, chosen), chosen


def _dispatch_backward(rows: Rows, chosen: Array, gradients: tuple[Array, Any]) -> tuple[Array, None]:
    return _combine(rows, gradients[0], chosen, jnp.ones(chosen.shape, jnp.float32))[0], None


def _combine_forward(rows: Rows, outputs: Array, chosen: Array, weights: Array) -> tuple[Array, tuple[Array, ...]]:
    out, back = _combine(rows, outputs, chosen, weights)
    return out, (back, chosen, weights)


def _combine_backward(rows: Rows, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, None, Array]:
    rule = _rule(
        rows,
        "batch seq k embed, batch seq k, batch seq k, batch seq embed",
        "batch rows embed, batch seq k",
        "summed: embed",
    )
    doutputs, dweights = _combine_backward_kernel(*saved, gradient, rule=rule, **_static(rows))
    return doutputs, None, dweights


dispatch.defvjp(_dispatch_forward, _dispatch_backward)
combine.defvjp(_combine_forward, _combine_backward)
