"""Llama-3-8B without marked kernels: fp32 weights cast where they are used, attention op by op, AdamW."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from jax import lax

from perfmodel.trace import Argument, Program

LAYERS, EMBED, HEADS, KV_HEADS, HEAD, MLP, VOCAB = 32, 4096, 32, 8, 128, 14336, 128256
BATCH, SEQ = 64, 4096


def norm(x: Any, scale: Any) -> Any:
    y = x.astype(jnp.float32)
    return (y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)).astype(x.dtype) * scale.astype(x.dtype)


def rotate(x: Any) -> Any:
    half = HEAD // 2
    angle = jnp.arange(SEQ, dtype=jnp.float32)[:, None] * 5e5 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = (turn(angle)[None, :, None, :] for turn in (jnp.cos, jnp.sin))
    left, right = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x.dtype)


def attention(q: Any, k: Any, v: Any) -> Any:
    q = q.reshape(*q.shape[:2], KV_HEADS, HEADS // KV_HEADS, HEAD)
    scores = jnp.einsum("bqkgh,bskh->bkgqs", q, k).astype(jnp.float32) * HEAD**-0.5
    position = jnp.arange(SEQ)
    weights = jax.nn.softmax(jnp.where(position[:, None] >= position[None, :], scores, -1e30), -1)
    out = jnp.einsum("bkgqs,bskh->bqkgh", weights.astype(v.dtype), v)
    return out.reshape(*out.shape[:2], HEADS, HEAD)


def layer(x: Any, weights: Any) -> Any:
    w = jax.tree.map(lambda each: each.astype(jnp.bfloat16), weights)
    y = norm(x, w["norm1"])
    q, k, v = (jnp.einsum("bsd,dhk->bshk", y, w[name]) for name in ("query", "key", "value"))
    x = x + jnp.einsum("bshk,hkd->bsd", attention(rotate(q), rotate(k), v), w["out"])
    y = norm(x, w["norm2"])
    return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]


def loss(w: Any, tokens: Any, targets: Any) -> Any:
    x = w["embedding"].astype(jnp.bfloat16)[tokens]
    body = jax.checkpoint(layer)
    x, _ = lax.scan(lambda x, w: (body(x, w), None), x, w["layers"])
    logits = (norm(x, w["norm"]) @ w["head"].astype(jnp.bfloat16)).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)


SIZES = {
    "layers": LAYERS,
    "embed": EMBED,
    "heads": HEADS,
    "kv_heads": KV_HEADS,
    "head": HEAD,
    "mlp": MLP,
    "vocab": VOCAB,
}
WEIGHTS: dict[str, Any] = {
    "embedding": "vocab embed",
    "layers": {
        "norm1": "layers embed",
        "norm2": "layers embed",
        "query": "layers embed heads head",
        "key": "layers embed kv_heads head",
        "value": "layers embed kv_heads head",
        "out": "layers heads head embed",
        "gate": "layers embed mlp",
        "up": "layers embed mlp",
        "down": "layers mlp embed",
    },
    "norm": "embed",
    "head": "embed vocab",
}


def program() -> Program:
    """A step of 64 sequences of 4,096 tokens."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4))

    def step(weights: Any, state: Any, tokens: Any, targets: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(weights, tokens, targets)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state, value

    shape = lambda words: jax.ShapeDtypeStruct([SIZES[word] for word in words.split()], jnp.float32)
    name = lambda words: tuple({"heads": "kv_heads", "head": None}.get(word, word) for word in words.split())
    weights, names = jax.tree.map(shape, WEIGHTS), jax.tree.map(name, WEIGHTS)
    state = jax.eval_shape(optimizer.init, weights)
    moments = optax.tree_map_params(optimizer, lambda _, axes: axes, state, names, transform_non_params=lambda _: ())
    tokens = jax.ShapeDtypeStruct((BATCH, SEQ), jnp.int32)
    return Program(
        name="Llama-3-8B, op by op",
        fn=step,
        arguments=(
            Argument(name="weights", role="parameters", tree=weights, axes=names),
            Argument(name="state", role="optimizer", tree=state, axes=moments),
            Argument(name="tokens", role="batch", tree=tokens, axes=("batch", "seq")),
            Argument(name="targets", role="batch", tree=tokens, axes=("batch", "seq")),
        ),
        donated=("weights", "state"),
        recompute="full",
    )
