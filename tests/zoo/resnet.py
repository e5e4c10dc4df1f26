"""ResNet-50: bottlenecks of convolutions, each normalised over the batch (He et al. 2016, table 1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perfmodel.trace import Argument, Program
from zoo.parts import cross_entropy
from zoo.step import arrays, momentum

EXPANSION = 4


def normalised(channels: int) -> dict[str, str]:
    return {"scale": f"embed={channels}", "bias": f"embed={channels}"}


def convolution(size: int, inputs: int | str, outputs: int) -> dict[str, Any]:
    inputs = inputs if isinstance(inputs, str) else f"embed={inputs}"
    return {"kernel": f"{size} {size} {inputs} embed={outputs}", "norm": normalised(outputs)}


def bottleneck(inputs: int, width: int, *, project: bool) -> dict[str, Any]:
    block = {
        "reduce": convolution(1, inputs, width),
        "conv": convolution(3, width, width),
        "expand": convolution(1, width, EXPANSION * width),
    }
    return {**block, "project": convolution(1, inputs, EXPANSION * width)} if project else block


def described(width: int, stages: tuple[int, ...], classes: int) -> dict[str, Any]:
    blocks, inputs = [], width
    for stage, depth in enumerate(stages):
        for i in range(depth):
            blocks.append(bottleneck(inputs, width << stage, project=i == 0))
            inputs = EXPANSION * width << stage
    head = {"kernel": f"embed={inputs} vocab={classes}", "bias": f"vocab={classes}"}
    return {"stem": convolution(7, "3", width), "blocks": blocks, "head": head}


def batch_norm(x: Any, w: Any) -> tuple[Any, Any]:
    """Normalised values, and the statistics that inference will use."""
    mean = jnp.mean(x, (0, 1, 2))
    variance = jnp.mean((x - mean) ** 2, (0, 1, 2))
    return (x - mean) * lax.rsqrt(variance + 1e-5) * w["scale"] + w["bias"], {"scale": variance, "bias": mean}


def convolve(x: Any, w: Any, stride: int = 1) -> tuple[Any, Any]:
    pad = w["kernel"].shape[0] // 2
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, w["kernel"], (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=numbers)
    return batch_norm(y, w["norm"])


def max_pool(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)])


def block(x: Any, w: Any, stride: int) -> tuple[Any, Any]:
    seen = {}
    y, seen["reduce"] = convolve(x, w["reduce"])
    y, seen["conv"] = convolve(jax.nn.relu(y), w["conv"], stride)
    y, seen["expand"] = convolve(jax.nn.relu(y), w["expand"])
    if "project" in w:
        x, seen["project"] = convolve(x, w["project"], stride)
    return jax.nn.relu(x + y), seen


def resnet(
    *, batch: int = 4, image: int = 32, width: int = 16, stages: tuple[int, ...] = (2, 1, 1, 1), classes: int = 12
) -> Program:
    """A step that also follows the statistics of the batch; `width=64, stages=(3, 4, 6, 3)` is ResNet-50."""
    strides = [1 + (i == 0 and stage > 0) for stage, depth in enumerate(stages) for i in range(depth)]

    def loss(weights: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        x, stem = convolve(images, weights["stem"], 2)
        x, seen = max_pool(jax.nn.relu(x)), []
        for w, stride in zip(weights["blocks"], strides, strict=True):
            x, statistics = block(x, w, stride)
            seen.append(statistics)
        logits = jnp.mean(x, (1, 2)) @ weights["head"]["kernel"] + weights["head"]["bias"]
        return cross_entropy(logits, labels), {"stem": stem, "blocks": seen}

    def step(weights: Any, moments: Any, statistics: Any, images: Any, labels: Any) -> Any:
        (value, seen), gradients = jax.value_and_grad(loss, has_aux=True)(weights, images, labels)
        statistics = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, statistics, seen)
        return (*momentum(weights, moments, gradients), statistics, value)

    words = described(width, stages, classes)
    norms = jax.tree.map(lambda layer: layer["norm"], {k: words[k] for k in ("stem", "blocks")}, is_leaf=_has_norm)
    weights, names = arrays(words)
    statistics, statistics_names = arrays(norms)
    images, image_names = arrays(f"batch={batch} {image} {image} 3")
    return Program(
        name="resnet",
        fn=step,
        arguments=(
            Argument(name="weights", role="parameters", tree=weights, axes=names),
            Argument(name="moments", role="optimizer", tree=weights, axes=names),
            Argument(name="statistics", role="other", tree=statistics, axes=statistics_names),
            Argument(name="images", role="batch", tree=images, axes=image_names),
            Argument(name="labels", role="batch", tree=jax.ShapeDtypeStruct((batch,), jnp.int32), axes=("batch",)),
        ),
        donated=("weights", "moments", "statistics"),
    )


def _has_norm(tree: Any) -> bool:
    return isinstance(tree, dict) and "norm" in tree
