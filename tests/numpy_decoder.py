"""Small decoders, and an independent writing of what they compute, in NumPy and double precision: one head, one token
and one expert at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import numpy as np
from scipy.special import erf, expit, log_softmax, softmax

from perfmodel.models.architecture import DecoderConfig, Experts, Latent
from perfmodel.models.decoder import CLAMP, EPSILON, ROPE_BASE, SHARPNESS
from perfmodel.models.training import train_program

Array: TypeAlias = Any  # of NumPy or JAX
Tree: TypeAlias = Any

V, D, L, KV, G, H, F = 52, 32, 3, 2, 3, 8, 40
"""Vocabulary, width, layers, key/value heads, queries per key/value head, head width, inner width."""
POSITIONS, S = 20, 12

SMALL = DecoderConfig(
    name="small",
    vocab=V,
    embed=D,
    layers=L,
    heads=KV * G,
    kv_heads=KV,
    head_dim=H,
    mlp=F,
    positions=POSITIONS,
    norm="rms",
    gated=True,
    activation="silu",
    rotary=1.0,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    parallel_residual=False,
    tied=False,
)
BIASED: Mapping[str, Any] = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
PLAIN: Mapping[str, Any] = {"norm": "layer", "gated": False, **BIASED}

DENSE: Mapping[str, DecoderConfig] = {
    "llama": SMALL,
    "llama with biases, tied": replace(SMALL, **BIASED, tied=True),
    "qwen2": replace(SMALL, qkv_bias=True),
    "qwen3": replace(SMALL, qk_norm=True),
    "gpt2": replace(SMALL, **PLAIN, kv_heads=KV * G, activation="gelu_new", rotary=0.0, tied=True),
    "gpt_neox": replace(SMALL, **PLAIN, kv_heads=KV * G, activation="gelu", rotary=0.25, parallel_residual=True),
}

MIXTURE = Experts(
    count=4,
    active=2,
    width=24,
    shared=0,
    scoring="softmax",
    normalised=True,
    scale=1.0,
    groups=1,
    open_groups=1,
    selection_bias=False,
    bias=False,
    balance=0.5,
)
LATENT = Latent(query_rank=14, key_value_rank=12, plain=6, rotary=4, value=5)
DEEPSEEK = replace(
    SMALL,
    kv_heads=KV * G,
    head_dim=10,
    dense_layers=1,
    latent=LATENT,
    experts=replace(
        MIXTURE,
        count=8,
        active=3,
        shared=2,
        scoring="sigmoid",
        scale=2.5,
        groups=4,
        open_groups=2,
        selection_bias=True,
    ),
)
CHOSEN = replace(MIXTURE, scoring="chosen", bias=True, balance=0.0)
GPT_OSS = replace(
    SMALL,
    layers=4,
    windows=(5, None),
    sinks=True,
    activation="clamped_swiglu",
    qkv_bias=True,
    out_bias=True,
    experts=CHOSEN,
)
QWEN3_MOE = replace(SMALL, qk_norm=True, experts=replace(MIXTURE, count=8, active=3, normalised=False))


def roomy(config: DecoderConfig) -> DecoderConfig:
    """A capacity that drops no token: room for all of them with every expert."""
    assert config.experts is not None
    return replace(config, experts=replace(config.experts, capacity_factor=float(config.experts.count)))


EXPERTS: Mapping[str, DecoderConfig] = {
    "mixtral": replace(SMALL, experts=MIXTURE),
    "mixtral, capacity": roomy(replace(SMALL, experts=MIXTURE)),
    "qwen3_moe": QWEN3_MOE,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v3, capacity": roomy(DEEPSEEK),
    "deepseek_v3, wide queries": replace(DEEPSEEK, latent=replace(LATENT, query_rank=None)),
    "gpt_oss": GPT_OSS,
    "gpt_oss, balanced, capacity": roomy(replace(GPT_OSS, experts=replace(CHOSEN, balance=0.5))),
}

CONFIGS: Mapping[str, DecoderConfig] = {**DENSE, **EXPERTS}


def random_weights(config: DecoderConfig, seed: int = 0) -> Tree:
    """Weights in double precision, large enough for every part to matter: scales near 1, the rest near 0."""
    random = np.random.default_rng(seed)

    def draw(path: Any, struct: Any) -> Array:
        key = path[-1].key
        fan_in = struct.shape[-2] if key.endswith(("up", "gate", "down")) and struct.ndim < 5 else D
        centre, spread = (
            (1.0, 0.3) if key.endswith("_norm") else (0.0, 1.0 if key.endswith(("_bias", "sinks")) else fan_in**-0.5)
        )
        return centre + spread * random.standard_normal(struct.shape)

    return jax.tree_util.tree_map_with_path(draw, train_program(config, seq_len=S).arguments[0].tree)


def single(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def random_tokens(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, V, shape)


def tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


NUMPY_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))),
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "relu": lambda x: np.maximum(x, 0.0),
}


def numpy_norm(x: Array, scale: Array, bias: Array | None) -> Array:
    centred = x if bias is None else x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return normal * scale + (0.0 if bias is None else bias)


def numpy_rotate(x: Array, share: float) -> Array:
    """Pairs (i, i + size/2) as complex numbers, turned by position / base^(2i/size); x [batch, seq, heads, width]."""
    size = int(x.shape[-1] * share)
    pairs = x[..., : size // 2] + 1j * x[..., size // 2 : size]
    angle = np.arange(x.shape[1])[:, None] / ROPE_BASE ** (2 * np.arange(size // 2) / size)
    turned = pairs * np.exp(1j * angle)[:, None, :]
    return np.concatenate([turned.real, turned.imag, x[..., size:]], -1)


def numpy_attention(q: Array, k: Array, v: Array, sinks: Array | None, window: int | None) -> Array:
    """One head at a time; q [batch, seq, heads, head_dim], k and v likewise with fewer heads; sinks [heads]."""
    group, seq = q.shape[2] // k.shape[2], q.shape[1]
    out = np.empty((*q.shape[:3], v.shape[3]))
    age = np.arange(seq)[:, None] - np.arange(seq)
    hidden = (age < 0) | (age >= (window or seq))
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, :, h // group].T / math.sqrt(q.shape[-1])
            scores = np.where(hidden, -np.inf, scores)
            if sinks is not None:  # a key more, without a value
                scores = np.concatenate([scores, np.full((seq, 1), sinks[h])], axis=1)
            out[b, :, h] = softmax(scores, axis=-1)[:, :seq] @ v[b, :, h // group]
    return out


def numpy_projections(c: DecoderConfig, y: Array, w: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    def project(name: str, heads: int) -> Array:
        flat = y @ w[name].reshape(D, -1)
        return (flat + w.get(f"{name}_bias", np.zeros(1)).ravel()).reshape(*y.shape[:2], heads, c.head_dim)

    q, k, v = project("query", c.heads), project("key", c.kv_heads), project("value", c.kv_heads)
    if c.qk_norm:
        q, k = numpy_norm(q, w["query_norm"], None), numpy_norm(k, w["key_norm"], None)
    if c.rotary:
        q, k = numpy_rotate(q, c.rotary), numpy_rotate(k, c.rotary)
    return q, k, v


def numpy_latent(c: DecoderConfig, latent: Latent, y: Array, w: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """DeepSeek-V2, equations 9 to 19, a head at a time."""
    narrow_q = numpy_norm(y @ w["query_down"], w["query_norm"], None) if latent.query_rank else y
    narrow = numpy_norm(y @ w["key_value_down"], w["key_value_norm"], None)
    turned_k = numpy_rotate((y @ w["key_rotary"])[:, :, None], 1.0)[:, :, 0]
    q, k, v = [], [], []
    for h in range(c.heads):
        up = w["query_up"][:, h, 0]
        turned_q = numpy_rotate((narrow_q @ up[:, : latent.rotary])[:, :, None], 1.0)[:, :, 0]
        q.append(np.concatenate([narrow_q @ up[:, latent.rotary :], turned_q], -1))
        k.append(np.concatenate([narrow @ w["key_up"][:, h], turned_k], -1))
        v.append(narrow @ w["value_up"][:, h])
    stacked_q, stacked_k, stacked_v = (np.stack(heads, axis=2) for heads in (q, k, v))
    return stacked_q, stacked_k, stacked_v


def numpy_inner(c: DecoderConfig, gate: Array | None, up: Array) -> Array:
    if c.activation == "clamped_swiglu":
        assert gate is not None
        gate, up = np.where(gate > CLAMP, CLAMP, gate), np.maximum(np.minimum(up, CLAMP), -CLAMP)
        return gate * expit(SHARPNESS * gate) * (up + 1.0)
    activate = NUMPY_ACTIVATIONS[c.activation]
    return activate(up) if gate is None else activate(gate) * up


def numpy_mlp(c: DecoderConfig, y: Array, w: Mapping[str, Array], prefix: str = "") -> Array:
    def project(x: Array, name: str) -> Array:
        return x @ w[prefix + name] + w.get(f"{prefix}{name}_bias", 0.0)

    gate = project(y, "gate") if c.gated else None
    return project(numpy_inner(c, gate, project(y, "up")), "down")


def numpy_choice(e: Experts, logits: Array, w: Mapping[str, Array]) -> tuple[list[int], Array, Array]:
    """The experts of one token, their weights, and its scores of all experts, which add up to 1."""
    scores: Array = expit(logits) if e.scoring == "sigmoid" else softmax(logits)
    merit = scores + w.get("selection_bias", 0.0)
    size = e.count // e.groups
    members = [range(g * size, (g + 1) * size) for g in range(e.groups)]
    best = sorted(members, key=lambda group: -sum(sorted(merit[i] for i in group)[-2:]))[: e.open_groups]
    chosen = sorted((i for group in best for i in group), key=lambda i: -merit[i])[: e.active]
    weights = softmax(logits[chosen]) if e.scoring == "chosen" else scores[chosen]
    if e.normalised:
        weights = weights / weights.sum()
    return chosen, weights * e.scale, scores / scores.sum()


def numpy_mixture(c: DecoderConfig, e: Experts, y: Array, w: Mapping[str, Array]) -> tuple[Array, float]:
    """What each token's experts make of it, and how uneven their load is."""
    out, unevenness = np.zeros_like(y), 0.0
    logits = y @ w["router"] + w.get("router_bias", 0.0)
    for b in range(y.shape[0]):
        load, share = np.zeros(e.count), np.zeros(e.count)
        for s in range(y.shape[1]):
            chosen, weights, scores = numpy_choice(e, logits[b, s], w)
            share += scores / y.shape[1]
            for i, weight in zip(chosen, weights, strict=True):
                load[i] += 1.0 / y.shape[1]
                names = (f"{name}{suffix}" for name in ("gate", "up", "down") for suffix in ("", "_bias"))
                own = {name: w[name][i] for name in names if name in w}
                out[b, s] += weight * numpy_mlp(c, y[b, s], own)
        unevenness += e.balance * e.count * float(load @ share) / y.shape[0]
    return out + (numpy_mlp(c, y, w, "shared_") if e.shared else 0.0), unevenness


def numpy_block(c: DecoderConfig, x: Array, w: Mapping[str, Array], window: int | None) -> tuple[Array, float]:
    def norm(x: Array, name: str) -> Array:
        return numpy_norm(x, w[name], w.get(f"{name}_bias"))

    y = norm(x, "attention_norm")
    q, k, v = numpy_projections(c, y, w) if c.latent is None else numpy_latent(c, c.latent, y, w)
    core = numpy_attention(q, k, v, w["sinks"].ravel() if c.sinks else None, window)
    attended = core.reshape(*x.shape[:2], -1) @ w["out"].reshape(-1, D) + w.get("out_bias", 0.0)
    y = norm(x if c.parallel_residual else x + attended, "mlp_norm")
    if c.experts is None or "router" not in w:
        return x + attended + numpy_mlp(c, y, w), 0.0
    mixed, unevenness = numpy_mixture(c, c.experts, y, w)
    return x + attended + mixed, unevenness


def numpy_layers(c: DecoderConfig, w: Tree) -> Iterator[tuple[Mapping[str, Array], int | None]]:
    """Weights and window of each layer, in order."""
    period = len(c.windows)
    for i in range(c.layers):
        j = i - c.dense_layers
        stack = "dense_layers" if j < 0 else "layers" if period == 1 else f"layers_{j % period}"
        place = i if j < 0 else j // period
        yield {name: weight[place] for name, weight in w[stack].items()}, c.windows[j % period]


def numpy_losses(c: DecoderConfig, w: Tree, tokens: Array, targets: Array) -> tuple[float, float]:
    """Cross-entropy, and what training adds to it for uneven loads."""
    x = w["embedding"][tokens]
    if not c.rotary:
        x = x + w["positions"][: tokens.shape[1]]
    unevenness = 0.0
    for layer, window in numpy_layers(c, w):
        x, more = numpy_block(c, x, layer, window)
        unevenness += more
    x = numpy_norm(x, w["final_norm"], w.get("final_norm_bias"))
    scores = log_softmax(x @ (w["embedding"].T if c.tied else w["head"]), axis=-1)
    return -float(np.take_along_axis(scores, targets[..., None], -1).mean()), unevenness
