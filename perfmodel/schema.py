"""What the forms of files are made of: numbers with unit, kind and source, and faults with the path to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perfmodel.errors import MachineError

T = TypeVar("T")

Kind = Literal["datasheet", "measured", "derived", "assumed"]
Confidence = Literal["high", "medium", "low"]
Text = Annotated[str, Field(min_length=1)]

Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Depth = Annotated[float, Field(ge=1)]
Whole = Annotated[int, Field(ge=1)]

Several = Annotated[list[T], Field(min_length=1)]
Named = Annotated[dict[str, T], Field(min_length=1)]
Extents = Several[Annotated[int, Field(ge=0)]]
Sizes = Several[Whole]
Shapes = Several[Sizes]
Tiles = Several[Annotated[list[Whole], Field(min_length=3, max_length=3)]]
Factors = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Curve = Several[Annotated[list[Positive], Field(min_length=2, max_length=2)]]


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


DIMENSION = {
    "chip.memory": "size",
    "chip.memory_reserve": "size",
    "chip.memory_bandwidth": "bandwidth",
    "chip.host_link": "bandwidth",
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
    "host": "time",
    "combine": "size",
}
"""Path (or its last part) -> dimension of the number there; everything else is a count."""


def dimension_of(path: str) -> str:
    """The dimension that a number at a dotted path must have."""
    for candidate in (path, path.rpartition(".")[0], path.rpartition(".")[2]):
        if candidate in DIMENSION:
            return DIMENSION[candidate]
    return "count"


def numbers(spec: Strict) -> Iterator[tuple[str, Number[Any]]]:
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
