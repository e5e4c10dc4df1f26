"""The training step that trainers run: mixed precision, microbatches, Adam, by default on fp32 master weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from perfmodel.errors import ModelError
from perfmodel.models.architecture import DecoderConfig
from perfmodel.models.decoder import loss
from perfmodel.models.optimizer import adam, state_of
from perfmodel.models.precision import DEFAULT, DTYPES, Precision
from perfmodel.models.scales import history_of, narrow_weights, next_history, scales_of, unseen_of, with_copies
from perfmodel.models.weights import Tree, is_entry, layout_of
from perfmodel.trace.program import Argument, Program

# Sizes of the trace only: both dims are resized by the layout.
MICROBATCHES, BATCH = 2, 2

TOKENS_PER_STEP = 2**22
"""Batch size where the user gives none: 4 Mi tokens, as Llama 2 was pre-trained (Touvron et al. 2023, section 2.2)."""


def train_program(
    config: DecoderConfig,
    *,
    seq_len: int,
    recompute: str = "full",
    capacity_factor: float | None = None,
    precision: Precision = DEFAULT,
) -> Program:
    """One training step as a Program.

    Arguments: parameters, in bf16 by default; optimizer state (fp32 master weights and two moments, step count); tokens
    and targets [microbatch, batch, seq]. Gradients accumulate in fp32 over the microbatches, are clipped by their
    global norm, and Adam updates the master weights, from which the new parameters are cast. `precision` says what is
    in other types.

    capacity_factor: rows that each expert has, as a multiple of its fair share; None drops no token. Raises ModelError
    for one below or at 0, or for a model without experts.
    """
    config = _with_capacity(config, capacity_factor)

    def step(parameters: Tree, optimizer: Tree, tokens: Array, targets: Array) -> tuple[Tree, Tree, Array]:
        history = optimizer.get("history", {})
        scales = scales_of(history, precision)
        gradients, value, seen = accumulate(
            config, parameters, tokens, targets, recompute, precision, scales, optimizer.get("loss_scale", 1.0)
        )
        parameters, state = adam(optimizer, gradients, parameters, precision)
        if history:
            state["history"] = next_history(history, parameters, seen)
        return parameters, state, value

    def in_tf32(*arguments: Any) -> tuple[Tree, Tree, Array]:
        with jax.default_matmul_precision("TF32_TF32_F32"):
            return step(*arguments)

    return Program(
        name=config.name,
        fn=in_tf32 if precision.compute == "tf32" else step,
        arguments=_arguments(config, seq_len, precision),
        donated=("parameters", "optimizer"),
        recompute=recompute,
        global_batch=max(1, TOKENS_PER_STEP // seq_len),
    )


def _arguments(config: DecoderConfig, seq_len: int, precision: Precision) -> tuple[Argument, ...]:
    layout = layout_of(config)
    dtype = DTYPES[precision.compute]
    weights = jax.tree.map(lambda entry: jax.ShapeDtypeStruct(entry[0], dtype), layout, is_leaf=is_entry)
    names = jax.tree.map(lambda entry: entry[1], layout, is_leaf=is_entry)
    state, state_names = state_of(layout, precision)
    if history := history_of(config, precision):
        state["history"] = jax.tree.map(
            lambda entry: jax.ShapeDtypeStruct(entry[0], jnp.float32), history, is_leaf=is_entry
        )
        state_names["history"] = jax.tree.map(lambda entry: entry[1], history, is_leaf=is_entry)
    tokens = jax.ShapeDtypeStruct((MICROBATCHES, BATCH, seq_len), jnp.int32)
    batch_axes = ("microbatch", "batch", "seq")
    return (
        Argument(name="parameters", role="parameters", tree=weights, axes=names),
        Argument(name="optimizer", role="optimizer", tree=state, axes=state_names),
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
    config: DecoderConfig,
    parameters: Tree,
    tokens: Array,
    targets: Array,
    recompute: str,
    precision: Precision = DEFAULT,
    scales: Tree | None = None,
    loss_scale: Array | float = 1.0,
) -> tuple[Tree, Array, Tree]:
    """Mean gradients and mean loss over the microbatches, and the largest magnitudes that were seen of what `scales`
    (as in `perfmodel.models.scales`) scale, by sequence.
    """
    dtype, scales = DTYPES[precision.grads], scales or {}
    copies = narrow_weights(config, parameters, scales, precision)

    def value(weights: Tree, seen: Tree, data: tuple[Array, Array]) -> Array:
        found = loss(config, with_copies(weights, copies, scales, seen), *data, recompute, precision.scaling)
        return found * loss_scale if precision.compute == "fp16" else found

    def microbatch(total: tuple[Tree, Tree], data: tuple[Array, Array]) -> tuple[tuple[Tree, Tree], Array]:
        unseen = jax.tree.map(jnp.zeros_like, total[1])
        found, (gradients, seen) = jax.value_and_grad(value, argnums=(0, 1))(parameters, unseen, data)
        with jax.named_scope("gradients"):
            summed = jax.tree.map(lambda a, g: a + g.astype(dtype), total[0], gradients)
        return (summed, jax.tree.map(jnp.maximum, total[1], seen)), found

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, dtype), parameters)
    (total, seen), losses = lax.scan(microbatch, (zeros, unseen_of(scales, tokens.shape[1])), (tokens, targets))
    if precision.reduce != precision.grads:
        total = jax.tree.map(lambda g: g.astype(DTYPES[precision.reduce]), total)
    count = tokens.shape[0]
    return jax.tree.map(lambda g: g / count, total), jnp.mean(losses), seen
