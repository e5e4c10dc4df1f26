"""What language models of scanned blocks share: attention and experts behind norms, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.parts import cross_entropy, rms_norm
from zoo.step import arrays, training

Layer: TypeAlias = Callable[[Any, Any], Any]
"""From activations and the weights of a block to activations."""


def decoder(name: str, attention: Layer, experts: Layer, *, weights: tuple[Any, Any], batch: int, seq: int) -> Program:
    """A training step of a decoder with an embedding, stacked blocks, a last norm and a head."""

    def block(x: Any, w: Any) -> Any:
        x = x + attention(rms_norm(x, w["norm1"]), w)
        return x + experts(rms_norm(x, w["norm2"]), w), None

    def loss(w: Any, batch: Any) -> Any:
        x, _ = lax.scan(block, w["embedding"][batch["tokens"]], w["layers"])
        return cross_entropy(rms_norm(x, w["norm"]) @ w["head"], batch["labels"])

    names = {"tokens": "batch seq", "labels": "batch seq"}
    data = arrays(names, {"batch": batch, "seq": seq}, dtype=jnp.int32)
    return training(name, loss, weights=weights, batch=data)
