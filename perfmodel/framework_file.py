"""Frameworks from their files: the shipped ones by name, or one's own by path."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from perfmodel.catalog import PACKAGE, parsed
from perfmodel.errors import MachineError
from perfmodel.framework import Framework, slower
from perfmodel.framework_spec import FrameworkSpec, OnMachine
from perfmodel.schema import parse
from perfmodel.spec_file import check_units, si_of


def framework_names() -> tuple[str, ...]:
    """Names of the frameworks that ship with the package."""
    files = (resources.files(PACKAGE) / "frameworks").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def read_framework(name_or_path: str | Path) -> FrameworkSpec:
    """A framework file; raises MachineError for unknown names and with the path of the first fault."""
    where, file = _file(str(name_or_path))
    spec: FrameworkSpec = parse(FrameworkSpec, parsed(where, file), where)
    check_units(spec, where)
    return spec


def framework_text(name_or_path: str | Path) -> str:
    """The text of a framework file."""
    return _file(str(name_or_path))[1].read_text(encoding="utf-8")


def _file(text: str) -> tuple[str, Traversable]:
    if text in framework_names():
        return f"frameworks/{text}.toml", resources.files(PACKAGE) / "frameworks" / f"{text}.toml"
    if text.endswith(".toml"):
        return text, Path(text)
    known = ", ".join(framework_names())
    raise MachineError(
        f"framework: got {text!r}, expected one of {known}, or the path of a .toml file: change the name"
    )


def known_as(spec: FrameworkSpec, machines: Sequence[str]) -> str:
    """The first of several names of a machine that a framework file knows; empty where it knows none."""
    return next((name for name in machines if name in spec.machines), "")


def framework_on(spec: FrameworkSpec, machines: Sequence[str]) -> Framework:
    """A framework as it runs on the first of some machines that its file knows, or on one that it does not know."""
    si, known = si_of(spec), known_as(spec, machines)
    on = spec.machines.get(known, OnMachine())
    engines = {
        name: si.get(f"machines.{known}.{name}", si[f"slower.{name}"]) for name in ("matrix", "attention", "memory")
    }
    faster, longer = (on.interval or spec.interval).value
    return Framework(
        name=spec.name,
        slower=slower(**engines),
        host_seconds=si["host"],
        accumulation=si["accumulation"],
        combine=si["combine"],
        epilogues=spec.epilogues,
        interval=(faster, longer),
    )
