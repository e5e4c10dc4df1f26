"""The form of a machine file, checked at the border: every number with unit, kind and source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perfmodel.errors import MachineError
from perfmodel.units import DIMENSIONS

Kind = Literal["datasheet", "measured", "derived", "assumed"]
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """Unknown keys are errors, not extras."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Number(Strict):
    """A number with its provenance."""

    value: float | list[int]
    unit: Text
    kind: Kind
    source: Text
    note: str = ""


class Chip(Strict):
    """What one accelerator is."""

    ranks: Number
    memory: Number
    memory_reserve: Number
    memory_bandwidth: Number
    vector: Number
    kernel_launch: Number
    step_overhead: Number
    tensor: dict[str, Number]
    quoted: dict[str, Number]


class Price(Strict):
    """What an instance costs, and how many chips it has."""

    instance: Number
    chips: Number


class Power(Strict):
    """What a chip draws."""

    chip: Number


class TierSpec(Strict):
    """A level of the fabric; `per` says whether links belong to a chip or to a rank."""

    name: Text
    kind: Literal["torus", "switch"]
    per: Literal["chip", "rank"]
    extents: Number
    link: Number
    links: Number
    latency: Number


class Check(Strict):
    """`of` times a factor must equal a number printed elsewhere, within a relative tolerance."""

    of: Text
    times: float
    equals: Number
    within: float


class MachineSpec(Strict):
    """A machine file."""

    name: Text
    title: Text
    assumptions: list[Text] = []
    chip: Chip
    price: Price
    power: Power
    tiers: Annotated[list[TierSpec], Field(min_length=1)]
    groups: dict[str, Number] = {}
    checks: list[Check] = []


class AlgorithmSpec(Strict):
    """How fast one collective algorithm is on a tier."""

    name: Literal["ring", "recursive"]
    latency: Number
    all_gather: Number
    reduce_scatter: Number
    all_to_all: Number


class TierCalibration(Strict):
    """Measured behaviour of a tier; `relay` is the bandwidth of a rank that passes on an outer tier's data."""

    name: Text
    relay: Number | None = None
    algorithms: Annotated[list[AlgorithmSpec], Field(min_length=1)]


class Fit(Strict):
    """Where the numbers of a calibration come from, and how well they fit."""

    date: Text
    data: Text
    residuals: Text


class CalibrationSpec(Strict):
    """A calibration file: efficiencies, overlap and collective constants of a machine."""

    machine: Text
    fit: Fit
    efficiency: dict[Literal["tensor", "attention", "vector", "memory"], Number]
    overlap: dict[str, Number]
    pipeline_depth: Number
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


def parse_spec(model: type[BaseModel], data: dict[str, Any], where: str) -> Any:
    """Validate a parsed file; raises MachineError with the path of the first fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        got = "nothing" if first["type"] == "missing" else repr(first["input"])
        got = got if len(got) < 80 else got[:77] + "..."
        raise MachineError(f"{where}: {path}: got {got}, expected {_expected(first)}: mend the file") from None


def _expected(fault: Any) -> str:
    if fault["type"] == "missing":
        return "this key"
    if fault["type"] == "extra_forbidden":
        return "no such key"
    message: str = fault["msg"]
    return message[:1].lower() + message[1:]


def check_unit(path: str, number: Number, where: str) -> float:
    """Factor from a number's unit to SI; raises MachineError where the unit has the wrong dimension."""
    units = DIMENSIONS[dimension_of(path)]
    if number.unit not in units:
        raise MachineError(
            f"{where}: {path}.unit: got {number.unit!r}, expected one of {', '.join(units)}: write a unit of "
            f"{dimension_of(path)}"
        )
    return units[number.unit]
