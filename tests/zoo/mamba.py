"""Mamba: a causal depthwise convolution and a selective scan over time (Gu and Dao 2023, algorithm 2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.parts import cross_entropy, rms_norm
from zoo.step import arrays, training

LAYER = {
    "norm": "layers embed",
    "in": "layers embed 2 mlp",
    "conv": {"kernel": "layers width 1 mlp", "bias": "layers mlp"},
    "x": "layers mlp projected",
    "dt": "layers rank mlp",
    "dt_bias": "layers mlp",
    "a_log": "layers mlp state",
    "d": "layers mlp",
    "out": "layers mlp embed",
}
WORDS = {"embedding": "vocab embed", "layers": LAYER, "norm": "embed"}


def causal_convolution(x: Any, kernel: Any, bias: Any) -> Any:
    """Each channel of [batch, seq, mlp] by itself, over the last `width` times."""
    numbers, (width, _, channels) = ("NWC", "WIO", "NWC"), kernel.shape
    pad = [(width - 1, 0)]
    y = lax.conv_general_dilated(x, kernel, (1,), pad, dimension_numbers=numbers, feature_group_count=channels)
    return y + bias


def over_time(decay: Any, gained: Any) -> Any:
    """States h of [batch, seq, ...] with h[t] = decay[t] h[t-1] + gained[t], one time after another."""
    step = lambda h, x: (x[0] * h + x[1],) * 2
    times = (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(gained, 1, 0))
    return jnp.moveaxis(lax.scan(step, jnp.zeros_like(gained[:, 0]), times)[1], 0, 1)


def in_a_tree(decay: Any, gained: Any) -> Any:
    """The same by an associative scan."""
    join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
    return lax.associative_scan(join, (decay, gained), axis=1)[1]


def selective(x: Any, w: Any, *, associative: bool) -> Any:
    rank, state = w["dt"].shape[0], w["a_log"].shape[-1]
    dt, b, c = jnp.split(x @ w["x"], [rank, rank + state], axis=-1)
    dt = jax.nn.softplus(dt @ w["dt"] + w["dt_bias"])
    decay = jnp.exp(dt[..., None] * -jnp.exp(w["a_log"]))
    states = (in_a_tree if associative else over_time)(decay, (dt * x)[..., None] * b[:, :, None, :])
    return jnp.einsum("bsmn,bsn->bsm", states, c) + x * w["d"]


def mamba(
    *,
    batch: int = 4,
    seq: int = 16,
    layers: int = 2,
    embed: int = 32,
    state: int = 4,
    width: int = 4,
    vocab: int = 64,
    associative: bool = False,
) -> Program:
    """A language model; `embed=768, layers=24, state=16, vocab=50280` is Mamba-130M."""
    rank = embed // 16
    sizes = {"layers": layers, "embed": embed, "mlp": 2 * embed, "state": state, "width": width, "vocab": vocab}
    sizes |= {"rank": rank, "projected": rank + 2 * state}

    def block(x: Any, w: Any) -> Any:
        y, z = jnp.moveaxis(jnp.einsum("bsd,dnm->bsnm", rms_norm(x, w["norm"]), w["in"]), 2, 0)
        y = selective(jax.nn.silu(causal_convolution(y, **w["conv"])), w, associative=associative)
        return x + (y * jax.nn.silu(z)) @ w["out"], None

    def loss(w: Any, batch: Any) -> Any:
        x, _ = lax.scan(block, w["embedding"][batch["tokens"]], w["layers"])
        return cross_entropy(rms_norm(x, w["norm"]) @ w["embedding"].T, batch["labels"])

    tokens = {"tokens": f"batch={batch} {seq}", "labels": f"batch={batch} {seq}"}
    return training("mamba", loss, weights=arrays(WORDS, sizes), batch=arrays(tokens, dtype=jnp.int32))
