"""Nested scans under `jax.checkpoint` with each policy, around a layer whose gradient is its own (`custom_vjp`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from perfmodel.trace import Program
from zoo.step import arrays, training

POLICIES: dict[str, Callable[..., Any] | None] = {
    "nothing_saveable": None,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "save_only_these_names": jax.checkpoint_policies.save_only_these_names("hidden"),
}


@jax.custom_vjp
def gate(x: Any) -> Any:
    """Squared ReLU, by name, that keeps its result alone for the backward pass."""
    return checkpoint_name(jnp.square(jax.nn.relu(x)), "hidden")


def gate_forward(x: Any) -> Any:
    y = checkpoint_name(jnp.square(jax.nn.relu(x)), "hidden")
    return y, y


gate.defvjp(gate_forward, lambda y, g: (2.0 * jnp.sqrt(y) * g,))


def layer(x: Any, w: Any) -> Any:
    """A matmul without batch dims, a batched product of positions, and the way back."""
    hidden = gate(x @ w["up"])
    mixed = jnp.einsum("bsf,btf->bst", hidden, hidden)
    return x + jnp.einsum("bst,btf->bsf", mixed, hidden) @ w["down"]


def remat(
    *,
    policy: str = "nothing_saveable",
    batch: int = 4,
    seq: int = 8,
    groups: int = 2,
    layers: int = 3,
    embed: int = 16,
    mlp: int = 32,
) -> Program:
    """`groups` x `layers` layers: the outer scan is over groups, each layer is rematerialised."""
    body = jax.checkpoint(layer, policy=POLICIES[policy])

    def loss(w: Any, x: Any) -> Any:
        group = lambda x, w: (lax.scan(lambda x, w: (body(x, w), None), x, w)[0], None)
        return jnp.mean(lax.scan(group, x, w)[0] ** 2)

    words = {"up": f"{groups} layers={layers} embed mlp", "down": f"{groups} layers={layers} mlp embed"}
    return training(
        f"remat {policy}",
        loss,
        weights=arrays(words, {"embed": embed, "mlp": mlp}),
        batch=arrays(f"batch={batch} {seq} embed={embed}"),
        recompute="full" if policy == "nothing_saveable" else "selective",
    )
