"""Training steps as people write them who have never heard of axis names."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Argument, Program

VOCAB, EMBED, HEADS, HEAD_DIM, MLP, LAYERS, BATCH, SEQ = 512, 64, 4, 16, 256, 3, 4, 32


def spec(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def norm(x: Any, scale: Any) -> Any:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale


def layer(x: Any, w: Any) -> Any:
    h = norm(x, w["norm1"])
    q, k, v = ((h @ w[name]).reshape(*h.shape[:2], HEADS, HEAD_DIM) for name in ("q", "k", "v"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * HEAD_DIM**-0.5
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*h.shape) @ w["o"]
    return x + jax.nn.silu(norm(x, w["norm2"]) @ w["up"]) @ w["down"]


def decoder_loss(params: Any, tokens: Any, targets: Any) -> Any:
    x = params["embedding"][tokens]
    if isinstance(params["layers"], dict):
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, params["layers"])
    else:
        for w in params["layers"]:
            x = layer(x, w)
    logits = (x @ params["head"]).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)


def step(params: Any, momentum: Any, tokens: Any, targets: Any) -> Any:
    loss, gradients = jax.value_and_grad(decoder_loss)(params, tokens, targets)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
    params = jax.tree.map(lambda p, m: (p - 1e-3 * m).astype(p.dtype), params, momentum)
    return params, momentum, loss


def decoder_parameters(*, scanned: bool, dtype: Any, vocab: int) -> Any:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("qkvo", (EMBED, EMBED))
    shapes |= {"up": (EMBED, MLP), "down": (MLP, EMBED), "norm1": (EMBED,), "norm2": (EMBED,)}
    stacked = (LAYERS,) if scanned else ()
    layers: Any = {name: spec(*stacked, *shape, dtype=dtype) for name, shape in shapes.items()}
    return {
        "embedding": spec(vocab, EMBED, dtype=dtype),
        "head": spec(EMBED, vocab, dtype=dtype),
        "layers": layers if scanned else [layers] * LAYERS,
    }


def decoder(*, scanned: bool = True, vocab: int = VOCAB) -> Program:
    """A plain decoder: no axis name anywhere."""
    params = decoder_parameters(scanned=scanned, dtype=jnp.bfloat16, vocab=vocab)
    momentum = decoder_parameters(scanned=scanned, dtype=jnp.float32, vocab=vocab)
    tokens = spec(BATCH, SEQ, dtype=jnp.int32)
    return Program(
        name="decoder",
        fn=step,
        arguments=(
            Argument(name="params", role="parameters", tree=params, axes=jax.tree.map(lambda _: None, params)),
            Argument(name="momentum", role="optimizer", tree=momentum, axes=jax.tree.map(lambda _: None, momentum)),
            Argument(name="tokens", role="batch", tree=tokens, axes=None),
            Argument(name="targets", role="batch", tree=tokens, axes=None),
        ),
        donated=("params", "momentum"),
    )


WIDTHS = (32, 64, 128, 64, 16)


def mlp() -> Program:
    """A chain of matmuls without a residual stream."""
    weights = [spec(m, n) for m, n in pairwise(WIDTHS)]

    def mlp_step(weights: Any, x: Any, y: Any) -> Any:
        def loss(weights: Any) -> Any:
            h = x
            for w in weights:
                h = jax.nn.relu(h @ w)
            return jnp.mean((h - y) ** 2)

        value, gradients = jax.value_and_grad(loss)(weights)
        return jax.tree.map(lambda w, g: w - g, weights, gradients), value

    return Program(
        name="mlp",
        fn=mlp_step,
        arguments=(
            Argument(name="w", role="parameters", tree=weights, axes=[None] * len(weights)),
            Argument(name="x", role="batch", tree=spec(8, WIDTHS[0]), axes=None),
            Argument(name="y", role="batch", tree=spec(8, WIDTHS[-1]), axes=None),
        ),
        donated=("w",),
    )


COLOURS, WINDOW, CHANNELS, CLASSES = 3, 3, (64, 128), 256


def convnet() -> Program:
    """Convolutions with residual blocks, from pictures to classes."""
    narrow, wide = CHANNELS
    shapes = {
        "stem": (WINDOW, WINDOW, COLOURS, narrow),
        "conv1": (WINDOW, WINDOW, narrow, narrow),
        "conv2": (WINDOW, WINDOW, narrow, narrow),
        "depthwise": (WINDOW, WINDOW, 1, narrow),
        "conv3": (WINDOW, WINDOW, narrow, wide),
        "head": (wide, CLASSES),
    }
    weights = {name: spec(*shape) for name, shape in shapes.items()}

    def convolve(x: Any, kernel: Any, groups: int = 1) -> Any:
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups)

    def convnet_step(w: Any, pictures: Any, y: Any) -> Any:
        def loss(w: Any) -> Any:
            x = jax.nn.relu(convolve(pictures, w["stem"]))
            inner = convolve(jax.nn.relu(convolve(x, w["conv1"])), w["depthwise"], narrow)
            x = x + convolve(inner, w["conv2"])
            x = jax.nn.relu(convolve(x, w["conv3"]))
            return jnp.mean((jnp.mean(x, (1, 2)) @ w["head"] - y) ** 2)

        value, gradients = jax.value_and_grad(loss)(w)
        return jax.tree.map(lambda p, g: p - g, w, gradients), value

    return Program(
        name="convnet",
        fn=convnet_step,
        arguments=(
            Argument(name="w", role="parameters", tree=weights, axes=jax.tree.map(lambda _: None, weights)),
            Argument(name="pictures", role="batch", tree=spec(8, 16, 16, COLOURS), axes=None),
            Argument(name="y", role="batch", tree=spec(8, CLASSES), axes=None),
        ),
        donated=("w",),
    )


def constrained(axes: tuple[str, ...] = ("data",)) -> Program:
    """A constraint over a mesh whose axes have names of their own."""
    sharding = jax.NamedSharding(jax.sharding.AbstractMesh((2,) * len(axes), axes), jax.P(axes))

    def double(x: Any) -> Any:
        return jax.lax.with_sharding_constraint(jnp.sin(x), sharding) * 2

    argument = Argument(name="x", role="batch", tree=spec(BATCH, SEQ), axes=("batch", None))
    return Program(name="constrained", fn=double, arguments=(argument,))


def twice() -> Program:
    """A constraint over a mesh, one of whose axes is called as a layout's."""
    return constrained(("data", "tp"))
