"""Delayed scaling: what each tensor is scaled by follows from the largest magnitudes that it had in past steps.

Of each layer's inputs, weights and gradients of linears a step keeps a history of them. They are noted while it runs
(as gradients of their slots), each rank for its own sequences, and gathered once, when it is over: Transformer Engine
does the same.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from perfmodel.models.architecture import DecoderConfig
from perfmodel.models.linear import NARROW, SLOTS, Slot, narrow_copies, slot_names
from perfmodel.models.precision import Precision
from perfmodel.models.scaled import largest_of
from perfmodel.models.weights import Tree, equations_of, linears_of, loops_of

HISTORY = 1024
"""Steps that are remembered (Transformer Engine: `DelayedScaling.amax_history_len`)."""
UNKNOWN = 1.0
"""The scale of a tensor that was never seen, or zero."""


def history_of(config: DecoderConfig, precision: Precision) -> Tree:
    """Shape and axis names of the histories, by stack of layers and tensor; none without delayed scaling."""
    if precision.scaling is None or precision.scaling.block:
        return {}
    stacks = [stack for loop in loops_of(config) for stack in loop]
    return {
        stack.name: {
            name: ((stack.count, HISTORY), (stack.dim, None))
            for group in linears_of(config, stack)
            for name in (*group, *slot_names(group))
        }
        for stack in stacks
    }


def scales_of(history: Tree, precision: Precision) -> Tree:
    """Scales of the layers' tensors [layer]: the largest magnitude of the past becomes the largest of the type."""

    def scale(name: str, past: Array) -> Array:
        assert precision.scaling is not None
        dtype = precision.scaling.backward if is_gradient(name) else precision.scaling.forward
        largest = jnp.max(past, axis=1)
        return jnp.where(largest > 0.0, largest_of(dtype) / largest, UNKNOWN)

    return {stack: {name: scale(name, past) for name, past in tensors.items()} for stack, tensors in history.items()}


def is_gradient(name: str) -> bool:
    """Whether a slot is that of a gradient."""
    return name.endswith("_gradient")


def unseen_of(scales: Tree, batch: int) -> Tree:
    """Nothing seen yet of inputs and gradients [layer, sequence]; weights are looked at when they change."""
    return {
        stack: {
            name: jnp.zeros((*scale.shape, batch), jnp.float32)
            for name, scale in tensors.items()
            if is_gradient(name) or name.endswith("_input")
        }
        for stack, tensors in scales.items()
    }


def narrow_weights(config: DecoderConfig, weights: Tree, scales: Tree, precision: Precision) -> Tree:
    """Narrow copies of the weights of linears, by stack of layers; none where these are as wide as the others."""
    scaling = precision.scaling
    if scaling is None:
        return {}
    return {
        stack.name: {
            name: narrow_copies(
                scaling, equations_of(stack)[name], weights[stack.name][name], scales.get(stack.name, {}).get(name)
            )
            for group in linears_of(config, stack)
            for name in group
        }
        for loop in loops_of(config)
        for stack in loop
    }


def with_copies(weights: Tree, copies: Tree, scales: Tree, seen: Tree) -> Tree:
    """Weights with their narrow copies, and the slots of what meets them, in the tree of each stack of layers."""
    slots = {
        stack: {SLOTS: {name: Slot(scales[stack][name], noted) for name, noted in tensors.items()}}
        for stack, tensors in seen.items()
    }
    return {
        **weights,
        **{stack: {**weights[stack], NARROW: own, **slots.get(stack, {})} for stack, own in copies.items()},
    }


def next_history(history: Tree, parameters: Tree, seen: Tree) -> Tree:
    """Histories with what this step has seen, and with the weights that it made, in the place of the oldest entry."""

    def noted(stack: str, name: str) -> Array:
        found = seen[stack].get(name, parameters[stack].get(name))
        assert found is not None
        return jnp.max(jnp.abs(found.astype(jnp.float32)), axis=tuple(range(1, found.ndim)))

    def moved(stack: str, name: str, past: Array) -> Array:
        return jnp.concatenate([noted(stack, name)[:, None], past[:, :-1]], axis=1)

    return {
        stack: {name: moved(stack, name, past) for name, past in tensors.items()} for stack, tensors in history.items()
    }
