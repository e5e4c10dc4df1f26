"""The layer of a mixture of experts: who goes where, the experts' matmuls, and what keeps their load even."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from perfmodel.models.architecture import Experts
from perfmodel.models.dispatch import Rows, capacity_of, combine, dispatch
from perfmodel.models.weights import Tree

NEVER = -1e30

# Rows of each sequence against one matrix per group of rows: [batch, rows, in] x [experts, in, out].
GROUPED = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((2,), (1,)), ((), ())), lhs_ragged_dimensions=[1], rhs_group_dimensions=[0]
)

Inner = Callable[..., Array]
"""A layer's nonlinearity, of one or two inner vectors."""

Multiply = Callable[[Array, Array, Tree, Sequence[str]], list[Array]]
"""What the matrices of these names make of the experts' rows, of which each has so many."""


def mix(
    e: Experts, x: Array, w: Tree, route: Callable[..., tuple[Array, Array]], inner: Inner, multiply: Multiply
) -> Array:
    """What a token's experts make of it, weighted; x [batch, seq, embed].

    route: `routed`, or that under a recompute policy; inner: the nonlinearity; multiply: the matmuls.
    """
    chosen, weights = route(e, x, {name: w[name] for name in ROUTING if name in w})
    choices = x.shape[1] * e.active
    capacity = None if e.capacity_factor is None else capacity_of(choices, e.count, e.capacity_factor)
    layout = Rows(e.count, capacity)
    rows, counts = dispatch(layout, x, chosen)
    if capacity is not None:
        rows = rows.reshape(x.shape[0], e.count, capacity, -1)
    into = multiply(rows, counts, w, [name for name in ("gate", "up") if name in w])
    (outputs,) = multiply(inner(*into), counts, w, ["down"])
    return combine(layout, outputs.reshape(x.shape[0], -1, x.shape[2]), chosen, weights)


def matmul(rows: Array, counts: Array, weight: Array, bias: Array | None) -> Array:
    """Rows against their expert's matrix: as many for each as `counts` says, or [batch, experts, capacity, in]."""
    if rows.ndim == 4:
        out = jnp.einsum("beci,eio->beco", rows, weight)
        return out if bias is None else out + bias[:, None, :]
    return grouped(rows, weight, counts) if bias is None else grouped_with_bias(rows, weight, bias, counts)


def grouped(rows: Array, weight: Array, counts: Array) -> Array:
    """A ragged matmul."""
    return lax.ragged_dot_general(rows, weight, counts, GROUPED)


@jax.custom_vjp
def grouped_with_bias(rows: Array, weight: Array, bias: Array, counts: Array) -> Array:
    """A ragged matmul that adds the expert's bias as it stores a row, as grouped matmul kernels do."""
    experts = weight.shape[0]
    rule = (
        f"batch (experts={experts} row) in, experts in out, experts out, batch experts -> "
        f"batch (experts row) out; summed: in"
    )
    result: Array = _grouped_kernel(rows, weight, bias, counts, rule=rule)
    return result


def _grouped_body(rows: Array, weight: Array, bias: Array, counts: Array, *, rule: str) -> Array:
    place = jnp.arange(rows.shape[1])
    owner = jnp.sum(place[None, :, None] >= jnp.cumsum(counts, axis=1)[:, None, :], axis=2)
    return grouped(rows, weight, counts) + bias.at[owner].get(mode="fill", fill_value=0)


_grouped_kernel = lax.composite(_grouped_body, name="perfmodel.grouped_matmul")


def _grouped_forward(rows: Array, weight: Array, bias: Array, counts: Array) -> tuple[Array, tuple[Array, ...]]:
    return grouped_with_bias(rows, weight, bias, counts), (rows, weight, bias, counts)


def _grouped_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
    rows, weight, bias, counts = saved
    _, back = jax.vjp(lambda rows, weight: grouped(rows, weight, counts), rows, weight)
    # The sum of each expert's rows is its ragged matmul with ones.
    ones = jnp.ones((*rows.shape[:2], 1), rows.dtype)
    _, back_to_bias = jax.vjp(lambda bias: grouped(ones, bias[:, None, :], counts), bias)
    return (*back(gradient), *back_to_bias(gradient), None)


grouped_with_bias.defvjp(_grouped_forward, _grouped_backward)


# -- routing --------------------------------------------------------------------------------------------------------

ROUTING = ("router", "router_bias", "selection_bias")


def routed(e: Experts, x: Array, w: Tree) -> tuple[Array, Array]:
    """The experts of each token, and their weights; both [batch, seq, k], the weights in fp32 as all of this is."""
    logits = jnp.einsum("bsd,de->bse", x.astype(jnp.float32), w["router"].astype(jnp.float32))
    if "router_bias" in w:
        logits = logits + w["router_bias"].astype(jnp.float32)
    choice = lax.stop_gradient(logits if e.scoring == "chosen" else SCORES[e.scoring](logits))
    if "selection_bias" in w:
        choice = choice + lax.stop_gradient(w["selection_bias"].astype(jnp.float32))
    chosen = lax.top_k(_within_groups(e, choice), e.active)[1]
    if e.balance:
        logits = balanced(e, logits, _load(e, chosen))
    if e.scoring == "chosen":
        weights = jax.nn.softmax(jnp.take_along_axis(logits, chosen, axis=-1), axis=-1)
    else:
        weights = jnp.take_along_axis(SCORES[e.scoring](logits), chosen, axis=-1)
        if e.normalised:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return chosen, weights if e.scale == 1.0 else weights * e.scale


SCORES: dict[str, Callable[[Array], Array]] = {
    "softmax": partial(jax.nn.softmax, axis=-1),
    "chosen": partial(jax.nn.softmax, axis=-1),
    "sigmoid": jax.nn.sigmoid,
}


def _within_groups(e: Experts, choice: Array) -> Array:
    """`choice` with experts outside the best groups out of reach; a group is as good as its best two experts."""
    if e.groups == 1:
        return choice
    grouped = choice.reshape(*choice.shape[:2], e.groups, -1)
    score = jnp.sum(lax.top_k(grouped, 2)[0], axis=-1)
    least = lax.top_k(score, e.open_groups)[0][..., -1:]
    return jnp.where((score >= least)[..., None], grouped, NEVER).reshape(choice.shape)


def _load(e: Experts, chosen: Array) -> Array:
    """Choices of each expert per token of a sequence [batch, experts]."""
    hits = chosen[..., None] == jnp.arange(e.count)
    return jnp.sum(hits, axis=(1, 2), dtype=jnp.float32) / chosen.shape[1]


def balance_loss(e: Experts, logits: Array, load: Array) -> Array:
    """Coefficient x experts x sum over experts of load x mean score, the mean over sequences (Fedus et al. 2021,
    equation 4, whose batch is a sequence here, so that no ranks but those of a sequence need to agree on the load).
    """
    scores = SCORES[e.scoring](logits)
    if e.scoring == "sigmoid":
        scores = scores / jnp.sum(scores, axis=-1, keepdims=True)
    return e.balance * e.count * jnp.mean(jnp.sum(load[:, None, :] * scores, axis=2))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def balanced(e: Experts, logits: Array, load: Array) -> Array:
    """`logits`, whose gradient gains that of `balance_loss`: trainers add it so, and report the loss without it."""
    return logits


def _balanced_forward(e: Experts, logits: Array, load: Array) -> tuple[Array, tuple[Array, Array]]:
    return logits, (logits, load)


def _balanced_backward(e: Experts, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    logits, load = saved
    return gradient + jax.grad(partial(balance_loss, e))(logits, load), None


balanced.defvjp(_balanced_forward, _balanced_backward)
