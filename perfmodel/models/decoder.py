"""A decoder-only transformer in plain JAX, described by a DecoderConfig; only shapes, never weights.

Constants that change no shape, the norms' epsilon and the rotary base, are the same for every model, whatever its
config says: no cost depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from perfmodel.layout import RECOMPUTE
from perfmodel.models import latent
from perfmodel.models.architecture import DecoderConfig
from perfmodel.models.attention import attention
from perfmodel.models.experts import Inner, mix, routed
from perfmodel.models.linear import Linears
from perfmodel.models.precision import Scaling
from perfmodel.models.weights import Stack, Tree, loops_of

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
CLAMP, SHARPNESS = 7.0, 1.702
"""Bound of what enters a clamped SwiGLU, and the slope of its sigmoid, as gpt-oss has them."""


@jax.named_scope("norm")
def normalise(x: Array, weights: Tree, name: str) -> Array:
    """RMSNorm, or LayerNorm where the weights hold a bias; in fp32."""
    y = x.astype(jnp.float32)
    bias = weights.get(f"{name}_bias")
    if bias is not None:
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = (y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + EPSILON)).astype(x.dtype) * weights[name]
    return y if bias is None else y + bias


def rotate(x: Array, size: int) -> Array:
    """Rotary position embedding of the first `size` of the last dim; x [batch, seq, ..., head_dim]."""
    position = jnp.arange(x.shape[1], dtype=jnp.float32)
    frequency = ROPE_BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = position[:, None] * frequency
    angle = angle.reshape(1, x.shape[1], *(1,) * (x.ndim - 3), size // 2)
    turned, rest = x[..., :size].astype(jnp.float32), x[..., size:]
    left, right = turned[..., : size // 2], turned[..., size // 2 :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
    return turned if size == x.shape[-1] else jnp.concatenate([turned, rest], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The parts of a layer that a recompute policy may wrap: fused elementwise kernels, routing, the attention core;
    and how it multiplies with its weights.
    """

    normalise: Callable[[Array, Tree, str], Array]
    rotate: Callable[[Array, int], Array]
    inner: Inner
    route: Callable[..., tuple[Array, Array]]
    core: Callable[..., Array]
    linears: Linears


def pieces(config: DecoderConfig, recompute: str, scaling: Scaling | None = None, window: int | None = None) -> Pieces:
    """Under `none` and `selective` elementwise kernels save their inputs only, as fused kernels do; `selective` drops
    the attention core's residuals too; under `full` the whole layer is recomputed and nothing needs wrapping.
    """
    assert recompute in RECOMPUTE, recompute
    inner, core, linears = inner_of(config), partial(attention, window=window), Linears(scaling)
    if recompute == "full":
        return Pieces(normalise=normalise, rotate=rotate, inner=inner, route=routed, core=core, linears=linears)
    return Pieces(
        normalise=jax.checkpoint(normalise, static_argnums=2),
        rotate=jax.checkpoint(rotate, static_argnums=1),
        inner=jax.checkpoint(inner),
        route=jax.checkpoint(routed, static_argnums=0),
        core=jax.checkpoint(core) if recompute == "selective" else core,
        linears=linears,
    )


def inner_of(c: DecoderConfig) -> Inner:
    """The MLP's nonlinearity."""
    return clamped if c.activation == "clamped_swiglu" else partial(activated, ACTIVATIONS[c.activation])


def activated(activate: Callable[[Array], Array], first: Array, second: Array | None = None) -> Array:
    """A nonlinearity of one projection, times the other where there is one."""
    return activate(first) if second is None else activate(first) * second


def clamped(gate: Array, up: Array) -> Array:
    """SwiGLU of bounded operands, the second moved by one (gpt-oss)."""
    gate, up = jnp.minimum(gate, CLAMP), jnp.clip(up, -CLAMP, CLAMP)
    return (up + 1) * gate * jax.nn.sigmoid(SHARPNESS * gate)


@jax.named_scope("attention")
def attend(c: DecoderConfig, x: Array, w: Tree, p: Pieces) -> Array:
    """Attention sublayer: projections, positions, core, output; x [batch, seq, embed]."""
    q, k, v = projections(c, x, w, p)
    core = p.core(q, k, v, w["sinks"]) if c.sinks else p.core(q, k, v)
    (out,) = p.linears(core, w, "out")
    return out + w["out_bias"] if c.out_bias else out


def projections(c: DecoderConfig, x: Array, w: Tree, p: Pieces) -> tuple[Array, Array, Array]:
    """Queries, keys and values, with positions."""
    if c.latent is not None:
        q = latent.queries(c.latent, x, w, p.linears, p.normalise, p.rotate)
        return q, *latent.keys_and_values(c.latent, x, w, p.linears, p.normalise, p.rotate)
    q, k, v = p.linears(x, w, "query", "key", "value")
    if c.qkv_bias:
        q, k, v = q + w["query_bias"], k + w["key_bias"], v + w["value_bias"]
    if c.qk_norm:
        q, k = p.normalise(q, w, "query_norm"), p.normalise(k, w, "key_norm")
    if c.rotary:
        size = int(c.head_dim * c.rotary) // 2 * 2
        q, k = p.rotate(q, size), p.rotate(k, size)
    return q, k, v


@jax.named_scope("mlp")
def feed_forward(c: DecoderConfig, x: Array, w: Tree, p: Pieces, prefix: str = "") -> Array:
    """MLP sublayer, gated or plain."""

    def project(x: Array, *names: str) -> list[Array]:
        made = p.linears(x, w, *(prefix + name for name in names))
        return [out + w[f"{prefix}{name}_bias"] if c.mlp_bias else out for name, out in zip(names, made, strict=True)]

    up, *gate = project(x, "up", "gate") if c.gated else project(x, "up")
    (down,) = project(p.inner(*gate, up), "down")
    return down


@jax.named_scope("experts")
def mixture(c: DecoderConfig, x: Array, w: Tree, p: Pieces) -> Array:
    """MLP sublayer of experts, and of those that every token visits."""
    assert c.experts is not None
    out = mix(c.experts, x, w, p.route, p.inner, p.linears.grouped)
    return out + feed_forward(c, x, w, p, "shared_") if c.experts.shared else out


def block(c: DecoderConfig, stack: Stack, x: Array, w: Tree, p: Pieces) -> Array:
    """One layer."""
    attended = x + attend(c, p.normalise(x, w, "attention_norm"), w, p)
    read = x if c.parallel_residual else attended
    sublayer = mixture if stack.routed else feed_forward
    return attended + sublayer(c, p.normalise(read, w, "mlp_norm"), w, p)


def run(
    c: DecoderConfig,
    stacks: tuple[Stack, ...],
    weights: Tree,
    x: Array,
    recompute: str,
    scaling: Scaling | None = None,
) -> Array:
    """A loop over layers, each trip one of every stack."""

    def layer(stack: Stack) -> Callable[[Array, Tree], Array]:
        step = partial(block, c, stack, p=pieces(c, recompute, scaling, stack.window))
        return jax.checkpoint(step) if recompute == "full" else step

    steps = [layer(stack) for stack in stacks]

    def trip(x: Array, each: tuple[Tree, ...]) -> tuple[Array, None]:
        for step, w in zip(steps, each, strict=True):
            x = step(x, w)
        return x, None

    return lax.scan(trip, x, tuple(weights[stack.name] for stack in stacks))[0]


def loss(
    c: DecoderConfig,
    weights: Tree,
    tokens: Array,
    targets: Array,
    recompute: str,
    scaling: Scaling | None = None,
) -> Array:
    """Mean cross-entropy of next-token prediction; tokens and targets [batch, seq].

    recompute: `none` saves what the backward pass reads, `selective` recomputes the attention core, `full` the layer;
    scaling: of the matmuls of the layers' weights, whose slots are with the weights.
    """
    x = embed(c, weights, tokens)
    for stacks in loops_of(c):
        x = run(c, stacks, weights, x, recompute, scaling)
    x = pieces(c, recompute).normalise(x, weights, "final_norm")
    return cross_entropy(x, weights["embedding"].T if c.tied else weights["head"], targets)


@jax.named_scope("embed")
def embed(c: DecoderConfig, weights: Tree, tokens: Array) -> Array:
    """Embeddings of tokens [batch, seq], with learned positions where there are no rotary ones."""
    x = weights["embedding"][tokens]
    return x if c.rotary else x + weights["positions"][jnp.arange(tokens.shape[1])]


@jax.named_scope("head")
def cross_entropy(x: Array, head: Array, targets: Array) -> Array:
    """Mean cross-entropy of what `head` [embed, vocab] makes of x [batch, seq, embed]."""
    logits = (x @ head).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)
