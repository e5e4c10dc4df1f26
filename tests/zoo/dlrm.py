"""DLRM: bags of embeddings, a bottom and a top MLP, and the dots of every pair between them (Naumov et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from perfmodel.trace import Program
from zoo.step import arrays, training


def mlp(sizes: Sequence[int]) -> list[dict[str, str]]:
    return [{"kernel": f"{a} {b}", "bias": f"{b}"} for a, b in pairwise(sizes)]


def apply(layers: Any, x: Any) -> Any:
    for w in layers[:-1]:
        x = jax.nn.relu(x @ w["kernel"] + w["bias"])
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def loss(w: Any, batch: Any) -> Any:
    bags = [jnp.sum(table[batch["sparse"][:, i]], 1) for i, table in enumerate(w["tables"])]
    dense = jax.nn.relu(apply(w["bottom"], batch["dense"]))
    features = jnp.stack([dense, *bags], 1)
    dots = jnp.einsum("bie,bje->bij", features, features)
    pairs = jnp.tril_indices(features.shape[1], -1)
    logits = apply(w["top"], jnp.concatenate([dense, dots[:, *pairs]], -1))[:, 0]
    return jnp.mean(jax.nn.softplus(logits) - batch["labels"] * logits)


def dlrm(
    *,
    batch: int = 16,
    rows: Sequence[int] = (64, 128, 32),
    embed: int = 16,
    dense: int = 8,
    bag: int = 3,
    hidden: int = 32,
) -> Program:
    """A step of a click model whose tables are split by rows."""
    pairs = len(rows) * (len(rows) + 1) // 2
    words = {
        "tables": [f"vocab={n} {embed}" for n in rows],
        "bottom": mlp([dense, hidden, embed]),
        "top": mlp([embed + pairs, hidden, 1]),
    }
    numbers, names = arrays({"dense": f"batch={batch} {dense}", "labels": f"batch={batch}"})
    sparse = jax.ShapeDtypeStruct((batch, len(rows), bag), jnp.int32)
    return training(
        "dlrm",
        loss,
        weights=arrays(words),
        batch=({**numbers, "sparse": sparse}, {**names, "sparse": ("batch", None, None)}),
    )
