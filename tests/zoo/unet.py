"""Diffusion U-Net: residual blocks that hear the time, attention at the bottom, and skips from down to up."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Program
from zoo.parts import attend
from zoo.step import arrays, training

GROUPS, NUMBERS = 4, ("NHWC", "HWIO", "NHWC")


def convolution(size: int, inputs: int, outputs: int) -> dict[str, str]:
    return {"kernel": f"{size} {size} {inputs} {outputs}", "bias": f"{outputs}"}


def normalised(channels: int) -> dict[str, str]:
    return {"scale": f"{channels}", "bias": f"{channels}"}


def residual(inputs: int, outputs: int, time: int) -> dict[str, Any]:
    return {
        "norm1": normalised(inputs),
        "conv1": convolution(3, inputs, outputs),
        "time": {"kernel": f"{time} {outputs}", "bias": f"{outputs}"},
        "norm2": normalised(outputs),
        "conv2": convolution(3, outputs, outputs),
        "skip": convolution(1, inputs, outputs),
    }


def described(colours: int, width: int, levels: int) -> dict[str, Any]:
    time, widths = 4 * width, [width << level for level in range(levels)]
    bottom = widths[-1]
    return {
        "time1": {"kernel": f"{width} {time}", "bias": f"{time}"},
        "time2": {"kernel": f"{time} {time}", "bias": f"{time}"},
        "first": convolution(3, colours, width),
        "down": [
            {"block": residual(a, b, time), "half": convolution(3, b, b)}
            for a, b in zip([width, *widths], widths, strict=False)
        ],
        "middle": residual(bottom, bottom, time),
        "attention": {"norm": normalised(bottom), "qkv": f"{bottom} 3 {bottom}", "out": f"{bottom} {bottom}"},
        "up": [
            {"double": convolution(4, b, b), "block": residual(2 * b, a, time)}
            for a, b in reversed(list(zip([width, *widths], widths, strict=False)))
        ],
        "norm": normalised(width),
        "last": convolution(3, width, colours),
    }


def group_norm(x: Any, w: Any) -> Any:
    grouped = x.reshape(*x.shape[:3], GROUPS, -1)
    mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
    variance = jnp.var(grouped, (1, 2, 4), keepdims=True)
    return ((grouped - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape) * w["scale"] + w["bias"]


def convolve(x: Any, w: Any, stride: int = 1) -> Any:
    y = lax.conv_general_dilated(x, w["kernel"], (stride,) * 2, "SAME", dimension_numbers=NUMBERS)
    return y + w["bias"]


def double(x: Any, w: Any) -> Any:
    return lax.conv_transpose(x, w["kernel"], (2, 2), "SAME", dimension_numbers=NUMBERS) + w["bias"]


def block(x: Any, time: Any, w: Any) -> Any:
    y = convolve(jax.nn.silu(group_norm(x, w["norm1"])), w["conv1"])
    y = y + (jax.nn.silu(time) @ w["time"]["kernel"] + w["time"]["bias"])[:, None, None]
    return convolve(x, w["skip"]) + convolve(jax.nn.silu(group_norm(y, w["norm2"])), w["conv2"])


def attention(x: Any, w: Any) -> Any:
    y = group_norm(x, w["norm"]).reshape(x.shape[0], -1, x.shape[-1])
    q, k, v = jnp.moveaxis(jnp.einsum("bsd,dne->bsne", y, w["qkv"]), 2, 0)
    heads = attend(q[:, :, None, None], k[:, :, None], v[:, :, None], causal=False)
    return x + (heads.reshape(y.shape) @ w["out"]).reshape(x.shape)


def noise(w: Any, x: Any, time: Any) -> Any:
    """The noise that the net sees in an image at a time."""
    half = w["time1"]["kernel"].shape[0] // 2
    angles = time[:, None] * jnp.exp(-jnp.arange(half) * (jnp.log(10000.0) / half))
    t = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1) @ w["time1"]["kernel"] + w["time1"]["bias"]
    t = jax.nn.silu(t) @ w["time2"]["kernel"] + w["time2"]["bias"]
    x, skips = convolve(x, w["first"]), []
    for level in w["down"]:
        x = block(x, t, level["block"])
        skips.append(x)
        x = convolve(x, level["half"], 2)
    x = attention(block(x, t, w["middle"]), w["attention"])
    for level in w["up"]:
        x = block(jnp.concatenate([double(x, level["double"]), skips.pop()], -1), t, level["block"])
    return convolve(jax.nn.silu(group_norm(x, w["norm"])), w["last"])


def loss(w: Any, batch: Any) -> Any:
    """Denoising, with noise drawn inside the step."""
    images, time = batch["images"], batch["time"]
    drawn = jax.random.normal(jax.random.key(batch["seed"]), images.shape)
    signal = jnp.cos(time * (jnp.pi / 2))[:, None, None, None]
    noisy = signal * images + jnp.sqrt(1 - signal**2) * drawn
    return jnp.mean((noise(w, noisy, time) - drawn) ** 2)


def unet(*, batch: int = 4, image: int = 16, colours: int = 4, width: int = 8, levels: int = 2) -> Program:
    images, names = arrays(f"batch={batch} {image} {image} {colours}")
    time, time_names = arrays(f"batch={batch}")
    return training(
        "unet",
        loss,
        weights=arrays(described(colours, width, levels)),
        batch=(
            {"images": images, "time": time, "seed": jax.ShapeDtypeStruct((), jnp.uint32)},
            {"images": names, "time": time_names, "seed": ()},
        ),
    )
