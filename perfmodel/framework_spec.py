"""The form of a framework file: what running in a training step adds to kernels and collectives."""

from __future__ import annotations

from perfmodel.calibration_spec import Overlap
from perfmodel.schema import Amount, Factors, Number, Positive, Share, Strict, Text


class TrainingFit(Strict):
    """Where the numbers of a framework come from, and how well they fit."""

    date: Text
    data: Text
    leave_out: Text | None = None
    residuals: Text


class OnMachine(Strict):
    """What is otherwise on a machine: as in `Slower`, and the interval of its own errors."""

    matrix: Number[Positive] | None = None
    attention: Number[Positive] | None = None
    memory: Number[Positive] | None = None
    interval: Number[Factors] | None = None


class Slower(Strict):
    """How many times as long kernels take as by themselves: matmuls and attention, whose clocks fall under load, and
    kernels bound by memory, which a framework cuts smaller than a compiler does.
    """

    matrix: Number[Positive]
    attention: Number[Positive]
    memory: Number[Positive]


class FrameworkSpec(Strict):
    """A framework file.

    runs:         what tables of runs call it, as a regular expression
    host:         time that the host takes to launch one kernel or collective
    accumulation: share of the time of adding up the gradients of microbatches that is left where matmuls may do it
    combine:      largest message that the gathers of weights in a layer, or the reductions of their gradients, are
                  combined into; 0 for none
    epilogues:    whether matmuls work on their results before they write them, as compilers let them
    interval:     by what factors four of five runs that were left out are faster and slower than predicted
    """

    name: Text
    title: Text
    runs: Text
    epilogues: bool
    fit: TrainingFit
    host: Number[Amount]
    accumulation: Number[Share]
    combine: Number[Amount]
    overlap: Overlap
    slower: Slower
    interval: Number[Factors]
    machines: dict[str, OnMachine] = {}
