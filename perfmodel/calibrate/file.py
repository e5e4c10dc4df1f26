"""A fitted calibration as a file: what was fitted is replaced in the text that was there, the rest is kept."""

from __future__ import annotations

from typing import Any

import tomlkit

from perfmodel.calibrate.parameters import Data, Parameter, parent, rounded


def as_toml(
    original: str | None,
    data: Data,
    fitted: tuple[Parameter, ...],
    *,
    machine: str,
    date: str,
    tables: str,
    residuals: str,
) -> str:
    """The text of a calibration file.

    original: the file that the fit started from, or None where there was none
    date, tables, residuals: what `fit` in the file says of the fit
    """
    document = tomlkit.parse(original) if original else _document(data)
    document["machine"] = machine
    document["fit"] = {"date": date, "data": tables, "residuals": residuals}
    for parameter in fitted:
        source, key = parent(data, parameter)
        target, _ = parent(document, parameter)
        target[key] = rounded(source[key])
        number = _number(document, parameter)
        number["kind"], number["source"] = "measured", "fit above"
    return tomlkit.dumps(document)


def _number(document: Any, parameter: Parameter) -> Any:
    """The table of a number: what holds its value, or the curve that it is a point of."""
    keys = parameter.keys[: parameter.keys.index("value")]
    for key in keys:
        document = document[key]
    return document


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
