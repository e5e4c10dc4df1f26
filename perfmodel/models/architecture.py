"""What a decoder-only transformer is made of, as far as its shapes go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A layer's experts and how tokens choose among them.

    count, active:     experts, and how many of them a token visits
    width:             inner width of each
    shared:            experts more that every token visits
    scoring:           "softmax" over all experts, "chosen" (softmax over those chosen), or "sigmoid" of each
    normalised, scale: whether a token's weights are made to add up to 1; what they are multiplied by afterwards
    groups, open_groups: a token chooses within the best `open_groups` of `groups` equal groups
    selection_bias:    whether a bias that enters the choice, but not the weights, keeps the load even
    bias:              whether the router and the experts' matmuls have biases
    balance:           coefficient of the loss that evens out the load
    capacity_factor:   rows that each expert has for a sequence, as a multiple of its fair share, tokens beyond which
                       are dropped; None drops none
    """

    count: int
    active: int
    width: int
    shared: int
    scoring: str
    normalised: bool
    scale: float
    groups: int
    open_groups: int
    selection_bias: bool
    bias: bool
    balance: float
    capacity_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): queries, and keys with values, through narrow vectors.

    query_rank (None: straight from the input), key_value_rank: widths of those; plain, rotary: parts of a query or
    key head without and with positions, the latter shared by all heads of a key; value: width of a value head.
    """

    query_rank: int | None
    key_value_rank: int
    plain: int
    rotary: int
    value: int


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder-only transformer.

    norm: "rms" or "layer" (with bias); activation: as Hugging Face spells it, or "clamped_swiglu"; rotary: share of
    head_dim that is rotated, 0 with learned positions; parallel_residual: attention and MLP both read the block's
    input; windows: how far back the layers see, a pattern that repeats (None: all the way); sinks: whether heads may
    attend to nothing; dense_layers: first layers, of width `mlp`, that have no experts.
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
    windows: tuple[int | None, ...] = (None,)
    sinks: bool = False
    dense_layers: int = 0
    experts: Experts | None = None
    latent: Latent | None = None

    @property
    def q_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads
