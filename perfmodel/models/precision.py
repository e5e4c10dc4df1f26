"""The element types of a training step: of its matmuls, weights, gradients and optimizer state."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from perfmodel.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How operands of a matmul are made narrow.

    forward, backward: element types of activations with weights, and of the gradients that arrive
    scale:   element type of the numbers that they were divided by
    block:   elements along the contraction that share one; 0 for all of a tensor, by what its last steps have held
             (delayed scaling)
    square:  whether those of weights are shared by `block` elements of the other dim, too
    """

    forward: str
    backward: str
    scale: str
    block: int = 0
    square: bool = False


SCALINGS: Mapping[str, Scaling] = {
    # Micikevicius et al. 2022 (arXiv 2209.05433); the history is Transformer Engine's.
    "fp8": Scaling(forward="float8_e4m3fn", backward="float8_e5m2", scale="float32"),
    # DeepSeek-V3 (arXiv 2412.19437), section 3.3.2.
    "fp8-block": Scaling(forward="float8_e4m3fn", backward="float8_e4m3fn", scale="float32", block=128, square=True),
    # OCP Microscaling Formats 1.0, section 5.
    "mxfp8": Scaling(forward="float8_e4m3fn", backward="float8_e4m3fn", scale="float8_e8m0fnu", block=32),
    # NVIDIA 2025 (arXiv 2509.25149), section 2.
    "nvfp4": Scaling(forward="float4_e2m1fn", backward="float4_e2m1fn", scale="float8_e4m3fn", block=16, square=True),
}

DTYPES: Mapping[str, str] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "tf32": "float32",
    "f32": "float32",
    "int8": "int8",
}
"""How people call element types -> how JAX does."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a step computes and keeps.

    compute: of weights, activations and matmuls: "bf16", "fp16" (with a loss that is scaled), "fp32" or "tf32" (fp32
             whose matmuls are in TF32)
    linears: "" for matmuls as all the others; else how the operands of those of weights in layers are made narrow, one
             of `SCALINGS`; attention, routers, embeddings and the head stay as they are
    master:  whether weights are also kept in fp32, which the optimizer updates
    grads:   of the gradients that add up over microbatches
    reduce:  of gradients while ranks add theirs up, if they have not done so for each microbatch
    moments: of Adam's: "f32", "bf16" or "int8" (in blocks that share a scale)
    """

    compute: str = "bf16"
    linears: str = ""
    master: bool = True
    grads: str = "f32"
    reduce: str = "f32"
    moments: str = "f32"

    @property
    def scaling(self) -> Scaling | None:
        """How operands of linears are made narrow, if they are."""
        return SCALINGS[self.linears] if self.linears else None


PRESETS: Mapping[str, Precision] = {
    "bf16": Precision(),
    "fp16": Precision(compute="fp16"),
    "fp32": Precision(compute="fp32", master=False),
    "tf32": Precision(compute="tf32", master=False),
    **{name: Precision(linears=name) for name in SCALINGS},
}

DEFAULT = PRESETS["bf16"]
VALUES: Mapping[str, Mapping[str, Any]] = {
    "master": {"0": False, "1": True},
    "grads": {"f32": "f32", "bf16": "bf16"},
    "reduce": {"f32": "f32", "bf16": "bf16"},
    "moments": {"f32": "f32", "bf16": "bf16", "int8": "int8"},
}
"""Keys that change a preset, and their values by how people write them."""


def read_precision(text: str) -> Precision:
    """Read `PRESET,key=value,...`, as in `fp8,master=0,moments=int8`; without a preset, it is bf16.

    What is not given follows: a copy of weights that are in fp32 themselves is none, and gradients that add up in bf16
    are reduced so. Raises ModelError for what is not known.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    name = words.pop(0) if words and "=" not in words[0] else "bf16"
    if name not in PRESETS:
        raise _unknown("preset", name, PRESETS)
    given: dict[str, Any] = {}
    for word in words:
        key, _, value = (part.strip() for part in word.partition("="))
        if key not in VALUES:
            raise _unknown("key", key, VALUES)
        if value not in VALUES[key]:
            raise ModelError(f"precision: got {word}, expected {key}={' or '.join(VALUES[key])}: choose one")
        if key in given:
            raise ModelError(f"precision: got {key} twice in {text!r}, expected it once: remove one")
        given[key] = VALUES[key][value]
    found = replace(PRESETS[name], **{"reduce": given.get("grads", "f32"), **given})
    if found.master and DTYPES[found.compute] == "float32":
        raise ModelError(f"precision: got master=1 with {name}, expected none: weights are in fp32 already")
    return found


def _unknown(what: str, got: str, known: Mapping[str, Any]) -> ModelError:
    close = difflib.get_close_matches(got.lower(), known, n=1)
    remedy = f"did you mean {close[0]}?" if close else "choose one"
    return ModelError(f"precision: got {what} {got!r}, expected one of {', '.join(known)}: {remedy}")
