"""What runs a step on a machine: how much slower kernels are in it than by themselves, how fast they are launched, and
how far off its predictions were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from perfmodel.work import Number

BOUND_BY_MEMORY = ("memory", "vector", "scalar", "gpsimd")
"""Engines that elementwise kernels wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A framework on a machine; without arguments one that adds nothing to what the machine needs.

    slower:       how many times as long as by themselves kernels take that an engine or the memory decides [1]
    host_seconds: time that the host takes to launch one kernel or collective; the ranks wait where it is slower [s]
    accumulation: share of the time of adding up the gradients of microbatches that is left: matmuls may do it [1]
    combine:      largest message that gathers of weights, or reductions of their gradients, are combined into [B]
    epilogues:    whether matmuls work on their results before they write them
    interval:     by what factors four of five runs that no fit had seen are faster and slower than predicted [1]
    """

    name: str = "none"
    slower: Mapping[str, Number] = field(default_factory=dict)
    host_seconds: Number = 0.0
    accumulation: Number = 1.0
    combine: float = 0.0
    epilogues: bool = True
    interval: tuple[float, float] | None = None


def slower(matrix: Number, attention: Number, memory: Number) -> dict[str, Number]:
    """What is slower by so much, by engine."""
    return {"tensor": matrix, "attention": attention, **dict.fromkeys(BOUND_BY_MEMORY, memory)}
