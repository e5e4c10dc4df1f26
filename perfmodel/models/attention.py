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


def attention(q: Array, k: Array, v: Array, sinks: Array | None = None, *, window: int | None = None) -> Array:
    """Causal attention of grouped queries, to the last `window` positions where that is given.

    q [batch, seq, kv_heads, q_per_kv, head_dim]; k [batch, seq, kv_heads, head_dim]; v [batch, seq, kv_heads,
    value_dim]; sinks [kv_heads, q_per_kv]: scores of a key without a value, in every softmax; result [batch, seq,
    kv_heads, q_per_kv, value_dim].
    """
    return _attention(window, q, k, v, sinks)


def _scores(q: Array, k: Array, causal: bool, window: int | None) -> Array:
    scores = jnp.einsum("bqkgh,bskh->bkgqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if not causal:
        return scores
    rows = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 2)
    columns = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    seen = rows >= columns
    return jnp.where(seen if window is None else seen & (rows - columns < window), scores, MASKED)


def _forward_body(
    q: Array, k: Array, v: Array, sinks: Array | None, *, causal: bool, window: int | None = None
) -> tuple[Array, Array]:
    scores = _scores(q, k, causal, window)
    statistics = jax.nn.logsumexp(scores, axis=-1)
    if sinks is not None:
        statistics = jnp.logaddexp(statistics, sinks.astype(jnp.float32)[:, :, None])
    weights = jnp.exp(scores - statistics[..., None]).astype(v.dtype)
    return jnp.einsum("bkgqs,bskv->bqkgv", weights, v), statistics


def _backward_body(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None,
    out: Array,
    statistics: Array,
    gradient: Array,
    *,
    causal: bool,
    window: int | None = None,
) -> tuple[Array, ...]:
    weights = jnp.exp(_scores(q, k, causal, window) - statistics[..., None])
    dv = jnp.einsum("bkgqs,bqkgv->bskv", weights.astype(v.dtype), gradient)
    dweights = jnp.einsum("bqkgv,bskv->bkgqs", gradient, v, preferred_element_type=jnp.float32)
    correction = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    correction = jnp.einsum("bqkg->bkgq", correction)
    dscores = weights * (dweights - correction[..., None]) * q.shape[-1] ** -0.5
    dscores = dscores.astype(q.dtype)
    dq, dk = jnp.einsum("bkgqs,bskh->bqkgh", dscores, k), jnp.einsum("bkgqs,bqkgh->bskh", dscores, q)
    if sinks is None:
        return dq, dk, dv
    unspent = jnp.exp(sinks.astype(jnp.float32)[:, :, None] - statistics)  # what the sink takes of each softmax
    return dq, dk, dv, -jnp.sum(unspent * correction, axis=(0, 3)).astype(sinks.dtype)


_forward = lax.composite(_forward_body, name="perfmodel.attention")
_backward = lax.composite(_backward_body, name="perfmodel.attention_backward")


def _static(window: int | None) -> dict[str, Any]:
    return {"causal": True} if window is None else {"causal": True, "window": window}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(window: int | None, q: Array, k: Array, v: Array, sinks: Array | None) -> Array:
    out: Array = _forward(q, k, v, sinks, **_static(window))[0]
    return out


def _attention_forward(
    window: int | None, q: Array, k: Array, v: Array, sinks: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    out, statistics = _forward(q, k, v, sinks, **_static(window))
    return out, (q, k, v, sinks, out, statistics)


def _attention_backward(window: int | None, saved: tuple[Any, ...], gradient: Array) -> Any:
    gradients = _backward(*saved, gradient, **_static(window))
    return gradients if len(gradients) == 4 else (*gradients, None)


_attention.defvjp(_attention_forward, _attention_backward)
