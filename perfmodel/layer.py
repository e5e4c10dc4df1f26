"""Which layer of a program an op belongs to, told by the loops around it and by the scopes that the program names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perfmodel.graph import Graph
from perfmodel.sharded import LocalLoop

FUNCTION = re.compile(r"jit\([^()]*\)")
WRAPPER = re.compile(r"\w+\(|\)")
"""What a transformation writes around a name, as in `transpose(jvp(mlp))`."""

CONTROL = re.compile(
    r"while|body|cond|cond_fun|body_fun|closed_call|core_call|checkpoint|remat2?|rematted_computation|shard_map|"
    r"branch_\d+_fun|custom_[jv][vj]p_call.*|.*->.*"
)
"""Scopes that JAX writes for control flow and transformations, and einsum for what it computes."""


def layer_of(graph: Graph, loops: Sequence[LocalLoop], scope: str, source: str, phase: str) -> str:
    """A path such as `layers/attention/norm`: the axis names of the loops around an op, but for that over microbatches,
    and its named scopes. What is in no named scope and no loop belongs to the update, or goes by its source line.
    """
    trips = (graph.factors[loop.loop.trip] for loop in loops if not loop.repeats)
    around = [factor.name or factor.origin or "loop" for factor in trips]
    return "/".join((*around, *named_scopes(scope))) or ("update" if phase == "update" else source)


def named_scopes(scope: str) -> tuple[str, ...]:
    """The names in one of JAX's name stacks, which ends with the primitive; a loop's body repeats those around it."""
    outer, _, primitive = scope.rpartition("/")
    written = scope if "(" in primitive else outer
    found: list[str] = []
    for name in WRAPPER.sub("", FUNCTION.sub("", written)).split("/"):
        if name and not CONTROL.fullmatch(name):
            found.append(name)
            _forget_repeated(found)
    return tuple(found)


def _forget_repeated(names: list[str]) -> None:
    """Drop the end of a list where it says again what stands right before it."""
    for length in range(1, len(names) // 2 + 1):
        if names[-length:] == names[-2 * length : -length]:
            del names[-length:]
            return
