"""What follows from the fields of a config file, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel.errors import ModelError
from perfmodel.models.architecture import Experts, Latent
from perfmodel.models.families import Family

SPANS = {"full_attention": False, "sliding_attention": True}
"""Kinds of layers, and whether they see a window only."""

RECORDS = {"experts": Experts, "latent": Latent}


def derived(values: dict[str, Any], family: Family, where: str) -> dict[str, Any]:
    """`values` with what follows from others (one key/value head per head, an MLP four times as wide, embed / heads),
    by attributes and records of a DecoderConfig. Raises ModelError where they contradict each other.
    """
    keys = {field: key for field, (key, _) in family.fields.items()}
    embed, heads = values["embed"], values["heads"]
    kv_heads, head_dim = values.get("kv_heads") or heads, values.get("head_dim")
    if "latent.plain" in values:
        head_dim = values["latent.plain"] + values["latent.rotary"]
        _at_most(("num_attention_heads", heads), ("num_key_value_heads", kv_heads), where)
    if head_dim is None:
        head_dim = _quotient((keys["embed"], embed), (keys["heads"], heads), where)
    if kv_heads != heads:
        _quotient((keys["heads"], heads), (keys["kv_heads"], kv_heads), where)
    if "experts.count" in values:
        _check_experts(values, keys, where)
    derived = {**values, "kv_heads": kv_heads, "head_dim": head_dim, "mlp": values["mlp"] or 4 * embed}
    return _records(_patterned(derived, keys, where))


def _check_experts(values: Mapping[str, Any], keys: Mapping[str, str], where: str) -> None:
    """Whether a token finds as many experts as it is to visit, and a layer is left that has any."""

    def told(field: str) -> tuple[str, int]:
        return keys.get(field, field), values[field]

    _at_most(told("experts.active"), told("experts.count"), where)
    if values["experts.groups"] > 1:
        size = _quotient(told("experts.count"), told("experts.groups"), where)
        _at_most(told("experts.open_groups"), told("experts.groups"), where)
        _at_most((keys["experts.groups"], 2), ("experts in a group", size), where)  # a group's score is that of two
        _at_most(told("experts.active"), ("experts in open groups", size * values["experts.open_groups"]), where)
    if "dense_layers" in values:
        _at_most(told("dense_layers"), ("num_hidden_layers - 1", values["layers"] - 1), where)


def _patterned(values: dict[str, Any], keys: Mapping[str, str], where: str) -> dict[str, Any]:
    """`values` with the pattern in which windows repeat, in place of one type per layer."""
    if "layer_types" not in values:
        return values
    types, layers = values.pop("layer_types"), values["layers"]
    if len(types) != layers:
        raise ModelError(
            f"{where}: {keys['layer_types']}: got {len(types)} entries, expected one for each of {keys['layers']} = "
            f"{layers}: correct one of them"
        )
    window = values.pop("window")
    spans = tuple(window if SPANS[kind] else None for kind in types)
    period = next(p for p in range(1, layers + 1) if layers % p == 0 and spans == spans[:p] * (layers // p))
    return {**values, "windows": spans[:period]}


def _records(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the attributes of each record gathered in it."""
    found = {key: value for key, value in values.items() if "." not in key}
    for name, record in RECORDS.items():
        parts = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
        if parts:
            found[name] = record(**parts)
    return found


def _at_most(what: tuple[str, int], limit: tuple[str, int], where: str) -> None:
    (name, value), (by_what, by) = what, limit
    if value > by:
        raise ModelError(f"{where}: {name}: got {value}, expected at most {by_what} = {by}: correct one of them")


def _quotient(dividend: tuple[str, int], divisor: tuple[str, int], where: str) -> int:
    (what, value), (by_what, by) = dividend, divisor
    if value % by:
        raise ModelError(f"{where}: {what}: got {value}, expected a multiple of {by_what} = {by}: correct one of them")
    return value // by
