"""T5: an encoder, and a decoder that attends to it; one table of biases by distance a stack (Raffel et al. 2020)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.parts import attend, cross_entropy, rms_norm
from zoo.step import arrays, training

BUCKETS = 32
ATTENTION = {
    "q": "layers embed kv_heads head",
    "k": "layers embed kv_heads head",
    "v": "layers embed kv_heads head",
    "o": "layers kv_heads head embed",
}
MLP = {"up": "layers embed mlp", "down": "layers mlp embed"}
NORM = "layers embed"
WORDS = {
    "embedding": "vocab embed",
    "encoder": {"self": {"norm": NORM, **ATTENTION}, "mlp": {"norm": NORM, **MLP}},
    "encoder_bias": "buckets kv_heads",
    "encoder_norm": "embed",
    "decoder": {
        "self": {"norm": NORM, **ATTENTION},
        "cross": {"norm": NORM, **ATTENTION},
        "mlp": {"norm": NORM, **MLP},
    },
    "decoder_bias": "buckets kv_heads",
    "decoder_norm": "embed",
}


def bias(table: Any, length: int, *, causal: bool) -> Any:
    """[1, kv_heads, 1, seq, seq]: a number for each logarithmic distance."""
    positions = jnp.arange(length)
    distance = positions[None, :] - positions[:, None]
    buckets = BUCKETS if causal else BUCKETS // 2
    side = jnp.where((distance > 0) & (not causal), buckets, 0)
    near, distance = buckets // 2, jnp.where(causal, jnp.maximum(-distance, 0), jnp.abs(distance))
    far = near + (jnp.log(jnp.maximum(distance, 1) / near) / jnp.log(128 / near) * (buckets - near)).astype(jnp.int32)
    bucket = side + jnp.where(distance < near, distance, jnp.minimum(far, buckets - 1))
    return jnp.transpose(table[bucket], (2, 0, 1))[None, :, None]


def attention(x: Any, source: Any, w: Any, *, causal: bool, bias: Any = 0.0) -> Any:
    q = jnp.einsum("bsd,dkh->bskh", x, w["q"])
    k, v = jnp.einsum("btd,dkh->btkh", source, w["k"]), jnp.einsum("btd,dkh->btkh", source, w["v"])
    return jnp.einsum("bskh,khd->bsd", attend(q[:, :, :, None], k, v, causal=causal, bias=bias)[:, :, :, 0], w["o"])


def mlp(x: Any, w: Any) -> Any:
    return jax.nn.relu(rms_norm(x, w["norm"]) @ w["up"]) @ w["down"]


def encode(w: Any, tokens: Any) -> Any:
    distances = bias(w["encoder_bias"], tokens.shape[1], causal=False)

    def block(x: Any, w: Any) -> Any:
        y = rms_norm(x, w["self"]["norm"])
        x = x + attention(y, y, w["self"], causal=False, bias=distances)
        return x + mlp(x, w["mlp"]), None

    return rms_norm(lax.scan(block, w["embedding"][tokens], w["encoder"])[0], w["encoder_norm"])


def decode(w: Any, tokens: Any, encoded: Any) -> Any:
    distances = bias(w["decoder_bias"], tokens.shape[1], causal=True)

    def block(x: Any, w: Any) -> Any:
        y = rms_norm(x, w["self"]["norm"])
        x = x + attention(y, y, w["self"], causal=True, bias=distances)
        x = x + attention(rms_norm(x, w["cross"]["norm"]), encoded, w["cross"], causal=False)
        return x + mlp(x, w["mlp"]), None

    x = rms_norm(lax.scan(block, w["embedding"][tokens], w["decoder"])[0], w["decoder_norm"])
    return x @ w["embedding"].T


def loss(w: Any, batch: Any) -> Any:
    logits = decode(w, batch["targets"], encode(w, batch["inputs"]))
    return cross_entropy(logits, batch["labels"])


def t5(
    *,
    batch: int = 4,
    inputs: int = 24,
    targets: int = 16,
    layers: int = 2,
    embed: int = 32,
    heads: int = 4,
    head: int = 8,
    mlp: int = 64,
    vocab: int = 96,
) -> Program:
    """A step of text to text; `layers=6, embed=512, heads=8, head=64, mlp=2048, vocab=32128` is T5-small."""
    sizes = {"layers": layers, "embed": embed, "kv_heads": heads, "head": head, "mlp": mlp, "vocab": vocab}
    sizes |= {"buckets": BUCKETS}
    tokens = {name: f"batch={batch} {length}" for name, length in (("inputs", inputs), ("targets", targets))}
    tokens["labels"] = tokens["targets"]
    return training("t5", loss, weights=arrays(WORDS, sizes), batch=arrays(tokens, dtype=jnp.int32))
