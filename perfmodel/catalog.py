"""Which machine files exist; light enough for `perfmodel --help` and `hardware list`."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from perfmodel.errors import MachineError

PACKAGE = "hardware_specs"


def machine_names() -> tuple[str, ...]:
    """Names of the machines that ship with the package."""
    files = resources.files(PACKAGE).iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def read_machine(name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """(file name, parsed TOML) of a shipped machine, or of a path that ends in .toml.

    Raises MachineError for unknown names and unreadable files.
    """
    text = str(name_or_path)
    if text in machine_names():
        return f"{text}.toml", _parse(f"{text}.toml", (resources.files(PACKAGE) / f"{text}.toml").read_bytes())
    if not text.endswith(".toml"):
        raise MachineError(
            f"machine: got {text!r}, expected one of {', '.join(machine_names())}, or the path of a .toml file: "
            f"see perfmodel hardware list"
        )
    try:
        return text, _parse(text, Path(text).read_bytes())
    except OSError as error:
        raise MachineError(f"machine: got {text!r}, which cannot be read ({error.strerror}): check the path") from None


def read_calibration(name: str) -> tuple[str, dict[str, Any]] | None:
    """(file name, parsed TOML) of a machine's calibration, or None if there is none."""
    file = resources.files(PACKAGE) / "calibrations" / f"{name}.toml"
    return (f"calibrations/{name}.toml", _parse(name, file.read_bytes())) if file.is_file() else None


def _parse(where: str, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MachineError(f"{where}: got {error}, expected TOML: mend the file") from None
