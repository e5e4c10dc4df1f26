"""The form of a calibration file."""

from __future__ import annotations

from perfmodel.schema import Amount, Curve, Depth, Number, Positive, Several, Share, Strict, Text

WAYS = ("mesh", "recursive", "ring", "tree", "flat_ring", "pairwise")
"""How an algorithm may go about a collective."""

GATHERS = ("all_gather", "reduce_scatter", "all_to_all")
SERVED = (*GATHERS, "all_reduce")
"""Kinds of collective that an algorithm may serve; the gathers, some algorithm of every tier does."""


class AlgorithmSpec(Strict):
    """How fast one collective algorithm is on a tier.

    name:    one of `WAYS`; more words after that tell variants apart
    latency: of each step; `inner`, of steps inside the tiers below, for those that go through all their ranks; `base`,
             of each collective
    copies:  passes of each byte through memory that go beside the wire
    all_gather, reduce_scatter, all_reduce, all_to_all: share of the tier's bandwidth that large messages reach; what
             is left out it does not serve, but an all-reduce, which otherwise is a reduce-scatter and an all-gather
    curve:   [bytes, share]: how much of that share messages of a size reach, interpolated in the
             logarithms of both, and rising no faster than the size
    up_to:   the largest collective that the runtime runs by it; without one, the runtime takes the fastest
    """

    name: Text
    latency: Number[Amount]
    inner: Number[Amount] | None = None
    base: Number[Amount] | None = None
    copies: Number[Amount] | None = None
    all_gather: Number[Positive] | None = None
    reduce_scatter: Number[Positive] | None = None
    all_reduce: Number[Positive] | None = None
    all_to_all: Number[Positive] | None = None
    curve: Number[Curve] | None = None
    up_to: Number[Positive] | None = None


class TierCalibration(Strict):
    """Measured behaviour of a tier; `relay` is the bandwidth of a rank that passes on an outer tier's data. A tier that
    was never measured may be taken to behave `like` another one, or one of another "MACHINE: TIER".
    """

    name: Text
    like: Text | None = None
    relay: Number[Positive] | None = None
    algorithms: Several[AlgorithmSpec]


class Fit(Strict):
    """Where the numbers of a calibration come from, and how well they fit: tables, rows by their hardware and smallest
    collective [B], what was left out together, numbers that were kept as they were, and the range of the rows.
    """

    date: Text
    data: Text
    hardware: Text | None = None
    smallest: Amount | None = None
    leave_out: Text | None = None
    keep: Text | None = None
    range: Text | None = None
    residuals: Text


class Efficiency(Strict):
    """Reachable share of the engines' and the memory's peaks; `fill` is what a tile loses before its first result, in
    steps along the contraction, `operands` how much a smaller tile loses to fetching its operands [elements], and
    `query_keys` what a query of an attention kernel costs beside the keys that it sees, in keys; `by_dtype` is `tensor`
    for the element types that reach another share.
    """

    tensor: Number[Positive]
    attention: Number[Positive]
    vector: Number[Positive]
    memory: Number[Positive]
    fill: Number[Amount] | None = None
    operands: Number[Amount] | None = None
    query_keys: Number[Amount] | None = None
    by_dtype: dict[str, Number[Positive]] = {}


class Overlap(Strict):
    """Share of compute time that each class of collective may hide behind; what is left out, nothing tells."""

    tensor: Number[Share] | None = None
    context: Number[Share] | None = None
    expert: Number[Share] | None = None
    fsdp: Number[Share] | None = None
    batch: Number[Share] | None = None
    pipeline: Number[Share] | None = None
    data: Number[Share] | None = None


class CalibrationSpec(Strict):
    """A calibration file: efficiencies and collective constants of a machine, and the overlap that its own framework is
    not known by.
    """

    machine: Text
    fit: Fit
    efficiency: Efficiency
    overlap: Overlap = Overlap()
    pipeline_depth: Number[Depth]
    tiers: list[TierCalibration]
