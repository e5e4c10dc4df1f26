"""AdamW, and what it keeps of each weight: in fp32, bf16, or 8 bits in blocks that share a scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from perfmodel.models.precision import DEFAULT, DTYPES, Precision
from perfmodel.models.weights import STACKED, Entry, Tree, is_entry

LEARNING_RATE, BETA1, BETA2, STABILISER, DECAY, CLIP = 3e-4, 0.9, 0.95, 1e-8, 0.1, 1.0

BLOCK = 256
"""Elements of 8-bit moments that share a scale (bitsandbytes: `blockwise` optimizers; Dettmers et al. 2021)."""
GROWTH, PATIENCE = 2.0, 2000
"""Of a loss in fp16: by how much its scale grows, and after how many steps without an overflow."""


def state_of(layout: Tree, precision: Precision) -> tuple[Tree, Tree]:
    """Shapes and axis names of the optimizer's state, for weights of `layout_of`'s tree."""
    wide = jnp.dtype(jnp.float32)

    def plain(dtype: Any) -> tuple[Tree, Tree]:
        shapes = jax.tree.map(lambda entry: jax.ShapeDtypeStruct(entry[0], dtype), layout, is_leaf=is_entry)
        return shapes, jax.tree.map(lambda entry: entry[1], layout, is_leaf=is_entry)

    kept = {"master": plain(wide)} if precision.master else {}
    for name, code in (("first", jnp.int8), ("second", jnp.uint8)):
        if precision.moments == "int8":
            coded = jax.tree.map(partial(_coded, code), layout, is_leaf=is_entry)
            kept[name] = tuple(jax.tree.map(lambda pair, i=i: pair[i], coded, is_leaf=is_entry) for i in range(2))
        else:
            kept[name] = plain(jnp.dtype(DTYPES[precision.moments]))
    counters: dict[str, Any] = {"step": jnp.int32}
    if precision.compute == "fp16":
        counters |= {"loss_scale": wide, "calm": jnp.int32}
    shapes = {name: pair[0] for name, pair in kept.items()}
    axes = {name: pair[1] for name, pair in kept.items()}
    numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in counters.items()}
    return {**shapes, **numbers}, {**axes, **dict.fromkeys(counters, ())}


def _coded(dtype: Any, entry: Entry) -> tuple[Any, Any]:
    """Shapes and axis names of a moment in 8 bits; of vectors, which are few, it stays in fp32."""
    shape, names = entry
    own = [d for d, name in enumerate(names) if name not in STACKED]
    if len(own) < 2:
        return jax.ShapeDtypeStruct(shape, jnp.float32), names
    # Not along `embed`, which layouts store in parts: blocks would reach across them.
    cut = next((d for d in reversed(own) if names[d] != "embed"), own[-1])
    scales = tuple(-(-size // BLOCK) if d == cut else size for d, size in enumerate(shape))
    shapes = {"codes": jax.ShapeDtypeStruct(shape, dtype), "scales": jax.ShapeDtypeStruct(scales, jnp.float32)}
    return shapes, dict.fromkeys(shapes, names)


@jax.named_scope("optimizer")
def adam(
    state: Tree, gradients: Tree, weights: Tree | None = None, precision: Precision = DEFAULT
) -> tuple[Tree, Tree]:
    """AdamW with clipping by global norm; returns the new parameters and the new state.

    weights: the parameters, where there is no master copy that is to be updated. In fp16 gradients are those of a loss
    that is scaled, and a step whose gradients overflow changes nothing but the scale.
    """
    compute = jnp.dtype(DTYPES[precision.compute])
    wide = (g.astype(jnp.float32) for g in jax.tree.leaves(gradients))
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in wide))
    if "loss_scale" in state:
        norm = norm / state["loss_scale"]
    scale = jnp.minimum(1.0, CLIP / (norm + STABILISER))
    if "loss_scale" in state:
        scale = scale / state["loss_scale"]
    step = state["step"] + 1
    correction1 = 1.0 - BETA1 ** step.astype(jnp.float32)
    correction2 = 1.0 - BETA2 ** step.astype(jnp.float32)

    def update(w: Array, m: Any, v: Any, g: Array) -> tuple[Any, ...]:
        if isinstance(m, dict):
            return _update_coded(w, m, v, g, (scale, correction1, correction2))
        f32 = jnp.float32
        moved = _moved(w.astype(f32), m.astype(f32), v.astype(f32), g.astype(f32), (scale, correction1, correction2))
        return tuple(new.astype(old.dtype) for new, old in zip(moved, (w, m, v), strict=True))

    before = state["master"] if precision.master else weights
    assert before is not None
    moved = jax.tree.map(update, before, state["first"], state["second"], gradients)
    after, first, second = (jax.tree.map(lambda triple, i=i: triple[i], moved, is_leaf=is_entry) for i in range(3))
    new = {"first": first, "second": second, "step": step, **({"master": after} if precision.master else {})}
    if "loss_scale" in state:
        finite = jnp.isfinite(norm)
        after, new = (_kept(finite, *pair) for pair in ((after, before), (new, {name: state[name] for name in new})))
        new |= _scaled_loss(state, finite)
    return jax.tree.map(lambda w: w.astype(compute), after), new


def _moved(w: Array, m: Array, v: Array, g: Array, numbers: Sequence[Array]) -> tuple[Array, Array, Array]:
    """A weight and its moments after a step; numbers: the clipping factor, and 1 - beta^t of the moments."""
    scale, correction1, correction2 = numbers
    g = g * scale
    m = BETA1 * m + (1.0 - BETA1) * g
    v = BETA2 * v + (1.0 - BETA2) * g * g
    direction = (m / correction1) / (jnp.sqrt(v / correction2) + STABILISER)
    return w - LEARNING_RATE * (direction + DECAY * w), m, v


def _kept(finite: Array, new: Tree, old: Tree) -> Tree:
    kept: Tree = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    return kept


def _scaled_loss(state: Tree, finite: Array) -> Tree:
    """The scale of the next loss: half after an overflow, twice after `PATIENCE` steps without."""
    calm = jnp.where(finite, state["calm"] + 1, 0)
    grown = jnp.where(calm >= PATIENCE, state["loss_scale"] * GROWTH, state["loss_scale"])
    return {"loss_scale": jnp.where(finite, grown, state["loss_scale"] / GROWTH), "calm": calm % PATIENCE}


# -- 8 bits -----------------------------------------------------------------------------------------------------------


def _update_coded(w: Array, m: Tree, v: Tree, g: Array, numbers: tuple[Array, ...]) -> tuple[Any, ...]:
    """The update of one weight as one kernel, which decodes its moments and encodes them again block by block."""
    pairs = enumerate(zip(w.shape, m["scales"].shape, strict=True))
    cut = next((d for d, (size, blocks) in pairs if size != blocks), w.ndim - 1)
    dims = " ".join(f"d{d}" for d in range(w.ndim))
    blocks = " ".join("blocks" if d == cut else f"d{d}" for d in range(w.ndim))
    moments = f"{dims}, {blocks}, {dims}, {blocks}"
    found = _adam_8bit(
        w,
        g,
        *(x for moment in (m, v) for x in (moment["codes"], moment["scales"])),
        *numbers,
        rule=f"{dims}, {dims}, {moments}, , , -> {dims}, {moments}; tied: blocks=d{cut}",
        cut=cut,
    )
    return found[0], dict(zip(m, found[1:3], strict=True)), dict(zip(v, found[3:], strict=True))


def _adam_8bit_body(w: Array, g: Array, *rest: Array, rule: str, cut: int) -> tuple[Array, ...]:
    m, m_scales, v, v_scales, *numbers = rest
    old = (_decoded(m, m_scales, cut), _decoded(v, v_scales, cut))
    new = _moved(w.astype(jnp.float32), *old, g.astype(jnp.float32), numbers)
    return new[0].astype(w.dtype), *_encoded(new[1], m.dtype, cut), *_encoded(new[2], v.dtype, cut)


def _decoded(codes: Array, scales: Array, cut: int) -> Array:
    """A moment in fp32."""
    return codes.astype(jnp.float32) * _each(scales, codes.shape[cut], cut)


def _encoded(moment: Array, dtype: Any, cut: int) -> tuple[Array, Array]:
    """Codes of a moment and the scales of its blocks."""
    size = moment.shape[cut]
    lane = min(BLOCK, size)
    padding = [(0, -size % lane) if d == cut else (0, 0) for d in range(moment.ndim)]
    shape = (*moment.shape[:cut], -1, lane, *moment.shape[cut + 1 :])
    largest = jnp.max(jnp.pad(jnp.abs(moment), padding).reshape(shape), axis=cut + 1)
    scales = jnp.maximum(largest, STABILISER**2) / float(jnp.iinfo(dtype).max)  # type: ignore[no-untyped-call]
    return jnp.round(moment / _each(scales, size, cut)).astype(dtype), scales


def _each(scales: Array, size: int, cut: int) -> Array:
    """The scale of each element along a dim that is cut into blocks."""
    return jnp.repeat(scales, min(BLOCK, size), axis=cut)[(slice(None),) * cut + (slice(size),)]


_adam_8bit = lax.composite(_adam_8bit_body, name="perfmodel.adam_8bit")
