"""A training step of one's own: traced, priced under one layout, then searched.

python examples/own_model.py
perfmodel tune examples.own_model:program --machine h100 --chips 16
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from perfmodel import Argument, Layout, Program, load_machine, predict, trace
from tuner import Space, search

LAYERS, EMBED, MLP, SEQ = 24, 4096, 16384, 2048
MICROBATCHES, BATCH = 2, 2  # as traced; a layout resizes both


def loss(weights: Any, x: jax.Array) -> jax.Array:
    """A stack of residual MLP blocks; any JAX code would do."""

    @jax.checkpoint
    def block(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        return x + jax.nn.gelu(x @ w["up"]) @ w["down"], None

    x, _ = jax.lax.scan(block, x, weights)
    return jnp.mean(x.astype(jnp.float32) ** 2)


def step(weights: Any, momentum: Any, inputs: jax.Array) -> tuple[Any, Any]:
    """Accumulate gradients over the microbatches, then update: SGD with momentum."""

    def microbatch(total: Any, x: jax.Array) -> tuple[Any, None]:
        gradients = jax.grad(loss)(weights, x)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradients), None

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    gradients, _ = jax.lax.scan(microbatch, zeros, inputs)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
    weights = jax.tree.map(lambda w, m: (w - 1e-3 * m).astype(w.dtype), weights, momentum)
    return weights, momentum


def program() -> Program:
    """The step with the names of its dims: `embed`, `mlp`, `layers`, `seq`, `batch` and `microbatch` can be sharded."""
    shapes = {"up": (LAYERS, EMBED, MLP), "down": (LAYERS, MLP, EMBED)}
    axes = {"up": ("layers", "embed", "mlp"), "down": ("layers", "mlp", "embed")}

    def tree(dtype: Any) -> Any:
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}

    inputs = jax.ShapeDtypeStruct((MICROBATCHES, BATCH, SEQ, EMBED), jnp.bfloat16)
    return Program(
        name="mlp-stack",
        fn=step,
        arguments=(
            Argument(name="weights", role="parameters", tree=tree(jnp.bfloat16), axes=axes),
            Argument(name="momentum", role="optimizer", tree=tree(jnp.float32), axes=axes),
            Argument(name="inputs", role="batch", tree=inputs, axes=("microbatch", "batch", "seq", "embed")),
        ),
        donated=("weights", "momentum"),
        recompute="full",
        global_batch=64,
    )


def main() -> None:
    """Trace once, then price one layout and all of them."""
    graph, machine = trace(program()), load_machine("h100")
    layout = Layout(fsdp=4, tp=4, global_batch=graph.global_batch)
    estimate = predict(graph, layout, machine)
    print(f"{layout.notation()}: {float(estimate.step_time_s):.3f} s, bound by {estimate.bound}")

    space = Space(ranks=16, global_batches=(graph.global_batch,), policies=(graph.recompute,))
    result = search({graph.recompute: graph}, space, machine)
    print(f"{result.evaluated} layouts priced, {result.feasible} fit")
    for candidate in result.top[:3]:
        print(f"{candidate.layout.notation()}: {float(candidate.estimate.step_time_s):.3f} s")


if __name__ == "__main__":
    main()
