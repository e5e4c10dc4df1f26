"""The reference models compute what a transformer computes, and cost what a derivation by hand says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from numpy_decoder import (
    CONFIGS,
    DENSE,
    GPT_OSS,
    KV,
    NUMPY_ACTIVATIONS,
    POSITIONS,
    SMALL,
    Array,
    D,
    F,
    G,
    H,
    L,
    S,
    Tree,
    V,
    numpy_inner,
    numpy_losses,
    numpy_norm,
    numpy_rotate,
    random_tokens,
    random_weights,
    single,
)

from perfmodel.errors import ModelError
from perfmodel.graph import Graph, Loop
from perfmodel.models import DecoderConfig, load_program, read_config
from perfmodel.models.attention import attention
from perfmodel.models.decoder import ACTIVATIONS, clamped, loss, normalise, rotate
from perfmodel.models.optimizer import BETA1, BETA2, CLIP, DECAY, LEARNING_RATE, STABILISER, adam
from perfmodel.models.training import BATCH, MICROBATCHES, TOKENS_PER_STEP, accumulate, train_program
from perfmodel.models.weights import layout_of
from perfmodel.trace import Program, trace

POLICIES = ("none", "selective", "full")

# Compiles in a tenth of the time: these models run once.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK)


def assert_near(ours: Tree, theirs: Tree, tolerance: float = 1e-6, noise: float = 0.0) -> None:
    """All leaves alike, but for `tolerance` of the largest element of each and `noise` of the largest of all."""
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
    largest = [float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(theirs)]
    for a, b, scale in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), largest, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=tolerance * scale + noise * max(largest))


by_config = pytest.mark.parametrize("name", CONFIGS)
by_policy = pytest.mark.parametrize("recompute", POLICIES)


# -- parameters ---------------------------------------------------------------------------------------------------


def shapes_of(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each weight by its name, as the program takes them."""
    tree = train_program(config, seq_len=S).arguments[0].tree
    return {path[-1].key: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


HEADS = KV * G
LLAMA_SHAPES = {
    "embedding": (V, D),
    "attention_norm": (L, D),
    "query": (L, D, KV, G, H),
    "key": (L, D, KV, H),
    "value": (L, D, KV, H),
    "out": (L, KV, G, H, D),
    "mlp_norm": (L, D),
    "gate": (L, D, F),
    "up": (L, D, F),
    "down": (L, F, D),
    "final_norm": (D,),
    "head": (D, V),
}


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, {}),
        (
            {"kv_heads": HEADS},
            {
                "query": (L, D, HEADS, 1, H),
                "out": (L, HEADS, 1, H, D),
                **dict.fromkeys(("key", "value"), (L, D, HEADS, H)),
            },
        ),
        (
            {"kv_heads": 1},
            {"query": (L, D, 1, HEADS, H), "out": (L, 1, HEADS, H, D), **dict.fromkeys(("key", "value"), (L, D, 1, H))},
        ),
        ({"tied": True}, {"head": None}),
        ({"rotary": 0.0}, {"positions": (POSITIONS, D)}),
        ({"rotary": 0.25}, {}),
        ({"qkv_bias": True}, {"query_bias": (L, KV, G, H), "key_bias": (L, KV, H), "value_bias": (L, KV, H)}),
        ({"out_bias": True}, {"out_bias": (L, D)}),
        ({"mlp_bias": True}, {"gate_bias": (L, F), "up_bias": (L, F), "down_bias": (L, D)}),
        ({"qk_norm": True}, {"query_norm": (L, H), "key_norm": (L, H)}),
        ({"gated": False}, {"gate": None}),
        ({"gated": False, "mlp_bias": True}, {"gate": None, "up_bias": (L, F), "down_bias": (L, D)}),
        (
            {"norm": "layer"},
            {"attention_norm_bias": (L, D), "mlp_norm_bias": (L, D), "final_norm_bias": (D,)},
        ),
        ({"parallel_residual": True}, {}),
        (
            {"head_dim": 5},
            {"query": (L, D, KV, G, 5), "out": (L, KV, G, 5, D), **dict.fromkeys(("key", "value"), (L, D, KV, 5))},
        ),
        ({"layers": 1}, {name: (1, *shape[1:]) for name, shape in LLAMA_SHAPES.items() if shape[0] == L}),
    ],
)
def test_a_trait_shows_in_the_parameters_and_only_there(
    changes: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...] | None]
) -> None:
    expected = {name: shape for name, shape in {**LLAMA_SHAPES, **shapes}.items() if shape is not None}
    assert shapes_of(replace(SMALL, **changes)) == expected


@pytest.mark.parametrize("name", DENSE)
def test_every_weight_names_its_axes_by_size(name: str) -> None:
    c = DENSE[name]
    sizes = {
        "vocab": c.vocab,
        "embed": c.embed,
        "layers": c.layers,
        "kv_heads": c.kv_heads,
        "q_per_kv": c.q_per_kv,
        "head_dim": c.head_dim,
        "mlp": c.mlp,
        "position": c.positions,
    }
    arguments = train_program(c, seq_len=S).arguments
    for argument in arguments[:2]:
        structs = jax.tree.leaves(argument.tree)
        for struct, axes in zip(
            structs, jax.tree.leaves(argument.axes, is_leaf=lambda node: isinstance(node, tuple)), strict=True
        ):
            assert struct.shape == tuple(sizes[axis] for axis in axes)
    for argument in arguments[2:]:
        assert dict(zip(argument.axes, argument.tree.shape, strict=True)) == {
            "microbatch": MICROBATCHES,
            "batch": BATCH,
            "seq": S,
        }


Weights = Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
LATENT_HEADS = ("kv_heads", "q_per_kv")
MIXTURES: Mapping[str, Mapping[str, Weights]] = {
    "mixtral": {
        "layers": {
            "router": ((L, D, 4), ("layers", "embed", "router")),
            **dict.fromkeys(("gate", "up"), ((L, 4, D, 24), ("layers", "experts", "embed", "mlp"))),
            "down": ((L, 4, 24, D), ("layers", "experts", "mlp", "embed")),
        }
    },
    "deepseek_v3": {
        "dense_layers": {
            **dict.fromkeys(("gate", "up"), ((1, D, F), ("dense_layers", "embed", "mlp"))),
            "down": ((1, F, D), ("dense_layers", "mlp", "embed")),
        },
        "layers": {
            "query_down": ((L - 1, D, 14), ("layers", "embed", "embed")),
            "query_norm": ((L - 1, 14), ("layers", "embed")),
            "query_up": ((L - 1, 14, KV * G, 1, 10), ("layers", "embed", *LATENT_HEADS, "head_dim")),
            "key_value_down": ((L - 1, D, 12), ("layers", "embed", "embed")),
            "key_value_norm": ((L - 1, 12), ("layers", "embed")),
            "key_rotary": ((L - 1, D, 4), ("layers", "embed", "rotary_dim")),
            "key_up": ((L - 1, 12, KV * G, 6), ("layers", "embed", "kv_heads", "plain_dim")),
            "value_up": ((L - 1, 12, KV * G, 5), ("layers", "embed", "kv_heads", "value_dim")),
            "out": ((L - 1, KV * G, 1, 5, D), ("layers", *LATENT_HEADS, "value_dim", "embed")),
            "router": ((L - 1, D, 8), ("layers", "embed", "router")),
            "selection_bias": ((L - 1, 8), ("layers", "router")),
            **dict.fromkeys(("gate", "up"), ((L - 1, 8, D, 24), ("layers", "experts", "embed", "mlp"))),
            "down": ((L - 1, 8, 24, D), ("layers", "experts", "mlp", "embed")),
            **dict.fromkeys(("shared_gate", "shared_up"), ((L - 1, D, 48), ("layers", "embed", "mlp"))),
            "shared_down": ((L - 1, 48, D), ("layers", "mlp", "embed")),
        },
    },
    "gpt_oss": {
        stack: {
            "router": ((2, D, 4), ("layers", "embed", "router")),
            **dict.fromkeys(("gate", "up"), ((2, 4, D, 24), ("layers", "experts", "embed", "mlp"))),
            "down": ((2, 4, 24, D), ("layers", "experts", "mlp", "embed")),
            "sinks": ((2, KV, G), ("layers", "kv_heads", "q_per_kv")),
            "router_bias": ((2, 4), ("layers", "router")),
            **dict.fromkeys(("gate_bias", "up_bias"), ((2, 4, 24), ("layers", "experts", "mlp"))),
            "down_bias": ((2, 4, D), ("layers", "experts", "embed")),
        }
        for stack in ("layers_0", "layers_1")
    },
}
"""Weights that dense layers do not have, by stack."""


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_latent_attention_have_these_weights_and_names(name: str) -> None:
    tree = layout_of(CONFIGS[name])
    for stack, weights in MIXTURES[name].items():
        assert {key: tree[stack][key] for key in weights} == weights
    dense = {*LLAMA_SHAPES, "query_bias", "key_bias", "value_bias", "out_bias"}
    found = {(stack, key) for stack in tree if isinstance(tree[stack], dict) for key in tree[stack]}
    assert {key for _, key in found} <= dense.union(*MIXTURES[name].values())
    assert {stack for stack, _ in found} == set(MIXTURES[name])


# -- an independent writing in NumPy ------------------------------------------------------------------------------


TOKENS, TARGETS = random_tokens(2, S), random_tokens(2, S, seed=2)


NOISE = 1e-6
"""Rounding that sums over all weights leave where a gradient is zero (a key's bias, without rotation)."""


@cache
def loss_and_gradients(name: str, recompute: str) -> tuple[float, Tree]:
    """Of the reference model in single precision, at random weights."""
    function = partial(loss, CONFIGS[name], tokens=TOKENS, targets=TARGETS, recompute=recompute)
    value, gradients = compiled(jax.value_and_grad(function))(single(random_weights(CONFIGS[name])))
    return float(value), jax.tree.map(np.asarray, gradients)


@by_config
def test_the_loss_is_that_of_a_transformer_written_in_numpy(name: str) -> None:
    value, _ = loss_and_gradients(name, "full")
    expected, _ = numpy_losses(CONFIGS[name], random_weights(CONFIGS[name]), TOKENS, TARGETS)
    assert value == pytest.approx(expected, rel=1e-5)


@by_config
def test_the_gradient_is_the_slope_of_the_loss_written_in_numpy(name: str) -> None:
    c, weights, step = CONFIGS[name], random_weights(CONFIGS[name]), 1e-5
    _, gradients = loss_and_gradients(name, "full")
    for i, (path, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(gradients)):
        direction = np.random.default_rng(i).standard_normal(gradient.shape)
        ahead = sum(numpy_losses(c, moved(weights, path, step * direction), TOKENS, TARGETS))
        behind = sum(numpy_losses(c, moved(weights, path, -step * direction), TOKENS, TARGETS))
        slope = (ahead - behind) / (2.0 * step)
        allowed = 1e-4 * norm_of([gradient]) + NOISE * norm_of(gradients)
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=0.0, abs=allowed), path


def norm_of(tree: Tree) -> float:
    return math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(tree)))


def moved(weights: Tree, path: Any, by: Array) -> Tree:
    """Weights of which the one at `path` is moved."""
    return jax.tree_util.tree_map_with_path(lambda p, w: w + by if p == path else w, weights)


@pytest.mark.parametrize("recompute", ["none", "selective"])
@by_config
def test_every_recompute_policy_gives_the_same_gradients(name: str, recompute: str) -> None:
    value, gradients = loss_and_gradients(name, recompute)
    expected_value, expected = loss_and_gradients(name, "full")
    assert value == pytest.approx(expected_value, rel=1e-6)
    assert_near(gradients, expected, 1e-5, NOISE)


# -- parts --------------------------------------------------------------------------------------------------------


HEADS_AND_LENGTHS = [(1, 1, 7), (3, 1, 8), (1, 4, 8), (2, 3, 5), (2, 2, 1)]


def naive_attention(q: Any, k: Any, v: Any, sinks: Any, window: int | None) -> Any:
    """Softmax over materialised scores, key/value heads repeated, a column for the sink."""
    k, v = (jnp.repeat(x[:, :, :, None], q.shape[3], axis=3) for x in (k, v))
    scores = jnp.einsum("bqkgh,bskgh->bkgqs", q, k) / math.sqrt(q.shape[-1])
    visible = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if window is not None:
        visible = visible & ~jnp.tril(visible, -window)
    scores = jnp.where(visible, scores, -jnp.inf)
    if sinks is not None:
        column = jnp.broadcast_to(sinks[None, :, :, None, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    return jnp.einsum("bkgqs,bskgh->bqkgh", jax.nn.softmax(scores)[..., : q.shape[1]], v)


@pytest.mark.parametrize("window", [None, 2, 3, 100])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize(("kv", "group", "seq"), HEADS_AND_LENGTHS)
def test_the_attention_kernel_is_softmax_attention_forward_and_backward(
    kv: int, group: int, seq: int, has_sinks: bool, window: int | None
) -> None:
    random = np.random.default_rng(5)
    q, k = (single(random.standard_normal((2, seq, kv, *groups, H))) for groups in ((group,), ()))
    v, gradient = (single(random.standard_normal((2, seq, kv, *groups, 5))) for groups in ((), (group,)))
    sinks = (single(random.standard_normal((kv, group))),) if has_sinks else ()
    ours = compiled(partial(with_gradients, partial(attention, window=window)))(gradient, q, k, v, *sinks)

    def naive(q: Any, k: Any, v: Any, *sinks: Any) -> Any:
        return naive_attention(q, k, v, sinks[0] if sinks else None, window)

    assert_near(ours, compiled(partial(with_gradients, naive))(gradient, q, k, v, *sinks), 2e-6)


def with_gradients(function: Callable[..., Any], gradient: Any, *operands: Any) -> tuple[Any, ...]:
    out, back = jax.vjp(function, *operands)
    return out, *back(gradient)


@pytest.mark.parametrize("bias", [True, False])
def test_normalising_is_rms_norm_without_a_bias_and_layer_norm_with_one(bias: bool) -> None:
    random = np.random.default_rng(3)
    x, scale, shift = (
        3.0 + 2.0 * random.standard_normal((2, S, D)),
        random.standard_normal(D),
        random.standard_normal(D),
    )
    weights = {"n": scale, "n_bias": shift} if bias else {"n": scale}
    ours = normalise(single(x), single(weights), "n")
    assert_near(ours, numpy_norm(x, scale, shift if bias else None))


@pytest.mark.parametrize("groups", [(), (3,)], ids=["keys", "queries"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_rotating_turns_pairs_of_the_first_share_by_their_position(share: float, groups: tuple[int, ...]) -> None:
    x = np.random.default_rng(4).standard_normal((2, S, KV, *groups, 16))
    expected = numpy_rotate(x.reshape(2, S, -1, 16), share).reshape(x.shape)
    assert_near(compiled(partial(rotate, size=int(16 * share)))(single(x)), expected)


@pytest.mark.parametrize("name", NUMPY_ACTIVATIONS)
def test_an_activation_is_what_its_name_says(name: str) -> None:
    x = np.linspace(-6.0, 6.0, 101)
    assert_near(ACTIVATIONS[name](single(x)), NUMPY_ACTIVATIONS[name](x))


def test_a_clamped_swiglu_bounds_its_operands() -> None:
    gate, up = np.meshgrid(np.linspace(-9.0, 9.0, 19), np.linspace(-9.0, 9.0, 19))
    assert_near(clamped(single(gate), single(up)), numpy_inner(GPT_OSS, gate, up))


def test_every_activation_that_a_config_may_name_has_a_function() -> None:
    from perfmodel.models.families import ACTIVATIONS as READABLE

    assert set(READABLE) == set(ACTIVATIONS) == set(NUMPY_ACTIVATIONS)


# -- training -----------------------------------------------------------------------------------------------------


def test_accumulating_over_microbatches_gives_the_gradients_of_one_batch() -> None:
    tokens, targets = random_tokens(2, 3, S), random_tokens(2, 3, S, seed=2)
    weights = single(random_weights(SMALL))
    gather = compiled(partial(accumulate, SMALL, recompute="none"))
    apart = gather(weights, tokens, targets)
    assert_near(apart, gather(weights, tokens.reshape(1, 6, S), targets.reshape(1, 6, S)), 1e-5)


def numpy_adam(state: Mapping[str, list[Array]], gradients: list[Array], step: int) -> dict[str, list[Array]]:
    """One step of AdamW (Loshchilov & Hutter 2019, algorithm 2) on gradients clipped to a norm of CLIP."""
    norm = norm_of(gradients)
    gradients = [g * CLIP / norm if norm > CLIP else g for g in gradients]
    first = [BETA1 * m + (1 - BETA1) * g for m, g in zip(state["first"], gradients, strict=True)]
    second = [BETA2 * v + (1 - BETA2) * g**2 for v, g in zip(state["second"], gradients, strict=True)]
    directions = [
        m / (1 - BETA1**step) / (np.sqrt(v / (1 - BETA2**step)) + STABILISER)
        for m, v in zip(first, second, strict=True)
    ]
    master = [w - LEARNING_RATE * (d + DECAY * w) for w, d in zip(state["master"], directions, strict=True)]
    return {"master": master, "first": first, "second": second}


def fresh_state(weights: Tree) -> Tree:
    """Optimizer state before the first step."""
    zeros = jax.tree.map(np.zeros_like, weights)
    return {**single({"master": weights, "first": zeros, "second": zeros}), "step": np.int32(0)}


@pytest.mark.parametrize("norm", [0.01, 0.99, 1.01, 50.0])
def test_the_optimizer_is_adamw_with_clipping(norm: float) -> None:
    state, update = fresh_state(random_weights(SMALL)), compiled(adam)
    expected = {kind: jax.tree.leaves(state[kind]) for kind in ("master", "first", "second")}
    structure: Any = jax.tree.structure(state["master"])
    for step in (1, 2, 3):
        gradients = jax.tree.leaves(random_weights(SMALL, seed=step))
        gradients = [g * norm / norm_of(gradients) for g in gradients]
        expected = numpy_adam(expected, gradients, step)
        parameters, state = update(state, single(structure.unflatten(gradients)))
        assert int(state["step"]) == step
        for kind, leaves in expected.items():
            assert_near(jax.tree.leaves(state[kind]), leaves)
        rounded = jax.tree.map(lambda w: np.asarray(w).astype(jnp.bfloat16), state["master"])
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, parameters, rounded)))


@by_config
def test_a_step_hands_back_what_it_was_given_and_the_loss(name: str) -> None:
    program = train_program(CONFIGS[name], seq_len=S)
    trees = [argument.tree for argument in program.arguments]
    parameters, optimizer, value = jax.eval_shape(step_of(program), *trees)
    assert program.donated == tuple(argument.name for argument in program.arguments[:2])
    assert described(parameters) == described(trees[0])
    assert described(optimizer) == described(trees[1])
    assert described(value) == [("", (), "float32")]
    assert {dtype for _, _, dtype in described(parameters)} == {"bfloat16"}
    assert {dtype for _, _, dtype in described(optimizer)} == {"float32", "int32"}


def step_of(program: Program) -> Callable[..., Any]:
    assert callable(program.fn)
    return program.fn


def described(tree: Any) -> list[tuple[str, tuple[int, ...], str]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_steps_on_one_batch_lower_the_loss(name: str) -> None:
    step = compiled(step_of(train_program(CONFIGS[name], seq_len=S)))
    optimizer = fresh_state(random_weights(CONFIGS[name]))
    parameters = jax.tree.map(lambda w: w.astype(jnp.bfloat16), optimizer["master"])
    tokens, targets = (random_tokens(MICROBATCHES, BATCH, S, seed=seed) for seed in (5, 6))
    losses = []
    for _ in range(40):
        parameters, optimizer, value = step(parameters, optimizer, tokens, targets)
        losses.append(float(value))
    assert max(losses[20:]) < min(losses[:10])
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("seq_len", [1, 2048, 8192, 2**23])
def test_a_step_takes_four_mebi_tokens_or_one_sequence(seq_len: int) -> None:
    batch = train_program(SMALL, seq_len=seq_len).global_batch
    assert batch == max(1, 2**22 // seq_len)
    assert TOKENS_PER_STEP == 2**22


# -- costs --------------------------------------------------------------------------------------------------------

ONE = replace(SMALL, layers=1, heads=1, kv_heads=1)
TRACED: Mapping[str, DecoderConfig] = {
    **DENSE,
    "single": ONE,
    "llama3-8b": read_config("llama3-8b"),
}
LENGTHS = {"llama3-8b": 8192, "single": 1}


@cache
def traced(name: str, recompute: str) -> Graph:
    return trace(train_program(TRACED[name], seq_len=LENGTHS.get(name, S), recompute=recompute))


def tokens_of(name: str) -> int:
    return MICROBATCHES * BATCH * LENGTHS.get(name, S)


def layer_matmuls(c: DecoderConfig) -> dict[str, int]:
    """FLOPs per token of the matmuls with weights in one layer."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        "projections": 2 * c.embed * (q + 2 * kv),
        "out": 2 * q * c.embed,
        "up": 2 * c.embed * c.mlp * (2 if c.gated else 1),
        "down": 2 * c.mlp * c.embed,
    }


@pytest.mark.parametrize("name", TRACED)
@by_policy
def test_matmul_flops_of_each_phase_are_those_derived_by_hand(name: str, recompute: str) -> None:
    c, seq_len = TRACED[name], LENGTHS.get(name, S)
    matmuls = layer_matmuls(c)
    weights, head = sum(matmuls.values()), 2 * c.embed * c.vocab
    attention = 2 * (2 * seq_len * c.heads * c.head_dim)  # scores, then values
    # What only feeds the layer's result is not recomputed: the last matmul, of both branches where they are parallel.
    unneeded = matmuls["down"] + (matmuls["out"] if c.parallel_residual else 0)
    expected = {
        "forward": c.layers * (weights + attention) + head,
        "recompute": c.layers * {"none": 0, "selective": attention, "full": weights + attention - unneeded}[recompute],
        # Both operands of every matmul; the backward kernel makes the scores anew: five matmuls for the forward's two.
        "backward": c.layers * (2 * weights + attention * 5 / 2) + 2 * head,
        "update": 0,
    }
    graph = traced(name, recompute)
    for phase, flops in expected.items():
        assert graph.flops(phases=(phase,)) == pytest.approx(flops * tokens_of(name), rel=1e-12), phase
    assert graph.flops() == pytest.approx(sum(expected.values()) * tokens_of(name), rel=1e-12)


@pytest.mark.parametrize("name", TRACED)
@by_policy
def test_model_flops_are_six_n_d_and_attention_whatever_is_recomputed(name: str, recompute: str) -> None:
    c, tokens, seq_len = TRACED[name], tokens_of(name), LENGTHS.get(name, S)
    n = c.layers * sum(layer_matmuls(c).values()) / 2 + c.embed * c.vocab  # the head; looking up embeddings is free
    expected = 6 * n * tokens + 12 * c.layers * (c.heads * c.head_dim) * seq_len * tokens
    assert traced(name, recompute).model_flops() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", TRACED)
def test_six_n_d_counts_all_parameters_but_tables_biases_and_norms(name: str) -> None:
    c, graph = TRACED[name], traced(name, "none")
    entries = jax.tree_util.tree_leaves_with_path(layout_of(c), is_leaf=lambda node: isinstance(node, tuple))
    sizes = {path[-1].key: math.prod(shape) for path, (shape, _) in entries}
    uncounted = [key for key in sizes if key.endswith(("_norm", "_bias")) or key == "positions"]
    n = graph.parameter_count() - sum(sizes[key] for key in uncounted) - (0 if c.tied else sizes["embedding"])
    assert 2 * n == c.layers * sum(layer_matmuls(c).values()) + 2 * c.embed * c.vocab


@by_policy
@pytest.mark.parametrize("name", DENSE)
def test_the_causal_kernels_execute_half_of_what_they_count_and_all_else_the_whole(name: str, recompute: str) -> None:
    shares: dict[bool, set[float]] = {True: set(), False: set()}
    for _, op in traced(name, recompute).walk():
        shares[op.kind.startswith("perfmodel.attention")] |= {work.share for work in op.work}
    assert shares == {True: {0.5}, False: {1.0}}


def saved_bytes(graph: Graph) -> float:
    """What the forward pass over the layers leaves behind, stacked by layer."""
    (microbatches,) = (node for node in graph.nodes if isinstance(node, Loop))
    forward, _ = (node for node in microbatches.body if isinstance(node, Loop))
    slots = zip(forward.parameters, forward.yields, forward.results, strict=True)
    written = [result for parameter, value, result in slots if parameter != value]
    return sum(graph.bytes(v) for v in written if graph.values[v].dims and forward.trip in graph.values[v].dims[0])


@pytest.mark.parametrize("name", ["llama3-8b", *DENSE])
@by_policy
def test_a_layer_saves_what_its_policy_does_not_recompute(name: str, recompute: str) -> None:
    c, graph = TRACED[name], traced(name, recompute)
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layer_input = c.embed
    into_mlp = 0 if c.parallel_residual else c.embed  # the sum that the second norm reads
    normed = 2 * c.embed
    heads = q + 2 * kv + q + (q + kv if c.qk_norm else 0)  # into the core and out of it; into the norms
    inner = (3 if c.gated else 2) * c.mlp  # into the nonlinearity and out of it
    statistics = 4 * c.heads  # fp32, one number per head
    everything = 2 * (layer_input + into_mlp + normed + heads + inner)
    expected = {"none": everything + statistics, "selective": everything, "full": 2 * layer_input}[recompute]
    tokens = tokens_of(name) / MICROBATCHES
    assert saved_bytes(graph) == c.layers * tokens * expected


def test_the_largest_models_are_traced_without_an_array() -> None:
    before = {id(array) for array in jax.live_arrays()}
    graph = trace(load_program("llama3-70b"))
    assert {id(array) for array in jax.live_arrays()} <= before
    assert graph.parameter_count() == pytest.approx(70.55e9, rel=1e-3)


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    """Path of the config of a small model, each of whose tokens goes to 3 of 8 experts."""
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(TINY | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 32})
    )
    return str(path)


def test_experts_may_have_room_for_every_token(mixture: str) -> None:
    """As far as people write it out."""
    assert trace(load_program(mixture, seq_len=16, capacity_factor=2.66)).size("experts") == 8


def test_experts_with_more_room_than_there_are_tokens_are_refused(mixture: str) -> None:
    """A token goes to an expert at most once: 8 / 3 of its fair share is the most that one may get."""
    with pytest.raises(ModelError, match=r"capacity factor: got 2.67 for .*, expected at most 2.66, .*: give less"):
        load_program(mixture, seq_len=16, capacity_factor=2.67)
