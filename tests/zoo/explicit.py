"""A step in `shard_map`, every collective written out: FSDP, tensor parallelism, experts, and a ring over sequences."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from perfmodel.trace import Argument, Program
from zoo.step import arrays, momentum

MESH = {"dp": 2, "fsdp": 2, "tp": 2}
WEIGHTS = {"up": P("fsdp", "tp"), "down": P("tp", "fsdp"), "experts": P("tp", "fsdp", None)}
INPUTS = P(("dp", "fsdp"), "tp", None)


def ring(x: Any, axis: str) -> Any:
    """The mean over all sequence shards, passed round a ring."""
    size = lax.axis_size(axis)
    step = lambda _, pair: (lax.ppermute(pair[0], axis, [(i, (i + 1) % size) for i in range(size)]), pair[1] + pair[0])
    return lax.fori_loop(0, size, step, (x, jnp.zeros_like(x)))[1] / size


def local_loss(w: Any, x: Any) -> Any:
    """One rank's part: x is [batch, seq / tp, embed], weights are in parts over fsdp and tp."""
    whole = {
        "up": lax.all_gather(w["up"], "fsdp", axis=0, tiled=True),
        "down": lax.all_gather(w["down"], "fsdp", axis=1, tiled=True),
        "experts": lax.all_gather(w["experts"], "fsdp", axis=1, tiled=True),
    }
    tokens = lax.all_gather(x, "tp", axis=1, tiled=True)
    y = jax.nn.gelu(tokens @ whole["up"]) @ whole["down"]
    x = x + lax.psum_scatter(y, "tp", scatter_dimension=1, tiled=True)
    groups = x.reshape(x.shape[0], lax.axis_size("tp"), -1, x.shape[-1])
    sent = lax.all_to_all(groups, "tp", split_axis=1, concat_axis=1, tiled=True)
    sent = jnp.einsum("bgsd,de->bgse", sent, whole["experts"][0])
    x = x + lax.all_to_all(sent, "tp", split_axis=1, concat_axis=1, tiled=True).reshape(x.shape)
    x = x - ring(jnp.mean(x, 1, keepdims=True), "tp")
    return lax.psum(jnp.sum(x * x), ("dp", "fsdp", "tp"))


def explicit(*, batch: int = 8, seq: int = 16, embed: int = 32, mlp: int = 64) -> Program:
    """A step on a mesh of dp x fsdp x tp, 2 each."""
    mesh = AbstractMesh(tuple(MESH.values()), tuple(MESH))

    def step(weights: Any, moments: Any, x: Any) -> Any:
        sharded = partial(jax.shard_map, mesh=mesh, in_specs=(WEIGHTS, INPUTS), out_specs=P())
        value, gradients = jax.value_and_grad(lambda w: sharded(local_loss)(w, x))(weights)
        return (*momentum(weights, moments, gradients), value)

    words = {"up": f"{embed} {mlp}", "down": f"{mlp} {embed}", "experts": f"{MESH['tp']} {embed} {embed}"}
    weights, names = arrays(words)
    inputs, input_names = arrays(f"batch={batch} seq={seq} {embed}")
    return Program(
        name="explicit",
        fn=step,
        arguments=(
            Argument(name="weights", role="parameters", tree=weights, axes=names),
            Argument(name="moments", role="optimizer", tree=weights, axes=names),
            Argument(name="inputs", role="batch", tree=inputs, axes=input_names),
        ),
        donated=("weights", "moments"),
    )
