"""A dropless mixture of experts: tokens sorted by expert, then ragged matmuls (Gale et al. 2022, MegaBlocks)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.mixtral import EXPERTS
from zoo.parts import rms_norm
from zoo.step import arrays, training


def experts(x: Any, w: Any, top_k: int) -> Any:
    """Each token of [tokens, embed] meets the matrices of `top_k` experts, whatever their load."""
    weights, chosen = lax.top_k(jax.nn.softmax(x @ w["router"], axis=-1), top_k)
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=w["router"].shape[-1])
    rows = x[order // top_k]
    hidden = jax.nn.silu(lax.ragged_dot(rows, w["gate"], sizes)) * lax.ragged_dot(rows, w["up"], sizes)
    outputs = lax.ragged_dot(hidden, w["down"], sizes) * weights.reshape(-1)[order][:, None]
    return jnp.zeros_like(x).at[order // top_k].add(outputs)


def ragged(
    *,
    batch: int = 4,
    seq: int = 8,
    layers: int = 2,
    embed: int = 16,
    mlp: int = 32,
    n_experts: int = 4,
    top_k: int = 2,
) -> Program:
    """Residual mixtures of experts."""
    sizes = {"layers": layers, "embed": embed, "mlp": mlp, "experts": n_experts}

    def block(x: Any, w: Any) -> Any:
        y = rms_norm(x, w["norm"]).reshape(-1, embed)
        return x + experts(y, w, top_k).reshape(x.shape), None

    def loss(w: Any, x: Any) -> Any:
        return jnp.mean(lax.scan(block, x, w)[0] ** 2)

    return training(
        "ragged",
        loss,
        weights=arrays({"norm": "layers embed", **EXPERTS}, sizes),
        batch=arrays(f"batch={batch} seq={seq} embed={embed}"),
    )
