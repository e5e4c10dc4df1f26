"""A program to be traced: a callable, abstract arguments and the axis names of their dims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from perfmodel.trace.ops import Shape

if TYPE_CHECKING:
    from perfmodel.trace.stablehlo import Tensor

ROLES = ("parameters", "optimizer", "batch", "other")

CostFunction: TypeAlias = Callable[[tuple[Shape, ...], tuple[Shape, ...]], float]
"""FLOPs of an op from the shapes of its operands and results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one execution of a kernel asks of a machine, at the sizes that it was traced with.

    flops: by engine: tensor (matrix), vector, scalar (transcendental functions), gpsimd (indices, sorting) [FLOP]
    bytes: that it reads from and writes to memory; None: each operand and each result once [B]
    rule:  how it may be sharded, as kernels state it (docs/programs.md); None: not at all
    """

    flops: Mapping[str, float] = field(default_factory=dict)
    bytes: float | None = None
    rule: str | None = None


KernelFunction: TypeAlias = "Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Cost]"
"""The cost of a kernel from its operands and results, of which each has a `shape`, a `dtype` and `bytes`."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One positional argument of a program.

    `tree` is a pytree of `jax.ShapeDtypeStruct`; `axes` has the same structure, each leaf a tuple with one
    axis name (or None) per dim; `role` says what the argument is kept for (`ROLES`).
    """

    name: str
    role: str
    tree: Any
    axes: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What the program does not tell about itself.

    costs:       op or custom-call name -> function of operand and result shapes that returns FLOPs
    kernels:     name of a Pallas or NKI kernel, or target of a custom call -> function of its operands and results
                 that returns a `Cost`
    trip_counts: `file.py:line` of a loop -> how often it runs
    mesh:        mesh axis of the program -> axes of a layout that it stands for; () to ignore it
    """

    costs: Mapping[str, CostFunction] = field(default_factory=dict)
    kernels: Mapping[str, KernelFunction] = field(default_factory=dict)
    trip_counts: Mapping[str, int] = field(default_factory=dict)
    mesh: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StableHLO:
    """A step that is lowered already: the contents of a file, and its path."""

    path: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training step: `fn(*trees)`, or what it was lowered to, and how its arguments are named.

    Dims named `batch` and `microbatch` are resized by the layout: `batch` sequences at a time, in a loop over
    `microbatch`. The updated values of the `donated` arguments are the first results, in their order and structure (a
    lowered step says itself which result takes over which argument).

    recompute:    the policy that `fn` was built with
    global_batch: sequences per step where the user gives none; None for the traced sizes of those two dims
    hints:        costs and trip counts that the program does not tell
    """

    name: str
    fn: Callable[..., Any] | StableHLO
    arguments: tuple[Argument, ...]
    donated: tuple[str, ...] = ()
    recompute: str = "none"
    global_batch: int | None = None
    hints: Hints = field(default_factory=Hints)
