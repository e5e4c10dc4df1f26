"""Bytes on a rank against published formulas and against what XLA allocates for the arguments."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from machines import fake_machine
from programs import D, F, L, mlp_program, spec

from perfmodel.cut import Cut
from perfmodel.graph import Graph
from perfmodel.layout import Layout, Rules, assignment
from perfmodel.memory import MemoryPlan, Peak, Residents, memory_use, plan_memory
from perfmodel.models import load_program, read_config
from perfmodel.models.config import DecoderConfig, parse_config
from perfmodel.models.precision import read_precision
from perfmodel.models.training import train_program
from perfmodel.plan import analyse
from perfmodel.predict import predict
from perfmodel.shard import shard
from perfmodel.trace import Argument, Program, trace
from perfmodel.trace.program import StableHLO
from perfmodel.work import ONE, SYMBOLS, Amount, Evaluator, Term

BF16, F32, I32 = 2, 4, 4

TINY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 192,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
}


@cache
def program(name: str, recompute: str = "full") -> Program:
    if name == "mlp":
        return mlp_program()
    if name.startswith("tiny"):
        precision = read_precision(name.partition(" ")[2])
        return train_program(parse_config(TINY, "tiny"), seq_len=64, recompute=recompute, precision=precision)
    return load_program(name, seq_len=256, recompute=recompute)


@cache
def graph(name: str, recompute: str = "full") -> Graph:
    return trace(program(name, recompute))


@cache
def plan(name: str, recompute: str, zero: int, sp: bool) -> MemoryPlan:
    return plan_memory(shard(graph(name, recompute), assignment(zero=zero, sp=sp)))


def parts(name: str, layout: Layout) -> dict[str, float]:
    """Bytes on a rank by what holds them."""
    found = plan(name, layout.recompute, layout.zero, layout.sp)
    use = memory_use(found, layout.sizes(graph(name, layout.recompute)), 0.0)
    return {key: float(part) for key, part in use.parts.items()}


# -- weights and optimizer state ----------------------------------------------------------------------------------


def test_mixed_precision_adam_keeps_18_bytes_per_parameter() -> None:
    """Rajbhandari et al. 2020, section 3.1, count 16: 2 of weights, 2 of gradients, 12 of fp32 weights and moments.

    Our gradients accumulate over microbatches in fp32, which makes it 18.
    """
    found = parts("tiny", Layout(zero=0, global_batch=4))
    count = graph("tiny").parameter_count()
    step, losses, counter = I32, 4 * F32, I32
    assert found["parameters"] == BF16 * count
    assert found["optimizer"] == 3 * F32 * count + step
    assert found["gradients"] == F32 * count + losses + counter


@pytest.mark.parametrize("ranks", [2, 8, 64])
@pytest.mark.parametrize(("zero", "sharded"), [(0, ""), (1, "o"), (2, "og"), (3, "ogp")])
def test_each_zero_stage_divides_one_more_term_by_the_ranks(zero: int, sharded: str, ranks: int) -> None:
    """Rajbhandari et al. 2020, figure 1 and table 1: (2 + 2 + K) Psi, with K and then each 2 divided by N."""
    found = parts("llama3.2-1b", Layout(fsdp=ranks, zero=zero, global_batch=2 * ranks))
    count = graph("llama3.2-1b").parameter_count()
    for key, role, size in (("o", "optimizer", 3 * F32), ("g", "gradients", F32), ("p", "parameters", BF16)):
        share = ranks if key in sharded else 1
        assert found[role] == pytest.approx(size * count / share, abs=64)


def test_tensor_parallelism_divides_all_but_the_norms() -> None:
    c = read_config("llama3.2-1b")
    norms = (2 * c.layers + 1) * c.embed
    found = parts("llama3.2-1b", Layout(tp=8, zero=0, global_batch=1))
    split = graph("llama3.2-1b").parameter_count() - norms
    assert found["parameters"] == BF16 * (split / 8 + norms)


def test_keys_and_values_are_copied_where_tp_exceeds_their_heads() -> None:
    c = read_config("llama3.2-1b")
    norms, keys = (2 * c.layers + 1) * c.embed, 2 * c.layers * c.embed * c.kv_heads * c.head_dim
    found = parts("llama3.2-1b", Layout(tp=32, zero=0, global_batch=1))
    split = graph("llama3.2-1b").parameter_count() - norms - keys
    assert found["parameters"] == BF16 * (split / 32 + keys / c.kv_heads + norms)


@pytest.mark.parametrize("name", ["llama3-8b", "gpt2"])
@pytest.mark.parametrize("pp", [2, 4])
def test_a_stage_keeps_its_layers_and_its_end_of_the_model(name: str, pp: int) -> None:
    """The fullest of first and last; a tied embedding is on both."""
    c = read_config(name)
    vocabulary, norm = c.vocab * c.embed, c.embed * (2 if c.norm == "layer" else 1)
    positions = 0 if c.rotary else c.positions * c.embed
    layers = graph(name).parameter_count() - vocabulary * (1 if c.tied else 2) - norm - positions
    found = parts(name, Layout(pp=pp, zero=0, global_batch=8))
    first, last = layers / pp + vocabulary + positions, layers / pp + vocabulary + norm
    assert found["parameters"] in (BF16 * first, BF16 * last)
    assert found["optimizer"] == pytest.approx(3 * F32 / BF16 * found["parameters"], abs=64)
    assert found["gradients"] == pytest.approx(F32 / BF16 * found["parameters"], abs=64)


# -- saved activations --------------------------------------------------------------------------------------------


def saved(name: str, layout: Layout) -> float:
    return parts(name, layout)["activations"]


@pytest.mark.parametrize("name", ["llama3.2-1b", "gpt2"])
@pytest.mark.parametrize("mb", [1, 4])
def test_full_recompute_saves_the_input_of_every_layer(name: str, mb: int) -> None:
    """The carry of the scan over layers, L S B d in bf16; tokens wait too, for the embedding's gradient."""
    c = read_config(name)
    S = 256
    assert saved(name, Layout(mb=mb, zero=0, global_batch=mb)) == c.layers * S * mb * c.embed * BF16 + S * mb * I32


def gpt_layer(c: DecoderConfig, recompute: str) -> float:
    """Bytes per token of a layer, in units of h: 34 + 5 a s / h in Korthikanti et al. 2022 (arXiv 2205.05198), 4.1.

    Of the 11 + 5 a s / h of attention, 8 stay: the input of the projections, q, k, v and the output's input, all in
    16 bits. We have no dropout, hence no mask of 1; and scores are never in memory: a flash kernel saves one fp32
    statistic per head and token instead, 4 a / h, and under selective recompute not even that. Of the MLP's 19, the
    dropout mask's 1 goes; the norms' 4 stay.
    """
    attention, mlp, norms = 11 - 1, 19 - 1, 4
    statistics = 4 * c.heads / c.embed if recompute == "none" else 0
    return attention + mlp + norms + statistics


def llama_layer(c: DecoderConfig, recompute: str) -> float:
    """The same count for RMS norm, rotary embedding, grouped queries and a gated MLP, in units of h."""
    kv, mlp = c.kv_heads / c.heads, c.mlp / c.embed
    norms, projections = 2 * 2, 2 * 2
    queries, keys, values = 2, 2 * kv, 2 * kv
    statistics = 4 * c.heads / c.embed if recompute == "none" else 0
    return norms + projections + queries + keys + values + 2 + 2 * 3 * mlp + statistics


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize(("name", "layer"), [("gpt2", gpt_layer), ("gpt3-175b", gpt_layer), ("llama3-8b", llama_layer)])
def test_saved_activations_are_those_of_korthikanti(name: str, layer: Any, recompute: str) -> None:
    c = read_config(name)
    S = 256
    found = saved(name, Layout(zero=0, global_batch=1, recompute=recompute)) - S * I32
    assert found == pytest.approx(c.layers * S * c.embed * layer(c, recompute), rel=1e-12)


@pytest.mark.parametrize("tp", [2, 8])
def test_sequence_parallelism_divides_all_saved_activations_by_tp(tp: int) -> None:
    """Korthikanti et al. 2022, table 2: tensor and sequence parallel, s b h / t (34 + 5 a s / h)."""
    whole, split = (saved("llama3-8b", Layout(tp=n, zero=0, global_batch=1, recompute="none")) for n in (1, tp))
    assert split == pytest.approx(whole / tp, rel=1e-3)


@pytest.mark.parametrize("tp", [2, 8])
def test_without_it_norms_and_inputs_of_matmuls_stay_whole(tp: int) -> None:
    """Korthikanti et al. 2022, table 2: tensor parallel alone, s b h (10 + 24 / t), less our two dropout masks."""
    c = read_config("gpt3-175b")
    layout = Layout(tp=tp, sp=False, zero=0, global_batch=1, recompute="selective")
    found = saved("gpt3-175b", layout) - 256 * I32
    assert found == pytest.approx(c.layers * 256 * c.embed * (10 - 2 + 24 / tp), rel=1e-12)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("axis", ["cp", "pp"])
def test_context_and_pipeline_stages_divide_what_a_microbatch_saves(axis: str, recompute: str) -> None:
    whole = saved("llama3-8b", Layout(zero=0, global_batch=1, recompute=recompute))
    split = saved("llama3-8b", Layout(**{axis: 4}, zero=0, global_batch=1, recompute=recompute))  # type: ignore[arg-type]
    assert split == pytest.approx(whole / 4, abs=256 * I32)


def peak(*points: Amount) -> Peak:
    """The peak of some sums."""
    monomials = list(dict.fromkeys(e for point in points for e in point))
    rows = [[point.get(e, 0.0) for e in monomials] for point in points]
    return Peak.of(monomials, np.array(rows).reshape(len(points), len(monomials)))


EMPTY = Residents(
    kept={role: {} for role in ("parameters", "optimizer", "inputs")},
    gradients={},
    saved={},
    repeated=peak(),
    once=peak(),
)


@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.parametrize("microbatches", [1, 2, 3, 8])
def test_the_first_stage_holds_a_microbatch_for_every_stage_behind_it(pp: int, microbatches: int) -> None:
    """Narayanan et al. 2021 (arXiv 2104.04473), section 2.2: 1F1B keeps at most p microbatches in flight."""
    c = read_config("llama3.2-1b")
    layout = Layout(pp=pp, zero=0, global_batch=microbatches)
    first = MemoryPlan(stages={**plan("llama3.2-1b", "full", 0, True).stages, "last": EMPTY})
    found = memory_use(first, layout.sizes(graph("llama3.2-1b")), 0.0).parts["activations"]
    layer = 256 * c.embed * BF16
    assert found == min(pp, microbatches) * (c.layers / pp * layer + 256 * I32)


@pytest.mark.parametrize("microbatches", [1, 8])
def test_the_last_stage_holds_the_microbatch_at_work_only(microbatches: int) -> None:
    c = read_config("llama3.2-1b")
    layout = Layout(pp=4, zero=0, global_batch=microbatches)
    last = MemoryPlan(stages={**plan("llama3.2-1b", "full", 0, True).stages, "first": EMPTY})
    found = memory_use(last, layout.sizes(graph("llama3.2-1b")), 0.0).parts["activations"]
    assert found == c.layers / 4 * 256 * c.embed * BF16


@pytest.mark.parametrize(
    ("stage", "layers", "in_flight"), [("first", 5, 4), ("middle", 8, 3), ("last", 0, 1), ("last", 3, 1)]
)
def test_a_stage_holds_what_its_own_layers_do(stage: str, layers: int, in_flight: int) -> None:
    """Of 16 layers on 4 stages; the first keeps 4 microbatches, the second 3, the last the one at work."""
    c = read_config("llama3.2-1b")
    counts = {"first": 0, "middle": 0, "last": 0, stage: layers}
    cut = Cut(layers=counts, shares={name: n / 4 for name, n in counts.items()}, between=2.0)
    stages = {**dict.fromkeys(("only", "first", "middle", "last"), EMPTY)}
    stages[stage] = plan("llama3.2-1b", "full", 0, True).stages[stage]
    sizes = Layout(pp=4, zero=0, global_batch=8).sizes(graph("llama3.2-1b"))
    found = memory_use(MemoryPlan(stages=stages), sizes, 0.0, cut=cut).parts
    tokens = 256 * I32 if stage == "first" else 0
    assert float(found["activations"]) == pytest.approx(in_flight * (layers * 256 * c.embed * BF16 + tokens))
    layer = 2 * c.embed * c.head_dim * (c.heads + c.kv_heads) + 3 * c.embed * c.mlp + 2 * c.embed
    beside = {"first": c.vocab * c.embed, "middle": 0, "last": c.vocab * c.embed + c.embed}[stage]
    assert float(found["parameters"]) == pytest.approx(BF16 * (layers * layer + beside))


@pytest.mark.parametrize(("repeated", "once", "live"), [(20, 0, 35), (20, 34, 35), (20, 100, 100), (0, 0, 30)])
def test_microbatches_in_flight_add_to_the_peak_of_a_microbatch_but_not_to_that_of_the_update(
    repeated: float, once: float, live: float
) -> None:
    """10 B of gradients and 5 B saved for each of 4 microbatches; the peaks hold the gradients and one of them."""
    peaks: Mapping[str, Any] = {"repeated": peak({ONE: repeated}), "once": peak({ONE: once})}
    stage = replace(EMPTY, gradients={ONE: 10.0}, saved={ONE: 5.0}, **peaks)
    stages = {**dict.fromkeys(("only", "last"), EMPTY), "first": stage}
    use = memory_use(MemoryPlan(stages=stages), dict.fromkeys(SYMBOLS, 1.0) | {"pp": 4.0, "microbatch": 9.0}, 0.0)
    assert use.total == live
    assert (use.parts["gradients"], use.parts["activations"]) == (10, 20)


@pytest.mark.parametrize(("repeated", "once", "live"), [(35, 0, 25), (35, 30, 30), (20, 12, 12), (12, 10, 10)])
def test_a_single_microbatch_needs_no_sums_of_gradients_while_it_is_at_work(
    repeated: float, once: float, live: float
) -> None:
    """10 B of sums are in every peak but that of the loop, which compilers drop where it has one trip."""
    peaks: Mapping[str, Any] = {"repeated": peak({ONE: repeated}), "once": peak({ONE: once})}
    stages = dict.fromkeys(("only", "first", "last"), replace(EMPTY, gradients={ONE: 10.0}, saved={ONE: 5.0}, **peaks))
    use = memory_use(MemoryPlan(stages=stages), dict.fromkeys(SYMBOLS, 1.0), 0.0)
    assert use.total == live
    assert sum(use.parts.values()) == live
    assert use.parts["gradients"] == min(10, live - 5)


amounts = st.dictionaries(
    st.sampled_from([Term(1.0).times((symbol,)).exponents for symbol in SYMBOLS[:4]]), st.integers(1, 9).map(float)
)


@given(points=st.lists(amounts, max_size=6), sizes=st.tuples(*(st.integers(1, 8).map(float) for _ in SYMBOLS)))
def test_a_peak_is_the_largest_of_its_points(points: list[Amount], sizes: tuple[float, ...]) -> None:
    evaluate = Evaluator(dict(zip(SYMBOLS, sizes, strict=True)))
    assert peak(*points).bytes(evaluate) == max(map(evaluate.amount, points), default=0.0)


def test_a_peak_keeps_what_all_points_hold_once_and_no_point_that_another_exceeds() -> None:
    one, tp = ONE, Term(1.0).times(("tp_q",)).exponents
    assert peak({one: 5.0, tp: 1.0}, {one: 3.0, tp: 2.0}, {one: 3.0}) == Peak(
        {one: 3.0, tp: 1.0}, ({one: 2.0}, {tp: 1.0})
    )


# -- peaks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [Layout(global_batch=24), Layout(pp=3, tp=2, dp=2, mb=2, global_batch=24)])
def test_parts_sum_to_the_total_and_the_runtime_takes_its_share(layout: Layout) -> None:
    reserve = 1000.0
    use = memory_use(plan("mlp", "full", 3, True), layout.sizes(graph("mlp")), reserve)
    assert use.parts["runtime"] == reserve
    assert use.total == sum(use.parts.values())
    assert all(part >= 0.0 for part in use.parts.values())


def test_the_backward_pass_leaves_bf16_gradients_of_all_layers_beside_their_sum() -> None:
    """The gradients of one microbatch, stacked over the layers, and one layer's activations."""
    found = parts("mlp", Layout(zero=0, global_batch=24))
    assert BF16 * 2 * L * D * F < found["working set"] < BF16 * 2 * L * D * F + 20 * 32 * F * F32


def test_fsdp_gathers_one_layer_at_a_time() -> None:
    """What FSDP needs beyond its shards: one layer's weights, not all of them; the table is made small."""
    c = replace(read_config("llama3.2-1b"), vocab=512)
    layer = 2 * c.embed * c.head_dim * (c.heads + c.kv_heads) + 3 * c.embed * c.mlp
    traced = trace(train_program(c, seq_len=256))
    working = {}
    for zero in (2, 3):
        layout = Layout(fsdp=64, zero=zero, global_batch=64)
        use = memory_use(plan_memory(shard(traced, layout.assignment)), layout.sizes(traced), 0.0)
        working[zero] = float(use.parts["working set"])
    assert BF16 * layer / 2 < working[3] - working[2] < 2 * BF16 * layer
    assert c.layers * layer * BF16 > 4 * 2 * BF16 * layer


ROWS, COLUMNS = 64, 32
T = F32 * ROWS * COLUMNS


def nameless(fn: Any, *arguments: Any, donated: tuple[str, ...] = ()) -> Graph:
    """A program of arguments x0, x1, ... without axis names."""
    names = jax.tree.map(lambda leaf: (None,) * leaf.ndim, arguments)
    named = (
        Argument(name=f"x{i}", role="other", tree=tree, axes=axes)
        for i, (tree, axes) in enumerate(zip(arguments, names, strict=True))
    )
    return trace(Program(name="nameless", fn=fn, arguments=tuple(named), donated=donated))


def working(traced: Graph) -> float:
    """Bytes beyond the arguments at the peak, on one rank."""
    found = memory_use(plan_memory(shard(traced, assignment(zero=0, sp=False))), dict.fromkeys(SYMBOLS, 1.0), 0.0)
    return float(found.parts["working set"])


def matrix(rows: int = ROWS, columns: int = COLUMNS) -> jax.ShapeDtypeStruct:
    return spec(rows, columns, dtype=jnp.float32)


@pytest.mark.parametrize(("donated", "size"), [((), T), (("x0",), 0)])
def test_a_result_takes_memory_unless_it_replaces_a_donated_argument(donated: tuple[str, ...], size: float) -> None:
    assert working(nameless(lambda x: 2.0 * x, matrix(), donated=donated)) == size


def test_a_value_lives_until_it_was_read_for_the_last_time() -> None:
    """e = exp x is dead when its product is multiplied once more: two values at a time, never three."""
    square = F32 * COLUMNS * COLUMNS
    assert working(nameless(lambda x, w: (jnp.exp(x) @ w) @ w, matrix(), matrix(COLUMNS, COLUMNS))) == 2 * T
    assert working(nameless(lambda x, y: (jnp.exp(x).T @ y) @ y.T, matrix(), matrix())) == T + square


@pytest.mark.parametrize("renamed", [lambda y: y.T, lambda y: y.reshape(COLUMNS, ROWS).T.reshape(COLUMNS, ROWS)])
def test_a_value_lives_as_long_as_another_name_for_it(renamed: Any) -> None:
    """A product is renamed at once, which moves nothing, and needed after another product was made."""

    def fn(x: Any, v: Any, w: Any) -> Any:
        turned = renamed(x @ v)
        return turned @ (x @ w)

    square = F32 * COLUMNS * COLUMNS
    assert working(nameless(fn, matrix(), *[matrix(COLUMNS, COLUMNS)] * 2)) == 2 * T + square


def test_what_is_computed_again_keeps_its_operands_alive() -> None:
    """Twice the product is cheap, so nobody stores it; the product must wait for the second kernel that needs it."""

    def fn(x: Any, w: Any) -> Any:
        y = 2.0 * (x @ w)
        return (y - jnp.sum(y, axis=1, keepdims=True)).astype(jnp.bfloat16)

    assert working(nameless(fn, matrix(), matrix(COLUMNS, COLUMNS))) == T + T / 2 + F32 * ROWS


@pytest.mark.parametrize(
    ("fn", "size"),
    [
        (lambda y, z: jnp.exp(y), T),
        (lambda y, z: jnp.exp(y.reshape(COLUMNS, ROWS)), T),
        (lambda y, z: jnp.exp(y).T, T),
        (lambda y, z: (jnp.exp(y), z), 2 * T),
        (lambda y, z: jnp.exp(y).astype(jnp.bfloat16), T + T / 2),
        (lambda y, z: (jnp.exp(y), y), 2 * T),
        (lambda y, z: jnp.exp(y) + jnp.exp(y[::-1]), 2 * T),
        (lambda y, z: jnp.exp(y) + jnp.exp(y.reshape(COLUMNS, ROWS).T), 2 * T),
        (lambda y, z: jnp.exp(y) * jnp.exp(z), 2 * T),
        (lambda y, z: (jnp.exp(y) * z, jnp.exp(z)), 2 * T),
        (lambda y, z: jnp.sort(y), 2 * T),
    ],
)
def test_an_elementwise_result_takes_the_place_of_an_operand_that_nobody_needs_any_more(fn: Any, size: float) -> None:
    """As XLA's buffer assignment has it: as large, and every element read for the one that takes its place only."""

    def step(x: Any) -> Any:
        return fn(jnp.sort(x, axis=0), jnp.sort(x, axis=1))

    assert working(nameless(step, matrix())) == size


@pytest.mark.parametrize(("buffer", "size"), [("zeros", T), ("donated", 0)])
def test_an_update_of_a_slice_takes_the_memory_of_its_buffer(buffer: str, size: float) -> None:
    def fn(x: Any, row: Any, i: Any) -> Any:
        into = jnp.zeros((ROWS, COLUMNS), jnp.float32) if buffer == "zeros" else x
        return lax.dynamic_update_slice(into, row, (i, 0))

    donated = ("x0",) if buffer == "donated" else ()
    assert working(nameless(fn, matrix(), matrix(1), spec(dtype=jnp.int32), donated=donated)) == size


def step(checkpoint: bool) -> Any:
    """A training step in fp32, which XLA's CPU backend does not widen, without names and microbatches."""

    def layer(x: Any, w: Any) -> Any:
        y = x * lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + 1e-5)
        return x + jax.nn.silu(y @ w["up"]) @ w["down"]

    def loss(w: Any, x: Any, ids: Any) -> Any:
        body = jax.checkpoint(layer) if checkpoint else layer
        x, _ = lax.scan(lambda x, w: (body(x, w), None), x, w["layers"])
        logits = x @ w["head"]
        chosen = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    return lambda w, x, ids: jax.tree.map(lambda w, g: w - 0.1 * g, w, jax.grad(loss)(w, x, ids))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("vocab", [512, 4096])
def test_the_peak_of_a_training_step_is_about_that_of_xlas_buffers(checkpoint: bool, vocab: int) -> None:
    """XLA's CPU backend clears the stacks of gradients first of all, and works on no result of a matmul before it is
    written; it aligns, pads and copies arguments.
    """
    layers = {"up": spec(8, 256, 1024, dtype=jnp.float32), "down": spec(8, 1024, 256, dtype=jnp.float32)}
    weights = {"layers": layers, "head": spec(256, vocab, dtype=jnp.float32)}
    arguments = weights, spec(2048, 256, dtype=jnp.float32), spec(2048, dtype=jnp.int32)
    traced = nameless(step(checkpoint), *arguments, donated=("x0",))
    analysis = jax.jit(step(checkpoint), donate_argnums=0).lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    assert working(traced) == pytest.approx(analysis.temp_size_in_bytes, rel=0.15)


# -- what XLA allocates -------------------------------------------------------------------------------------------

DEVICES = 8
CASES: list[tuple[str, Layout]] = [
    ("mlp", Layout(dp=8, zero=0, global_batch=16, recompute="none")),
    ("mlp", Layout(fsdp=8, zero=1, global_batch=16, recompute="none")),
    ("mlp", Layout(fsdp=8, zero=3, global_batch=16, recompute="none")),
    ("mlp", Layout(tp=8, zero=0, global_batch=16, recompute="none")),
    ("mlp", Layout(dp=2, fsdp=2, cp=2, mb=2, zero=2, global_batch=16, recompute="none")),
    ("tiny", Layout(fsdp=8, zero=3, global_batch=16)),
    ("tiny", Layout(tp=8, zero=0, global_batch=16)),
    ("tiny fp8", Layout(fsdp=8, zero=3, global_batch=16)),
    ("tiny bf16,master=0,moments=int8", Layout(fsdp=8, zero=3, global_batch=16)),
]
MESH = ("dp", "fsdp", "cp", "tp_kv", "tp_q")


def partition(names: Sequence[str | None], rules: Rules) -> PartitionSpec:
    """Mesh axes of an array with so named dims; an axis shards the first name of the rules that is there."""
    axes: list[tuple[str, ...]] = [()] * len(names)
    free = set(MESH)
    for name, wanted in rules:
        for d, found in enumerate(names):
            if found == name:
                axes[d] += tuple(axis for axis in wanted if axis in free)
                free.difference_update(wanted)
    return PartitionSpec(*(each or None for each in axes))


def argument_bytes(name: str, layout: Layout) -> int:
    """Bytes of the arguments on each device of a step that XLA compiled for `layout`'s shardings."""
    sizes = {key: int(size) for key, size in layout.sizes(graph(name)).items()}
    mesh = Mesh(np.array(jax.devices()).reshape([sizes[axis] for axis in MESH]), MESH)
    arguments, shardings = [], []
    for argument in program(name).arguments:
        structure: Any
        leaves, structure = jax.tree.flatten(argument.tree)
        names = structure.flatten_up_to(argument.axes)
        rules = (*layout.assignment.stored.get(argument.role, ()), *layout.assignment.compute)
        arguments.append(structure.unflatten(map(resized, leaves, names, [sizes] * len(leaves))))
        shardings.append(structure.unflatten([NamedSharding(mesh, partition(each, rules)) for each in names]))
    fn = program(name).fn
    assert not isinstance(fn, StableHLO)
    step = jax.jit(fn, in_shardings=tuple(shardings), donate_argnums=(0, 1))
    analysis = step.lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    return int(analysis.argument_size_in_bytes)


def resized(leaf: Any, names: Sequence[str | None], sizes: Mapping[str, int]) -> jax.ShapeDtypeStruct:
    batch = ("batch", "microbatch")
    shape = (sizes[name] if name in batch else size for size, name in zip(leaf.shape, names, strict=True))
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)


@pytest.mark.slow
def test_weights_state_and_inputs_are_what_xla_allocates_for_the_arguments() -> None:
    """XLA runs in a process of its own, whose JAX has eight devices."""
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "error", str(Path(__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = []
    for name, layout in CASES:
        assert layout.ranks == DEVICES
        rates = dict.fromkeys(("bf16", "f16", "f32", "f8"), 1.0)
        held = predict(graph(name), layout, fake_machine(tensor_flops=rates)).memory_parts
        found.append(held["parameters"] + held["optimizer"] + held["inputs"])
    assert found == json.loads(done.stdout)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(json.dumps([argument_bytes(name, layout) for name, layout in CASES]))


def test_an_analysed_graph_leaves_nothing_to_the_garbage_collector() -> None:
    """A cycle through one would keep it, millions of objects of many, until the next full collection."""
    sharded = shard(graph("mlp"), assignment(zero=3, sp=True))
    gc.collect()
    gc.disable()
    try:
        analyse(sharded)
        plan_memory(sharded)
        assert gc.collect() == 0
    finally:
        gc.enable()
