"""What each StableHLO op costs, and through which operands a partial sum passes: one table row per op.

FLOPs follow the field's convention: a multiply-add is two, one arithmetic elementwise operation is one, moving,
converting, comparing and selecting are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]
NOW = "psum"
"""Reducer of a sum that the program asks for here, or that puts a slice together: unlike other sums that follow from a
sharding, it does not wait.
"""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes that an op sees, and the attributes that its cost needs."""

    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    attributes: Mapping[str, tuple[int, ...]]


Count: TypeAlias = Callable[[Shapes], float]


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table.

    engine: "tensor" (matrix engine), "vector" (elementwise and reductions) or "none" (moves data only)
    flops:  FLOPs of one execution at full size, from its shapes [FLOP]
    linear: operands through which a partial sum may pass unreduced ("all", "first", "both" or none), all of them
            partial or zero; `branches` are the operands but the first, which chooses between them;
            `scale` is linear in one operand where the other is one number for all elements
    """

    engine: str = "none"
    flops: Count = lambda shapes: 0.0
    linear: str = ""


def per_result(flops: float) -> Count:
    """FLOPs for each element of the first result."""
    return lambda shapes: flops * math.prod(shapes.results[0])


def per_operand(flops: float) -> Count:
    """FLOPs for each element of the first operand."""
    return lambda shapes: flops * math.prod(shapes.operands[0])


def dot_flops(shapes: Shapes) -> float:
    """2·batch·m·n·k: two FLOPs for each element of the result and each contracted index."""
    contracted = math.prod(shapes.operands[0][d] for d in shapes.attributes["lhs_contracting"])
    return 2.0 * math.prod(shapes.results[0]) * contracted


def convolution_flops(shapes: Shapes) -> float:
    """2·(output elements)·(kernel elements per output feature); positions that are only dilation holes don't count."""
    (features,) = shapes.attributes["kernel_output_feature"]
    kernel = shapes.operands[1]
    holes = math.prod(shapes.attributes["lhs_dilation"])
    return 2.0 * math.prod(shapes.results[0]) * math.prod(kernel) / kernel[features] / holes


def ragged_dot_flops(shapes: Shapes) -> float:
    """2·rows·k·n: each row meets one expert's matrix, however many experts there are."""
    if "lhs_contracting" not in shapes.attributes:
        return 0.0
    contracted = math.prod(shapes.operands[0][d] for d in shapes.attributes["lhs_contracting"])
    groups = shapes.operands[2][-1] if shapes.attributes["group_in_result"] else 1
    return 2.0 * math.prod(shapes.results[0]) * contracted / groups


def sort_flops(shapes: Shapes) -> float:
    """n·log2(n) comparisons along the sorted dim."""
    (dim,) = shapes.attributes["dimension"]
    n = shapes.operands[0][dim]
    return math.prod(shapes.operands[0]) * math.log2(max(n, 2))


def window_flops(shapes: Shapes) -> float:
    """One operation for each element of each window; a running sum, whose windows reach over all of a dim, is made in
    log2(n) steps.
    """
    dims = zip(shapes.attributes["window"], shapes.operands[0], shapes.results[0], strict=True)
    steps = (math.log2(window) if 1 < window == size == out else window for window, size, out in dims)
    return math.prod(shapes.results[0]) * math.prod(steps)


def fft_flops(shapes: Shapes) -> float:
    """5·n·log2(n) for each complex transform of n points, half of it for a real one (Cooley and Tukey, radix 2)."""
    points = math.prod(shapes.attributes["fft_length"])
    batch = math.prod(shapes.operands[0][: -len(shapes.attributes["fft_length"])])
    share = 1.0 if shapes.operands[0] == shapes.results[0] else 0.5
    return share * 5.0 * batch * points * math.log2(max(points, 2))


def matrix_flops(count: Callable[[int, int], float]) -> Count:
    """FLOPs of a factorisation, from the rows and columns of each matrix of the first operand."""
    return lambda shapes: math.prod(shapes.operands[0][:-2]) * count(*shapes.operands[0][-2:])


def triangular_solve_flops(shapes: Shapes) -> float:
    """A multiply-add for each element of the result and half of a row of the n x n matrix."""
    return float(shapes.operands[0][-1] * math.prod(shapes.results[0]))


ELEMENTWISE = (
    "abs atan2 cbrt ceil cosine count_leading_zeros exponential exponential_minus_one floor log log_plus_one logistic "
    "maximum minimum popcnt power reduce_precision remainder round_nearest_afz round_nearest_even rsqrt sign sine sqrt "
    "tan tanh clamp"
)
CHLO_ELEMENTWISE = (
    "acos acosh asin asinh atan atanh bessel_i1e cosh digamma erf erf_inv erfc lgamma polygamma sinh square tan zeta "
    "next_after conj mulhi _asin_acos_kernel"
)
BITWISE = "and or xor not shift_left shift_right_arithmetic shift_right_logical"
CHLO_FREE = "is_inf is_neg_inf is_pos_inf constant constant_like"
FREE = "compare is_finite iota constant bitcast_convert rng rng_bit_generator create_token after_all"
# Factorisations of an m x n matrix, to leading order (Golub and Van Loan, Matrix Computations, 4th ed., chapters 3, 4,
# 5 and 8): sequences of narrow updates, which matrix engines don't run at their rate.
FACTORISATIONS: Mapping[str, Callable[[int, int], float]] = {
    "stablehlo.cholesky": lambda m, n: n**3 / 3,
    "LuDecomposition": lambda m, n: m * n**2 - n**3 / 3,
    "Qr": lambda m, n: 2 * m * n**2 - 2 * n**3 / 3,
    "ProductOfElementaryHouseholderReflectors": lambda m, n: 2 * m * n**2 - 2 * n**3 / 3,
    "Eigh": lambda m, n: 9.0 * n**3,
}

KINDS: Mapping[str, Kind] = {
    **{f"stablehlo.{name}": Kind("vector", per_result(1.0)) for name in ELEMENTWISE.split()},
    **{f"chlo.{name}": Kind("vector", per_result(1.0)) for name in CHLO_ELEMENTWISE.split()},
    **{f"stablehlo.{name}": Kind("vector", per_result(1.0)) for name in BITWISE.split()},
    **{f"stablehlo.{name}": Kind() for name in FREE.split()},
    **{f"chlo.{name}": Kind() for name in CHLO_FREE.split()},
    **{name: Kind("vector", matrix_flops(count)) for name, count in FACTORISATIONS.items()},
    "stablehlo.add": Kind("vector", per_result(1.0), "all"),
    "stablehlo.subtract": Kind("vector", per_result(1.0), "all"),
    "stablehlo.multiply": Kind("vector", per_result(1.0), "scale"),
    "stablehlo.divide": Kind("vector", per_result(1.0), "scale"),
    "stablehlo.negate": Kind("vector", per_result(1.0), "first"),
    "stablehlo.convert": Kind("none", linear="first"),
    "stablehlo.reshape": Kind("none", linear="first"),
    "stablehlo.transpose": Kind("none", linear="first"),
    "stablehlo.broadcast_in_dim": Kind("none", linear="first"),
    "stablehlo.slice": Kind("none", linear="first"),
    "stablehlo.reverse": Kind("none", linear="first"),
    "stablehlo.pad": Kind("none", linear="all"),
    "stablehlo.select": Kind("none", linear="branches"),
    "stablehlo.real": Kind("none", linear="first"),
    "stablehlo.imag": Kind("none", linear="first"),
    "stablehlo.complex": Kind("none", linear="all"),
    "stablehlo.concatenate": Kind("none", linear="all"),
    "stablehlo.dynamic_slice": Kind("none", linear="first"),
    "stablehlo.dynamic_update_slice": Kind("none", linear="both"),
    "stablehlo.gather": Kind("none"),
    "stablehlo.scatter": Kind("vector", lambda shapes: float(math.prod(shapes.operands[2]))),
    "stablehlo.reduce": Kind("vector", per_operand(1.0), "first"),
    "stablehlo.reduce_window": Kind("vector", window_flops, "first"),
    "stablehlo.select_and_scatter": Kind("vector", lambda shapes: 2.0 * math.prod(shapes.operands[0])),
    "stablehlo.sort": Kind("vector", sort_flops),
    "chlo.top_k": Kind("vector", per_operand(1.0)),
    "ApproxTopK": Kind("vector", per_operand(1.0)),
    "stablehlo.fft": Kind("vector", fft_flops, "first"),
    "stablehlo.triangular_solve": Kind("vector", triangular_solve_flops),
    "stablehlo.dot_general": Kind("tensor", dot_flops),
    "chlo.ragged_dot": Kind("tensor", ragged_dot_flops),
    "stablehlo.convolution": Kind("tensor", convolution_flops),
}

# Ops that only hand their operands on.
TRANSPARENT = frozenset({"stablehlo.optimization_barrier"})
CALLBACKS = frozenset(f"xla_{ffi}python_{platform}_callback" for ffi in ("ffi_", "") for platform in ("cpu", "gpu"))
"""Custom calls that run Python, as `jax.debug.print` does."""

TRANSPARENT_CALLS = frozenset(
    {"Sharding", "annotate_device_placement", "LayoutConstraint", "MoveToHost", "MoveToDevice"}
)
