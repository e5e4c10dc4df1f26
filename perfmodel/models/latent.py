"""Multi-head latent attention, as it is trained: keys and values are made from their narrow vector for every head.

Heads are [rotary, plain] here, where DeepSeek writes [plain, rotary]: the same up to an order of columns.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from perfmodel.models.architecture import Latent
from perfmodel.models.weights import Tree

Multiply = Callable[..., list[Array]]
"""What weights of a tree make of a vector, by their names."""
Normalise = Callable[[Array, Tree, str], Array]
Rotate = Callable[[Array, int], Array]


def queries(latent: Latent, x: Array, w: Tree, multiply: Multiply, normalise: Normalise, rotate: Rotate) -> Array:
    """Queries [batch, seq, kv_heads, q_per_kv, head_dim]."""
    if latent.query_rank is not None:
        (narrow,) = multiply(x, w, "query_down")
        x = normalise(narrow, w, "query_norm")
    (up,) = multiply(x, w, "query_up")
    return rotate(up, latent.rotary)


def keys_and_values(
    latent: Latent, x: Array, w: Tree, multiply: Multiply, normalise: Normalise, rotate: Rotate
) -> tuple[Array, Array]:
    """Keys [batch, seq, kv_heads, head_dim], whose rotary part all heads share, and values [batch, seq, kv_heads,
    value].
    """
    down, positions = multiply(x, w, "key_value_down", "key_rotary")
    narrow = normalise(down, w, "key_value_norm")
    plain, values = multiply(narrow, w, "key_up", "value_up")
    turned = rotate(positions, latent.rotary)
    shared = jnp.broadcast_to(turned[:, :, None, :], (*plain.shape[:3], latent.rotary))
    return jnp.concatenate([shared, plain], axis=-1), values
