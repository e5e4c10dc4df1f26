"""Reading a Hugging Face `config.json`: every field is used, known not to matter, or an error by its name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from perfmodel.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder-only transformer.

    norm: "rms" or "layer" (with bias); activation: as Hugging Face spells it; rotary: share of head_dim that is
    rotated, 0 with learned positions; parallel_residual: attention and MLP both read the block's input.
    """

    name: str
    vocab: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    positions: int
    norm: str
    gated: bool
    activation: str
    rotary: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    parallel_residual: bool
    tied: bool

    @property
    def q_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads


ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")

# Fields that change neither shapes nor cost.
COMMON = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "auto_map",
        "bos_token_id",
        "classifier_dropout",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "model_type",
        "n_ctx",
        "pad_token_id",
        "pretraining_tp",
        "reorder_and_upcast_attn",
        "resid_pdrop",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

REQUIRED = object()
Source = tuple[str, Any]
"""A field of the file and what its absence means (REQUIRED: an error)."""

LLAMA: Mapping[str, Source] = {
    "vocab": ("vocab_size", REQUIRED),
    "embed": ("hidden_size", REQUIRED),
    "layers": ("num_hidden_layers", REQUIRED),
    "heads": ("num_attention_heads", REQUIRED),
    "kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "mlp": ("intermediate_size", REQUIRED),
    "positions": ("max_position_embeddings", REQUIRED),
    "activation": ("hidden_act", REQUIRED),
    "tied": ("tie_word_embeddings", False),
}
QWEN = {**LLAMA, "tied": ("tie_word_embeddings", False)}
GPT2: Mapping[str, Source] = {
    "vocab": ("vocab_size", REQUIRED),
    "embed": ("n_embd", REQUIRED),
    "layers": ("n_layer", REQUIRED),
    "heads": ("n_head", REQUIRED),
    "mlp": ("n_inner", None),
    "positions": ("n_positions", REQUIRED),
    "activation": ("activation_function", REQUIRED),
    "tied": ("tie_word_embeddings", True),
}
NEOX: Mapping[str, Source] = {
    **{key: source for key, source in LLAMA.items() if key not in ("kv_heads", "head_dim")},
    "parallel_residual": ("use_parallel_residual", True),
    "rotary": ("rotary_pct", REQUIRED),
    "qkv_bias": ("attention_bias", True),
}

GATED = {"norm": "rms", "gated": True, "rotary": 1.0, "qkv_bias": False, "out_bias": False, "mlp_bias": False}
BIASED = {"norm": "layer", "gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True}
PLAIN = {"qk_norm": False, "parallel_residual": False}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type: where its fields come from, what is fixed, and which extra fields must have one value."""

    fields: Mapping[str, Source]
    fixed: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    ignored: frozenset[str] = frozenset()


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        fields={**LLAMA, "qkv_bias": ("attention_bias", False), "mlp_bias": ("mlp_bias", False)},
        fixed={**PLAIN, **GATED},
        only={},
    ),
    "mistral": Family(fields=LLAMA, fixed={**PLAIN, **GATED}, only={"sliding_window": (None,)}),
    "qwen2": Family(
        fields=QWEN,
        fixed={**PLAIN, **GATED, "qkv_bias": True},
        only={"use_sliding_window": (False,)},
        ignored=frozenset({"sliding_window", "max_window_layers", "layer_types", "use_mrope"}),
    ),
    "qwen3": Family(
        fields={**QWEN, "head_dim": ("head_dim", REQUIRED), "qkv_bias": ("attention_bias", False)},
        fixed={**PLAIN, **GATED, "qk_norm": True},
        only={"use_sliding_window": (False,)},
        ignored=frozenset({"sliding_window", "max_window_layers", "layer_types"}),
    ),
    "gpt2": Family(fields=GPT2, fixed={**PLAIN, **BIASED, "rotary": 0.0}, only={"add_cross_attention": (False,)}),
    "gpt_neox": Family(fields=NEOX, fixed={**PLAIN, **BIASED}, only={}),
}


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
    path = Path(text) / "config.json" if Path(text).is_dir() else Path(text)
    if path.suffix != ".json" and not path.exists():
        close = difflib.get_close_matches(text, preset_names(), n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ModelError(
            f"model: got {text!r}, expected one of {', '.join(preset_names())}, the path of a Hugging Face "
            f"config.json, or package.module:function: {hint}see perfmodel trace --help"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"model: got {path}, which cannot be read ({error.strerror}): check the path") from None
    name = path.parent.name if path.name == "config.json" and path.parent.name else path.stem
    return parse_config(_json(str(path), content), str(path), name=name)


def _json(where: str, content: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{where}: got {error}, expected JSON: mend the file") from None
    if not isinstance(data, dict):
        raise ModelError(f"{where}: got a JSON {type(data).__name__}, expected an object: give a config.json")
    return data


def parse_config(data: Mapping[str, Any], where: str, *, name: str | None = None) -> DecoderConfig:
    """Turn the fields of a config file into a DecoderConfig."""
    kind = str(data.get("model_type"))
    if kind not in FAMILIES:
        raise ModelError(
            f"{where}: model_type: got {kind!r}, expected one of {', '.join(FAMILIES)}: other architectures can be "
            f"given as package.module:function"
        )
    family = FAMILIES[kind]
    _refuse_unknown(data, family, kind, where)
    values = dict(family.fixed)
    for field, (key, default) in family.fields.items():
        if key not in data and default is REQUIRED:
            raise ModelError(f"{where}: {key}: got nothing, expected a value for a {kind} model: add it")
        values[field] = data.get(key, default)
    return _checked(values, family, kind, where, name or where)


def _refuse_unknown(data: Mapping[str, Any], family: Family, kind: str, where: str) -> None:
    used = {key for key, _ in family.fields.values()}
    for key, value in data.items():
        if key in family.only:
            if value not in family.only[key]:
                expected = " or ".join(map(json.dumps, family.only[key]))
                raise ModelError(f"{where}: {key}: got {json.dumps(value)}, expected {expected}: not supported yet")
        elif key not in used | COMMON | family.ignored:
            raise ModelError(
                f"{where}: {key}: got a field that {kind} models are not known to have, expected one of "
                f"{', '.join(sorted(used | set(family.only)))}: remove it if it changes no cost"
            )


WHOLE = ("vocab", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp", "positions")


def _checked(values: dict[str, Any], family: Family, kind: str, where: str, name: str) -> DecoderConfig:
    keys = {field: key for field, (key, _) in family.fields.items()}
    if values.get("kv_heads") is None:
        values["kv_heads"] = values["heads"]
    if values.get("mlp") is None:
        values["mlp"] = 4 * values["embed"]
    if values.get("head_dim") is None:
        _must_divide(values["embed"], values["heads"], "hidden size", keys["heads"], where)
        values["head_dim"] = values["embed"] // values["heads"]
    if kind == "llama":
        values["out_bias"] = values["qkv_bias"]
    for field in WHOLE:
        if not isinstance(values[field], int) or isinstance(values[field], bool) or values[field] < 1:
            raise ModelError(
                f"{where}: {keys.get(field, field)}: got {values[field]!r}, expected a whole number above 0"
            )
    _must_divide(values["heads"], values["kv_heads"], keys["heads"], keys.get("kv_heads", "key/value heads"), where)
    if values["activation"] not in ACTIVATIONS:
        raise ModelError(
            f"{where}: {keys['activation']}: got {values['activation']!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    return DecoderConfig(name=name, **values)


def _must_divide(value: int, by: int, what: str, divisor: str, where: str) -> None:
    if not isinstance(value, int) or not isinstance(by, int) or by < 1 or value % by:
        raise ModelError(f"{where}: {what}: got {value!r}, expected a multiple of {divisor} = {by!r}")
