"""A step with `lax.cond` and `lax.switch`: some layers skipped, an update left out where gradients are not finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Argument, Program
from zoo.step import arrays, momentum


def branches(*, batch: int = 4, embed: int = 32, mlp: int = 64, layers: int = 3) -> Program:
    """Residual MLPs, each kept or dropped by a number of its own, and one of three activations in the last layer."""

    def layer(x: Any, w: Any) -> Any:
        kept = lambda x: x + jax.nn.relu(x @ w["up"]) @ w["down"]
        return lax.cond(w["keep"] > 0, kept, lambda x: x, x), None

    def loss(w: Any, x: Any, which: Any) -> Any:
        x, _ = lax.scan(layer, x, w["layers"])
        y = lax.switch(which, [jax.nn.relu, jnp.tanh, jax.nn.gelu], x @ w["last"])
        return jnp.mean(y**2)

    def step(weights: Any, moments: Any, x: Any, which: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(weights, x, which)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradients)]))
        update = lambda pair: momentum(pair[0], pair[1], gradients)
        return (*lax.cond(finite, update, lambda pair: pair, (weights, moments)), value)

    words = {
        "layers": {"up": "layers embed mlp", "down": "layers mlp embed", "keep": "layers"},
        "last": "embed mlp",
    }
    weights, names = arrays(words, {"layers": layers, "embed": embed, "mlp": mlp})
    inputs, input_names = arrays(f"batch={batch} embed={embed}")
    return Program(
        name="branches",
        fn=step,
        arguments=(
            Argument(name="weights", role="parameters", tree=weights, axes=names),
            Argument(name="moments", role="optimizer", tree=weights, axes=names),
            Argument(name="inputs", role="batch", tree=inputs, axes=input_names),
            Argument(name="which", role="other", tree=jax.ShapeDtypeStruct((), jnp.int32), axes=()),
        ),
        donated=("weights", "moments"),
    )
