"""Reference models, and finding the program that a user names."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

from perfmodel.errors import ModelError
from perfmodel.models.config import DecoderConfig, preset_names, read_config

if TYPE_CHECKING:
    from perfmodel.trace.program import Program

__all__ = ["DecoderConfig", "load_program", "preset_names", "read_config"]

LONGEST = 8192
"""Default sequence length where a model allows more."""

STABLEHLO = (".mlir", ".mlirbc", ".stablehlo", ".vhlo", ".bin")


def load_program(model: str, *, seq_len: int | None = None, recompute: str = "full") -> Program:
    """The training step of a preset, a Hugging Face config.json, or `package.module:function`.

    A function is called with `seq_len` and `recompute` if it takes them. Raises ModelError.
    """
    if model.endswith(STABLEHLO):
        raise ModelError(
            f"model: got {model}, but StableHLO files are not in this release yet: give package.module:function"
        )
    if ":" in model and not os.path.exists(model):
        return _from_function(model, {"seq_len": seq_len, "recompute": recompute})
    config = read_config(model)
    length = seq_len or min(config.positions, LONGEST)
    if length > config.positions and not config.rotary:
        raise ModelError(
            f"{config.name}: got sequence length {length}, expected at most {config.positions}, the positions it learns"
        )
    from perfmodel.models.training import train_program  # JAX, which reading a config does not need

    return train_program(config, seq_len=length, recompute=recompute)


def _from_function(model: str, options: dict[str, Any]) -> Program:
    from perfmodel.trace.program import Program

    module_name, _, attribute = model.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that a user's own module is found
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ModelError(f"model {model!r}: got {error}, expected an importable module: check the name") from None
    except AttributeError:
        raise ModelError(
            f"model {model!r}: got no {attribute!r} in {module_name}, expected a function: check it"
        ) from None
    taken = inspect.signature(function).parameters if callable(function) else {}
    given = {key: value for key, value in options.items() if key in taken and value is not None}
    program = function(**given) if callable(function) else function
    if not isinstance(program, Program):
        raise ModelError(f"model {model!r}: got a {type(program).__name__}, expected a perfmodel.Program: return one")
    return program
