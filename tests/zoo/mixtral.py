"""Mixtral-style mixture of experts the GShard way: tokens go to slots of experts by einsum, up to a capacity."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.decoder import decoder
from zoo.parts import grouped_attention
from zoo.step import arrays

ATTENTION = {
    "q": "layers embed kv_heads q_per_kv head",
    "k": "layers embed kv_heads head",
    "v": "layers embed kv_heads head",
    "o": "layers kv_heads q_per_kv head embed",
}
EXPERTS = {
    "router": "layers embed experts",
    "gate": "layers experts embed mlp",
    "up": "layers experts embed mlp",
    "down": "layers experts mlp embed",
}
WORDS = {
    "embedding": "vocab embed",
    "layers": {"norm1": "layers embed", "norm2": "layers embed", **ATTENTION, **EXPERTS},
    "norm": "embed",
    "head": "embed vocab",
}


def slots(gates: Any, capacity: int) -> Any:
    """[batch, seq, experts, capacity]: the weight with which a token fills a slot of an expert, in order of arrival."""
    place = jnp.cumsum(gates > 0, axis=1, dtype=jnp.int32) - 1
    return gates[..., None] * jax.nn.one_hot(place, capacity, dtype=gates.dtype)


def routed(x: Any, router: Any, top_k: int) -> Any:
    """[batch, seq, experts]: weights of the experts chosen for each token, zero for the others."""
    logits = jnp.einsum("bsd,de->bse", x, router)
    weights, chosen = lax.top_k(jax.nn.softmax(logits, axis=-1), top_k)
    weights = weights / jnp.sum(weights, -1, keepdims=True)
    return jnp.einsum("bsk,bske->bse", weights, jax.nn.one_hot(chosen, logits.shape[-1], dtype=x.dtype))


def experts(x: Any, w: Any, *, top_k: int, capacity: int) -> Any:
    combine = slots(routed(x, w["router"], top_k), capacity)
    inputs = jnp.einsum("bsec,bsd->ebcd", (combine > 0).astype(x.dtype), x)
    gate, up = (jnp.einsum("ebcd,edf->ebcf", inputs, w[name]) for name in ("gate", "up"))
    return jnp.einsum("bsec,ebcd->bsd", combine, jnp.einsum("ebcf,efd->ebcd", jax.nn.silu(gate) * up, w["down"]))


def mixtral(
    *,
    batch: int = 4,
    seq: int = 16,
    layers: int = 2,
    embed: int = 32,
    kv_heads: int = 2,
    q_per_kv: int = 2,
    mlp: int = 48,
    n_experts: int = 4,
    top_k: int = 2,
    vocab: int = 64,
) -> Program:
    """A language model with twice the slots that an even spread needs."""
    sizes = {"layers": layers, "embed": embed, "kv_heads": kv_heads, "q_per_kv": q_per_kv, "mlp": mlp, "vocab": vocab}
    sizes |= {"head": embed // (kv_heads * q_per_kv), "experts": n_experts}
    capacity = 2 * seq * top_k // n_experts

    routed_mlp = partial(experts, top_k=top_k, capacity=capacity)
    return decoder("mixtral", grouped_attention, routed_mlp, weights=arrays(WORDS, sizes), batch=batch, seq=seq)
