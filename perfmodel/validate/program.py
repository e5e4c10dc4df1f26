"""From the shape columns of a row to the reference model that it trained."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from perfmodel.models import DecoderConfig, preset_names, read_config
from perfmodel.models.architecture import Experts
from perfmodel.validate.rows import Row, RowError

GATED: dict[str, Any] = {"norm": "rms", "gated": True, "activation": "silu", "rotary": 1.0, "tied": False}
PLAIN: dict[str, Any] = {"norm": "layer", "gated": False, "activation": "gelu_new", "rotary": 0.0, "tied": True}
KINDS = {"gated": GATED, "plain": PLAIN}
"""The usual decoder with either kind of MLP: as Llama, and as GPT-3, have it."""


def config_of(row: Row) -> DecoderConfig:
    """The model of a row.

    Where the columns are those of a preset, or the row says which preset it is `like`, what they do not tell is as it
    has it; else it is as usual for the kind of MLP. Raises RowError for what is missing.
    """
    shape: dict[str, Any] = {
        "layers": row.need("n_layers"),
        "embed": row.need("d_model"),
        "heads": row.need("n_heads"),
        "vocab": row.need("vocab"),
    }
    shape["kv_heads"] = row.count("n_kv_heads") or shape["heads"]
    width, seq_len, experts = row.need("d_ff"), row.need("seq_len"), row.count("n_experts")
    _check(shape)
    config = _preset(row, shape, width, experts) or _usual(row, shape, width, experts)
    return replace(config, name=row.text("model_name") or "decoder", positions=max(config.positions, seq_len), **shape)


def _check(shape: dict[str, Any]) -> None:
    if shape["heads"] % shape["kv_heads"]:
        raise RowError(f"{shape['heads']} heads cannot share {shape['kv_heads']} key/value heads evenly")


def _preset(row: Row, shape: dict[str, Any], width: int, experts: int | None) -> DecoderConfig | None:
    """The preset that a row is like: by name, or since it has the same widths."""
    if like := row.text("like"):
        if like not in preset_names():
            raise RowError(f"it is like {like!r}, which is no preset")
        return _routed(_config(like), experts, row.count("top_k"), width)
    widths = (shape["embed"], shape["heads"], shape["kv_heads"], width, experts, row.count("top_k"))
    kinds = (row.text("mlp"),) if row.text("mlp") else tuple(KINDS)
    found = (name for name in preset_names() if _widths(name) == widths and _kind(name) in kinds)
    return next(map(_config, found), None)


def _routed(config: DecoderConfig, count: int | None, active: int | None, width: int) -> DecoderConfig:
    if config.experts is None or count is None or active is None:
        return config
    return replace(config, experts=replace(config.experts, count=count, active=active, width=width))


@cache
def _config(name: str) -> DecoderConfig:
    return read_config(name)


@cache
def _widths(name: str) -> tuple[int | None, ...]:
    """What tells a preset from others, as the columns have it."""
    config = _config(name)
    routed = config.experts
    inner = routed.width if routed else config.mlp
    chosen = (routed.count, routed.active) if routed else (None, None)
    return (config.embed, config.heads, config.kv_heads, inner, *chosen)


def _kind(name: str) -> str:
    return "gated" if _config(name).gated else "plain"


def _usual(row: Row, shape: dict[str, Any], width: int, experts: int | None) -> DecoderConfig:
    kind = row.text("mlp")
    if kind not in KINDS:
        raise RowError(f"mlp is {kind!r}: plain or gated is not known" if kind else "plain or gated MLP is not stated")
    head_dim = row.count("head_dim")
    if head_dim is None and shape["embed"] % shape["heads"]:
        raise RowError(f"{shape['heads']} heads do not divide d_model {shape['embed']}, and no head_dim")
    usual, biased = KINDS[kind], kind == "plain" and experts is None
    return DecoderConfig(
        name="decoder",
        **shape,
        head_dim=head_dim or shape["embed"] // shape["heads"],
        mlp=width,
        positions=1,
        **usual,
        qkv_bias=biased,
        out_bias=biased,
        mlp_bias=biased,
        qk_norm=False,
        parallel_residual=False,
        experts=None if experts is None else _experts(row, experts, width),
    )


def _experts(row: Row, count: int, width: int) -> Experts:
    """Experts as Mixtral has them: softmax over those chosen, no shared ones."""
    active = row.need("top_k")
    if active > count:
        raise RowError(f"top_k {active} of {count} experts")
    usual = _config("mixtral-8x7b").experts
    assert usual is not None
    return replace(usual, count=count, active=active, width=width)
