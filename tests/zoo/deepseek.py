"""DeepSeek-style decoder: latent attention, a shared expert beside routed ones with sigmoid gates (V3 report, 2.1)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.decoder import decoder
from zoo.mixtral import slots
from zoo.parts import attend, rms_norm, rope
from zoo.step import arrays

ATTENTION = {
    "q_down": "layers embed q_rank",
    "q_norm": "layers q_rank",
    "q_up": "layers q_rank kv_heads query",
    "kv_down": "layers embed kv_rank",
    "kv_norm": "layers kv_rank",
    "k_rope": "layers embed rotary",
    "k_up": "layers kv_rank kv_heads head",
    "v_up": "layers kv_rank kv_heads head",
    "o": "layers kv_heads head embed",
}
EXPERTS = {
    "router": "layers embed experts",
    "balance": "layers experts",
    "shared": {"gate": "layers embed mlp", "up": "layers embed mlp", "down": "layers mlp embed"},
    "routed": {
        "gate": "layers experts embed mlp",
        "up": "layers experts embed mlp",
        "down": "layers experts mlp embed",
    },
}
WORDS = {
    "embedding": "vocab embed",
    "layers": {"norm1": "layers embed", "norm2": "layers embed", **ATTENTION, **EXPERTS},
    "norm": "embed",
    "head": "embed vocab",
}


def latent_attention(x: Any, w: Any) -> Any:
    head = w["k_up"].shape[-1]
    q = jnp.einsum("bsr,rkh->bskh", rms_norm(x @ w["q_down"], w["q_norm"]), w["q_up"])
    latent = rms_norm(x @ w["kv_down"], w["kv_norm"])
    k, v = jnp.einsum("bsr,rkh->bskh", latent, w["k_up"]), jnp.einsum("bsr,rkh->bskh", latent, w["v_up"])
    shared = rope((x @ w["k_rope"])[:, :, None])
    q = jnp.concatenate([q[..., :head], rope(q[..., head:])], -1)
    k = jnp.concatenate([k, jnp.broadcast_to(shared, (*k.shape[:-1], shared.shape[-1]))], -1)
    return jnp.einsum("bskh,khd->bsd", attend(q[:, :, :, None], k, v, causal=True)[:, :, :, 0], w["o"])


def gated(x: Any, w: Any, expand: str, reduce: str) -> Any:
    hidden = jax.nn.silu(jnp.einsum(expand, x, w["gate"])) * jnp.einsum(expand, x, w["up"])
    return jnp.einsum(reduce, hidden, w["down"])


def experts(x: Any, w: Any, *, top_k: int, capacity: int) -> Any:
    scores = jax.nn.sigmoid(jnp.einsum("bsd,de->bse", x, w["router"]))
    _, chosen = lax.top_k(lax.stop_gradient(scores + w["balance"]), top_k)
    chosen = jnp.sum(jax.nn.one_hot(chosen, scores.shape[-1], dtype=x.dtype), axis=2)
    gates = scores * chosen / jnp.sum(scores * chosen, -1, keepdims=True)
    combine = slots(gates, capacity)
    inputs = jnp.einsum("bsec,bsd->ebcd", (combine > 0).astype(x.dtype), x)
    outputs = gated(inputs, w["routed"], "ebcd,edf->ebcf", "ebcf,efd->ebcd")
    return gated(x, w["shared"], "bsd,df->bsf", "bsf,fd->bsd") + jnp.einsum("bsec,ebcd->bsd", combine, outputs)


def deepseek(
    *,
    batch: int = 4,
    seq: int = 16,
    layers: int = 2,
    embed: int = 32,
    heads: int = 4,
    head: int = 8,
    rotary: int = 4,
    mlp: int = 24,
    n_experts: int = 8,
    top_k: int = 2,
    vocab: int = 64,
) -> Program:
    sizes = {"layers": layers, "embed": embed, "kv_heads": heads, "mlp": mlp, "vocab": vocab, "experts": n_experts}
    sizes |= {"head": head, "rotary": rotary, "query": head + rotary, "q_rank": embed // 2, "kv_rank": embed // 4}
    capacity = 2 * seq * top_k // n_experts

    routed_mlp = partial(experts, top_k=top_k, capacity=capacity)
    return decoder("deepseek", latent_attention, routed_mlp, weights=arrays(WORDS, sizes), batch=batch, seq=seq)
