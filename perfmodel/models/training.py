"""The training step that trainers run: mixed precision, microbatches, Adam on fp32 master weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from perfmodel.errors import ModelError
from perfmodel.models.architecture import DecoderConfig
from perfmodel.models.decoder import COMPUTE, loss
from perfmodel.models.weights import Tree, is_entry, layout_of
from perfmodel.trace.program import Argument, Program

LEARNING_RATE, BETA1, BETA2, STABILISER, DECAY, CLIP = 3e-4, 0.9, 0.95, 1e-8, 0.1, 1.0

# Sizes of the trace only: both dims are resized by the layout.
MICROBATCHES, BATCH = 2, 2

TOKENS_PER_STEP = 2**22
"""Batch size where the user gives none: 4 Mi tokens, as Llama 2 was pre-trained (Touvron et al. 2023, section 2.2)."""


def train_program(
    config: DecoderConfig, *, seq_len: int, recompute: str = "full", capacity_factor: float | None = None
) -> Program:
    """One training step as a Program.

    Arguments: bf16 parameters; optimizer state (fp32 master weights and two moments, step count); tokens and targets
    [microbatch, batch, seq]. Gradients accumulate in fp32 over the microbatches, are clipped by their global norm,
    and Adam updates the master weights, from which the new bf16 parameters are cast.

    capacity_factor: rows that each expert has, as a multiple of its fair share; None drops no token. Raises ModelError
    for one below or at 0, or for a model without experts.
    """
    config = _with_capacity(config, capacity_factor)

    def step(parameters: Tree, optimizer: Tree, tokens: Array, targets: Array) -> tuple[Tree, Tree, Array]:
        gradients, value = accumulate(config, parameters, tokens, targets, recompute)
        parameters, optimizer = adam(optimizer, gradients)
        return parameters, optimizer, value

    return Program(
        name=config.name,
        fn=step,
        arguments=_arguments(config, seq_len),
        donated=("parameters", "optimizer"),
        recompute=recompute,
        global_batch=max(1, TOKENS_PER_STEP // seq_len),
    )


def _arguments(config: DecoderConfig, seq_len: int) -> tuple[Argument, ...]:
    layout = layout_of(config)
    axes = jax.tree.map(lambda entry: entry[1], layout, is_leaf=is_entry)

    def weights(dtype: Any) -> Tree:
        return jax.tree.map(lambda entry: jax.ShapeDtypeStruct(entry[0], dtype), layout, is_leaf=is_entry)

    full = {name: weights(jnp.float32) for name in ("master", "first", "second")}
    state = {**full, "step": jax.ShapeDtypeStruct((), jnp.int32)}
    tokens = jax.ShapeDtypeStruct((MICROBATCHES, BATCH, seq_len), jnp.int32)
    batch_axes = ("microbatch", "batch", "seq")
    return (
        Argument(name="parameters", role="parameters", tree=weights(COMPUTE), axes=axes),
        Argument(name="optimizer", role="optimizer", tree=state, axes={**dict.fromkeys(full, axes), "step": ()}),
        Argument(name="tokens", role="batch", tree=tokens, axes=batch_axes),
        Argument(name="targets", role="batch", tree=tokens, axes=batch_axes),
    )


def _with_capacity(config: DecoderConfig, factor: float | None) -> DecoderConfig:
    if factor is None:
        return config
    if config.experts is None:
        raise ModelError(f"capacity factor: got {factor} for {config.name}, which has no experts: leave it out")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0.0 < factor < math.inf:
        raise ModelError(f"capacity factor: got {factor!r}, expected a number above 0, as in 1.25: correct it")
    return replace(config, experts=replace(config.experts, capacity_factor=factor))


def accumulate(
    config: DecoderConfig, parameters: Tree, tokens: Array, targets: Array, recompute: str
) -> tuple[Tree, Array]:
    """Mean gradients in fp32 and mean loss over the microbatches."""

    def microbatch(total: Tree, data: tuple[Array, Array]) -> tuple[Tree, Array]:
        value, gradients = jax.value_and_grad(lambda w: loss(config, w, *data, recompute))(parameters)
        with jax.named_scope("gradients"):
            return jax.tree.map(lambda a, g: a + g.astype(jnp.float32), total, gradients), value

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), parameters)
    total, losses = lax.scan(microbatch, zeros, (tokens, targets))
    count = tokens.shape[0]
    return jax.tree.map(lambda g: g / count, total), jnp.mean(losses)


@jax.named_scope("optimizer")
def adam(state: Tree, gradients: Tree) -> tuple[Tree, Tree]:
    """AdamW with clipping by global norm; returns the new bf16 parameters and the new state."""
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1.0, CLIP / (norm + STABILISER))
    step = state["step"] + 1
    correction1 = 1.0 - BETA1 ** step.astype(jnp.float32)
    correction2 = 1.0 - BETA2 ** step.astype(jnp.float32)

    def update(w: Array, m: Array, v: Array, g: Array) -> tuple[Array, Array, Array]:
        g = g * scale
        m = BETA1 * m + (1.0 - BETA1) * g
        v = BETA2 * v + (1.0 - BETA2) * g * g
        direction = (m / correction1) / (jnp.sqrt(v / correction2) + STABILISER)
        return w - LEARNING_RATE * (direction + DECAY * w), m, v

    moved = jax.tree.map(update, state["master"], state["first"], state["second"], gradients)
    master, first, second = (jax.tree.map(lambda triple, i=i: triple[i], moved, is_leaf=is_entry) for i in range(3))
    parameters = jax.tree.map(lambda w: w.astype(COMPUTE), master)
    return parameters, {"master": master, "first": first, "second": second, "step": step}
