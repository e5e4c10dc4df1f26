"""Multi-head latent attention, as it is trained: keys and values are made from their narrow vector for every head.

Heads are [rotary, plain] here, where DeepSeek writes [plain, rotary]: the same up to an order of columns.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from perfmodel.models.architecture import Latent
from perfmodel.models.weights import Tree

Normalise = Callable[[Array, Tree, str], Array]
Rotate = Callable[[Array, int], Array]


def queries(latent: Latent, x: Array, w: Tree, normalise: Normalise, rotate: Rotate) -> Array:
    """Queries [batch, seq, kv_heads, q_per_kv, head_dim]."""
    if latent.query_rank is not None:
        x = normalise(x @ w["query_down"], w, "query_norm")
    return rotate(jnp.einsum("bsd,dkgh->bskgh", x, w["query_up"]), latent.rotary)


def keys_and_values(latent: Latent, x: Array, w: Tree, normalise: Normalise, rotate: Rotate) -> tuple[Array, Array]:
    """Keys [batch, seq, kv_heads, head_dim], whose rotary part all heads share, and values [batch, seq, kv_heads,
    value].
    """
    narrow = normalise(x @ w["key_value_down"], w, "key_value_norm")
    plain = jnp.einsum("bsr,rkh->bskh", narrow, w["key_up"])
    turned = rotate(x @ w["key_rotary"], latent.rotary)
    shared = jnp.broadcast_to(turned[:, :, None, :], (*plain.shape[:3], latent.rotary))
    return jnp.concatenate([shared, plain], axis=-1), jnp.einsum("bsr,rkv->bskv", narrow, w["value_up"])
