"""A decoder-only transformer in plain JAX, described by a DecoderConfig; only shapes, never weights.

Constants that change no shape, the norms' epsilon and the rotary base, are the same for every model, whatever its
config says: no cost depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from perfmodel.layout import RECOMPUTE
from perfmodel.models.attention import attention
from perfmodel.models.config import DecoderConfig

Tree = dict[str, Any]
Entry = tuple[tuple[int, ...], tuple[str, ...]]

COMPUTE = jnp.bfloat16
EPSILON = 1e-5
ROPE_BASE = 10_000.0

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_fast": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


def layout_of(config: DecoderConfig) -> Tree:
    """Shape and axis names of every weight, as a tree whose leaves are (shape, names)."""
    c = config
    heads, kv = (c.kv_heads, c.q_per_kv, c.head_dim), (c.kv_heads, c.head_dim)
    head_names, kv_names = ("kv_heads", "q_per_kv", "head_dim"), ("kv_heads", "head_dim")
    block: dict[str, Entry] = {
        "query": ((c.embed, *heads), ("embed", *head_names)),
        "key": ((c.embed, *kv), ("embed", *kv_names)),
        "value": ((c.embed, *kv), ("embed", *kv_names)),
        "out": ((*heads, c.embed), (*head_names, "embed")),
        "up": ((c.embed, c.mlp), ("embed", "mlp")),
        "down": ((c.mlp, c.embed), ("mlp", "embed")),
        **_norm(c, "attention_norm"),
        **_norm(c, "mlp_norm"),
    }
    if c.gated:
        block["gate"] = block["up"]
    if c.qkv_bias:
        block |= {"query_bias": (heads, head_names), "key_bias": (kv, kv_names), "value_bias": (kv, kv_names)}
    if c.out_bias:
        block["out_bias"] = ((c.embed,), ("embed",))
    if c.mlp_bias:
        block |= {"up_bias": ((c.mlp,), ("mlp",)), "down_bias": ((c.embed,), ("embed",))}
        if c.gated:
            block["gate_bias"] = block["up_bias"]
    if c.qk_norm:
        block |= dict.fromkeys(("query_norm", "key_norm"), ((c.head_dim,), ("head_dim",)))
    tree: Tree = {
        "embedding": ((c.vocab, c.embed), ("vocab", "embed")),
        "layers": {name: ((c.layers, *shape), ("layers", *names)) for name, (shape, names) in block.items()},
        **_norm(c, "final_norm"),
    }
    if not c.rotary:
        tree["positions"] = ((c.positions, c.embed), ("position", "embed"))
    if not c.tied:
        tree["head"] = ((c.embed, c.vocab), ("embed", "vocab"))
    return tree


def _norm(c: DecoderConfig, name: str) -> dict[str, Entry]:
    entry: Entry = ((c.embed,), ("embed",))
    return {name: entry} if c.norm == "rms" else {name: entry, f"{name}_bias": entry}


def is_entry(node: Any) -> bool:
    """Whether a node of `layout_of`'s tree is a leaf."""
    return isinstance(node, tuple)


def normalise(x: Array, weights: Tree, name: str) -> Array:
    """RMSNorm, or LayerNorm where the weights hold a bias; in fp32."""
    y = x.astype(jnp.float32)
    bias = weights.get(f"{name}_bias")
    if bias is not None:
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = (y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + EPSILON)).astype(x.dtype) * weights[name]
    return y if bias is None else y + bias


def rotate(x: Array, share: float) -> Array:
    """Rotary position embedding of the first `share` of the last dim; x [batch, seq, ..., head_dim]."""
    size = int(x.shape[-1] * share) // 2 * 2
    position = jnp.arange(x.shape[1], dtype=jnp.float32)
    frequency = ROPE_BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = position[:, None] * frequency
    angle = angle.reshape(1, x.shape[1], *(1,) * (x.ndim - 3), size // 2)
    turned, rest = x[..., :size].astype(jnp.float32), x[..., size:]
    left, right = turned[..., : size // 2], turned[..., size // 2 :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
    return turned if size == x.shape[-1] else jnp.concatenate([turned, rest], axis=-1)


@dataclass(frozen=True)
class Pieces:
    """The parts of a layer that a recompute policy may wrap: fused elementwise kernels and the attention core."""

    normalise: Callable[[Array, Tree, str], Array]
    rotate: Callable[[Array, float], Array]
    combine: Callable[..., Array]
    core: Callable[[Array, Array, Array], Array]


def pieces(config: DecoderConfig, recompute: str) -> Pieces:
    """Under `none` and `selective` elementwise kernels save their inputs only, as fused kernels do; `selective` drops
    the attention core's residuals too; under `full` the whole layer is recomputed and nothing needs wrapping.
    """
    assert recompute in RECOMPUTE, recompute
    combine = partial(activated, ACTIVATIONS[config.activation])
    if recompute == "full":
        return Pieces(normalise, rotate, combine, attention)
    return Pieces(
        normalise=jax.checkpoint(normalise, static_argnums=2),
        rotate=jax.checkpoint(rotate, static_argnums=1),
        combine=jax.checkpoint(combine),
        core=jax.checkpoint(attention) if recompute == "selective" else attention,
    )


def activated(activate: Callable[[Array], Array], first: Array, second: Array | None = None) -> Array:
    """The MLP's nonlinearity, times the other projection where there is one."""
    return activate(first) if second is None else activate(first) * second


def attend(c: DecoderConfig, x: Array, w: Tree, p: Pieces) -> Array:
    """Attention sublayer: projections, positions, core, output; x [batch, seq, embed]."""
    q = jnp.einsum("bsd,dkgh->bskgh", x, w["query"])
    k = jnp.einsum("bsd,dkh->bskh", x, w["key"])
    v = jnp.einsum("bsd,dkh->bskh", x, w["value"])
    if c.qkv_bias:
        q, k, v = q + w["query_bias"], k + w["key_bias"], v + w["value_bias"]
    if c.qk_norm:
        q, k = p.normalise(q, w, "query_norm"), p.normalise(k, w, "key_norm")
    if c.rotary:
        q, k = p.rotate(q, c.rotary), p.rotate(k, c.rotary)
    out = jnp.einsum("bskgh,kghd->bsd", p.core(q, k, v), w["out"])
    return out + w["out_bias"] if c.out_bias else out


def feed_forward(c: DecoderConfig, x: Array, w: Tree, p: Pieces) -> Array:
    """MLP sublayer, gated or plain."""
    up = x @ w["up"] + w["up_bias"] if c.mlp_bias else x @ w["up"]
    if c.gated:
        gate = x @ w["gate"] + w["gate_bias"] if c.mlp_bias else x @ w["gate"]
        hidden = p.combine(gate, up)
    else:
        hidden = p.combine(up)
    down = hidden @ w["down"]
    return down + w["down_bias"] if c.mlp_bias else down


def block(c: DecoderConfig, x: Array, w: Tree, p: Pieces) -> Array:
    """One layer."""
    attended = x + attend(c, p.normalise(x, w, "attention_norm"), w, p)
    read = x if c.parallel_residual else attended
    return attended + feed_forward(c, p.normalise(read, w, "mlp_norm"), w, p)


def loss(c: DecoderConfig, weights: Tree, tokens: Array, targets: Array, recompute: str) -> Array:
    """Mean cross-entropy of next-token prediction; tokens and targets [batch, seq].

    recompute: `none` saves what the backward pass reads, `selective` recomputes the attention core, `full` the layer.
    """
    x = weights["embedding"][tokens]
    if not c.rotary:
        x = x + weights["positions"][jnp.arange(tokens.shape[1])]
    parts = pieces(c, recompute)

    def layer(x: Array, w: Tree) -> Array:
        return block(c, x, w, parts)

    step = jax.checkpoint(layer) if recompute == "full" else layer
    x, _ = lax.scan(lambda x, w: (step(x, w), None), x, weights["layers"])
    x = parts.normalise(x, weights, "final_norm")
    head = weights["embedding"].T if c.tied else weights["head"]
    logits = (x @ head).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)
