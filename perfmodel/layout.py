"""A layout: how large each mesh axis is, which axis names it shards, and how a step is executed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np

from perfmodel.errors import LayoutError
from perfmodel.formulas.cut import CUTS
from perfmodel.formulas.pipeline import SCHEDULES
from perfmodel.graph import Graph
from perfmodel.mesh import Mesh
from perfmodel.work import MESH, MICROBATCH, PER_RANK, TP, VIRTUAL, Floats, Number

AXES = ("tp", "cp", "ep", "fsdp", "dp", "pp")
"""Mesh axes, innermost on the fabric first: the axis that communicates most sits on the nearest ranks."""

RECOMPUTE = ("none", "selective", "full")
EXPERTS: Mapping[str, tuple[str, ...]] = {"ep": ("ep",), "cp+ep": ("cp", "ep"), "tp+cp+ep": (*TP, "cp", "ep")}
"""Ways to spread experts -> the mesh axes, major to minor: over ep alone, with copies on ranks of cp and parts on those
of tp; or, as Megatron-Core spreads them, over cp too, or with an expert tensor-parallel size of 1 also over tp. ep,
which takes part of the batch elsewhere, is minor: the shuffle back then leaves the others in order.
"""
WHOLE = "whole"
"""Axis name of a dim that no layout shards, though what is proposed for a program may want it."""

Rules: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""(axis name, mesh axes) pairs; where two names want one mesh axis in one op, the earlier pair wins."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which mesh axes shard which axis names: while computing, and while kept in memory (by role).

    ring: whether a marked kernel that needs all of an index it is itself spread over (keys and values of other ranks'
          tokens) sees it part by part, passed round a ring, instead of gathered
    """

    compute: Rules
    stored: Mapping[str, Rules]
    ring: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout, or arrays of layouts: sizes may be arrays that broadcast, such as an open grid, each axis along a dim
    of its own.

    dp, fsdp, ep, tp, cp, pp: sizes of the mesh axes; their product is the number of ranks
    vpp:           virtual stages: chunks of layers on each pipeline stage, interleaved
    mb:            sequences per microbatch on each data-parallel rank (dp, fsdp and ep spread the batch)
    global_batch:  sequences per step over all ranks
    zero:          ZeRO stage over fsdp and ep: 1 optimizer state, 2 and gradients, 3 and parameters (FSDP)
    sp:            whether activations between blocks are sharded over tp along the sequence
    ring:          whether keys and values pass round a ring of the cp ranks instead of being gathered
    experts:       ranks that experts are spread over: one of `EXPERTS`
    recompute:     none, selective (attention core) or full
    schedule:      of the pipeline: one of `SCHEDULES`
    cut:           of the layers into stages: one of `CUTS`
    offload:       whether the optimizer state lies in the memory of the host
    """

    dp: Number = 1
    fsdp: Number = 1
    ep: Number = 1
    tp: Number = 1
    cp: Number = 1
    pp: Number = 1
    vpp: Number = 1
    mb: Number = 1
    global_batch: Number = 1
    zero: int = 3
    sp: bool = True
    ring: bool = False
    experts: str = "ep"
    recompute: str = "full"
    schedule: str = SCHEDULES[0]
    cut: str = CUTS[0]
    offload: bool = False

    @staticmethod
    def read_keys(notation: str) -> dict[str, Any]:
        """The values of the keys in `tp=8,recompute=full`; raises LayoutError for unknown keys and bad values."""
        return {key: _value(key, text) for key, text in _pairs(notation).items()}

    @classmethod
    def parse(cls, notation: str, *, ranks: int, global_batch: int = 1) -> Layout:
        """Read `dp=4,fsdp=8,tp=8,...`; axes left out are 1, dp fills what is left when not given.

        Choices that change nothing are off, as `settled` has it. Raises LayoutError for unknown keys, bad values, and
        sizes that do not multiply to `ranks`.
        """
        given = cls.read_keys(notation)
        layout = cls(**given, global_batch=global_batch).settled()
        used = math.prod(int(getattr(layout, axis)) for axis in AXES)
        if "dp" not in given:
            if ranks % used:
                raise LayoutError(
                    f"layout {notation!r}: got sizes that multiply to {used}, expected a divisor of {ranks} ranks: "
                    f"change an axis"
                )
            return replace(layout, dp=ranks // used)
        if used != ranks:
            raise LayoutError(
                f"layout {notation!r}: got sizes that multiply to {used}, expected {ranks} ranks: change an axis, or "
                f"leave dp out to let it fill the rest"
            )
        return layout

    def settled(self) -> Layout:
        """The same layout without choices about axes of size 1: no ZeRO without fsdp or ep, no sequence parallelism
        without tp, no ring without cp, no experts over tp or cp without these, no schedule and no cut without pp;
        scalar layouts only.
        """
        zero = self.zero if self.fsdp * self.ep > 1 else 0
        vpp, schedule, cut = (self.vpp, self.schedule, self.cut) if self.pp > 1 else (1, SCHEDULES[0], CUTS[0])
        sp, ring = bool(self.sp and self.tp > 1), bool(self.ring and self.cp > 1)
        spread = {way: math.prod(int(getattr(self, axis)) for axis in way.split("+")) for way in EXPERTS}
        experts = next(way for way in EXPERTS if spread[way] == spread[self.experts])
        return replace(self, zero=zero, sp=sp, ring=ring, experts=experts, vpp=vpp, schedule=schedule, cut=cut)

    def suited(self, graph: Graph, given: Collection[str]) -> Layout:
        """The same layout with what a graph leaves no choice about, but for the keys that are `given`: the recompute
        policy that it was traced with, and without a loop over microbatches the one that is the global batch; scalar
        layouts only. Raises LayoutError where another policy is given.
        """
        if "recompute" in given and self.recompute != graph.recompute:
            raise LayoutError(
                f"layout: got recompute={self.recompute}, expected {graph.recompute}, the only policy that "
                f"{graph.name} has: leave recompute out"
            )
        choices: dict[str, Any] = {"recompute": graph.recompute}
        if "mb" not in given and MICROBATCH not in graph.named() and (mb := self.whole_batch):
            choices["mb"] = mb
        return replace(self, **choices)

    @property
    def whole_batch(self) -> int:
        """Sequences of a microbatch that is the whole batch; 0 where ranks cannot share it evenly."""
        share, rest = divmod(int(self.global_batch), int(self.data))
        return 0 if rest else share

    @property
    def data(self) -> Number:
        """Number of ranks that the batch is spread over."""
        return self.dp * self.fsdp * self.ep

    @property
    def ranks(self) -> Number:
        """Number of ranks."""
        return self.data * self.tp * self.cp * self.pp

    @property
    def mesh(self) -> Mesh:
        """The mesh axes with their sizes; scalar layouts only."""
        return Mesh({axis: int(getattr(self, axis)) for axis in AXES})

    @property
    def microbatches(self) -> Number:
        """Microbatches per step and data-parallel rank."""
        return self.global_batch / (self.data * self.mb)

    @property
    def assignment(self) -> Assignment:
        """The structure of this layout; equal for every element of an array of layouts."""
        return assignment(zero=self.zero, sp=self.sp, ring=self.ring, experts=self.experts)

    def sizes(self, graph: Graph) -> dict[str, Number]:
        """Sizes of the symbols of `perfmodel.work` for a graph, as float64."""
        heads = min((graph.factors[i].size for i in graph.named().get("kv_heads", ())), default=None)
        tp = _float(self.tp)
        tp_kv = tp if heads is None else np.minimum(tp, float(heads))
        return {
            TP[0]: tp_kv,
            TP[1]: tp / tp_kv,
            **{axis: _float(getattr(self, axis)) for axis in MESH[len(TP) :]},
            VIRTUAL: _float(self.vpp),
            "batch": _float(self.mb) * _float(self.data),
            PER_RANK: _float(self.mb),
            "microbatch": _float(self.microbatches),
        }

    def notation(self) -> str:
        """The layout as `parse` reads it; scalar layouts only."""
        seldom = {key for key in ("ep", "vpp") if getattr(self, key) == 1}
        numbers = [f"{key}={int(getattr(self, key))}" for key in NUMBERS if key not in seldom]
        ring = ("ring=1",) if self.ring else ()
        experts = (f"experts={self.experts}",) if len(EXPERTS[self.experts]) > 1 else ()
        schedule = (f"schedule={self.schedule}",) if self.schedule != SCHEDULES[0] else ()
        cut = (f"cut={self.cut}",) if self.cut != CUTS[0] else ()
        offload = ("offload=1",) if self.offload else ()
        choices = (f"zero={self.zero}", f"sp={int(self.sp)}", *ring, *experts, f"recompute={self.recompute}")
        return ",".join((*numbers, *choices, *schedule, *cut, *offload))

    def at(self, i: int) -> Layout:
        """The i-th layout of an array, of a grid in row-major order."""
        names = [f.name for f in fields(self) if f.name not in STRUCTURE]
        numbers = np.broadcast_arrays(*(np.asarray(getattr(self, name)) for name in names))
        picked: dict[str, Any] = {name: int(x.flat[i]) for name, x in zip(names, numbers, strict=True)}
        return replace(self, **picked)


NUMBERS = ("dp", "fsdp", "ep", "tp", "cp", "pp", "vpp", "mb")
"""Keys of sizes, in the order in which a layout is written."""

STRUCTURE = ("zero", "sp", "ring", "experts", "recompute", "schedule", "cut", "offload")
SWITCHES = ("sp", "ring", "offload")


def _float(x: Number) -> Number:
    array: Floats = np.asarray(x, dtype=np.float64)
    return array if array.ndim else float(array)


def assignment(*, zero: int, sp: bool, ring: bool = False, experts: str = "ep") -> Assignment:
    """The strategies as data: no strategy has code of its own.

    Weights: embed -> fsdp (and ep, but for experts) where the ZeRO stage stores that role sharded. Compute: experts ->
    ep (and cp and tp, as `EXPERTS` has it), heads, mlp and vocab -> tp, layers -> pp, batch -> dp, fsdp and ep, seq ->
    cp, and with sequence parallelism -> tp wherever nothing else in the op wants it.
    """
    spread = ("experts", EXPERTS[experts])
    sharded: Rules = (spread, ("embed", ("fsdp", "ep")))
    stages = {"optimizer": 1, "gradients": 2, "parameters": 3}
    compute: Rules = (
        ("layers", ("pp",)),
        spread,
        ("kv_heads", TP[:1]),
        ("q_per_kv", TP[1:]),
        ("mlp", TP),
        ("vocab", TP),
        ("batch", ("dp", "fsdp", "ep")),
        ("seq", ("cp", *TP) if sp else ("cp",)),
    )
    return Assignment(compute=compute, stored={r: sharded if zero >= s else () for r, s in stages.items()}, ring=ring)


def axis_names() -> tuple[str, ...]:
    """Axis names that mean something to layouts."""
    full = assignment(zero=3, sp=True)
    rules = (*full.compute, *(rule for kept in full.stored.values() for rule in kept))
    return tuple(dict.fromkeys((MICROBATCH, *(name for name, _ in rules), WHOLE)))


def _pairs(notation: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in notation.split(","))):
        key, sign, value = (word.strip() for word in item.partition("="))
        if not sign or not value:
            raise LayoutError(f"layout {notation!r}: got {item!r}, expected key=value: write it as tp=8")
        if key in pairs:
            raise LayoutError(f"layout {notation!r}: got {key!r} twice, expected it once: remove one")
        pairs[key] = value
    return pairs


KEYS = (*AXES, "vpp", "mb", *STRUCTURE)
WORDS: Mapping[str, tuple[str, ...]] = {
    "experts": tuple(EXPERTS),
    "recompute": RECOMPUTE,
    "schedule": SCHEDULES,
    "cut": CUTS,
}
"""Keys whose values are words, and these."""


def _value(key: str, text: str) -> Any:
    if key not in KEYS:
        close = difflib.get_close_matches(key.lower(), KEYS, n=1)
        remedy = f"did you mean {close[0]}?" if close else "correct or remove it"
        raise LayoutError(f"layout: got key {key!r}, expected one of {', '.join(KEYS)}: {remedy}")
    if key in WORDS:
        if text not in WORDS[key]:
            raise LayoutError(f"layout: got {key}={text}, expected one of {', '.join(WORDS[key])}: choose one of them")
        return text
    if not (text.isascii() and text.isdecimal()):
        raise LayoutError(f"layout: got {key}={text}, expected a whole number: write it as {key}=8, keys with commas")
    number = int(text)
    low, high = {"zero": (0, 3), **dict.fromkeys(SWITCHES, (0, 1))}.get(key, (1, None))
    if number < low or (high is not None and number > high):
        upper = f"{low} to {high}" if high is not None else f"at least {low}"
        raise LayoutError(f"layout: got {key}={number}, expected {upper}: change {key}")
    return bool(number) if key in SWITCHES else number
