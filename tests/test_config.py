"""Reading config.json files: what Hugging Face publishes is accepted, what is wrong or unknown is named."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import pytest

import perfmodel
from perfmodel.errors import ModelError
from perfmodel.models import DecoderConfig, load_program, preset_names, read_config
from perfmodel.models.architecture import Experts, Latent
from perfmodel.models.config import parse_config

GONE = object()
"""Stands for a field that the file does not have."""


def changed(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**config, **changes}.items() if value is not GONE}


def refusal(call: Callable[[], Any]) -> str:
    """The message, one line, of the ModelError that `call` raises."""
    with pytest.raises(ModelError) as info:
        call()
    message = str(info.value)
    assert "\n" not in message
    return message


def parse_refusal(config: Mapping[str, Any], **changes: Any) -> str:
    message = refusal(lambda: parse_config(changed(config, **changes), "some/config.json"))
    assert message.startswith("some/config.json: ")
    return message.removeprefix("some/config.json: ")


# -- presets ------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "deepseek-v3": 671e9,
    "gpt-oss-120b": 116.83e9,
    "gpt-oss-20b": 20.91e9,
    "gpt-neox-20b": 20.55e9,
    "gpt2": 124.4e6,
    "gpt2-xl": 1.558e9,
    "gpt3-175b": 175e9,
    "llama2-13b": 13.02e9,
    "llama2-70b": 68.98e9,
    "llama2-7b": 6.74e9,
    "llama3-405b": 405.85e9,
    "llama3-70b": 70.55e9,
    "llama3-8b": 8.03e9,
    "llama3.1-70b": 70.55e9,
    "llama3.1-8b": 8.03e9,
    "llama3.2-1b": 1.236e9,
    "llama3.2-3b": 3.21e9,
    "mistral-7b": 7.25e9,
    "mistral-nemo-12b": 12.25e9,
    "mixtral-8x22b": 140.6e9,
    "mixtral-8x7b": 46.7e9,
    "qwen2.5-14b": 14.77e9,
    "qwen2.5-32b": 32.76e9,
    "qwen2.5-72b": 72.7e9,
    "qwen2.5-7b": 7.62e9,
    "qwen3-235b-a22b": 235e9,
    "qwen3-30b-a3b": 30.5e9,
    "qwen3-32b": 32.76e9,
    "qwen3-8b": 8.19e9,
}
"""Parameters as model cards and papers give them."""


def attention_by_hand(c: DecoderConfig) -> int:
    d, q, kv = c.embed, c.heads * c.head_dim, c.kv_heads * c.head_dim
    if c.latent is None:
        biases = c.qkv_bias * (q + 2 * kv) + c.out_bias * d + c.qk_norm * 2 * c.head_dim + c.sinks * c.heads
        return d * q + 2 * d * kv + q * d + biases
    m = c.latent
    queries = d * q if m.query_rank is None else m.query_rank * (d + 1 + q)
    keys_and_values = m.key_value_rank * (d + 1 + c.heads * (m.plain + m.value)) + d * m.rotary
    return queries + keys_and_values + c.heads * m.value * d


def parameters_by_hand(c: DecoderConfig) -> int:
    d, e, inner = c.embed, c.experts, 2 if c.gated else 1
    norm = d if c.norm == "rms" else 2 * d

    def mlp(width: int, bias: bool) -> int:
        return (inner + 1) * d * width + bias * (inner * width + d)

    dense = mlp(c.mlp, c.mlp_bias)
    routed = dense
    if e is not None:
        routed = e.count * mlp(e.width, e.bias) + d * e.count + (e.bias + e.selection_bias) * e.count
        routed += mlp(e.shared * e.width, c.mlp_bias) if e.shared else 0
    tables = c.vocab * d * (1 if c.tied else 2) + (0 if c.rotary else c.positions * d)
    layers = c.layers * (attention_by_hand(c) + 2 * norm) + c.dense_layers * dense
    return layers + (c.layers - c.dense_layers) * routed + norm + tables


def parameters_of(model: str) -> int:
    (tree,) = (argument.tree for argument in load_program(model).arguments if argument.role == "parameters")
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_every_preset_has_a_published_size() -> None:
    assert set(preset_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_parameters_that_its_config_implies_and_its_authors_published(name: str) -> None:
    parameters = parameters_of(name)
    assert parameters == parameters_by_hand(read_config(name))
    assert parameters == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_traced_at_the_length_it_was_made_for_up_to_8192(name: str) -> None:
    (tokens,) = (argument.tree for argument in load_program(name).arguments if argument.name == "tokens")
    assert tokens.shape[-1] == min(read_config(name).positions, 8192)


# -- files as they are published ----------------------------------------------------------------------------------

LLAMA31_8B = """{
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": 128001,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 131072,
  "mlp_bias": false,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3"
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0.dev0",
  "use_cache": true,
  "vocab_size": 128256
}"""

QWEN25_7B = """{
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151643,
  "hidden_act": "silu",
  "hidden_size": 3584,
  "initializer_range": 0.02,
  "intermediate_size": 18944,
  "max_position_embeddings": 131072,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 28,
  "num_hidden_layers": 28,
  "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 131072,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1",
  "use_cache": true,
  "use_mrope": false,
  "use_sliding_window": false,
  "vocab_size": 152064
}"""

QWEN3_8B = """{
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 12288,
  "max_position_embeddings": 40960,
  "max_window_layers": 36,
  "model_type": "qwen3",
  "num_attention_heads": 32,
  "num_hidden_layers": 36,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": null,
  "rope_theta": 1000000,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.51.0",
  "use_cache": true,
  "use_sliding_window": false,
  "vocab_size": 151936
}"""

MISTRAL_7B_V03 = """{
  "architectures": ["MistralForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 32768,
  "model_type": "mistral",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.42.0.dev0",
  "use_cache": true,
  "vocab_size": 32768
}"""

GPT2_XL = """{
  "activation_function": "gelu_new",
  "architectures": ["GPT2LMHeadModel"],
  "attn_pdrop": 0.1,
  "bos_token_id": 50256,
  "embd_pdrop": 0.1,
  "eos_token_id": 50256,
  "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05,
  "model_type": "gpt2",
  "n_ctx": 1024,
  "n_embd": 1600,
  "n_head": 25,
  "n_layer": 48,
  "n_positions": 1024,
  "n_special": 0,
  "output_past": true,
  "predict_special_tokens": true,
  "resid_pdrop": 0.1,
  "summary_activation": null,
  "summary_first_dropout": 0.1,
  "summary_proj_to_labels": true,
  "summary_type": "cls_index",
  "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
  "vocab_size": 50257
}"""

NEOX_20B = """{
  "architectures": ["GPTNeoXForCausalLM"],
  "attention_probs_dropout_prob": 0,
  "bos_token_id": 0,
  "eos_token_id": 0,
  "hidden_act": "gelu_fast",
  "hidden_dropout_prob": 0,
  "hidden_size": 6144,
  "initializer_range": 0.02,
  "intermediate_size": 24576,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 2048,
  "model_type": "gpt_neox",
  "num_attention_heads": 64,
  "num_hidden_layers": 44,
  "rotary_emb_base": 10000,
  "rotary_pct": 0.25,
  "tie_word_embeddings": false,
  "torch_dtype": "float16",
  "transformers_version": "4.19.0.dev0",
  "use_cache": true,
  "vocab_size": 50432
}"""

PYTHIA_28B = """{
  "architectures": ["GPTNeoXForCausalLM"],
  "bos_token_id": 0,
  "eos_token_id": 0,
  "hidden_act": "gelu",
  "hidden_size": 2560,
  "initializer_range": 0.02,
  "intermediate_size": 10240,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 2048,
  "model_type": "gpt_neox",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "rotary_emb_base": 10000,
  "rotary_pct": 0.25,
  "tie_word_embeddings": false,
  "torch_dtype": "float16",
  "transformers_version": "4.24.0",
  "use_cache": true,
  "use_parallel_residual": true,
  "vocab_size": 50304
}"""

FLAGS = ("gated", "qkv_bias", "out_bias", "mlp_bias", "qk_norm", "parallel_residual", "tied")
ALL_BIASED = {"qkv_bias", "out_bias", "mlp_bias"}

# vocab, embed, layers, heads, kv_heads, head_dim, mlp, positions; norm, activation, rotary; what holds
FILES: Mapping[str, tuple[str, tuple[int, ...], tuple[str, str, float], set[str]]] = {
    "llama3.1-8b": (
        LLAMA31_8B,
        (128256, 4096, 32, 32, 8, 128, 14336, 131072),
        ("rms", "silu", 1.0),
        {"gated"},
    ),
    "qwen2.5-7b": (
        QWEN25_7B,
        (152064, 3584, 28, 28, 4, 128, 18944, 131072),
        ("rms", "silu", 1.0),
        {"gated", "qkv_bias"},
    ),
    "qwen3-8b": (
        QWEN3_8B,
        (151936, 4096, 36, 32, 8, 128, 12288, 40960),
        ("rms", "silu", 1.0),
        {"gated", "qk_norm"},
    ),
    "mistral-7b": (
        MISTRAL_7B_V03,
        (32768, 4096, 32, 32, 8, 128, 14336, 32768),
        ("rms", "silu", 1.0),
        {"gated"},
    ),
    "gpt2-xl": (
        GPT2_XL,
        (50257, 1600, 48, 25, 25, 64, 6400, 1024),
        ("layer", "gelu_new", 0.0),
        ALL_BIASED | {"tied"},
    ),
    "gpt-neox-20b": (
        NEOX_20B,
        (50432, 6144, 44, 64, 64, 96, 24576, 2048),
        ("layer", "gelu_fast", 0.25),
        ALL_BIASED | {"parallel_residual"},
    ),
    "pythia-2.8b": (
        PYTHIA_28B,
        (50304, 2560, 32, 32, 32, 80, 10240, 2048),
        ("layer", "gelu", 0.25),
        ALL_BIASED | {"parallel_residual"},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_read_whole(name: str, tmp_path: Path) -> None:
    text, sizes, (norm, activation, rotary), holding = FILES[name]
    (tmp_path / f"{name}.json").write_text(text)
    c = read_config(tmp_path / f"{name}.json")
    assert c.name == name
    assert (c.vocab, c.embed, c.layers, c.heads, c.kv_heads, c.head_dim, c.mlp, c.positions) == sizes
    assert (c.norm, c.activation, c.rotary) == (norm, activation, rotary)
    assert {flag for flag in FLAGS if getattr(c, flag)} == holding
    assert c.q_per_kv * c.kv_heads == c.heads


# Fields of published files that presets leave out, since they change no cost.
EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "mixtral-8x7b": {
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.02,
        "transformers_version": "4.36.0.dev0",
        "use_cache": True,
    },
    "qwen3-30b-a3b": {
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "initializer_range": 0.02,
        "transformers_version": "4.51.0",
        "use_cache": True,
    },
    "deepseek-v3": {
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "transformers_version": "4.33.1",
        "use_cache": True,
    },
    "gpt-oss-20b": {
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "initializer_range": 0.02,
        "pad_token_id": 199999,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
    },
}
PLAIN_EXPERTS = Experts(
    count=8,
    active=2,
    width=14336,
    shared=0,
    scoring="softmax",
    normalised=True,
    scale=1.0,
    groups=1,
    open_groups=1,
    selection_bias=False,
    bias=False,
    balance=0.02,
)
DEEPSEEK_CHOICE: dict[str, Any] = {"scoring": "sigmoid", "selection_bias": True, "groups": 8, "open_groups": 4}
MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "mixtral-8x7b": {"experts": PLAIN_EXPERTS},
    "qwen3-30b-a3b": {
        "qk_norm": True,
        "experts": replace(PLAIN_EXPERTS, count=128, active=8, width=768, balance=0.001),
    },
    "deepseek-v3": {
        "kv_heads": 128,
        "head_dim": 192,
        "dense_layers": 3,
        "mlp": 18432,
        "latent": Latent(query_rank=1536, key_value_rank=512, plain=128, rotary=64, value=128),
        "experts": replace(
            PLAIN_EXPERTS, **DEEPSEEK_CHOICE, count=256, active=8, width=2048, shared=1, scale=2.5, balance=0.0
        ),
    },
    "gpt-oss-20b": {
        "activation": "clamped_swiglu",
        "qkv_bias": True,
        "out_bias": True,
        "windows": (128, None),
        "sinks": True,
        "experts": replace(PLAIN_EXPERTS, count=32, active=4, width=2880, scoring="chosen", bias=True, balance=0.9),
    },
}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_published_mixture_of_experts_is_read_whole(name: str) -> None:
    preset = json.loads((resources.files("perfmodel.models") / "presets" / f"{name}.json").read_bytes())
    c = parse_config({**preset, **EXTRAS[name]}, name)
    assert c == read_config(name)
    assert {attribute: getattr(c, attribute) for attribute in MIXTURES[name]} == MIXTURES[name]


@pytest.mark.parametrize("name", sorted(set(FILES) & set(PUBLISHED)))
def test_a_preset_says_what_the_published_file_says(name: str) -> None:
    assert read_config(name) == parse_config(json.loads(FILES[name][0]), name)


# -- what fields mean ---------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
}
MISTRAL = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None}
QWEN2 = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 16}
NEOX = {**LLAMA, "model_type": "gpt_neox", "hidden_act": "gelu", "rotary_pct": 0.25}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 96,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 64,
    "activation_function": "gelu_new",
}
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, NEOX, GPT2)
MIXTRAL = {**MISTRAL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE = {
    **QWEN3,
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
DEEPSEEK = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
GPT_OSS = {
    **MIXTRAL,
    "model_type": "gpt_oss",
    "num_hidden_layers": 4,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
SPARSE = (MIXTRAL, QWEN3_MOE, DEEPSEEK, GPT_OSS)
by_every_family = pytest.mark.parametrize("config", [*FAMILIES, *SPARSE], ids=lambda config: config["model_type"])
by_family = pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config["model_type"])


@pytest.mark.parametrize(
    ("config", "changes", "attribute", "value"),
    [
        (LLAMA, {}, "kv_heads", 6),
        (LLAMA, {"num_key_value_heads": None}, "kv_heads", 6),
        (LLAMA, {"num_key_value_heads": 3}, "kv_heads", 3),
        (LLAMA, {"num_key_value_heads": 1}, "q_per_kv", 6),
        (MISTRAL, {"num_key_value_heads": None}, "kv_heads", 6),
        (QWEN2, {"num_key_value_heads": None}, "kv_heads", 6),
        (NEOX, {}, "kv_heads", 6),
        (GPT2, {}, "kv_heads", 6),
        (LLAMA, {}, "head_dim", 48 // 6),
        (LLAMA, {"head_dim": None}, "head_dim", 48 // 6),
        (LLAMA, {"head_dim": 32}, "head_dim", 32),
        (LLAMA, {"head_dim": 32, "hidden_size": 50}, "embed", 50),
        (GPT2, {}, "mlp", 4 * 48),
        (GPT2, {"n_inner": None}, "mlp", 4 * 48),
        (GPT2, {"n_inner": 100}, "mlp", 100),
        *((config, {}, "tied", config is GPT2) for config in FAMILIES),
        *((config, {"tie_word_embeddings": tied}, "tied", tied) for config in FAMILIES for tied in (True, False)),
        *((config, {"attention_bias": b}, "qkv_bias", b) for config in (LLAMA, QWEN3, NEOX) for b in (True, False)),
        *((config, {"attention_bias": b}, "out_bias", b) for config in (LLAMA, QWEN3, NEOX) for b in (True, False)),
        (LLAMA, {"mlp_bias": True}, "mlp_bias", True),
        (QWEN2, {}, "qkv_bias", True),
        (QWEN2, {}, "out_bias", False),
        (QWEN3, {}, "qk_norm", True),
        (NEOX, {}, "parallel_residual", True),
        (NEOX, {"use_parallel_residual": False}, "parallel_residual", False),
        (NEOX, {"rotary_pct": 1}, "rotary", 1),
        *((config, {}, "tied", False) for config in SPARSE),
        (DEEPSEEK, {}, "kv_heads", 6),
        (DEEPSEEK, {}, "head_dim", 8 + 4),
        (DEEPSEEK, {"first_k_dense_replace": 0}, "dense_layers", 0),
        (QWEN3_MOE, {"head_dim": None}, "head_dim", 48 // 6),
        (GPT_OSS, {}, "windows", (16, None)),
        (GPT_OSS, {"layer_types": ["full_attention"] * 4}, "windows", (None,)),
        (GPT_OSS, {"layer_types": ["sliding_attention"] * 4}, "windows", (16,)),
        (
            GPT_OSS,
            {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
            "windows",
            (16, 16, 16, None),
        ),
        (GPT_OSS, {}, "qkv_bias", True),
        (GPT_OSS, {"attention_bias": False}, "out_bias", False),
    ],
)
def test_a_field_means_what_hugging_face_means_by_it(
    config: Mapping[str, Any], changes: Mapping[str, Any], attribute: str, value: Any
) -> None:
    assert getattr(parse_config(changed(config, **changes), "here"), attribute) == value


@pytest.mark.parametrize(
    ("config", "changes", "attribute", "value"),
    [
        (MIXTRAL, {}, "width", 80),
        (MIXTRAL, {}, "balance", 0.001),
        (MIXTRAL, {"router_aux_loss_coef": 0}, "balance", 0),
        (QWEN3_MOE, {}, "width", 24),
        (QWEN3_MOE, {}, "normalised", False),
        (QWEN3_MOE, {"norm_topk_prob": True}, "normalised", True),
        (DEEPSEEK, {}, "shared", 1),
        (DEEPSEEK, {"n_shared_experts": 0}, "shared", 0),
        (DEEPSEEK, {}, "balance", 0.0),
        (DEEPSEEK, {"aux_loss_alpha": 0.0001, "seq_aux": True}, "balance", 0.0001),
        (DEEPSEEK, {"n_group": 1, "topk_group": 1}, "groups", 1),
        (GPT_OSS, {}, "bias", True),
        (GPT_OSS, {"num_experts_per_tok": 4, "experts_per_token": 4}, "active", 4),
    ],
)
def test_a_field_of_experts_means_what_hugging_face_means_by_it(
    config: Mapping[str, Any], changes: Mapping[str, Any], attribute: str, value: Any
) -> None:
    assert getattr(parse_config(changed(config, **changes), "here").experts, attribute) == value


def test_queries_may_come_straight_from_the_input() -> None:
    latent = parse_config(changed(DEEPSEEK, q_lora_rank=None), "here").latent
    assert latent is not None
    assert latent.query_rank is None


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LLAMA, {"rope_theta": 5e5, "rms_norm_eps": 1e-6, "torch_dtype": "float16", "rope_scaling": {"factor": 8.0}}),
        (LLAMA, {"eos_token_id": [128001, 128008, 128009], "_name_or_path": "x", "pretraining_tp": 2}),
        (LLAMA, {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        (LLAMA, {"architectures": ["LlamaForCausalLM"]}),
        (QWEN2, {"sliding_window": 32768, "max_window_layers": 1, "use_sliding_window": False}),
        (QWEN3, {"layer_types": ["full_attention"] * 3}),
        (QWEN3, {"layer_types": None}),
        (NEOX, {"hidden_dropout": 0.1, "attention_dropout": 0.1, "classifier_dropout": 0.1}),
        (GPT2, {"reorder_and_upcast_attn": False, "scale_attn_weights": True, "n_ctx": 64}),
        (GPT2, {"add_cross_attention": False}),
        (MIXTRAL, {"output_router_logits": False, "router_jitter_noise": 0.0}),
        (QWEN3_MOE, {"decoder_sparse_step": 1, "mlp_only_layers": [], "max_window_layers": 3}),
        (DEEPSEEK, {"quantization_config": {"quant_method": "fp8"}, "num_nextn_predict_layers": 1, "ep_size": 1}),
        (DEEPSEEK, {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "head_dim": 4}),
        (GPT_OSS, {"quantization_config": {"quant_method": "mxfp4"}, "swiglu_limit": 7.0, "hidden_act": "silu"}),
        (GPT_OSS, {"experts_per_token": 2, "initial_context_length": 4096}),
    ],
)
def test_a_field_that_changes_no_cost_changes_nothing(config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    assert parse_config(changed(config, **changes), "here") == parse_config(config, "here")


# -- what is refused ----------------------------------------------------------------------------------------------

HF_WHOLE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OF_MIXTRAL = ("num_local_experts", "num_experts_per_tok")
OF_QWEN3_MOE = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
OF_DEEPSEEK = (
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group"),
)
WHOLE = {
    "llama": (*HF_WHOLE, "max_position_embeddings", "num_key_value_heads", "head_dim"),
    "mistral": (*HF_WHOLE, "max_position_embeddings", "num_key_value_heads", "head_dim"),
    "qwen2": (*HF_WHOLE, "max_position_embeddings", "num_key_value_heads", "head_dim"),
    "qwen3": (*HF_WHOLE, "max_position_embeddings", "num_key_value_heads", "head_dim"),
    "gpt_neox": (*HF_WHOLE, "max_position_embeddings"),
    "gpt2": ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "n_inner"),
    "mixtral": (*HF_WHOLE, "num_key_value_heads", "head_dim", *OF_MIXTRAL),
    "qwen3_moe": (*HF_WHOLE, "num_key_value_heads", "head_dim", *OF_QWEN3_MOE),
    "deepseek_v3": (*HF_WHOLE, "num_key_value_heads", "q_lora_rank", *OF_DEEPSEEK),
    "gpt_oss": (*HF_WHOLE, "num_key_value_heads", "head_dim", "sliding_window", *OF_MIXTRAL),
}


@pytest.mark.parametrize("value", [0, -8, 8.0, 8.5, "48", True, [48], {}], ids=json.dumps)
@by_every_family
def test_a_size_must_be_a_whole_number(config: Mapping[str, Any], value: Any) -> None:
    for field in WHOLE[config["model_type"]]:
        message = parse_refusal(config, **{field: value})
        assert message.startswith(f"{field}: got {json.dumps(value)}, expected a whole number above 0")


REQUIRED = {
    "llama": (*HF_WHOLE, "max_position_embeddings", "hidden_act"),
    "mistral": (*HF_WHOLE, "max_position_embeddings", "hidden_act", "num_key_value_heads"),
    "qwen2": (*HF_WHOLE, "max_position_embeddings", "hidden_act", "num_key_value_heads"),
    "qwen3": (*HF_WHOLE, "max_position_embeddings", "hidden_act", "num_key_value_heads", "head_dim"),
    "gpt_neox": (*HF_WHOLE, "max_position_embeddings", "hidden_act", "rotary_pct"),
    "gpt2": ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "activation_function"),
    "mixtral": (*HF_WHOLE, "hidden_act", "num_key_value_heads", *OF_MIXTRAL),
    "qwen3_moe": (*HF_WHOLE, "hidden_act", "num_key_value_heads", *OF_QWEN3_MOE),
    "deepseek_v3": (
        *(*HF_WHOLE, "hidden_act", "q_lora_rank", *OF_DEEPSEEK),
        *("first_k_dense_replace", "n_shared_experts", "norm_topk_prob", "routed_scaling_factor"),
    ),
    "gpt_oss": (*HF_WHOLE, "num_key_value_heads", "sliding_window", "layer_types", *OF_MIXTRAL),
}
MAY_BE_NULL = {"num_key_value_heads", "q_lora_rank"}


@by_every_family
def test_a_field_that_is_missing_is_named(config: Mapping[str, Any]) -> None:
    for field in REQUIRED[config["model_type"]]:
        message = parse_refusal(config, **{field: GONE})
        assert message.startswith(f"{field}: got nothing, expected ")
        assert f"for a {config['model_type']} model: add it" in message


@by_every_family
def test_null_does_not_stand_for_a_size_that_nothing_implies(config: Mapping[str, Any]) -> None:
    for field in set(REQUIRED[config["model_type"]]) - MAY_BE_NULL:
        assert parse_refusal(config, **{field: None}).startswith(f"{field}: got null, expected ")


def test_a_mistral_must_state_its_sliding_window() -> None:
    message = parse_refusal(MISTRAL, sliding_window=GONE)
    assert message == "sliding_window: got nothing, expected null for a mistral model: add it"


@pytest.mark.parametrize("value", ["false", 0, 1, None], ids=json.dumps)
@pytest.mark.parametrize(
    ("config", "field"),
    [
        *((config, "tie_word_embeddings") for config in (*FAMILIES, *SPARSE)),
        *((config, "attention_bias") for config in (LLAMA, QWEN3, NEOX)),
        (LLAMA, "mlp_bias"),
        (NEOX, "use_parallel_residual"),
        *((config, "norm_topk_prob") for config in (QWEN3_MOE, DEEPSEEK)),
    ],
)
def test_a_flag_must_be_true_or_false(config: Mapping[str, Any], field: str, value: Any) -> None:
    message = parse_refusal(config, **{field: value})
    assert message.startswith(f"{field}: got {json.dumps(value)}, expected true or false")


@pytest.mark.parametrize("value", [0, -0.25, 1.5, "0.25", True, None], ids=json.dumps)
def test_the_rotated_share_must_be_a_share(value: Any) -> None:
    message = parse_refusal(NEOX, rotary_pct=value)
    assert message.startswith(f"rotary_pct: got {json.dumps(value)}, expected a number above 0, at most 1")


@pytest.mark.parametrize("value", ["swish", "", "SILU", 3, None, ["silu"]], ids=json.dumps)
@by_family
def test_an_unknown_activation_lists_the_known(config: Mapping[str, Any], value: Any) -> None:
    field = "activation_function" if config is GPT2 else "hidden_act"
    message = parse_refusal(config, **{field: value})
    assert message.startswith(f"{field}: got {json.dumps(value)}, expected one of silu, gelu, gelu_new,")


@pytest.mark.parametrize(
    ("config", "changes", "field", "expected"),
    [
        (MISTRAL, {"sliding_window": 4096}, "sliding_window", "null"),
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window", "false"),
        (QWEN3, {"use_sliding_window": True}, "use_sliding_window", "false"),
        (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types", 'null or "full_attention"'),
        (QWEN2, {"layer_types": []}, "layer_types", 'null or "full_attention"'),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention", "false"),
        (LLAMA, {"architectures": ["LlamaForTokenClassification"]}, "architectures", 'null or "LlamaForCausalLM"'),
        (QWEN2, {"architectures": ["Qwen2VLForCausalLM"]}, "architectures", 'null or "Qwen2ForCausalLM"'),
        (MIXTRAL, {"sliding_window": 4096}, "sliding_window", "null"),
        (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step", "1"),
        (QWEN3_MOE, {"mlp_only_layers": [0]}, "mlp_only_layers", "null or []"),
        (DEEPSEEK, {"attention_bias": True}, "attention_bias", "false"),
        (DEEPSEEK, {"scoring_func": "softmax"}, "scoring_func", '"sigmoid"'),
        (DEEPSEEK, {"topk_method": "greedy"}, "topk_method", '"noaux_tc"'),
        (DEEPSEEK, {"moe_layer_freq": 2}, "moe_layer_freq", "1"),
        (DEEPSEEK, {"seq_aux": False}, "seq_aux", "true"),
        (GPT_OSS, {"hidden_act": "gelu"}, "hidden_act", '"silu"'),
    ],
)
def test_what_is_not_supported_is_refused(
    config: Mapping[str, Any], changes: dict[str, Any], field: str, expected: str
) -> None:
    message = parse_refusal(config, **changes)
    assert message == f"{field}: got {json.dumps(changes[field])}, expected {expected}: not supported yet"


@pytest.mark.parametrize(
    "field",
    ["quantization_config", "num_experts", "num_local_experts", "moe_intermediate_size", "auto_map", "hidden_sise"],
)
@by_family
def test_an_unknown_field_is_refused_by_name_with_the_known_ones(config: Mapping[str, Any], field: str) -> None:
    message = parse_refusal(config, **{field: None})
    assert message.startswith(f"{field}: got a field that {config['model_type']} models are not known to have, ")
    assert all(known in message for known in REQUIRED[config["model_type"]])


def test_a_mixture_refuses_what_it_does_not_know() -> None:
    for config in SPARSE:
        message = parse_refusal(config, hidden_sise=None)
        assert message.startswith(f"hidden_sise: got a field that {config['model_type']} models are not known to have")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (MIXTRAL, {"num_experts_per_tok": 5}, "num_experts_per_tok: got 5, expected at most num_local_experts = 4"),
        (DEEPSEEK, {"n_group": 3}, "n_routed_experts: got 8, expected a multiple of n_group = 3"),
        (DEEPSEEK, {"topk_group": 5}, "topk_group: got 5, expected at most n_group = 4"),
        (DEEPSEEK, {"n_group": 8}, "n_group: got 2, expected at most experts in a group = 1"),
        (
            DEEPSEEK,
            {"num_experts_per_tok": 5},
            "num_experts_per_tok: got 5, expected at most experts in open",
        ),
        (
            DEEPSEEK,
            {"first_k_dense_replace": 3},
            "first_k_dense_replace: got 3, expected at most num_hidden_layers - 1",
        ),
        (DEEPSEEK, {"num_key_value_heads": 2}, "num_attention_heads: got 6, expected at most num_key_value_heads = 2"),
        (DEEPSEEK, {"routed_scaling_factor": -1}, "routed_scaling_factor: got -1, expected a number, at least 0"),
        (DEEPSEEK, {"first_k_dense_replace": -1}, "first_k_dense_replace: got -1, expected a whole number"),
        (MIXTRAL, {"router_aux_loss_coef": "0.1"}, 'router_aux_loss_coef: got "0.1", expected a number'),
        (
            GPT_OSS,
            {"layer_types": ["full_attention"]},
            "layer_types: got 1 entries, expected one for each of",
        ),
        (
            GPT_OSS,
            {"layer_types": ["chunked"] * 4},
            'layer_types: got ["chunked", "chunked", "chunked", "chunked"]',
        ),
        (GPT_OSS, {"layer_types": [["full_attention"]]}, 'layer_types: got [["full_attention"]], expected a list of '),
        (GPT_OSS, {"experts_per_token": 3}, "experts_per_token: got 3, expected the same as num_experts_per_tok = 2"),
    ],
)
def test_a_contradiction_is_told_by_field(config: Mapping[str, Any], changes: Mapping[str, Any], message: str) -> None:
    assert parse_refusal(config, **changes).startswith(message)


@pytest.mark.parametrize(
    ("config", "field"),
    [(MISTRAL, "attention_bias"), (QWEN2, "mlp_bias"), (LLAMA, "sliding_window"), (GPT2, "rotary_pct")],
)
def test_a_field_of_another_family_is_refused(config: Mapping[str, Any], field: str) -> None:
    assert parse_refusal(config, **{field: False}).startswith(f"{field}: got a field that ")


@pytest.mark.parametrize(
    ("kind", "got"), [("mamba", '"mamba"'), ("", '""'), (None, "null"), (["llama"], '["llama"]'), (GONE, "nothing")]
)
def test_an_unknown_model_type_lists_the_known(kind: Any, got: str) -> None:
    message = parse_refusal(LLAMA, model_type=kind)
    assert message.startswith(f"model_type: got {got}, expected one of llama, mistral, qwen2, qwen3, mixtral,")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LLAMA, {"hidden_size": 50}, "hidden_size: got 50, expected a multiple of num_attention_heads = 6"),
        (GPT2, {"n_embd": 50}, "n_embd: got 50, expected a multiple of n_head = 6"),
        (NEOX, {"hidden_size": 50}, "hidden_size: got 50, expected a multiple of num_attention_heads = 6"),
        (
            QWEN3,
            {"num_key_value_heads": 4},
            "num_attention_heads: got 6, expected a multiple of num_key_value_heads = 4",
        ),
        (
            LLAMA,
            {"num_key_value_heads": 12},
            "num_attention_heads: got 6, expected a multiple of num_key_value_heads = 12",
        ),
    ],
)
def test_heads_must_divide(config: Mapping[str, Any], changes: Mapping[str, Any], message: str) -> None:
    assert parse_refusal(config, **changes).startswith(message)


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llama3-8", "llama3-8b"),
        ("Llama3-8B", "llama3-8b"),
        ("llama-3-70b", "llama3-70b"),
        ("meta-llama/Llama-3.1-8B", "llama3.1-8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("gpt-2", "gpt2"),
    ],
)
def test_an_unknown_name_suggests_a_near_one_and_lists_all(name: str, meant: str) -> None:
    message = refusal(lambda: read_config(name))
    assert message.startswith(f"model: got {name!r}, expected one of {', '.join(preset_names())}, the path of ")
    assert meant in message.partition("did you mean ")[2].partition("?")[0].split(" or ")


@pytest.mark.parametrize("name", ["", "zebra", "x" * 5000])
def test_a_name_like_no_other_suggests_nothing(name: str) -> None:
    message = refusal(lambda: read_config(name))
    assert message.startswith(f"model: got {name!r}, expected one of ")
    assert "did you mean" not in message


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for path, reason in {
        tmp_path / "absent.json": "No such file or directory",
        tmp_path / "file" / "config.json": "Not a directory",
        tmp_path / f"{'x' * 300}.json": "File name too long",
    }.items():
        message = refusal(partial(read_config, path))
        assert message == f"model: got {path}, which cannot be read ({reason}), expected a config.json: check the path"
    for folder in (tmp_path, tmp_path / "folder.json"):
        assert f"got {folder / 'config.json'}, which cannot be read" in refusal(partial(read_config, folder))


def test_a_folder_that_may_not_be_searched_is_an_error_of_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    folder.chmod(0)
    try:
        if os.access(folder, os.X_OK):
            pytest.skip("this user may search every folder")
        assert "(Permission denied)" in refusal(lambda: read_config(folder))
        assert "expected one of" in refusal(lambda: read_config(folder / "inner"))
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "got Expecting value: line 1 column 1 (char 0), expected JSON"),
        (b"model_type: llama", "got Expecting value: line 1 column 1 (char 0), expected JSON"),
        (b'{"model_type": "llama",}', "got Expecting property name"),
        (b'{"model_type": "\xff"}', "got 'utf-8' codec can't decode byte 0xff"),
        (b'{"a": ' + b"[" * 100_000, "got maximum recursion depth exceeded"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "got Exceeds the limit"),
        (b"[1, 2]", "got [1, 2], expected a JSON object"),
        (b"null", "got null, expected a JSON object"),
        (b'"llama"', 'got "llama", expected a JSON object'),
    ],
    ids=range(9),
)
def test_a_file_that_is_no_json_object_is_refused_by_its_path(content: bytes, got: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert refusal(lambda: read_config(path)).startswith(f"{path}: {got}")


def test_a_model_is_named_after_its_file_or_the_folder_of_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    for file in ("config.json", "other.json"):
        (folder / file).write_text(json.dumps(LLAMA))
    monkeypatch.chdir(folder)
    for path in (folder, folder / "config.json", "config.json", ".", "../my-model"):
        assert read_config(path).name == "my-model"
    assert read_config("other.json").name == "other"


# -- programs -----------------------------------------------------------------------------------------------------


def test_reading_a_config_imports_neither_jax_nor_numpy() -> None:
    code = (
        "import sys; from perfmodel.models import read_config as r; r('gpt2'); print({'jax', 'numpy'} & {*sys.modules})"
    )
    assert run([sys.executable, "-c", code], Path.cwd()) == "set()"


def run(command: list[str], folder: Path) -> str:
    path = str(Path(perfmodel.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_program_is_built_from_a_preset_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    names = {model: load_program(str(model)).name for model in ("gpt2", tmp_path / "config.json", tmp_path)}
    assert names == {"gpt2": "gpt2", tmp_path / "config.json": tmp_path.name, tmp_path: tmp_path.name}


@pytest.mark.parametrize("seq_len", [1, 48, 64])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_program_has_the_length_and_the_policy_asked_for(seq_len: int, recompute: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    program = load_program(str(tmp_path), seq_len=seq_len, recompute=recompute)
    shapes = {a.name: a.tree.shape for a in program.arguments if a.role == "batch"}
    assert {shape[-1] for shape in shapes.values()} == {seq_len}
    assert program.recompute == recompute


def test_only_learned_positions_bound_the_length(tmp_path: Path) -> None:
    for name, config in {"gpt2.json": GPT2, "llama.json": LLAMA}.items():
        (tmp_path / name).write_text(json.dumps(config))
    message = refusal(lambda: load_program(str(tmp_path / "gpt2.json"), seq_len=65))
    assert message.startswith("gpt2: got sequence length 65, expected at most 64, the positions it learns")
    assert load_program(str(tmp_path / "llama.json"), seq_len=65).arguments[2].tree.shape[-1] == 65


MODELS = ("gpt2", "no_such_module:step")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seq_len", [0, -1, 2.0, "128", True])
def test_a_sequence_length_must_be_a_whole_number(model: str, seq_len: Any) -> None:
    message = refusal(lambda: load_program(model, seq_len=seq_len))
    assert message.startswith(f"sequence length: got {seq_len!r}, expected a whole number above 0")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recompute", ["", "Full", "everything", None])
def test_an_unknown_recompute_policy_lists_the_known(model: str, recompute: Any) -> None:
    message = refusal(lambda: load_program(model, recompute=recompute))
    assert message.startswith(f"recompute: got {recompute!r}, expected one of none, selective, full")


STEPS = """
import jax
from perfmodel.errors import ModelError, PerfModelError
from perfmodel.trace import Argument, Program

def bare(seq_len=16, recompute="none"):
    x = jax.ShapeDtypeStruct((3, seq_len), "float32")
    argument = Argument(name="x", role="batch", tree=x, axes=("batch", "seq"))
    return Program(name=f"length {seq_len}", fn=lambda x: x, arguments=(argument,), recompute=recompute)

def plain():
    return bare()

def routed(capacity_factor=None):
    return bare(seq_len=16 if capacity_factor is None else int(16 * capacity_factor))

def keywords(**options):
    return bare(**options)

def refusing():
    raise ModelError("a message of its own")

def failing():
    raise ValueError("first line\\nsecond line")  # line 22

def wanting(batch):
    return bare()

def forgetting():
    bare()

ready = bare()
number = 7
"""
FAILING_LINE = 1 + STEPS.splitlines().index('    raise ValueError("first line\\nsecond line")  # line 22')

Write = Callable[[str, str], str]


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test puts on the path of imports is gone when it ends."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Write]:
    """Writes a user's module, which can be imported until the test ends; returns its name."""
    sys.path.insert(0, str(tmp_path))
    before = set(sys.modules)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("attribute", "options", "name", "recompute"),
    [
        ("bare", {}, "length 16", "full"),
        ("bare", {"seq_len": 4}, "length 4", "full"),
        ("bare", {"seq_len": 4, "recompute": "selective"}, "length 4", "selective"),
        ("keywords", {"seq_len": 4, "recompute": "none"}, "length 4", "none"),
        ("plain", {}, "length 16", "none"),
        ("ready", {}, "length 16", "none"),
        ("routed", {}, "length 16", "none"),
        ("routed", {"capacity_factor": 1.5}, "length 24", "none"),
    ],
)
def test_a_function_is_given_what_it_takes(
    module: Write, attribute: str, options: dict[str, Any], name: str, recompute: str
) -> None:
    program = load_program(f"{module('steps', STEPS)}:{attribute}", **options)
    assert (program.name, program.recompute) == (name, recompute)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("absent", "got no 'absent' in steps, expected a function: check the name"),
        ("", "got no '' in steps, expected a function"),
        ("bare.inner", "got no 'bare.inner' in steps, expected a function"),
        ("number", "got something of type int, expected a perfmodel.Program: return one"),
        ("forgetting", "got something of type NoneType, expected a perfmodel.Program: return one"),
        ("failing", f"got ValueError: first line (steps.py:{FAILING_LINE}) from failing, expected a Program"),
        ("wanting", "got TypeError: wanting() missing 1 required positional argument: 'batch' from wanting"),
    ],
)
def test_a_function_that_gives_no_program_is_refused(module: Write, attribute: str, message: str) -> None:
    model = f"{module('steps', STEPS)}:{attribute}"
    assert refusal(lambda: load_program(model)).startswith(f"model {model!r}: {message}")


@pytest.mark.parametrize("attribute", ["plain", "ready"])
def test_a_length_that_a_function_cannot_take_is_refused(module: Write, attribute: str) -> None:
    model = f"{module('steps', STEPS)}:{attribute}"
    message = refusal(lambda: load_program(model, seq_len=8))
    assert message.startswith(f"model {model!r}: got sequence length 8, expected none")


def test_a_capacity_factor_that_a_function_cannot_take_is_refused(module: Write) -> None:
    model = f"{module('steps', STEPS)}:plain"
    message = refusal(lambda: load_program(model, capacity_factor=1.25))
    assert message.startswith(f"model {model!r}: got capacity factor 1.25, expected none")


def test_a_functions_own_refusal_passes_through(module: Write) -> None:
    assert refusal(lambda: load_program(f"{module('steps', STEPS)}:refusing")) == "a message of its own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\nraise ValueError('a\\nb')",
            "got ValueError: a (broken.py:2) on importing broken, expected a module: mend",
        ),
        ("import math\nmath.absent", "got AttributeError: module 'math' has no attribute 'absent' (broken.py:2) on"),
        ("import no_such_library", "got ModuleNotFoundError: No module named 'no_such_library' (broken.py:1) on"),
        ("def step(:", "got SyntaxError: invalid syntax (broken.py, line 1) on importing broken"),
        ("raise KeyError", "got KeyError:  (broken.py:1) on importing broken"),
    ],
)
def test_a_module_that_fails_on_import_is_an_error_of_one_line(module: Write, text: str, message: str) -> None:
    model = f"{module('broken', text)}:step"
    assert refusal(lambda: load_program(model)).startswith(f"model {model!r}: {message}")


@pytest.mark.parametrize("name", ["no_such_module", "json.no_such_module", "no_such_package.module"])
def test_a_module_that_is_not_there_says_so(name: str) -> None:
    message = refusal(lambda: load_program(f"{name}:step"))
    assert message.startswith(f"model '{name}:step': got ModuleNotFoundError: No module named ")
    assert message.endswith("check the name, and the folder you are in")


@pytest.mark.parametrize("name", ["", "..steps", "a-b", "folder/steps.py", "a..b"])
def test_a_name_that_no_module_can_have_is_refused(name: str) -> None:
    message = refusal(lambda: load_program(f"{name}:step"))
    assert message.startswith(f"model '{name}:step': got {name!r}, expected the dotted name of a module")


def test_a_module_in_the_current_folder_is_found_by_a_script_elsewhere(tmp_path: Path) -> None:
    script, project = tmp_path / "bin" / "script.py", tmp_path / "project"
    script.parent.mkdir()
    project.mkdir()
    script.write_text("from perfmodel.models import load_program; print(load_program('steps:bare', seq_len=5).name)")
    (project / "steps.py").write_text(STEPS)
    assert run([sys.executable, str(script)], project) == "length 5"
