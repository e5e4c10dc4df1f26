"""An Equinox model: a GRU stepped over time by `lax.scan`, mapped over the batch by `vmap`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.parts import cross_entropy
from zoo.step import training, unnamed


class Classifier(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.MLP

    def __init__(self, features: int, hidden: int, classes: int, key: Any) -> None:
        self.cell = eqx.nn.GRUCell(features, hidden, key=key)
        self.head = eqx.nn.MLP(hidden, classes, width_size=2 * hidden, depth=1, key=key)

    def __call__(self, sequence: Any) -> Any:
        start = jnp.zeros(self.cell.hidden_size)
        last, _ = lax.scan(lambda state, x: (self.cell(x, state), None), start, sequence)
        return self.head(last)


def classifier(*, batch: int = 4, seq: int = 10, features: int = 8, hidden: int = 24, classes: int = 12) -> Program:
    model = eqx.filter_eval_shape(Classifier, features, hidden, classes, jax.random.key(0))
    weights, rest = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def loss(weights: Any, batch: Any) -> Any:
        return cross_entropy(jax.vmap(eqx.combine(weights, rest))(batch["x"]), batch["labels"])

    inputs = {
        "x": jax.ShapeDtypeStruct((batch, seq, features), jnp.float32),
        "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    return training(
        "equinox",
        loss,
        weights=(weights, unnamed(weights)),
        batch=(inputs, {"x": ("batch", None, None), "labels": ("batch",)}),
    )
