"""What tests of derived collectives share: a small model, and its collectives under a layout."""

from __future__ import annotations

from typing import Any

from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.shard import shard
from perfmodel.verify.collective import Collective
from perfmodel.verify.derived import derived as of_sharded

TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": 256,
}
"""The smallest config.json whose heads are grouped."""


def derived(graph: Graph, layout: Layout) -> list[Collective]:
    """The collectives that perfmodel derives, named by their phase."""
    return of_sharded(shard(graph, layout.assignment), layout.sizes(graph))
