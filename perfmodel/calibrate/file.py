"""A fitted calibration as a file: what was fitted is replaced in the text that was there, the rest is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomlkit

from perfmodel.calibrate.parameters import Data, Parameter, at, number_of, parent, rounded


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file says of where a fitted number is from."""

    kind: str
    source: str


MEASURED = Origin("measured", "fit above")
GUESSED = Origin("assumed", "fit above, which tells it only with others or stopped at its bound")
"""Of a number that measured rows tell, and of one that others could stand in for."""


def derived(models: str, rows: int, of: int) -> Origin:
    """Of a number told by `of` rows, some of which nobody measured: models expect them."""
    return Origin("derived", f"fit to {of} rows, {rows} of them no measurements: {models}")


def as_toml(
    original: str | None,
    data: Data,
    fitted: Mapping[Parameter, Origin],
    *,
    machine: str,
    fit: Mapping[str, Any],
) -> str:
    """The text of a calibration file.

    original: the file that the fit started from, or None where there was none; where it leaves a fitted number to
              another one that it is like, all are written out
    fitted:   what was fitted, and where from; a curve is told by any of its points; notes beside it were of another
              value, and go
    fit:      what the file says of the fit
    """
    document = tomlkit.parse(original) if original else _document(data)
    if not all(_states(document, parameter) for parameter in fitted):
        document = _document(data)
    document["machine"] = machine
    document["fit"] = dict(fit)
    told = {number_of(parameter.keys): origin for parameter, origin in fitted.items() if origin != GUESSED}
    for parameter in fitted:
        source, key = parent(data, parameter)
        target, _ = parent(document, parameter)
        target[key] = rounded(source[key])
        keys = number_of(parameter.keys)
        number = at(document, keys)
        origin = told.get(keys, GUESSED)
        number["kind"], number["source"] = origin.kind, origin.source
        number.pop("note", None)
    return tomlkit.dumps(document)


def _states(document: Any, parameter: Parameter) -> bool:
    """Whether a file says a number itself, rather than being like another one there."""
    try:
        at(document, parameter.keys)
    except (KeyError, IndexError):
        return False
    return True


def _document(data: Data) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    for key, value in data.items():
        document[key] = _tables(value) if isinstance(value, list) else _item(value)
    return document


def _item(value: Any) -> Any:
    """Numbers on one line, what holds numbers as a table."""
    if not isinstance(value, dict):
        return value
    made: Any = tomlkit.inline_table() if "value" in value else tomlkit.table()
    for key, below in value.items():
        made[key] = _tables(below) if _is_tables(below) else _item(below)
    return made


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _tables(items: list[Any]) -> Any:
    made = tomlkit.aot()
    for item in items:
        made.append(_item(item))
    return made
