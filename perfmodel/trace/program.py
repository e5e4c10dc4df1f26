"""A program to be traced: a callable, abstract arguments and the axis names of their dims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROLES = ("parameters", "optimizer", "batch", "other")


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


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training step: `fn(*trees)` and how its arguments are named.

    Dims named `batch` and `microbatch` are resized by the layout: `batch` sequences at a time, in a loop over
    `microbatch`. The updated values of the `donated` arguments are the first results, in their order and structure.

    recompute:    the policy that `fn` was built with
    global_batch: sequences per step where the user gives none; None for the traced sizes of those two dims
    """

    name: str
    fn: Callable[..., Any]
    arguments: tuple[Argument, ...]
    donated: tuple[str, ...] = ()
    recompute: str = "none"
    global_batch: int | None = None
