"""Vision transformer: patches by a strided convolution, then a scanned encoder (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.parts import attend, cross_entropy, layer_norm
from zoo.step import arrays, training

LAYER = {
    "norm1": {"scale": "layers embed", "bias": "layers embed"},
    "qkv": {"kernel": "layers embed 3 kv_heads head", "bias": "layers 3 kv_heads head"},
    "out": {"kernel": "layers kv_heads head embed", "bias": "layers embed"},
    "norm2": {"scale": "layers embed", "bias": "layers embed"},
    "up": {"kernel": "layers embed mlp", "bias": "layers mlp"},
    "down": {"kernel": "layers mlp embed", "bias": "layers embed"},
}
REST = {
    "patches": {"kernel": "patch patch 3 embed", "bias": "embed"},
    "token": "embed",
    "positions": "seq embed",
    "norm": {"scale": "embed", "bias": "embed"},
    "head": {"kernel": "embed vocab", "bias": "vocab"},
}


def layer(x: Any, w: Any) -> Any:
    y = jnp.einsum("bsd,dnkh->nbskh", layer_norm(x, **w["norm1"]), w["qkv"]["kernel"])
    q, k, v = y + w["qkv"]["bias"][:, None, None]
    heads = attend(q[:, :, :, None], k, v, causal=False)[:, :, :, 0]
    x = x + jnp.einsum("bskh,khd->bsd", heads, w["out"]["kernel"]) + w["out"]["bias"]
    y = jax.nn.gelu(layer_norm(x, **w["norm2"]) @ w["up"]["kernel"] + w["up"]["bias"], approximate=False)
    return x + y @ w["down"]["kernel"] + w["down"]["bias"]


def loss(w: Any, batch: Any) -> Any:
    size = w["patches"]["kernel"].shape[0]
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel, bias = w["patches"]["kernel"], w["patches"]["bias"]
    x = lax.conv_general_dilated(batch["images"], kernel, (size,) * 2, "VALID", dimension_numbers=numbers)
    x = (x + bias).reshape(x.shape[0], -1, x.shape[-1])
    x = jnp.concatenate([jnp.broadcast_to(w["token"], (x.shape[0], 1, x.shape[-1])), x], axis=1) + w["positions"]
    x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, w["layers"])
    return cross_entropy(layer_norm(x[:, 0], **w["norm"]) @ w["head"]["kernel"] + w["head"]["bias"], batch["labels"])


def vit(
    *,
    batch: int = 4,
    image: int = 32,
    patch: int = 8,
    layers: int = 3,
    embed: int = 32,
    heads: int = 4,
    mlp: int = 64,
    classes: int = 12,
) -> Program:
    """A step of an image classifier; `image=224, patch=16, layers=12, embed=768, heads=12, mlp=3072` is ViT-B/16."""
    sizes = {"layers": layers, "embed": embed, "kv_heads": heads, "head": embed // heads, "mlp": mlp, "vocab": classes}
    sizes |= {"patch": patch, "seq": (image // patch) ** 2 + 1}
    images, names = arrays(f"batch={batch} {image} {image} 3")
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return training(
        "vit",
        loss,
        weights=arrays({**REST, "layers": LAYER}, sizes),
        batch=({"images": images, "labels": labels}, {"images": names, "labels": ("batch",)}),
    )
