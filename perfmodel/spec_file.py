"""The form of a machine file and of its calibration, checked at the border: every number with unit, kind and source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perfmodel.errors import MachineError
from perfmodel.units import DIMENSIONS

Kind = Literal["datasheet", "measured", "derived", "assumed"]
Text = Annotated[str, Field(min_length=1)]

Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Depth = Annotated[float, Field(ge=1)]
Whole = Annotated[int, Field(ge=1)]
Extents = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Sizes = Annotated[list[Whole], Field(min_length=1)]

T = TypeVar("T")


class Strict(BaseModel):
    """Unknown keys are errors, not extras; text is no number, and no number is infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Number(Strict, Generic[T]):
    """A number, or a list of whole numbers, with its provenance."""

    value: T
    unit: Text
    kind: Kind
    source: Text
    note: str = ""


class Chip(Strict):
    """What one accelerator is."""

    ranks: Number[Whole]
    memory: Number[Positive]
    memory_reserve: Number[Amount]
    memory_bandwidth: Number[Positive]
    vector: Number[Positive]
    kernel_launch: Number[Amount]
    step_overhead: Number[Amount]
    tensor: Annotated[dict[str, Number[Positive]], Field(min_length=1)]
    quoted: dict[str, Number[Positive]]


class Price(Strict):
    """What an instance costs, and how many chips it has."""

    instance: Number[Amount]
    chips: Number[Whole]


class Power(Strict):
    """What a chip draws."""

    chip: Number[Amount]


class TierSpec(Strict):
    """A level of the fabric; `per` says whether links belong to a chip or to a rank."""

    name: Text
    kind: Literal["torus", "switch"]
    per: Literal["chip", "rank"]
    extents: Number[Extents]
    link: Number[Positive]
    links: Number[Positive]
    latency: Number[Amount]


class Groups(Strict):
    """Sizes of mesh axes that the runtime supports; an axis that is left out may have any."""

    tp: Number[Sizes] | None = None
    cp: Number[Sizes] | None = None
    ep: Number[Sizes] | None = None
    fsdp: Number[Sizes] | None = None
    dp: Number[Sizes] | None = None
    pp: Number[Sizes] | None = None


class Check(Strict):
    """`of` times a factor must equal a number printed elsewhere, within a relative tolerance."""

    of: Text
    times: Positive
    equals: Number[Positive]
    within: Share


class MachineSpec(Strict):
    """A machine file."""

    name: Text
    title: Text
    assumptions: list[Text] = []
    chip: Chip
    price: Price
    power: Power
    tiers: Annotated[list[TierSpec], Field(min_length=1)]
    groups: Groups = Groups()
    checks: list[Check] = []


class AlgorithmSpec(Strict):
    """How fast one collective algorithm is on a tier."""

    name: Literal["ring", "recursive"]
    latency: Number[Amount]
    all_gather: Number[Positive]
    reduce_scatter: Number[Positive]
    all_to_all: Number[Positive]


class TierCalibration(Strict):
    """Measured behaviour of a tier; `relay` is the bandwidth of a rank that passes on an outer tier's data."""

    name: Text
    relay: Number[Positive] | None = None
    algorithms: Annotated[list[AlgorithmSpec], Field(min_length=1)]


class Fit(Strict):
    """Where the numbers of a calibration come from, and how well they fit."""

    date: Text
    data: Text
    residuals: Text


class Efficiency(Strict):
    """Reachable share of the engines' and the memory's peaks."""

    tensor: Number[Positive]
    attention: Number[Positive]
    vector: Number[Positive]
    memory: Number[Positive]


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
    "chip.kernel_launch": "time",
    "chip.step_overhead": "time",
    "chip.tensor": "rate of FLOPs",
    "chip.quoted": "rate of FLOPs",
    "price.instance": "price",
    "power.chip": "power",
    "link": "bandwidth",
    "relay": "bandwidth",
    "latency": "time",
}
"""Path (or its last part) -> dimension of the number there; everything else is a count."""


def dimension_of(path: str) -> str:
    """The dimension that a number at a dotted path must have."""
    for candidate in (path, path.rpartition(".")[0], path.rpartition(".")[2]):
        if candidate in DIMENSION:
            return DIMENSION[candidate]
    return "count"


def numbers(spec: MachineSpec | CalibrationSpec) -> Iterator[tuple[str, Number[Any]]]:
    """Every number that describes the machine, with its dotted path; tiers and algorithms go by their name."""
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


# -- from a parsed file to a checked one --------------------------------------------------------------------------


def parse_machine(data: dict[str, Any], where: str) -> MachineSpec:
    """A machine file whose parts agree with each other; raises MachineError with the path of the first fault."""
    spec: MachineSpec = _parse(MachineSpec, data, where)
    _check_units(spec, where)
    _check_names("tiers", spec.tiers, where)
    if "bf16" not in spec.chip.quoted:
        raise _fault(where, "chip.quoted.bf16", "nothing", "the peak that MFU is quoted against")
    for tier in spec.tiers:
        _check_extents(tier, where, last=tier is spec.tiers[-1])
    ranks, fabric = spec.chip.ranks.value, finite_ranks(tier.extents.value for tier in spec.tiers)
    if fabric > 1 and fabric % ranks:
        raise _fault(where, "chip.ranks.value", ranks, f"a divisor of the {fabric} ranks that the tiers' extents span")
    return spec


def parse_calibration(data: dict[str, Any], where: str, machine: MachineSpec) -> CalibrationSpec:
    """A calibration file that fits its machine; raises MachineError with the path of the first fault."""
    spec: CalibrationSpec = _parse(CalibrationSpec, data, where)
    _check_units(spec, where)
    _check_names("tiers", spec.tiers, where)
    if spec.machine != machine.name:
        raise _fault(where, "machine", repr(spec.machine), f"{machine.name!r}, the machine that it calibrates")
    known = [tier.name for tier in machine.tiers]
    for tier in spec.tiers:
        _check_names(f"tiers.{tier.name}.algorithms", tier.algorithms, where)
        if tier.name not in known:
            raise _fault(where, f"tiers.{tier.name}", "a tier that the machine lacks", f"one of {', '.join(known)}")
    return spec


def finite_ranks(extents: Iterable[Sequence[int]]) -> int:
    """Ranks that the bounded dims of a fabric span together."""
    return math.prod(extent for row in extents for extent in row if extent)


def _check_extents(tier: TierSpec, where: str, *, last: bool) -> None:
    """A switch has one dim; only the outermost may have any number of ranks."""
    extents, path = tier.extents.value, f"tiers.{tier.name}.extents.value"
    if tier.kind == "switch" and len(extents) > 1:
        raise _fault(where, path, extents, "one extent: a switch has no dims")
    if 0 in extents and not (last and tier.kind == "switch"):
        raise _fault(where, path, extents, "extents above 0: only the last tier, a switch, may have any number")


def _check_names(path: str, items: Sequence[TierSpec | TierCalibration | AlgorithmSpec], where: str) -> None:
    names = [item.name for item in items]
    for name in names:
        if names.count(name) > 1:
            raise _fault(where, f"{path}.{name}", f"the name {name!r} {names.count(name)} times", "it once")


def _check_units(spec: MachineSpec | CalibrationSpec, where: str) -> None:
    for path, number in numbers(spec):
        dimension = dimension_of(path)
        if number.unit not in DIMENSIONS[dimension]:
            expected = f"one of {', '.join(DIMENSIONS[dimension])}"
            raise _fault(where, f"{path}.unit", repr(number.unit), expected, f"write a unit of {dimension}")


def _fault(where: str, path: str, got: object, expected: str, remedy: str = "mend the file") -> MachineError:
    return MachineError(f"{where}: {path}: got {got}, expected {expected}: {remedy}")


Spec = TypeVar("Spec", bound=Strict)
Place: TypeAlias = tuple[int | str, ...]


def _parse(model: type[Spec], data: dict[str, Any], where: str) -> Spec:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        got = "nothing" if first["type"] == "missing" else repr(first["input"])
        got = got if len(got) < 80 else got[:77] + "..."
        raise _fault(where, _dotted(first["loc"], data), got, _expected(first)) from None


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


def _expected(fault: Any) -> str:
    message: str = fault["msg"].removeprefix("Input should be ")
    number = "a number " if message.startswith(("greater", "less")) else ""
    return EXPECTED.get(fault["type"], number + message[:1].lower() + message[1:])
