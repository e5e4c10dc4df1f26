"""What a machine file and a calibration file say: every number with unit, kind and source, checked at the border."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perfmodel.errors import MachineError

Kind = Literal["datasheet", "measured", "derived", "assumed"]
Confidence = Literal["high", "medium", "low"]
Text = Annotated[str, Field(min_length=1)]

Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Depth = Annotated[float, Field(ge=1)]
Whole = Annotated[int, Field(ge=1)]
Extents = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Sizes = Annotated[list[Whole], Field(min_length=1)]
Shapes = Annotated[list[Sizes], Field(min_length=1)]
Tiles = Annotated[list[Annotated[list[Whole], Field(min_length=3, max_length=3)]], Field(min_length=1)]
Curve = Annotated[list[Annotated[list[Positive], Field(min_length=2, max_length=2)]], Field(min_length=1)]

T = TypeVar("T")


class Strict(BaseModel):
    """Unknown keys are errors, not extras; text is no number, and no number is infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Number(Strict, Generic[T]):
    """A number, or a list of them, with its provenance."""

    value: T
    unit: Text
    kind: Kind
    source: Text
    note: str = ""
    confidence: Confidence | None = None


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
    """

    ranks: Number[Whole]
    units: Number[Whole] | None = None
    tiles: Number[Tiles] | None = None
    memory: Number[Positive]
    memory_reserve: Number[Amount]
    memory_bandwidth: Number[Positive]
    vector: Number[Positive]
    scalar: Number[Positive] | None = None
    gpsimd: Number[Positive] | None = None
    kernel_launch: Number[Amount]
    step_overhead: Number[Amount]
    barrier: Number[Amount] | None = None
    ramp: Number[Amount] | None = None
    clock: Number[Positive] | None = None
    descriptors: Number[Curve] | None = None
    tensor: Annotated[dict[str, Number[Positive]], Field(min_length=1)]
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

    of: Text | Annotated[list[Text], Field(min_length=1)]
    per: list[Text] = []
    times: Positive = 1.0
    equals: Number[Positive] | Text
    within: Share


class MachineSpec(Strict):
    """A machine file."""

    name: Text
    title: Text
    assumptions: list[Text] = []
    chip: Chip
    instance: Instance
    offers: list[Offer] = []
    power: Power
    tiers: Annotated[list[TierSpec], Field(min_length=1)]
    groups: Groups = Groups()
    limits: Limits = Limits()
    checks: list[Check] = []


WAYS = ("mesh", "recursive", "ring", "tree", "flat_ring", "pairwise")
"""How an algorithm may go about a collective."""


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
    algorithms: Annotated[list[AlgorithmSpec], Field(min_length=1)]


class Fit(Strict):
    """Where the numbers of a calibration come from, and how well they fit: tables, rows by their hardware and smallest
    collective [B], what was left out together, and the range of the rows.
    """

    date: Text
    data: Text
    hardware: Text | None = None
    smallest: Amount | None = None
    leave_out: Text | None = None
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
    """Share of compute time that each class of collective may hide behind."""

    tensor: Number[Share]
    context: Number[Share]
    expert: Number[Share] | None = None
    fsdp: Number[Share]
    batch: Number[Share] | None = None
    pipeline: Number[Share]
    data: Number[Share]


class CalibrationSpec(Strict):
    """A calibration file: efficiencies, overlap and collective constants of a machine."""

    machine: Text
    fit: Fit
    efficiency: Efficiency
    overlap: Overlap
    pipeline_depth: Number[Depth]
    tiers: list[TierCalibration]


DIMENSION = {
    "chip.memory": "size",
    "chip.memory_reserve": "size",
    "chip.memory_bandwidth": "bandwidth",
    "chip.vector": "rate of FLOPs",
    "chip.scalar": "rate of FLOPs",
    "chip.gpsimd": "rate of FLOPs",
    "chip.kernel_launch": "time",
    "chip.step_overhead": "time",
    "chip.barrier": "time",
    "chip.ramp": "time",
    "chip.clock": "frequency",
    "chip.descriptors": "size",
    "chip.tensor": "rate of FLOPs",
    "chip.quoted": "rate of FLOPs",
    "price": "price",
    "power.chip": "power",
    "link": "bandwidth",
    "relay": "bandwidth",
    "latency": "time",
    "base": "time",
    "inner": "time",
    "curve": "size",
    "up_to": "size",
}
"""Path (or its last part) -> dimension of the number there; everything else is a count."""


def dimension_of(path: str) -> str:
    """The dimension that a number at a dotted path must have."""
    for candidate in (path, path.rpartition(".")[0], path.rpartition(".")[2]):
        if candidate in DIMENSION:
            return DIMENSION[candidate]
    return "count"


def numbers(spec: MachineSpec | CalibrationSpec) -> Iterator[tuple[str, Number[Any]]]:
    """Every number that describes the machine, with its dotted path; items of a list go by their name."""
    return ((path, number) for path, number in _numbers("", spec) if not path.startswith("checks."))


def _numbers(path: str, node: Any) -> Iterator[tuple[str, Number[Any]]]:
    if isinstance(node, Number):
        yield path, node
        return
    for part, below in _parts(node):
        yield from _numbers(f"{path}.{part}".lstrip("."), below)


def _parts(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from ((getattr(item, "name", str(i)), item) for i, item in enumerate(node))
    elif isinstance(node, BaseModel):
        yield from ((key, getattr(node, key)) for key in type(node).model_fields)


# -- faults -------------------------------------------------------------------------------------------------------

Spec = TypeVar("Spec", bound=Strict)
Place: TypeAlias = tuple[int | str, ...]


def parse(model: type[Spec], data: dict[str, Any], where: str) -> Spec:
    """Data in the form of a model; raises MachineError with the path of the first fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        got = "nothing" if first["type"] == "missing" else repr(first["input"])
        got = got if len(got) < 80 else got[:77] + "..."
        raise fault(where, _dotted(first["loc"], data), got, _expected(first)) from None


def fault(where: str, path: str, got: object, expected: str, remedy: str = "mend the file") -> MachineError:
    """The error for a fault at a dotted path of a file."""
    return MachineError(f"{where}: {path}: got {got}, expected {expected}: {remedy}")


def _dotted(place: Place, data: Any) -> str:
    """The path of a fault; items of a list go by their name where they have one."""
    parts = []
    for part in place:
        try:
            data = data[part]
        except (LookupError, TypeError):
            data = None
        name = data.get("name") if isinstance(part, int) and isinstance(data, dict) else None
        parts.append(name if isinstance(name, str) and name else str(part))
    return ".".join(parts)


EXPECTED: Mapping[str, str] = {
    "missing": "this key",
    "extra_forbidden": "no such key",
    "model_type": "a table",
    "dict_type": "a table",
    "string_too_short": "text",
    "too_short": "at least one item",
}
"""What each kind of fault wants, where the validator's own words speak of Python rather than of the file."""


def _expected(first: Any) -> str:
    message: str = first["msg"].removeprefix("Input should be ")
    number = "a number " if message.startswith(("greater", "less")) else ""
    return EXPECTED.get(first["type"], number + message[:1].lower() + message[1:])
