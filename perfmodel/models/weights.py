"""Shapes and axis names of a decoder's weights.

Layers that are alike are stacked, and run as one loop. Vectors that are narrower than `embed` but feed matmuls as it
does (the ranks of latent attention) bear its name, so that what stores `embed` in parts stores them in parts, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from perfmodel.models.architecture import DecoderConfig, Experts, Latent

Tree = dict[str, Any]
Entry = tuple[tuple[int, ...], tuple[str, ...]]
Block = dict[str, Entry]

HEAD_NAMES = ("kv_heads", "q_per_kv")
STACKED = ("layers", "dense_layers")
"""Names of dims along which layers lie."""


DENSE = {
    "query": "bsd,dkgh->bskgh",
    **dict.fromkeys(("key", "value"), "bsd,dkh->bskh"),
    "query_down": "bsd,dn->bsn",
    "query_up": "bsd,dkgh->bskgh",
    "key_value_down": "bsd,dn->bsn",
    "key_rotary": "bsd,dt->bst",
    **dict.fromkeys(("key_up", "value_up"), "bsn,nkh->bskh"),
    "out": "bskgh,kghd->bsd",
    **dict.fromkeys(("up", "gate", "shared_up", "shared_gate"), "bsd,df->bsf"),
    **dict.fromkeys(("down", "shared_down"), "bsf,fd->bsd"),
}
ROUTED = {**dict.fromkeys(("up", "gate"), "berd,edf->berf"), "down": "berf,efd->berd"}
"""What a layer's linears do with their weights, as einsum has it; and experts with theirs, of rows expert by expert."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Equal layers: the name of their weights and of the dim that stacks them, how many, and what they are."""

    name: str
    dim: str
    count: int
    window: int | None
    routed: bool


def loops_of(c: DecoderConfig) -> tuple[tuple[Stack, ...], ...]:
    """The loops over the layers, in order; one trip runs a layer of each stack of a loop."""
    routed, period = c.experts is not None, len(c.windows)
    trips = (c.layers - c.dense_layers) // period
    pattern = tuple(
        Stack(name="layers" if period == 1 else f"layers_{i}", dim="layers", count=trips, window=window, routed=routed)
        for i, window in enumerate(c.windows)
    )
    if not c.dense_layers:
        return (pattern,)
    # A dim of its own: these layers are not spread over the stages of a pipeline, they run on the first one.
    name = "dense_layers"
    dense = Stack(name=name, dim=name, count=c.dense_layers, window=c.windows[0], routed=False)
    return (dense,), pattern


def layout_of(c: DecoderConfig) -> Tree:
    """Shape and axis names of every weight, as a tree whose leaves are (shape, names)."""
    stacks = [stack for loop in loops_of(c) for stack in loop]
    tree: Tree = {
        "embedding": ((c.vocab, c.embed), ("vocab", "embed")),
        **{stack.name: _stacked(stack, _block(c, stack)) for stack in stacks},
        **_norm(c, "final_norm"),
    }
    if not c.rotary:
        tree["positions"] = ((c.positions, c.embed), ("position", "embed"))
    if not c.tied:
        tree["head"] = ((c.embed, c.vocab), ("embed", "vocab"))
    return tree


def linears_of(c: DecoderConfig, stack: Stack) -> list[tuple[str, ...]]:
    """Weights of a layer that its linears multiply with, those together that meet one input."""
    groups: list[tuple[str, ...]] = [("query", "key", "value")]
    if c.latent is not None:
        down = [("query_down",)] if c.latent.query_rank is not None else []
        groups = [*down, ("query_up",), ("key_value_down", "key_rotary"), ("key_up", "value_up")]
    inner = _inner(c)
    if c.experts is None or not stack.routed:
        return [*groups, ("out",), inner, ("down",)]
    shared = [tuple(f"shared_{name}" for name in inner), ("shared_down",)] if c.experts.shared else []
    return [*groups, ("out",), inner[::-1], ("down",), *shared]


def equations_of(stack: Stack) -> dict[str, str]:
    """Equations of the linears of a layer, by weight."""
    return {**DENSE, **ROUTED} if stack.routed else DENSE


def is_entry(node: Any) -> bool:
    """Whether a node of `layout_of`'s tree is a leaf."""
    return isinstance(node, tuple)


def _stacked(stack: Stack, block: Block) -> Block:
    return {name: ((stack.count, *shape), (stack.dim, *names)) for name, (shape, names) in block.items()}


def _block(c: DecoderConfig, stack: Stack) -> Block:
    attention = _attention(c) if c.latent is None else _latent_attention(c, c.latent)
    mlp = _mlp(c, c.mlp) if c.experts is None or not stack.routed else _experts(c, c.experts)
    return {**attention, **mlp, **_norm(c, "attention_norm"), **_norm(c, "mlp_norm")}


def _norm(c: DecoderConfig, name: str) -> Block:
    entry: Entry = ((c.embed,), ("embed",))
    return {name: entry} if c.norm == "rms" else {name: entry, f"{name}_bias": entry}


def _attention(c: DecoderConfig) -> Block:
    heads, kv = (c.kv_heads, c.q_per_kv, c.head_dim), (c.kv_heads, c.head_dim)
    head_names, kv_names = (*HEAD_NAMES, "head_dim"), ("kv_heads", "head_dim")
    block: Block = {
        "query": ((c.embed, *heads), ("embed", *head_names)),
        "key": ((c.embed, *kv), ("embed", *kv_names)),
        "value": ((c.embed, *kv), ("embed", *kv_names)),
        "out": ((*heads, c.embed), (*head_names, "embed")),
    }
    if c.qkv_bias:
        block |= {"query_bias": (heads, head_names), "key_bias": (kv, kv_names), "value_bias": (kv, kv_names)}
    if c.out_bias:
        block["out_bias"] = ((c.embed,), ("embed",))
    if c.qk_norm:
        block |= dict.fromkeys(("query_norm", "key_norm"), ((c.head_dim,), ("head_dim",)))
    if c.sinks:
        block["sinks"] = (heads[:2], HEAD_NAMES)
    return block


def _latent_attention(c: DecoderConfig, latent: Latent) -> Block:
    heads, rank = (c.kv_heads, c.q_per_kv), latent.key_value_rank
    block: Block = {
        "key_value_down": ((c.embed, rank), ("embed", "embed")),
        "key_value_norm": ((rank,), ("embed",)),
        "key_rotary": ((c.embed, latent.rotary), ("embed", "rotary_dim")),
        "key_up": ((rank, c.kv_heads, latent.plain), ("embed", "kv_heads", "plain_dim")),
        "value_up": ((rank, c.kv_heads, latent.value), ("embed", "kv_heads", "value_dim")),
        "out": ((*heads, latent.value, c.embed), (*HEAD_NAMES, "value_dim", "embed")),
    }
    if latent.query_rank is not None:
        block |= {
            "query_down": ((c.embed, latent.query_rank), ("embed", "embed")),
            "query_norm": ((latent.query_rank,), ("embed",)),
        }
    width = latent.query_rank or c.embed
    return block | {"query_up": ((width, *heads, c.head_dim), ("embed", *HEAD_NAMES, "head_dim"))}


def _mlp(c: DecoderConfig, width: int, prefix: str = "") -> Block:
    block: Block = {
        f"{prefix}up": ((c.embed, width), ("embed", "mlp")),
        f"{prefix}down": ((width, c.embed), ("mlp", "embed")),
    }
    if c.gated:
        block[f"{prefix}gate"] = block[f"{prefix}up"]
    if c.mlp_bias:
        inner = {f"{prefix}{name}_bias": ((width,), ("mlp",)) for name in _inner(c)}
        block |= {**inner, f"{prefix}down_bias": ((c.embed,), ("embed",))}
    return block


def _inner(c: DecoderConfig) -> tuple[str, ...]:
    """The matmuls into a layer's inner width."""
    return ("up", "gate") if c.gated else ("up",)


def _experts(c: DecoderConfig, e: Experts) -> Block:
    """The router's own dim bears another name than the experts': every rank routes its tokens to all of them."""
    block: Block = {
        "router": ((c.embed, e.count), ("embed", "router")),
        **dict.fromkeys(_inner(c), ((e.count, c.embed, e.width), ("experts", "embed", "mlp"))),
        "down": ((e.count, e.width, c.embed), ("experts", "mlp", "embed")),
    }
    if e.selection_bias:
        block["selection_bias"] = ((e.count,), ("router",))
    if e.bias:
        block |= {f"{name}_bias": ((e.count, e.width), ("experts", "mlp")) for name in _inner(c)}
        block |= {
            "down_bias": ((e.count, c.embed), ("experts", "embed")),
            "router_bias": ((e.count,), ("router",)),
        }
    return block | (_mlp(c, e.shared * e.width, "shared_") if e.shared else {})
