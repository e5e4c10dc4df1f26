"""A Flax Linen classifier of sequences: attention with dropout, its layers scanned and rematerialised by Linen."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from perfmodel.trace import Program
from zoo.parts import cross_entropy
from zoo.step import training

RATE = 0.1


def named(*names: str) -> Any:
    return nn.with_partitioning(nn.initializers.lecun_normal(), names)


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        embed = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(self.heads, dropout_rate=RATE, deterministic=False)
        x = x + attention(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(4 * embed, kernel_init=named("embed", "mlp"), name="up")(nn.LayerNorm()(x)))
        y = nn.Dense(embed, kernel_init=named("mlp", "embed"), name="down")(y)
        return x + nn.Dropout(RATE, deterministic=False)(y), None


class Classifier(nn.Module):
    vocab: int
    embed: int
    heads: int
    layers: int
    classes: int

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(self.vocab, self.embed)(tokens)
        axes: dict[Any, Any] = {"params": 0}
        rngs: dict[Any, bool] = {"params": True, "dropout": True}
        names = {nn.PARTITION_NAME: "layers"}
        blocks = nn.scan(
            nn.remat(Block, prevent_cse=False), axes, split_rngs=rngs, length=self.layers, metadata_params=names
        )
        x, _ = blocks(self.heads)(x, None)
        return nn.Dense(self.classes)(jnp.mean(nn.LayerNorm()(x), 1))


def classifier(
    *,
    batch: int = 4,
    seq: int = 16,
    layers: int = 3,
    embed: int = 32,
    heads: int = 4,
    vocab: int = 64,
    classes: int = 12,
) -> Program:
    """A step whose names come from Linen's own metadata, where it has some."""
    model = Classifier(vocab, embed, heads, layers, classes)
    tokens = jax.ShapeDtypeStruct((batch, seq), jnp.int32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    boxed = jax.eval_shape(model.init, keys, tokens)
    weights = nn.unbox(boxed)
    specs: Any = nn.get_partition_spec(boxed)
    names = jax.tree.map(lambda leaf, spec: (*spec, *(None,) * (len(leaf.shape) - len(spec))), weights, specs)

    def loss(weights: Any, batch: Any) -> Any:
        logits = model.apply(weights, batch["tokens"], rngs={"dropout": jax.random.key(batch["seed"])})
        return cross_entropy(logits, batch["labels"])

    inputs = {"tokens": tokens, "labels": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    return training(
        "linen",
        loss,
        weights=(weights, names),
        batch=(
            {**inputs, "seed": jax.ShapeDtypeStruct((), jnp.uint32)},
            {"tokens": ("batch", None), "labels": ("batch",), "seed": ()},
        ),
        recompute="full",
    )
