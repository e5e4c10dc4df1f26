"""Model types that Hugging Face publishes, as data: where their fields come from, and what their files must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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

# Attributes of a record inside the config are written `record.attribute`.
EXPERTS: Mapping[str, Source] = {
    "experts.active": ("num_experts_per_tok", REQUIRED),
    "experts.balance": ("router_aux_loss_coef", 0.001),
}
LATENT: Mapping[str, Source] = {
    "latent.query_rank": ("q_lora_rank", STATED),
    "latent.key_value_rank": ("kv_lora_rank", REQUIRED),
    "latent.plain": ("qk_nope_head_dim", REQUIRED),
    "latent.rotary": ("qk_rope_head_dim", REQUIRED),
    "latent.value": ("v_head_dim", REQUIRED),
}

GATED = {"norm": "rms", "gated": True, "rotary": 1.0, "qkv_bias": False, "out_bias": False, "mlp_bias": False}
BIASED = {"norm": "layer", "gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True}
PLAIN = {"qk_norm": False, "parallel_residual": False}
ROUTED = {
    "experts.scoring": "softmax",
    "experts.normalised": True,
    "experts.shared": 0,
    "experts.groups": 1,
    "experts.open_groups": 1,
    "experts.scale": 1.0,
    "experts.selection_bias": False,
    "experts.bias": False,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type: where its fields come from, what is fixed, which extra fields must have one of some values (every
    entry of a list must), which of those must be stated, which change no cost, and which repeat another.
    """

    fields: Mapping[str, Source]
    fixed: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    stated: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    repeats: Mapping[str, str] = field(default_factory=dict)


FULL_ATTENTION = {"use_sliding_window": (False,), "layer_types": (None, "full_attention")}
WINDOW = frozenset({"sliding_window", "max_window_layers"})
ROUTER = frozenset({"output_router_logits", "router_jitter_noise"})
# How published weights are stored; the training step computes in bf16 whatever that is.
QUANTISED = frozenset({"quantization_config"})
# The module that predicts a second token (num_nextn_predict_layers) is not modelled: Hugging Face's model and the
# published sizes leave it out, too. The rest repeats other fields, or is about DeepSeek's own code.
DEEPSEEK = frozenset({"auto_map", "num_nextn_predict_layers", "head_dim", "qk_head_dim", "rope_interleave", "ep_size"})

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
    "mixtral": Family(
        fields={
            **STATES_KV,
            **EXPERTS,
            "experts.count": ("num_local_experts", REQUIRED),
            "experts.width": ("intermediate_size", REQUIRED),
        },
        fixed={**PLAIN, **GATED, **ROUTED},
        only={"architectures": (None, "MixtralForCausalLM"), "sliding_window": (None,)},
        ignored=ROUTER,
    ),
    "qwen3_moe": Family(
        fields={
            **STATES_KV,
            **ATTENTION_BIAS,
            **EXPERTS,
            "experts.count": ("num_experts", REQUIRED),
            "experts.width": ("moe_intermediate_size", REQUIRED),
            "experts.normalised": ("norm_topk_prob", False),
        },
        fixed={**PLAIN, **GATED, **ROUTED, "qk_norm": True},
        only={
            "architectures": (None, "Qwen3MoeForCausalLM"),
            **FULL_ATTENTION,
            "decoder_sparse_step": (1,),
            "mlp_only_layers": (None, []),
        },
        ignored=WINDOW | ROUTER,
    ),
    "deepseek_v3": Family(
        fields={
            **{key: source for key, source in LLAMA.items() if key != "head_dim"},
            **EXPERTS,
            **LATENT,
            "dense_layers": ("first_k_dense_replace", REQUIRED),
            "experts.balance": ("aux_loss_alpha", 0.0),
            "experts.count": ("n_routed_experts", REQUIRED),
            "experts.width": ("moe_intermediate_size", REQUIRED),
            "experts.shared": ("n_shared_experts", REQUIRED),
            "experts.groups": ("n_group", REQUIRED),
            "experts.open_groups": ("topk_group", REQUIRED),
            "experts.normalised": ("norm_topk_prob", REQUIRED),
            "experts.scale": ("routed_scaling_factor", REQUIRED),
        },
        fixed={**PLAIN, **GATED, **ROUTED, "experts.scoring": "sigmoid", "experts.selection_bias": True},
        only={
            "architectures": (None, "DeepseekV3ForCausalLM"),
            "attention_bias": (False,),
            "moe_layer_freq": (1,),
            "scoring_func": ("sigmoid",),
            "seq_aux": (True,),
            "topk_method": ("noaux_tc",),
        },
        ignored=QUANTISED | DEEPSEEK,
    ),
    "gpt_oss": Family(
        fields={
            **{key: source for key, source in STATES_KV.items() if key not in ("mlp", "activation")},
            **EXPERTS,
            **dict.fromkeys(("qkv_bias", "out_bias"), ("attention_bias", True)),
            "mlp": ("intermediate_size", REQUIRED),
            "window": ("sliding_window", REQUIRED),
            "layer_types": ("layer_types", REQUIRED),
            "experts.count": ("num_local_experts", REQUIRED),
            "experts.width": ("intermediate_size", REQUIRED),
        },
        fixed={
            **PLAIN,
            **GATED,
            **ROUTED,
            "activation": "clamped_swiglu",
            "sinks": True,
            "experts.scoring": "chosen",
            "experts.bias": True,
        },
        only={"architectures": (None, "GptOssForCausalLM"), "hidden_act": ("silu",)},
        ignored=QUANTISED | ROUTER | {"initial_context_length", "swiglu_alpha", "swiglu_limit"},
        repeats={"experts_per_token": "num_experts_per_tok"},
    ),
    "gpt2": Family(
        fields=GPT2,
        fixed={**PLAIN, **BIASED, "rotary": 0.0},
        only={"architectures": (None, "GPT2LMHeadModel"), "add_cross_attention": (False,)},
    ),
    "gpt_neox": Family(fields=NEOX, fixed={**PLAIN, **BIASED}, only={"architectures": (None, "GPTNeoXForCausalLM")}),
}
