"""Attention as one marked kernel: scores never touch memory, the backward pass recomputes them.

Both directions are `jax.lax.composite`s, so that a trace keeps them as single ops ruled and counted by their bodies.
The backward kernel reads the softmax statistics that the forward kernel leaves, as flash attention does
(Dao et al. 2022, algorithm 4): five matmuls in all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

MASKED = -1e30


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of grouped queries.

    q [batch, seq, kv_heads, q_per_kv, head_dim]; k, v [batch, seq, kv_heads, head_dim]; result shaped like q.
    """
    return _attention(q, k, v)


def _scores(q: Array, k: Array, causal: bool) -> Array:
    scores = jnp.einsum("bqkgh,bskh->bkgqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if not causal:
        return scores
    rows = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 2)
    columns = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    return jnp.where(rows >= columns, scores, MASKED)


def _forward_body(q: Array, k: Array, v: Array, *, causal: bool) -> tuple[Array, Array]:
    scores = _scores(q, k, causal)
    statistics = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - statistics[..., None]).astype(v.dtype)
    return jnp.einsum("bkgqs,bskh->bqkgh", weights, v), statistics


def _backward_body(
    q: Array, k: Array, v: Array, out: Array, statistics: Array, gradient: Array, *, causal: bool
) -> tuple[Array, Array, Array]:
    weights = jnp.exp(_scores(q, k, causal) - statistics[..., None])
    dv = jnp.einsum("bkgqs,bqkgh->bskh", weights.astype(v.dtype), gradient)
    dweights = jnp.einsum("bqkgh,bskh->bkgqs", gradient, v, preferred_element_type=jnp.float32)
    correction = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    dscores = weights * (dweights - jnp.einsum("bqkg->bkgq", correction)[..., None]) * q.shape[-1] ** -0.5
    dscores = dscores.astype(q.dtype)
    return (
        jnp.einsum("bkgqs,bskh->bqkgh", dscores, k),
        jnp.einsum("bkgqs,bqkgh->bskh", dscores, q),
        dv,
    )


_forward = lax.composite(_forward_body, name="perfmodel.attention")
_backward = lax.composite(_backward_body, name="perfmodel.attention_backward")


@partial(jax.custom_vjp)
def _attention(q: Array, k: Array, v: Array) -> Array:
    out: Array = _forward(q, k, v, causal=True)[0]
    return out


def _attention_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    out, statistics = _forward(q, k, v, causal=True)
    return out, (q, k, v, out, statistics)


def _attention_backward(saved: tuple[Array, ...], gradient: Array) -> Any:
    return _backward(*saved, gradient, causal=True)


_attention.defvjp(_attention_forward, _attention_backward)
