"""Seconds of a step as measured, from whatever a row states of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfmodel.models import DecoderConfig
from perfmodel.units import UNITS
from perfmodel.validate.rows import Row, RowError


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How a source counts FLOPs.

    attention: FLOPs of the attention scores and their product with the values, forward and backward, per layer, token,
               token seen and width of all heads
    passes:    of three, counting the recomputed forward pass as one more
    """

    attention: float
    passes: float


CONVENTIONS: Mapping[str, Convention] = {
    "model_full": Convention(attention=12.0, passes=3.0),
    "model_causal": Convention(attention=6.0, passes=3.0),
    "recompute_full": Convention(attention=12.0, passes=4.0),
}


def measured_seconds(row: Row, config: DecoderConfig, peak: float) -> float:
    """Seconds of a step: as stated, or from tokens per second, or from FLOP/s or MFU with a stated convention.

    peak: FLOP/s of a device that MFU is quoted against. Raises RowError where nothing determines it.
    """
    if (seconds := row.number("step_time_s")) is not None:
        return seconds
    devices, tokens = row.need("n_devices"), row.need("global_batch_seqs") * row.need("seq_len")
    if (rate := row.number("tokens_per_s_per_device")) is not None:
        return tokens / (rate * devices)
    if (tflops := row.number("tflops_per_device")) is not None:
        return _flops(row, config, tokens) / (tflops * UNITS["TFLOP/s"] * devices)
    if (mfu := row.number("mfu_pct")) is not None:
        return _flops(row, config, tokens) / (mfu / 100.0 * peak * devices)
    raise RowError("no step time, nor tokens/s, TFLOP/s or MFU")


def _flops(row: Row, config: DecoderConfig, tokens: float) -> float:
    text = row.text("flops_convention")
    if not text:
        raise RowError("only TFLOP/s or MFU are stated, and not how FLOPs were counted")
    if text not in CONVENTIONS:
        raise RowError(f"flops_convention is {text!r}, expected one of {', '.join(CONVENTIONS)}")
    return step_flops(config, row.need("seq_len"), tokens, CONVENTIONS[text])


def step_flops(config: DecoderConfig, seq_len: int, tokens: float, convention: Convention) -> float:
    """FLOPs of a step of a dense model as sources count them [FLOP]: 6 N + 12 L a s per token, a width of all heads.

    N leaves the input embedding out. Raises RowError for experts and latent attention, where conventions differ.
    """
    if config.experts is not None or config.latent is not None:
        raise RowError("only TFLOP/s or MFU are stated, of a model whose FLOPs are counted in several ways")
    width = config.heads * config.head_dim
    projections = 2 * config.embed * (width + config.kv_heads * config.head_dim)
    layer = projections + (3 if config.gated else 2) * config.embed * config.mlp
    weights = config.layers * layer + config.embed * config.vocab
    forward = 2.0 * weights + convention.attention / 3.0 * config.layers * width * seq_len
    return convention.passes * forward * tokens
