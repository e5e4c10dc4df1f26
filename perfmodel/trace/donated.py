"""Donated arguments: which result takes over the buffer of which array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from perfmodel.errors import TraceError
from perfmodel.trace.leaves import leaves_of
from perfmodel.trace.program import Program


def check_names(program: Program) -> None:
    """Raise TraceError unless arguments have names of their own, and those that are donated are among them."""
    names = [argument.name for argument in program.arguments]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise TraceError(f"{program.name}: got several arguments named {double[0]!r}, expected one: rename the others")
    if unknown := [name for name in program.donated if name not in names]:
        raise TraceError(
            f"{program.name}: got donated {unknown[0]!r}, expected some of the arguments {', '.join(names)}: correct it"
        )


def check_results(program: Program, results: Sequence[Any]) -> None:
    """Raise TraceError unless the first results can take over the donated arrays, in their order."""
    for position, (name, array) in enumerate(_donated(program)):
        got = _told(results[position]) if position < len(results) else f"{len(results)} results"
        if got != _told(array):
            raise TraceError(
                f"{program.name}: got {got} for result {position}, expected {_told(array)}, the new {name}, which is "
                f"donated: return the new values of donated arguments first, in their order"
            )


def _donated(program: Program) -> Iterator[tuple[str, Any]]:
    for argument in program.arguments:
        if argument.name in program.donated:
            yield from zip((leaf.name for leaf in leaves_of(argument)), jax.tree.leaves(argument.tree), strict=True)


def _told(array: Any) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def taken_over(program: Program) -> dict[int, int]:
    """Array position -> result position: the new values of donated arrays come first, in order."""
    donated = [argument.name in program.donated for argument in program.arguments for _ in leaves_of(argument)]
    return {array: result for result, array in enumerate(i for i, is_donated in enumerate(donated) if is_donated)}
