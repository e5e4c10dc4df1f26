"""A program to be traced: a callable, abstract arguments and the axis names of their dims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from perfmodel.trace.ops import Shape

ROLES = ("parameters", "optimizer", "batch", "other")

CostFunction: TypeAlias = Callable[[tuple[Shape, ...], tuple[Shape, ...]], float]
"""FLOPs of an op from the shapes of its operands and results."""


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
    trip_counts: `file.py:line` of a loop -> how often it runs
    mesh:        mesh axis of the program -> axes of a layout that it stands for; () to ignore it
    """

    costs: Mapping[str, CostFunction] = field(default_factory=dict)
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
