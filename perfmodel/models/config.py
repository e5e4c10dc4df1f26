"""Reading a Hugging Face `config.json`: every field is used, known not to matter, or an error by its name."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from perfmodel.errors import ModelError
from perfmodel.models.architecture import DecoderConfig
from perfmodel.models.derived import SPANS, derived
from perfmodel.models.families import ACTIVATIONS, COMMON, FAMILIES, REQUIRED, STATED, Family

__all__ = ["DecoderConfig", "parse_config", "preset_names", "read_config"]


def _is_whole(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


def _is_pattern(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v in SPANS for v in value)


WHOLE = (
    *("vocab", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp", "positions", "window"),
    *("experts.count", "experts.active", "experts.width", "experts.groups", "experts.open_groups"),
    *("latent.query_rank", "latent.key_value_rank", "latent.plain", "latent.rotary", "latent.value"),
)
FLAGS = ("qkv_bias", "out_bias", "mlp_bias", "parallel_residual", "tied", "experts.normalised")

EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(WHOLE, ("a whole number above 0", _is_whole)),
    **dict.fromkeys(("dense_layers", "experts.shared"), ("a whole number", _is_count)),
    **dict.fromkeys(FLAGS, ("true or false", lambda value: isinstance(value, bool))),
    **dict.fromkeys(("experts.balance", "experts.scale"), ("a number, at least 0", _is_number)),
    "rotary": ("a number above 0, at most 1", _is_share),
    "activation": (f"one of {', '.join(ACTIVATIONS)}", lambda value: value in ACTIVATIONS),
    "layer_types": (f"a list of {' and '.join(SPANS)}", _is_pattern),
}
"""What may stand in the field behind each attribute, in words and as a test."""


def preset_names() -> tuple[str, ...]:
    """Names of the models that ship with the package."""
    files = (resources.files(__package__) / "presets").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))


def read_config(model: str | Path) -> DecoderConfig:
    """The configuration of a preset, a `config.json` or a folder that holds one.

    Raises ModelError for what is unknown, unreadable, missing or not supported, by name.
    """
    text = str(model)
    if text in preset_names():
        return parse_config(_json(text, (resources.files(__package__) / "presets" / f"{text}.json").read_bytes()), text)
    # os.path, since Path raises where a folder on the way may not be searched or the name is too long
    path = Path(text, "config.json") if os.path.isdir(text) else Path(text)
    if path.suffix != ".json" and not os.path.exists(text):
        close = difflib.get_close_matches(text.strip("/").split("/")[-1].lower(), preset_names(), n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ModelError(
            f"model: got {text!r}, expected one of {', '.join(preset_names())}, the path of a Hugging Face "
            f"config.json, or package.module:function: {hint}see perfmodel trace --help"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"model: got {path}, which cannot be read ({error.strerror}), expected a config.json: check the path"
        ) from None
    name = path.absolute().parent.name if path.name == "config.json" else path.stem
    return parse_config(_json(str(path), content), str(path), name=name)


def _json(where: str, content: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: got {error}, expected JSON: mend the file") from None
    if not isinstance(data, dict):
        raise ModelError(f"{where}: got {json.dumps(data)[:40]}, expected a JSON object: give a config.json")
    return data


def parse_config(data: Mapping[str, Any], where: str, *, name: str | None = None) -> DecoderConfig:
    """Turn the fields of a config file into a DecoderConfig.

    Raises ModelError that names the field.
    """
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        got = json.dumps(kind) if "model_type" in data else "nothing"
        raise ModelError(
            f"{where}: model_type: got {got}, expected one of {', '.join(FAMILIES)}: other architectures can be "
            f"given as package.module:function"
        )
    family = FAMILIES[kind]
    _refuse_unknown(data, family, kind, where)
    values = {**family.fixed, **_read(data, family, kind, where)}
    return DecoderConfig(name=name or where, **derived(values, family, where))


def _refuse_unknown(data: Mapping[str, Any], family: Family, kind: str, where: str) -> None:
    used = {key for key, _ in family.fields.values()}
    for key, value in data.items():
        if key in family.only:
            each = value if isinstance(value, list) and value else [value]
            if not all(entry in family.only[key] for entry in each):
                expected = " or ".join(map(json.dumps, family.only[key]))
                raise ModelError(f"{where}: {key}: got {json.dumps(value)}, expected {expected}: not supported yet")
        elif key in family.repeats:
            if value != data.get(family.repeats[key]):
                raise ModelError(
                    f"{where}: {key}: got {json.dumps(value)}, expected the same as {family.repeats[key]} = "
                    f"{json.dumps(data.get(family.repeats[key]))}: correct one of them"
                )
        elif key not in used | COMMON | family.ignored:
            raise ModelError(
                f"{where}: {key}: got a field that {kind} models are not known to have, expected one of "
                f"{', '.join(sorted(used | set(family.only)))}: remove it if it changes no cost"
            )
    for key in family.stated - set(data):
        expected = " or ".join(map(json.dumps, family.only[key]))
        raise ModelError(f"{where}: {key}: got nothing, expected {expected} for a {kind} model: add it")


def _read(data: Mapping[str, Any], family: Family, kind: str, where: str) -> dict[str, Any]:
    """The attributes that the file tells, None where they follow from others."""
    values = {}
    for field, (key, default) in family.fields.items():
        expected, holds = EXPECTED[field]
        value = data.get(key, default)
        if value in (REQUIRED, STATED):
            raise ModelError(f"{where}: {key}: got nothing, expected {expected} for a {kind} model: add it")
        if not holds(value) and not (value is None and default in (None, STATED)):
            raise ModelError(f"{where}: {key}: got {json.dumps(value)}, expected {expected}: correct it")
        values[field] = value
    return values
