"""Which machine files exist; light enough for `perfmodel --help` and `hardware list`."""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
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
        return f"{text}.toml", _parse(f"{text}.toml", resources.files(PACKAGE) / f"{text}.toml")
    if not text.endswith(".toml"):
        raise MachineError(
            f"machine: got {text!r}, expected one of {', '.join(machine_names())}, or the path of a .toml file: "
            f"{_remedy(text)}"
        )
    return text, _parse(text, Path(text))


def read_calibration(name_or_path: str | Path) -> tuple[str, dict[str, Any]] | None:
    """(file name, parsed TOML) of a machine's calibration, or None if there is none.

    A shipped machine has a shipped one. `NAME.toml` given by path has `NAME.calibration.toml` beside it, if that
    exists; the name inside the file decides nothing, so that a changed copy is not priced by what fits the original.
    """
    text = str(name_or_path)
    if text in machine_names():
        where, file = f"calibrations/{text}.toml", resources.files(PACKAGE) / "calibrations" / f"{text}.toml"
        return (where, _parse(where, file)) if file.is_file() else None
    beside = Path(text).with_suffix(".calibration.toml")
    return (str(beside), _parse(str(beside), beside)) if beside.exists() else None


def _remedy(text: str) -> str:
    close = difflib.get_close_matches(text.lower(), machine_names(), n=1)
    return f"did you mean {close[0]}?" if close else "see perfmodel hardware list"


def _parse(where: str, file: Traversable) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        raise MachineError(
            f"{where}: got a file that cannot be read ({error.strerror}), expected TOML: check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MachineError(f"{where}: got {error}, expected TOML: mend the file") from None
