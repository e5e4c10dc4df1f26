"""A step that says itself where activations lie, by `with_sharding_constraint`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perfmodel.trace import Program
from zoo.step import arrays, training, unnamed

MESH = {"dp": 2, "tp": 2}


def constrained(
    *, batch: int = 4, seq: int = 8, layers: int = 3, embed: int = 16, mlp: int = 32, named: bool = True
) -> Program:
    """Sequence parallelism as users write it: hidden values over tp, what lies between layers by sequence. If not
    `named`, the constraints alone say so.
    """
    mesh = AbstractMesh(tuple(MESH.values()), tuple(MESH))

    def held(x: Any, *dims: str | None) -> Any:
        return lax.with_sharding_constraint(x, NamedSharding(mesh, P(*dims)))

    def layer(x: Any, w: Any) -> Any:
        hidden = held(jax.nn.gelu(x @ w["up"]), "dp", None, "tp")
        return held(x + hidden @ w["down"], "dp", "tp", None), None

    def loss(w: Any, x: Any) -> Any:
        return jnp.mean(lax.scan(layer, held(x, "dp", "tp", None), w)[0] ** 2)

    words = {"up": "layers embed mlp", "down": "layers mlp embed"}
    tree, axes = arrays(words, {"layers": layers, "embed": embed, "mlp": mlp})
    return training(
        "constrained",
        loss,
        weights=(tree, axes if named else unnamed(tree)),
        batch=arrays(f"batch={batch} {seq} embed={embed}"),
    )
