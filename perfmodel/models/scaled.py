"""Matmuls of operands that are made narrow, with the scales that bring their products back, as marked kernels.

Transformer Engine, cuBLAS and DeepGEMM run them so: one kernel makes the narrow copies of an operand, block by block,
another multiplies them and applies the scales as it stores its result. Equations are einsum's. A scale has the letters
of what it scales; along a letter that is cut into blocks it has one number for each, and lies wherever that lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from perfmodel.models.precision import Scaling

SMALLEST = 1e-12
"""What the largest element of a block is taken for at least."""


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=["blocked"])
@dataclass(frozen=True)
class Narrow:
    """Narrow values and their scales: a number, or one for each block along `blocked` letters."""

    values: Array
    scales: Array
    blocked: str


@dataclass(frozen=True)
class Equation:
    """An einsum of two operands, in which every letter is in two of the three."""

    left: str
    right: str
    out: str

    @classmethod
    def of(cls, text: str) -> Equation:
        """Read `bsd,df->bsf`."""
        operands, _, out = text.partition("->")
        left, _, right = operands.partition(",")
        return cls(left, right, out)

    @property
    def text(self) -> str:
        """The equation as einsum reads it."""
        return f"{self.left},{self.right}->{self.out}"

    @property
    def contracted(self) -> str:
        """Letters that are summed over."""
        return "".join(letter for letter in self.left if letter not in self.out)

    @property
    def to_left(self) -> Equation:
        """The gradient of the left operand, from that of the result and the right operand."""
        return Equation(self.out, self.right, self.left)

    @property
    def to_right(self) -> Equation:
        """The gradient of the right operand, from the left operand and that of the result."""
        return Equation(self.left, self.out, self.right)


def largest_of(dtype: str) -> float:
    """The largest number of an element type."""
    return float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]


# -- making narrow ----------------------------------------------------------------------------------------------------


def cast(x: Array, scale: Array, dtype: str) -> tuple[Narrow, Array]:
    """`x` times a scale that is known before, and the largest magnitude in each of the first dim (sequences: ranks that
    hold different ones agree when a step is over).
    """
    wide, largest = x.astype(jnp.float32), largest_of(dtype)
    values = jnp.clip(wide * scale, -largest, largest).astype(dtype)
    return Narrow(values, 1.0 / scale, ""), jnp.max(jnp.abs(wide), axis=tuple(range(1, x.ndim)))


def in_blocks(x: Array, letters: str, cuts: Iterable[str], scaling: Scaling, dtype: str) -> list[Narrow]:
    """Narrow copies of `x`, one for each of `cuts`, the letters that are cut into blocks; each block is scaled by its
    largest element.
    """
    cuts = list(cuts)
    sides = ", ".join(f"{_spaced(letters)}, {_spaced(letters, cut)}" for cut in cuts)
    rule = f"{_spaced(letters)} -> {sides}; {_tied(''.join(cuts))}"
    made = _quantise(
        x,
        rule=rule,
        letters=letters,
        cuts=",".join(cuts),
        block=scaling.block,
        dtype=dtype,
        scale=scaling.scale,
    )
    return [Narrow(made[2 * i], made[2 * i + 1], cut) for i, cut in enumerate(cuts)]


def _spaced(letters: str, cut: str = "") -> str:
    return " ".join(f"{letter}_blocks" if letter in cut else letter for letter in letters)


def _tied(cut: str) -> str:
    return "tied: " + " ".join(f"{letter}_blocks={letter}" for letter in dict.fromkeys(cut))


def _quantise_body(
    x: Array, *, rule: str, letters: str, cuts: str, block: int, dtype: str, scale: str
) -> tuple[Array, ...]:
    found: list[Array] = []
    for cut in cuts.split(","):
        parts, lanes = _cut(x.astype(jnp.float32), letters, cut, block)
        largest = jnp.maximum(jnp.max(jnp.abs(parts), axis=lanes, keepdims=True), SMALLEST)
        scales = _rounded(largest / largest_of(dtype), scale)
        values = (parts / scales.astype(jnp.float32)).astype(dtype)
        found += [_joined(values, lanes, x.shape), jnp.squeeze(scales, lanes)]
    return tuple(found)


def _rounded(scales: Array, dtype: str) -> Array:
    """Scales in their own type; of one with an exponent only, the next power of two."""
    exponent_only = jnp.dtype(dtype) == jnp.dtype(jnp.float8_e8m0fnu)
    return (jnp.exp2(jnp.ceil(jnp.log2(scales))) if exponent_only else scales).astype(dtype)


def _cut(x: Array, letters: str, cut: str, block: int) -> tuple[Array, tuple[int, ...]]:
    """`x` with each letter of `cut` as (blocks, elements of a block), the last of them filled up, and the dims of the
    elements.
    """
    shape: list[int] = []
    lanes: list[int] = []
    for letter, size in zip(letters, x.shape, strict=True):
        lane = min(block, size)
        shape += [-(-size // lane), lane] if letter in cut else [size]
        lanes += [len(shape) - 1] if letter in cut else []
    padding = [
        (0, -size % min(block, size)) if letter in cut else (0, 0)
        for letter, size in zip(letters, x.shape, strict=True)
    ]
    return jnp.pad(x, padding).reshape(shape), tuple(lanes)


def _joined(parts: Array, lanes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Undo `_cut`."""
    whole: list[int] = []
    for d, size in enumerate(parts.shape):
        whole[len(whole) - (d in lanes) :] = [whole[-1] * size if d in lanes else size]
    return parts.reshape(whole)[tuple(map(slice, shape))]


_quantise = lax.composite(_quantise_body, name="perfmodel.quantise")


# -- multiplying ------------------------------------------------------------------------------------------------------


def scaled_matmul(
    equation: Equation, left: Narrow, right: Narrow, dtype: Any, block: int, counts: Array | None = None
) -> Array:
    """The product of narrow operands, in a type as wide as their scales were taken out of.

    counts [batch, experts]: of rows `ber.` of the left operand, how many each expert has, where `r` is not as many for
    each: the letters then are those of `perfmodel.models.experts`.
    """
    operands = [left.values, right.values, left.scales, right.scales]
    scales = [
        _spaced(letters, narrow.blocked) if block else ""
        for letters, narrow in ((equation.left, left), (equation.right, right))
    ]
    sides = [_spaced(equation.left), _spaced(equation.right), *scales]
    if counts is not None:
        operands, sides = [*operands, counts], [*sides, "b e"]
    rule = f"{', '.join(sides)} -> {_spaced(equation.out)}; summed: {_spaced(equation.contracted)}; "
    result: Array = _scaled_matmul(
        *operands,
        rule=rule + _tied(left.blocked + right.blocked),
        equation=equation.text,
        blocked=f"{left.blocked},{right.blocked}",
        block=block,
        dtype=jnp.dtype(dtype).name,
    )
    return result


def _scaled_matmul_body(
    left: Array,
    right: Array,
    left_scales: Array,
    right_scales: Array,
    counts: Array | None = None,
    *,
    rule: str,
    equation: str,
    blocked: str,
    block: int,
    dtype: str,
) -> Array:
    parts = Equation.of(equation)
    if counts is not None and parts.right[-1] in parts.contracted:  # matrices [experts, out, in]
        right, right_scales = jnp.swapaxes(right, 1, 2), jnp.swapaxes(right_scales, 1, 2) if block else right_scales
    scales = left_scales, right_scales
    if not block:
        product = _product(parts, left, right, counts, dtype)
        return product * (left_scales * right_scales).astype(dtype)
    cuts = blocked.split(",")
    along = next(letter for letter in cuts[0] if letter in parts.contracted)
    if counts is None:
        return _by_blocks(parts, (left, right), scales, along, block).astype(dtype)
    by_rows = _rows_by_blocks if along == "r" else _columns_by_blocks
    return by_rows((left, right), scales, counts, block).astype(dtype)


def _product(parts: Equation, left: Array, right: Array, counts: Array | None, dtype: Any) -> Array:
    if counts is None:
        return jnp.einsum(parts.text, left, right, preferred_element_type=dtype)
    return _grouped(left, right, counts, dtype)


def _by_blocks(parts: Equation, operands: Sequence[Array], scales: Sequence[Array], along: str, block: int) -> Array:
    """Products of blocks along a letter, each scaled, and their sum."""
    letters = (parts.left, parts.right)
    cut = [_cut(x, own, along, block)[0] for x, own in zip(operands, letters, strict=True)]
    left, right = (own.replace(along, along + along.upper()) for own in letters)
    target = parts.contracted + parts.out
    products = jnp.einsum(f"{left},{right}->{target}", *cut, preferred_element_type=jnp.float32)
    sizes = dict(zip(target, products.shape, strict=True))
    for own, scale in zip(letters, scales, strict=True):
        products = products * _aligned(scale.astype(jnp.float32), own, target, sizes, block)
    return jnp.sum(products, axis=tuple(range(len(parts.contracted))))


def _aligned(scale: Array, letters: str, target: str, sizes: Mapping[str, int], block: int) -> Array:
    """A scale for each element that `target` letters tell apart, as far as it depends on them."""
    for d, letter in enumerate(letters):
        if scale.shape[d] != sizes[letter]:
            scale = jnp.repeat(scale, min(block, sizes[letter]), axis=d)[(slice(None),) * d + (slice(sizes[letter]),)]
    order = [letters.index(letter) for letter in target if letter in letters]
    shape = [sizes[letter] if letter in letters else 1 for letter in target]
    return jnp.transpose(scale, order).reshape(shape)


_scaled_matmul = lax.composite(_scaled_matmul_body, name="perfmodel.scaled_matmul")


# Rows of each sequence, expert by expert, against one matrix per expert [experts, in, out]; and the gradient of the
# matrices, from rows and what came out of them.
BY_EXPERT = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((2,), (1,)), ((), ())), lhs_ragged_dimensions=[1], rhs_group_dimensions=[0]
)
OVER_ROWS = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0, 1), (0, 1)), ((), ())), lhs_ragged_dimensions=[1], rhs_group_dimensions=[]
)


def _grouped(left: Array, right: Array, counts: Array, dtype: Any) -> Array:
    """A ragged matmul; its right operand has as many dims as the left one where it sums over rows."""
    over_rows = right.ndim == left.ndim
    matrices, numbers = (_flat(right), OVER_ROWS) if over_rows else (right, BY_EXPERT)
    out: Array = lax.ragged_dot_general(_flat(left), matrices, counts, numbers, preferred_element_type=dtype)
    return out if over_rows else out.reshape(*left.shape[:3], -1)


def _flat(rows: Array) -> Array:
    return rows.reshape(rows.shape[0], -1, rows.shape[3])


def _columns_by_blocks(operands: Sequence[Array], scales: Sequence[Array], counts: Array, block: int) -> Array:
    """Rows against matrices, block by block of what is summed over."""
    (left, right), (left_scales, right_scales) = operands, scales
    rows, matrices = _cut(left, "berk", "k", block)[0], _cut(right, "eko", "k", block)[0]
    sizes = {"e": right.shape[0], "o": right.shape[2]}
    expert = _owners(counts, left.shape[1] * left.shape[2])

    def add(i: Array, total: Array) -> Array:
        product = _grouped(_at(rows, i, 3), _at(matrices, i, 1), counts, jnp.float32)
        of_rows = _at(left_scales, i, 3).astype(jnp.float32)[..., None]
        of_matrices = _aligned(_at(right_scales, i, 1).astype(jnp.float32), "eo", "eo", sizes, block)
        return total + product * of_rows * of_matrices[expert].reshape(product.shape)

    zeros = jnp.zeros((*left.shape[:3], sizes["o"]), jnp.float32)
    total: Array = lax.fori_loop(0, rows.shape[3], add, zeros)
    return total


def _rows_by_blocks(operands: Sequence[Array], scales: Sequence[Array], counts: Array, block: int) -> Array:
    """The gradient of the matrices, block by block of rows."""
    left, right = operands
    lane = min(block, left.shape[2])
    rows, results = (_cut(x, "berk", "r", block)[0].reshape(-1, 1, 1, lane, x.shape[3]) for x in operands)
    of_rows, of_results = (scale.astype(jnp.float32).reshape(-1, scale.shape[3]) for scale in scales)
    places = _cut(jnp.broadcast_to(_places(left), left.shape[:3])[..., None], "berk", "r", block)[0]
    expert = jnp.take_along_axis(_owners(counts, left.shape[1] * left.shape[2]), places.reshape(len(counts), -1), 1)
    held = jnp.sum(expert.reshape(-1, lane, 1) == jnp.arange(counts.shape[1]), axis=1, dtype=jnp.int32)

    def add(i: Array, total: Array) -> Array:
        product = _grouped(_at(rows, i, 0), _at(results, i, 0), _at(held, i, 0)[None], jnp.float32)
        return total + product * _at(of_rows, i, 0)[:, None] * _at(of_results, i, 0)

    zeros = jnp.zeros((counts.shape[1], left.shape[3], right.shape[3]), jnp.float32)
    total: Array = lax.fori_loop(0, len(rows), add, zeros)
    return total


def _at(x: Array, i: Array, axis: int) -> Array:
    return lax.dynamic_index_in_dim(x, i, axis, keepdims=False)


def _places(rows: Array) -> Array:
    return jnp.arange(rows.shape[1] * rows.shape[2]).reshape(rows.shape[1:3])


def _owners(counts: Array, rows: int) -> Array:
    """The expert of each row [batch, rows]."""
    ends = jnp.cumsum(counts, axis=1)
    owner = jnp.sum(jnp.arange(rows)[None, :, None] >= ends[:, None, :], axis=2)
    return jnp.minimum(owner, counts.shape[1] - 1)
