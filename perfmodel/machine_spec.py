"""The form of a machine file."""

from __future__ import annotations

from typing import Literal

from perfmodel.schema import (
    Amount,
    Curve,
    Depth,
    Extents,
    Named,
    Number,
    Positive,
    Several,
    Shapes,
    Share,
    Sizes,
    Strict,
    Text,
    Tiles,
    Whole,
)


class Chip(Strict):
    """What one accelerator is.

    units:       parts of the matrix engine that work on output tiles of their own (PE arrays, SMs, MXUs)
    tiles:       [m, n, k] of the output tile and of one step along the contraction that a unit works on; without
                 them, a matmul of any shape runs at the full rate
    vector, scalar, gpsimd: results per second of elementwise arithmetic, of transcendental functions, and of index,
                 random and sorting ops; where an engine is left out, its work runs on the vector engine
    step_overhead, barrier: fixed cost of a step, and what is added for each doubling of its ranks
    ramp:        time that a burst of matrix work loses until the clock is up
    descriptors: share of the memory bandwidth that rows of [bytes] reach when each is fetched by itself
    host_link:   bandwidth to the memory of the host, in one direction; without it, nothing can be kept there
    """

    ranks: Number[Whole]
    units: Number[Whole] | None = None
    tiles: Number[Tiles] | None = None
    memory: Number[Positive]
    memory_reserve: Number[Amount]
    memory_bandwidth: Number[Positive]
    host_link: Number[Positive] | None = None
    vector: Number[Positive]
    scalar: Number[Positive] | None = None
    gpsimd: Number[Positive] | None = None
    kernel_launch: Number[Amount]
    step_overhead: Number[Amount]
    barrier: Number[Amount] | None = None
    ramp: Number[Amount] | None = None
    clock: Number[Positive] | None = None
    descriptors: Number[Curve] | None = None
    tensor: Named[Number[Positive]]
    quoted: dict[str, Number[Positive]]


class Instance(Strict):
    """How the accelerator is rented: a server of so many chips."""

    name: Text
    chips: Number[Whole]


class Offer(Strict):
    """A price of an instance; the first offer of a file is the one that costs are reckoned with."""

    name: Text
    region: Text
    date: Text
    price: Number[Positive]


class Power(Strict):
    """What a chip draws."""

    chip: Number[Amount]


class TierSpec(Strict):
    """A level of the fabric; `per` says whether links belong to a chip or to a rank.

    kind:   "torus" (each dim a ring), "switch" (one dim, any two members at full bandwidth) or "full" (one dim, a link
            between any two members)
    link:   bandwidth of one link in one direction; `links` counts them per chip (or rank) and dim
    wrap:   a dim of fewer members than this is a line, not a ring
    together: whether no dim is a ring unless all are long enough
    folded: whether groups of the runtime need not be contiguous, so that two axes that share a ring of 4 have their
            neighbours side by side
    oversubscription: by how much the bandwidth out of the tier below exceeds what the tier carries
    uplink: whether what it carries goes through the links of the switch below, as in a fat tree
    rails:  whether a switch joins only what is at the same place of the tiers below
    shapes: of the parts that a job may have, where it need not have all of a torus
    """

    name: Text
    kind: Literal["torus", "switch", "full"]
    per: Literal["chip", "rank"]
    extents: Number[Extents]
    link: Number[Positive]
    links: Number[Positive]
    latency: Number[Amount]
    wrap: Number[Whole] | None = None
    together: bool = False
    folded: bool = False
    oversubscription: Number[Depth] | None = None
    uplink: bool = False
    rails: bool = False
    shapes: Number[Shapes] | None = None


class Groups(Strict):
    """Sizes of mesh axes that the runtime supports; an axis that is left out may have any."""

    tp: Number[Sizes] | None = None
    cp: Number[Sizes] | None = None
    ep: Number[Sizes] | None = None
    fsdp: Number[Sizes] | None = None
    dp: Number[Sizes] | None = None
    pp: Number[Sizes] | None = None


class Limits(Strict):
    """What the compiler and the runtime take in one graph; beyond it, a layout is warned about."""

    instructions: Number[Whole] | None = None
    communicators: Number[Whole] | None = None


class Check(Strict):
    """The product of the numbers at `of`, divided by those at `per`, times a factor, equals a number printed
    elsewhere or the one at a path, within a relative tolerance.
    """

    of: Text | Several[Text]
    per: list[Text] = []
    times: Positive = 1.0
    equals: Number[Positive] | Text
    within: Share


class MachineSpec(Strict):
    """A machine file; `framework` is what JAX programs run by on it, a name or the path of a framework file."""

    name: Text
    title: Text
    framework: Text | None = None
    assumptions: list[Text] = []
    chip: Chip
    instance: Instance
    offers: list[Offer] = []
    power: Power
    tiers: Several[TierSpec]
    groups: Groups = Groups()
    limits: Limits = Limits()
    checks: list[Check] = []
