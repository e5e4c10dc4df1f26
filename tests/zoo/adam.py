"""bf16 weights under Optax: clipped gradients, AdamW on fp32 masters, everything donated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

from perfmodel.trace import Argument, Program
from zoo.step import arrays


def adam(*, batch: int = 8, seq: int = 8, embed: int = 16, mlp: int = 64) -> Program:
    """An MLP whose masters and two moments are fp32, cast to bf16 for use."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1))

    def loss(w: Any, x: Any) -> Any:
        w = jax.tree.map(lambda each: each.astype(jnp.bfloat16), w)
        y = x + jax.nn.gelu(x @ w["up"]) @ w["down"]
        return jnp.mean(y.astype(jnp.float32) ** 2)

    def step(weights: Any, state: Any, x: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(weights, x)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state, value

    weights, names = arrays({"up": f"embed={embed} mlp={mlp}", "down": f"mlp={mlp} embed={embed}"})
    state = jax.eval_shape(optimizer.init, weights)
    moments = optax.tree_map_params(optimizer, lambda _, name: name, state, names, transform_non_params=lambda _: ())
    inputs, input_names = arrays(f"batch={batch} {seq} embed={embed}", dtype=jnp.bfloat16)
    return Program(
        name="adam",
        fn=step,
        arguments=(
            Argument(name="weights", role="parameters", tree=weights, axes=names),
            Argument(name="state", role="optimizer", tree=state, axes=moments),
            Argument(name="inputs", role="batch", tree=inputs, axes=input_names),
        ),
        donated=("weights", "state"),
    )
