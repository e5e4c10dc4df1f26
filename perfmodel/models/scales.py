"""Delayed scaling: what each tensor is scaled by follows from the largest magnitudes that it had in past steps.

Of each layer's inputs, weights and gradients of linears a step keeps a history of them. They are noted while it runs
(as gradients of their slots), each rank for its own sequences, and gathered once, when it is over: Transformer Engine
does the same.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from perfmodel.models.architecture import DecoderConfig
from perfmodel.models.linear import SLOTS, Slot, slot_names
from perfmodel.models.precision import Precision
from perfmodel.models.scaled import largest_of
from perfmodel.models.weights import Tree, linears_of, loops_of

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
            for name in slot_names(group)
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


def with_slots(weights: Tree, scales: Tree, seen: Tree) -> Tree:
    """Weights with the slots of each stack of layers."""
    slots = {
        stack: {SLOTS: {name: Slot(scale, seen[stack].get(name)) for name, scale in tensors.items()}}
        for stack, tensors in scales.items()
    }
    return {**weights, **{stack: {**weights[stack], **own} for stack, own in slots.items()}}


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
