"""Reference models, and finding the program that a user names."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from perfmodel.errors import ModelError, PerfModelError, told
from perfmodel.models.config import DecoderConfig, preset_names, read_config

if TYPE_CHECKING:
    from perfmodel.trace.program import Program

__all__ = ["DecoderConfig", "load_program", "preset_names", "read_config"]

LONGEST = 8192
"""Default sequence length where a model allows more."""

STABLEHLO = (".mlir", ".mlirbc", ".stablehlo", ".vhlo", ".bin", ".jax_export")


AUTO = "auto"
"""Stands for the axis names that are proposed for a program."""


def load_program(
    model: str,
    *,
    seq_len: int | None = None,
    recompute: str = "full",
    capacity_factor: float | None = None,
    assign: Sequence[str] = (),
    mesh_axes: Sequence[str] = (),
) -> Program:
    """The training step of a preset, a Hugging Face config.json, `package.module:function`, or a StableHLO file.

    A function is called with `recompute`, and with `seq_len` and `capacity_factor` where they are given, if it takes
    them; a file is what it is. `capacity_factor` bounds the rows of each expert, as `train_program` has it. `assign`
    gives axis names to dims of arguments, each text `PATTERN=NAME`, or `auto` for those that `propose` finds.
    `mesh_axes` tell what axes of the program's own mesh stand for, each text `AXIS=AXES`, as in `data=dp,fsdp`.

    Raises ModelError, TraceError for a StableHLO file that cannot be read, AxisNameError for a pattern that matches
    nothing.
    """
    program = _found(model, seq_len, recompute, capacity_factor)
    if mesh_axes:
        from perfmodel.trace import read_mesh_axes  # JAX, which reading a config does not need

        mesh = {**program.hints.mesh, **read_mesh_axes(mesh_axes)}
        program = replace(program, hints=replace(program.hints, mesh=mesh))
    return _assigned(program, assign) if assign else program


def _assigned(program: Program, assign: Sequence[str]) -> Program:
    from perfmodel.propose import propose
    from perfmodel.trace import named, read_names, trace  # JAX, as above

    proposed = propose(trace(program)) if AUTO in assign else {}
    return named(program, {**proposed, **read_names(text for text in assign if text != AUTO)})


def _found(model: str, seq_len: int | None, recompute: str, capacity_factor: float | None) -> Program:
    _check_options(seq_len, recompute)
    if model.endswith(STABLEHLO) or (os.path.isfile(model) and not model.endswith(".json")):
        return _from_file(model, {"seq_len": seq_len, "capacity_factor": capacity_factor})
    if ":" in model and not os.path.exists(model):
        options = {"seq_len": seq_len, "recompute": recompute, "capacity_factor": capacity_factor}
        return _from_function(model, options)
    config = read_config(model)
    length = seq_len or min(config.positions, LONGEST)
    if length > config.positions and not config.rotary:
        raise ModelError(
            f"{config.name}: got sequence length {length}, expected at most {config.positions}, the positions it "
            f"learns: give a shorter one"
        )
    from perfmodel.models.training import train_program  # JAX, as above

    return train_program(config, seq_len=length, recompute=recompute, capacity_factor=capacity_factor)


def _check_options(seq_len: int | None, recompute: str) -> None:
    from perfmodel.layout import RECOMPUTE  # NumPy, which naming the presets does not need

    if seq_len is not None and (not isinstance(seq_len, int) or isinstance(seq_len, bool) or seq_len < 1):
        raise ModelError(f"sequence length: got {seq_len!r}, expected a whole number above 0: give one, or none")
    if recompute not in RECOMPUTE:
        raise ModelError(f"recompute: got {recompute!r}, expected one of {', '.join(RECOMPUTE)}: choose one")


ASKED = {"seq_len": "sequence length", "capacity_factor": "capacity factor"}
"""Options that a user gives only to have them heeded."""


def _from_file(model: str, options: Mapping[str, Any]) -> Program:
    from perfmodel.trace import read_program  # JAX, as above

    for key, value in options.items():
        if value is not None:
            raise ModelError(f"model {model}: got {ASKED[key]} {value}, expected none: a lowered step has its sizes")
    return read_program(model)


def _from_function(model: str, options: Mapping[str, Any]) -> Program:
    from perfmodel.trace.program import Program  # JAX, as above

    module_name, _, attribute = model.partition(":")
    module = _imported(model, module_name)
    if not hasattr(module, attribute):
        raise ModelError(f"model {model!r}: got no {attribute!r} in {module_name}, expected a function: check the name")
    function = getattr(module, attribute)
    try:
        given = _taken(model, function, options)
        program = function(**given) if callable(function) else function
    except PerfModelError:
        raise
    except Exception as error:
        raise ModelError(f"model {model!r}: got {told(error)} from {attribute}, expected a Program: mend it") from error
    if not isinstance(program, Program):
        got = type(program).__name__
        raise ModelError(f"model {model!r}: got something of type {got}, expected a perfmodel.Program: return one")
    return program


def _imported(model: str, name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that a user's own module is found
    if not all(part.isidentifier() for part in name.split(".")):
        raise ModelError(f"model {model!r}: got {name!r}, expected the dotted name of a module: check it")
    try:
        return importlib.import_module(name)
    except PerfModelError:
        raise
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        advice = "check the name, and the folder you are in" if absent else "mend it"
        raise ModelError(
            f"model {model!r}: got {told(error)} on importing {name}, expected a module: {advice}"
        ) from error


def _taken(model: str, function: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a function takes; one that was asked for and that it does not take is an error."""
    parameters = inspect.signature(function).parameters if callable(function) else {}
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {key: value for key, value in options.items() if value is not None}
    for key in ASKED:
        if key in given and not every and key not in parameters:
            raise ModelError(f"model {model!r}: got {ASKED[key]} {given[key]}, expected none: it takes no {key}")
    return {key: value for key, value in given.items() if every or key in parameters}
