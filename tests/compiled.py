"""Small programs and layouts whose memory a compiler for accelerators is asked about, each a few seconds of its time.

Widths and lengths are multiples of 128 on every rank, so that a TPU's tiles need no padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from programs import mlp_step, spec

from perfmodel.layout import Layout
from perfmodel.models.config import parse_config
from perfmodel.models.training import train_program
from perfmodel.trace import Argument, Program

LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
MIXTRAL: Mapping[str, Any] = {
    **LLAMA,
    "model_type": "mixtral",
    "intermediate_size": 384,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_local_experts": 8,
}


def llama(recompute: str) -> Program:
    return train_program(parse_config(dict(LLAMA), "llama"), seq_len=256, recompute=recompute)


def mixtral(recompute: str) -> Program:
    config = parse_config(dict(MIXTRAL), "mixtral")
    return train_program(config, seq_len=256, recompute=recompute, capacity_factor=1.0)


def mlp() -> Program:
    """A residual MLP stack with momentum."""
    shapes = {"up": (8, 256, 1024), "down": (8, 1024, 256)}
    axes = {"up": ("layers", "embed", "mlp"), "down": ("layers", "mlp", "embed")}
    return Program(
        name="mlp",
        fn=mlp_step,
        arguments=(
            Argument(name="weights", role="parameters", tree={k: spec(*s) for k, s in shapes.items()}, axes=axes),
            Argument(
                name="moments",
                role="optimizer",
                tree={k: spec(*s, dtype=jnp.float32) for k, s in shapes.items()},
                axes=axes,
            ),
            Argument(
                name="inputs",
                role="batch",
                tree=spec(2, 2, 512, 256),
                axes=("microbatch", "batch", "seq", "embed"),
            ),
        ),
        donated=("weights", "moments"),
    )


def under(notation: str, global_batch: int) -> Layout:
    """A layout of four ranks, eight sequences at a time."""
    return replace(Layout.parse(f"{notation},mb=8", ranks=4), global_batch=global_batch)


def questions() -> list[tuple[Program, Layout]]:
    """Every program under its layouts, with one microbatch or two."""
    return [
        (llama("full"), under("dp=4,zero=0,recompute=full", 64)),
        (llama("none"), under("dp=2,fsdp=2,zero=3,recompute=none", 64)),
        (llama("selective"), under("dp=2,fsdp=2,zero=3,recompute=selective", 32)),
        (llama("full"), under("dp=2,tp=2,zero=1,recompute=full", 16)),
        (llama("none"), under("fsdp=2,tp=2,zero=3,recompute=none", 32)),
        (llama("selective"), under("fsdp=2,tp=2,zero=2,recompute=selective", 16)),
        (mixtral("full"), under("ep=4,zero=3,recompute=full", 64)),
        (mixtral("none"), under("fsdp=2,ep=2,zero=1,recompute=none", 64)),
        (mlp(), under("fsdp=4,zero=3,recompute=none", 64)),
        (mlp(), under("dp=2,tp=2,zero=0,recompute=none", 16)),
    ]
