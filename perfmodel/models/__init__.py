"""Reference models, and finding the program that a user names."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from perfmodel.errors import AxisNameError, ModelError, PerfModelError, told
from perfmodel.models.config import DecoderConfig, preset_names, read_config
from perfmodel.models.precision import read_precision

if TYPE_CHECKING:
    from perfmodel.trace.program import Program

__all__ = ["DecoderConfig", "load_program", "preset_names", "read_config"]

LONGEST = 8192
"""Default sequence length where a model allows more."""

STABLEHLO = (".mlir", ".mlirbc", ".stablehlo", ".vhlo", ".bin", ".jax_export")
PYTHON = ".py"

AUTO = "auto"
"""Stands for the axis names that are proposed for a program."""


def load_program(
    model: str,
    *,
    seq_len: int | None = None,
    recompute: str = "full",
    capacity_factor: float | None = None,
    precision: str | None = None,
    assign: Sequence[str] = (),
    mesh_axes: Sequence[str] = (),
) -> Program:
    """The training step of a preset, a Hugging Face config.json, `package.module:function`, or a StableHLO file.

    A function is called with `recompute`, and with `seq_len`, `capacity_factor` and `precision` where they are given,
    if it takes them; a file is what it is. `capacity_factor` bounds the rows of each expert, as `train_program` has it;
    `precision` is a text such as `fp8,moments=int8`, as `read_precision` reads it. `assign`
    gives axis names to dims of arguments, each text `PATTERN=NAME`, or `auto` for those that `propose` finds.
    `mesh_axes` tell what axes of the program's own mesh stand for, each text `AXIS=AXES`, as in `data=dp,fsdp`.

    Raises ModelError, TraceError for a StableHLO file that cannot be read, AxisNameError for a pattern that matches
    nothing and for a name that neither layouts nor the program know.
    """
    asked = {"seq_len": seq_len, "capacity_factor": capacity_factor, "precision": precision}
    program = _found(model, recompute, asked)
    if mesh_axes:
        from perfmodel.trace import read_mesh_axes  # JAX, which reading a config does not need

        mesh = {**program.hints.mesh, **read_mesh_axes(mesh_axes)}
        program = replace(program, hints=replace(program.hints, mesh=mesh))
    return _assigned(program, assign) if assign else program


def _assigned(program: Program, assign: Sequence[str]) -> Program:
    from perfmodel.propose import propose
    from perfmodel.trace import named, read_names, trace  # JAX, as above

    given = read_names(text for text in assign if text != AUTO)
    _check_names(program, given)
    proposed = propose(trace(program)) if AUTO in assign else {}
    return named(program, {**proposed, **given})


def _check_names(program: Program, given: Mapping[str, str]) -> None:
    """Refuse axis names that neither layouts know nor the program: they would change nothing."""
    from perfmodel.layout import axis_names
    from perfmodel.trace.leaves import leaves_of  # JAX, as above

    leaves = (leaf for argument in program.arguments for leaf in leaves_of(argument))
    known = tuple(dict.fromkeys((*axis_names(), *(name for leaf in leaves for name in leaf.axes if name))))
    for pattern, name in given.items():
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "choose one"
            raise AxisNameError(
                f"axis names: got {name!r} for {pattern!r}, expected one of {', '.join(known)}: {remedy}"
            )


def _found(model: str, recompute: str, asked: Mapping[str, Any]) -> Program:
    seq_len, capacity_factor = asked["seq_len"], asked["capacity_factor"]
    _check_options(seq_len, recompute)
    _check_path(model)
    if model.endswith(STABLEHLO) or (os.path.isfile(model) and not model.endswith(".json")):
        return _from_file(model, asked)
    if ":" in model and not os.path.exists(model):
        return _from_function(model, {**asked, "recompute": recompute})
    config = read_config(model)
    length = seq_len or min(config.positions, LONGEST)
    if length > config.positions and not config.rotary:
        raise ModelError(
            f"{config.name}: got sequence length {length}, expected at most {config.positions}, the positions it "
            f"learns: give a shorter one"
        )
    _check_capacity(config, capacity_factor)
    precision = read_precision(asked["precision"] or "")
    from perfmodel.models.training import train_program  # JAX, as above

    return train_program(
        config, seq_len=length, recompute=recompute, capacity_factor=capacity_factor, precision=precision
    )


def _check_options(seq_len: int | None, recompute: str) -> None:
    from perfmodel.layout import RECOMPUTE  # NumPy, which naming the presets does not need

    if seq_len is not None and (not isinstance(seq_len, int) or isinstance(seq_len, bool) or seq_len < 1):
        raise ModelError(f"sequence length: got {seq_len!r}, expected a whole number above 0: give one, or none")
    if recompute not in RECOMPUTE:
        raise ModelError(f"recompute: got {recompute!r}, expected one of {', '.join(RECOMPUTE)}: choose one")


def _check_capacity(config: DecoderConfig, factor: float | None) -> None:
    """Refuse more rows for each expert than there are tokens: a token goes to an expert at most once."""
    if config.experts is None or not isinstance(factor, int | float):
        return
    count, active = config.experts.count, config.experts.active
    if count / active < factor < math.inf:
        largest = math.floor(100 * count / active) / 100  # as many digits as people write, and no more than allowed
        raise ModelError(
            f"capacity factor: got {factor:g} for {config.name}, expected at most {largest:g}, with which each of "
            f"{count} experts has room for every token, that goes to {active} of them: give less, or leave it out"
        )


def _check_path(model: str) -> None:
    """Refuse the path of a Python file, which would be taken for a lowered step."""
    path, _, attribute = model.partition(":")
    if path.endswith(PYTHON):
        raise ModelError(
            f"model {model!r}: got {path!r}, expected the dotted name of a module and a function in it: write "
            f"{Path(path).stem}:{attribute or 'function'}, in the folder of the file"
        )


ASKED = {"seq_len": "sequence length", "capacity_factor": "capacity factor", "precision": "precision"}
"""Options that a user gives only to have them heeded."""


def _from_file(model: str, options: Mapping[str, Any]) -> Program:
    from perfmodel.trace import read_program  # JAX, as above

    for key, value in options.items():
        if value is not None:
            raise ModelError(f"model {model}: got {ASKED[key]} {value}, expected none: a lowered step is what it is")
    return read_program(model)


def _from_function(model: str, options: Mapping[str, Any]) -> Program:
    from perfmodel.trace.program import Program  # JAX, as above

    module_name, _, attribute = model.partition(":")
    module = _imported(model, module_name)
    if not hasattr(module, attribute):
        raise ModelError(f"model {model!r}: got no {attribute!r} in {module_name}, expected a function: check the name")
    function = getattr(module, attribute)
    with _users_code(model, f"from {attribute}, expected a Program"):
        given = _taken(model, function, options)
        program = function(**given) if callable(function) else function
    if not isinstance(program, Program):
        got = type(program).__name__
        raise ModelError(f"model {model!r}: got something of type {got}, expected a perfmodel.Program: return one")
    return program


def _imported(model: str, name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that a user's own module is found
    if not all(part.isidentifier() for part in name.split(".")):
        raise ModelError(f"model {model!r}: got {name!r}, expected the dotted name of a module: check it")
    with _users_code(model, f"on importing {name}, expected a module", name):
        return importlib.import_module(name)


@contextmanager
def _users_code(model: str, place: str, module: str = "") -> Iterator[None]:
    """Turns whatever a user's code raises into a ModelError; where `module` itself is absent, it says so."""
    try:
        yield
    except PerfModelError:
        raise
    except SystemExit as error:
        raise ModelError(f"model {model!r}: got an exit ({error}) {place}: end nothing there") from error
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        advice = "check the name, and the folder you are in" if absent else "mend it"
        raise ModelError(f"model {model!r}: got {told(error)} {place}: {advice}") from error


def _taken(model: str, function: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a function takes; one that was asked for and that it does not take is an error."""
    parameters = inspect.signature(function).parameters if callable(function) else {}
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {key: value for key, value in options.items() if value is not None}
    for key in ASKED:
        if key in given and not every and key not in parameters:
            raise ModelError(f"model {model!r}: got {ASKED[key]} {given[key]}, expected none: it takes no {key}")
    return {key: value for key, value in given.items() if every or key in parameters}
