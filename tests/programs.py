"""Small training steps whose collectives can be derived by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.graph import Graph
from perfmodel.trace import Argument, Program, trace

L, D, F, S, B, M = 6, 16, 64, 32, 2, 3
"""Layers, width, inner width, sequence, batch and microbatches, as traced."""


def spec(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def block(x: Any, w: Any) -> Any:
    """Norm, up, down, residual: the two matmuls that Megatron splits over tp."""
    y = x.astype(jnp.float32)
    y = (y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)).astype(x.dtype)
    return x + jax.nn.silu(y @ w["up"]) @ w["down"]


def mlp_step(weights: Any, moments: Any, inputs: Any) -> Any:
    """One step of a residual MLP stack: microbatches accumulate fp32 gradients, then momentum updates the weights."""

    def loss(w: Any, x: Any) -> Any:
        x, _ = lax.scan(lambda x, w: (block(x, w), None), x, w)
        return jnp.mean(x.astype(jnp.float32) ** 2)

    def microbatch(gradients: Any, x: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(weights, x)
        return jax.tree.map(lambda a, g: a + g.astype(a.dtype), gradients, gradient), value

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    gradients, losses = lax.scan(microbatch, zeros, inputs)
    moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, gradients)
    weights = jax.tree.map(lambda w, m: (w - 1e-3 * m).astype(w.dtype), weights, moments)
    return weights, moments, jnp.mean(losses)


def mlp_program() -> Program:
    """The step above at the sizes of this module."""
    shapes = {"up": (L, D, F), "down": (L, F, D)}
    axes = {"up": ("layers", "embed", "mlp"), "down": ("layers", "mlp", "embed")}
    weights = {name: spec(*shape) for name, shape in shapes.items()}
    moments = {name: spec(*shape, dtype=jnp.float32) for name, shape in shapes.items()}
    return Program(
        name="mlp",
        fn=mlp_step,
        arguments=(
            Argument(name="weights", role="parameters", tree=weights, axes=axes),
            Argument(name="moments", role="optimizer", tree=moments, axes=axes),
            Argument(name="inputs", role="batch", tree=spec(M, B, S, D), axes=("microbatch", "batch", "seq", "embed")),
        ),
        donated=("weights", "moments"),
    )


def mlp_graph() -> Graph:
    """The step above, traced."""
    return trace(mlp_program())
