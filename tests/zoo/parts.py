"""Pieces of transformers, in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def rms_norm(x: Any, scale: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * scale + bias


def rope(x: Any) -> Any:
    """Rotary positions of [batch, seq, ..., 2 x half]."""
    seq, half = x.shape[1], x.shape[-1] // 2
    angles = jnp.arange(seq)[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    angles = angles.reshape(1, seq, *(1,) * (x.ndim - 3), half)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1)


def attend(q: Any, k: Any, v: Any, *, causal: bool, bias: Any = 0.0) -> Any:
    """Attention of queries [batch, seq, kv_heads, q_per_kv, head] over keys and values [batch, seq, kv_heads, head]."""
    scores = jnp.einsum("bskgh,btkh->bkgst", q, k) * q.shape[-1] ** -0.5 + bias
    if causal:
        seq = jnp.arange(q.shape[1])
        scores = jnp.where(seq[:, None] >= seq[None, :], scores, -1e9)
    return jnp.einsum("bkgst,btkh->bskgh", jax.nn.softmax(scores, axis=-1), v)


def grouped_attention(x: Any, w: Any) -> Any:
    """Causal attention with grouped heads and rotary positions, projections included."""
    q = rope(jnp.einsum("bsd,dkgh->bskgh", x, w["q"]))
    k = rope(jnp.einsum("bsd,dkh->bskh", x, w["k"]))
    v = jnp.einsum("bsd,dkh->bskh", x, w["v"])
    return jnp.einsum("bskgh,kghd->bsd", attend(q, k, v, causal=True), w["o"])


def cross_entropy(logits: Any, labels: Any) -> Any:
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)
