"""A Flax NNX transformer, its layers a Python list, its state split from its graph."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from perfmodel.trace import Program
from zoo.parts import cross_entropy
from zoo.step import training, unnamed


class Block(nnx.Module):
    def __init__(self, embed: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(embed, rngs=rngs), nnx.LayerNorm(embed, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=heads, in_features=embed, decode=False, rngs=rngs)
        self.up = nnx.Linear(embed, 4 * embed, rngs=rngs)
        self.down = nnx.Linear(4 * embed, embed, rngs=rngs)

    def __call__(self, x: Any, mask: Any) -> Any:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    def __init__(self, vocab: int, embed: int, heads: int, layers: int, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(vocab, embed, rngs=rngs)
        self.blocks = nnx.List([Block(embed, heads, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(embed, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x, mask = self.embedding(tokens), nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.embedding.attend(self.norm(x))


def transformer(
    *, batch: int = 4, seq: int = 16, layers: int = 2, embed: int = 32, heads: int = 4, vocab: int = 64
) -> Program:
    """A language model with tied embeddings."""
    model = nnx.eval_shape(lambda: Transformer(vocab, embed, heads, layers, nnx.Rngs(0)))
    split: Any = nnx.split(model, nnx.Param, ...)
    graph, weights, rest = split

    def loss(weights: Any, batch: Any) -> Any:
        fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)
        return cross_entropy(nnx.merge(graph, weights, fresh)(batch["tokens"]), batch["labels"])

    tokens = jax.ShapeDtypeStruct((batch, seq), jnp.int32)
    return training(
        "nnx",
        loss,
        weights=(weights, unnamed(weights)),
        batch=({"tokens": tokens, "labels": tokens}, {"tokens": ("batch", None), "labels": ("batch", None)}),
    )
