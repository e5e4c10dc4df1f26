"""Reading a Hugging Face `config.json`: every field is used, known not to matter, or an error by its name."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
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
        "_attn_implementation_autoset",
        "_name_or_path",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "bos_token_id",
        "classifier_dropout",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "gradient_checkpointing",
        "hidden_dropout",
        "hidden_dropout_prob",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "max_sequence_length",
        "model_type",
        "n_ctx",
        "n_special",
        "output_past",
        "pad_token_id",
        "predict_special_tokens",
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
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

REQUIRED, STATED = object(), object()
Source = tuple[str, Any]
"""A field of the file, and what its absence means: REQUIRED, an error; STATED, an error too, though null may stand
there; None, derived from other fields, as null is; any other default."""

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
# To Hugging Face, no count of key/value heads is 8 heads of a Mistral and 32 of a Qwen; to us it is an error.
STATES_KV: Mapping[str, Source] = {**LLAMA, "kv_heads": ("num_key_value_heads", STATED)}
ATTENTION_BIAS: Mapping[str, Source] = dict.fromkeys(("qkv_bias", "out_bias"), ("attention_bias", False))
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
    **dict.fromkeys(("qkv_bias", "out_bias"), ("attention_bias", True)),
    "parallel_residual": ("use_parallel_residual", True),
    "rotary": ("rotary_pct", REQUIRED),
}

GATED = {"norm": "rms", "gated": True, "rotary": 1.0, "qkv_bias": False, "out_bias": False, "mlp_bias": False}
BIASED = {"norm": "layer", "gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True}
PLAIN = {"qk_norm": False, "parallel_residual": False}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type: where its fields come from, what is fixed, which extra fields must have one of some values (every
    entry of a list must), which of those must be stated, and which change no cost.
    """

    fields: Mapping[str, Source]
    fixed: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    stated: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()


FULL_ATTENTION = {"use_sliding_window": (False,), "layer_types": (None, "full_attention")}
WINDOW = frozenset({"sliding_window", "max_window_layers"})

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        fields={**LLAMA, **ATTENTION_BIAS, "mlp_bias": ("mlp_bias", False)},
        fixed={**PLAIN, **GATED},
        only={"architectures": (None, "LlamaForCausalLM")},
    ),
    "mistral": Family(
        fields=STATES_KV,
        fixed={**PLAIN, **GATED},
        only={"architectures": (None, "MistralForCausalLM"), "sliding_window": (None,)},
        stated=frozenset({"sliding_window"}),
    ),
    "qwen2": Family(
        fields=STATES_KV,
        fixed={**PLAIN, **GATED, "qkv_bias": True},
        only={"architectures": (None, "Qwen2ForCausalLM"), **FULL_ATTENTION},
        ignored=WINDOW | {"use_mrope"},
    ),
    "qwen3": Family(
        fields={**STATES_KV, **ATTENTION_BIAS, "head_dim": ("head_dim", REQUIRED)},
        fixed={**PLAIN, **GATED, "qk_norm": True},
        only={"architectures": (None, "Qwen3ForCausalLM"), **FULL_ATTENTION},
        ignored=WINDOW,
    ),
    "gpt2": Family(
        fields=GPT2,
        fixed={**PLAIN, **BIASED, "rotary": 0.0},
        only={"architectures": (None, "GPT2LMHeadModel"), "add_cross_attention": (False,)},
    ),
    "gpt_neox": Family(fields=NEOX, fixed={**PLAIN, **BIASED}, only={"architectures": (None, "GPTNeoXForCausalLM")}),
}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


WHOLE = ("vocab", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp", "positions")
FLAGS = ("qkv_bias", "out_bias", "mlp_bias", "parallel_residual", "tied")

EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(WHOLE, ("a whole number above 0", _is_whole)),
    **dict.fromkeys(FLAGS, ("true or false", lambda value: isinstance(value, bool))),
    "rotary": ("a number above 0, at most 1", _is_share),
    "activation": (f"one of {', '.join(ACTIVATIONS)}", lambda value: value in ACTIVATIONS),
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
    return DecoderConfig(name=name or where, **_derived(values, family, where))


def _refuse_unknown(data: Mapping[str, Any], family: Family, kind: str, where: str) -> None:
    used = {key for key, _ in family.fields.values()}
    for key, value in data.items():
        if key in family.only:
            each = value if isinstance(value, list) and value else [value]
            if not all(entry in family.only[key] for entry in each):
                expected = " or ".join(map(json.dumps, family.only[key]))
                raise ModelError(f"{where}: {key}: got {json.dumps(value)}, expected {expected}: not supported yet")
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


def _derived(values: dict[str, Any], family: Family, where: str) -> dict[str, Any]:
    """`values` with what follows from others: one key/value head per head, an MLP four times as wide, embed / heads."""
    keys = {field: key for field, (key, _) in family.fields.items()}
    embed, heads = values["embed"], values["heads"]
    kv_heads, head_dim = values.get("kv_heads") or heads, values.get("head_dim")
    if head_dim is None:
        head_dim = _quotient((keys["embed"], embed), (keys["heads"], heads), where)
    if kv_heads != heads:
        _quotient((keys["heads"], heads), (keys["kv_heads"], kv_heads), where)
    return {**values, "kv_heads": kv_heads, "head_dim": head_dim, "mlp": values["mlp"] or 4 * embed}


def _quotient(dividend: tuple[str, int], divisor: tuple[str, int], where: str) -> int:
    (what, value), (by_what, by) = dividend, divisor
    if value % by:
        raise ModelError(f"{where}: {what}: got {value}, expected a multiple of {by_what} = {by}: correct one of them")
    return value // by
