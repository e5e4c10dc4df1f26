"""Which machine files exist; light enough for `perfmodel --help` and `hardware list`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

from perfmodel.errors import MachineError

PACKAGE = "hardware_specs"
Table: TypeAlias = dict[str, Any]


def machine_names() -> tuple[str, ...]:
    """Names of the machines that ship with the package."""
    files = resources.files(PACKAGE).iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def read_machine(name_or_path: str | Path) -> tuple[str, Table]:
    """(file name, parsed TOML) of a shipped machine, or of a path that ends in .toml.

    A file that `extends` another one, by name or path, needs to say only what differs: tables are joined key by key,
    a number or a plain list replaces the other's, and a list of named items keeps its own order, each item completed
    from the other's item of that name. Raises MachineError for unknown names and unreadable files.
    """
    where, data = _machine(str(name_or_path))
    return where, _completed(where, data, _machine)


def read_calibration(name_or_path: str | Path) -> tuple[str, Table, bool] | None:
    """(file name, parsed TOML, whether it is that of the machine that this one extends), or None if there is none.

    A shipped machine has a shipped one. `NAME.toml` given by path has `NAME.calibration.toml` beside it, if that
    exists; the name inside the file decides nothing, so that a changed copy is not priced by what fits the original.
    """
    text, inherited = str(name_or_path), False
    while True:
        if found := _calibration(text):
            return found[0], _alike(found[0], _completed(*found, _shipped_calibration)), inherited
        where, data = _machine(text)
        if not isinstance(data.get("extends"), str):
            return None
        text, inherited = _beside(where, data["extends"]), True


def calibrated_as(machine: str) -> tuple[str, ...]:
    """A machine, and those whose shipped calibrations its own extends, nearest first: their chips are the same."""
    found = _calibration(machine) if machine in machine_names() else None
    base = found[1].get("extends") if found else None
    return (machine, *(calibrated_as(base) if isinstance(base, str) else ()))


def calibration_text(name_or_path: str | Path) -> str | None:
    """The text of a machine's own calibration file, where it has one that extends no other."""
    file = _calibration_file(str(name_or_path))
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8")
    return None if "extends" in tomllib.loads(text) else text


def _calibration_file(text: str) -> Traversable:
    if text in machine_names():
        return resources.files(PACKAGE) / "calibrations" / f"{text}.toml"
    return Path(text).with_suffix(".calibration.toml")


def _machine(text: str) -> tuple[str, Table]:
    if text in machine_names():
        return f"{text}.toml", parsed(f"{text}.toml", resources.files(PACKAGE) / f"{text}.toml")
    if not text.endswith(".toml"):
        raise MachineError(
            f"machine: got {text!r}, expected one of {', '.join(machine_names())}, or the path of a .toml file: "
            f"{_remedy(text)}"
        )
    return text, parsed(text, Path(text))


def _calibration(text: str) -> tuple[str, Table] | None:
    file = _calibration_file(text)
    where = f"calibrations/{text}.toml" if text in machine_names() else str(file)
    return (where, parsed(where, file)) if file.is_file() else None


def _shipped_calibration(name: str) -> tuple[str, Table]:
    found = _calibration(name)
    if found is None:
        raise MachineError(f"calibration: got {name!r}, expected a machine with a calibration: mend extends or like")
    return found


def _completed(where: str, data: Table, read: Callable[[str], tuple[str, Table]]) -> Table:
    """A file with what it leaves to the files that it extends, nearest first."""
    seen = [where]
    while "extends" in data:
        name = data["extends"]
        if not isinstance(name, str):
            raise MachineError(f"{where}: extends: got {name!r}, expected the name or path of a machine: mend the file")
        base, below = read(_beside(seen[-1], name))
        if base in seen:
            raise MachineError(f"{where}: extends: got {base} again, expected no circle: mend the file")
        seen.append(base)
        above = {key: value for key, value in data.items() if key != "extends"}
        data = _joined(below, above)
        if "checks" in data:
            data["checks"] = [c for c in below.get("checks", []) if _holds(c, above, data)] + above.get("checks", [])
    return data


def _holds(check: Table, above: Table, joined: Table) -> bool:
    """Whether a check of the file below still speaks of numbers that are there and that the file above left alone."""
    paths = [path for key in ("of", "per", "equals") for path in _texts(check.get(key))]
    return all(_states(joined, path) and not _states(above, path) for path in paths)


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def _states(data: Any, path: str) -> bool:
    """Whether parsed data has something at a dotted path; items of a list go by their name."""
    head, _, rest = path.partition(".")
    if isinstance(data, list):
        data = {item.get("name"): item for item in data if isinstance(item, Mapping)}
    found = isinstance(data, Mapping) and head in data
    return found and (not rest or _states(data[head], rest))


def _beside(where: str, name: str) -> str:
    """A machine that a file names: a shipped one, or a path seen from that file."""
    return str(Path(where).parent / name) if name.endswith(".toml") else name


def _joined(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict) and "value" not in above:
        return {**below, **{key: _joined(below[key], x) if key in below else x for key, x in above.items()}}
    if _is_named(below) and _is_named(above):
        known = {item["name"]: item for item in below}
        return [_joined(known.get(item["name"], {}), item) for item in above]
    return above


def _alike(where: str, data: Table) -> Table:
    """A calibration that is `like` that of another machine, or whose tiers are `like` others, has their numbers, as
    assumed ones.
    """
    if isinstance(like := data.get("like"), str):
        above = {key: value for key, value in data.items() if key != "like"}
        data = _joined(_assumed(_shipped(like), f"as {like}"), above)
    tiers: Any = data.get("tiers")
    if not _is_named(tiers):
        return data
    completed = []
    for tier in tiers:
        if isinstance(like := tier.get("like"), str):
            machine, _, name = like.rpartition(": ")
            others = {other["name"]: other for other in (_shipped(machine)["tiers"] if machine else tiers)}
            if not machine:
                del others[tier["name"]]
            if name not in others:
                expected = f"one of {', '.join(others)}"
                raise MachineError(
                    f"{where}: tiers.{tier['name']}.like: got {name!r}, expected {expected}: mend the file"
                )
            tier = {**_assumed(others[name], f"as {like}"), **tier}
        completed.append(tier)
    return {**data, "tiers": completed}


def _shipped(machine: str) -> Table:
    """A shipped calibration, complete."""
    where, data = _shipped_calibration(machine)
    return _alike(where, _completed(where, data, _shipped_calibration))


def _assumed(node: Any, source: str) -> Any:
    """The same numbers, from another tier."""
    if isinstance(node, dict) and "value" in node:
        return {**node, "kind": "assumed", "source": source}
    if isinstance(node, dict):
        return {key: _assumed(below, source) for key, below in node.items()}
    return [_assumed(below, source) for below in node] if isinstance(node, list) else node


def _is_named(items: Any) -> bool:
    return isinstance(items, list) and bool(items) and all(isinstance(i, Mapping) and "name" in i for i in items)


def _remedy(text: str) -> str:
    close = difflib.get_close_matches(text.lower(), machine_names(), n=1)
    return f"did you mean {close[0]}?" if close else "see perfmodel hardware list"


def written(path: str | Path, text: str) -> None:
    """Write a file; raises MachineError where that fails."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"{path}: got {error.strerror}, expected to write a file: check the path") from None


def parsed(where: str, file: Traversable) -> dict[str, Any]:
    """A TOML file as it stands; raises MachineError where it cannot be read."""
    try:
        return tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        raise MachineError(
            f"{where}: got a file that cannot be read ({error.strerror}), expected TOML: check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MachineError(f"{where}: got {error}, expected TOML: mend the file") from None
