"""Mixtures of experts: what travels, what is computed and who reduces which gradients, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy_decoder import DEEPSEEK, GPT_OSS, MIXTURE, QWEN3_MOE, SMALL, D

from perfmodel.errors import ModelError
from perfmodel.graph import Graph, Loop, Op
from perfmodel.layout import Layout
from perfmodel.models import DecoderConfig, load_program, read_config
from perfmodel.models.architecture import Experts
from perfmodel.models.dispatch import Rows, capacity_of, combine, dispatch
from perfmodel.models.training import BATCH, MICROBATCHES, train_program
from perfmodel.models.weights import layout_of
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, Reshard, ShardedGraph
from perfmodel.state import LOCAL
from perfmodel.trace import Argument, Program, trace
from perfmodel.work import TP, Evaluator

S = 16
BF16, F32 = 2, 4

CONFIGS: Mapping[str, DecoderConfig] = {
    "mixtral": replace(SMALL, experts=MIXTURE),
    "qwen3_moe": replace(QWEN3_MOE, experts=replace(MIXTURE, count=8, active=4)),
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": GPT_OSS,
}


def experts_of(name: str) -> Experts:
    experts = CONFIGS[name].experts
    assert experts is not None
    return experts


@cache
def traced(name: str, recompute: str = "none", capacity_factor: float | None = None) -> Graph:
    return trace(train_program(CONFIGS[name], seq_len=S, recompute=recompute, capacity_factor=capacity_factor))


# -- what travels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Move:
    """A collective in the loops over layers or outside: on what, over which axes longer than 1, how often a step."""

    kind: str
    axes: frozenset[str]
    phase: str
    names: frozenset[str | None]
    dtype: str
    bytes: float
    times: float


def moves(sharded: ShardedGraph, sizes: Mapping[str, Any]) -> list[Move]:
    graph, evaluator = sharded.graph, Evaluator(sizes)

    def visit(nodes: Sequence[LocalNode], times: float) -> Iterator[Move]:
        for node in nodes:
            if isinstance(node, LocalLoop):
                yield from visit(node.body, times * float(evaluator.term(node.trips)))
            elif isinstance(node, Reshard) and node.kind not in LOCAL:
                value = graph.values[sharded.copies[node.operand].value]
                axes = frozenset("tp" if axis in TP else axis for axis in node.axes if sizes[axis] > 1)
                if axes:
                    yield Move(
                        kind=node.kind,
                        axes=axes,
                        phase=node.phase,
                        names=frozenset(graph.factors[f].name for dim in value.dims for f in dim),
                        dtype=value.dtype,
                        bytes=float(evaluator.term(node.bytes)),
                        times=times,
                    )

    return list(visit(sharded.nodes, 1.0))


def moved(name: str, layout: Layout, recompute: str = "none", capacity_factor: float | None = None) -> list[Move]:
    graph = traced(name, recompute, capacity_factor)
    return moves(shard(graph, layout.assignment), layout.sizes(graph))


LAYOUTS = {
    "alone": Layout(ep=4, global_batch=8),
    "dp": Layout(ep=2, dp=4, global_batch=16, zero=0),
    "fsdp, mb": Layout(ep=2, fsdp=2, mb=3, global_batch=24),
    "cp": Layout(ep=4, cp=2, mb=2, global_batch=16),
    "tp": Layout(ep=2, tp=2, sp=False, global_batch=4),
    "sp": Layout(ep=2, tp=2, sp=True, global_batch=4),
    "all": Layout(ep=2, dp=2, fsdp=2, tp=2, cp=2, sp=True, mb=2, global_batch=32),
}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("capacity_factor", [None, 1.0, 1.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_travel_to_the_experts_and_back_in_each_direction(
    layout: str, capacity_factor: float | None, recompute: str
) -> None:
    e, chosen = experts_of("mixtral"), LAYOUTS[layout]
    found = [m for m in moved("mixtral", chosen, recompute, capacity_factor) if "ep" in m.axes and "embed" in m.names]
    found = [m for m in found if m.kind == "all_to_all"]
    pieces = chosen.cp * (chosen.tp if chosen.sp else 1)
    rows = chosen.mb * S * e.active * (capacity_factor or 1.0) / pieces
    assert {m.bytes for m in found} == {rows * D * BF16}
    assert {m.axes for m in found} == {frozenset({"ep"})}
    layers = chosen.microbatches * CONFIGS["mixtral"].layers
    times = {"forward": 2, "recompute": 2 if recompute == "full" else 0, "backward": 2}
    for phase, expected in times.items():
        assert sum(m.times for m in found if m.phase == phase) == expected * layers, phase


def rows_moved(
    name: str, layout: Layout, capacity_factor: float | None = None
) -> dict[tuple[str, frozenset[str]], float]:
    """Bytes that a layer moves of experts' rows in its forward and backward pass, by kind and axes."""
    c = CONFIGS[name]
    total: dict[tuple[str, frozenset[str]], float] = {}
    for m in moved(name, layout, capacity_factor=capacity_factor):
        if {"batch", "experts"} <= m.names and m.dtype == "bf16":
            share = m.bytes * m.times / float(layout.microbatches) / (c.layers - c.dense_layers)
            total[m.kind, m.axes] = total.get((m.kind, m.axes), 0.0) + share
    return total


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("cp", [1, 2])
@pytest.mark.parametrize("ep", [1, 2, 4])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_rows_of_experts_move_over_ep_and_tp_alone(
    name: str, ep: int, cp: int, tp: int, sp: bool, capacity_factor: float | None
) -> None:
    """Ranks of cp hold copies of the experts: a part of a sequence, and what is kept of its rows, never leaves them."""
    layout = Layout(ep=ep, cp=cp, tp=tp, sp=sp and tp > 1, mb=2, global_batch=8 * ep)
    rows = layout.mb * S * experts_of(name).active * D * BF16 / cp
    shuffle = {("all_to_all", frozenset({"ep"})): 4 * rows / (tp if layout.sp else 1)} if ep > 1 else {}
    kinds = ("all_gather", "reduce_scatter") if layout.sp else ("all_reduce",) if tp > 1 else ()
    tensor = {(kind, frozenset({"tp"})): 2 * rows for kind in kinds}
    assert rows_moved(name, layout, capacity_factor=capacity_factor) == shuffle | tensor


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize(("experts", "axes"), [("cp+ep", {"cp", "ep"}), ("tp+cp+ep", {"tp", "cp", "ep"})])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_one_shuffle_takes_rows_to_experts_over_the_ranks_of_a_sequence_too(
    name: str, experts: str, axes: set[str], capacity_factor: float | None
) -> None:
    """Experts that are whole on a rank have no rows gathered over tp; their gradients are sums over dp alone."""
    layout = Layout(dp=2, ep=2, cp=2, tp=2, mb=2, global_batch=16, zero=0, experts=experts)
    rows = layout.mb * S * experts_of(name).active * D * BF16 / layout.cp
    parts = {(kind, frozenset({"tp"})): 2 * rows for kind in ("all_gather", "reduce_scatter") if "tp" not in axes}
    shuffle = {("all_to_all", frozenset(axes)): 4 * rows / layout.tp}
    assert rows_moved(name, layout, capacity_factor=capacity_factor) == shuffle | parts
    gradients = [m for m in moved(name, layout, capacity_factor=capacity_factor) if m.phase == "update"]
    assert {m.axes for m in gradients if {"experts", "embed"} <= m.names} == {frozenset({"dp"})}


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("capacity_factor", [None, 1.5])
def test_without_a_capacity_ranks_tell_each_other_their_counts(capacity_factor: float | None, recompute: str) -> None:
    layout = LAYOUTS["fsdp, mb"]
    found = [m for m in moved("mixtral", layout, recompute, capacity_factor) if m.dtype == "i32"]
    trips = layout.microbatches * CONFIGS["mixtral"].layers
    expected = {
        ("all_to_all", "forward"): 4.0 * layout.mb * MIXTURE.count,
        **({("all_to_all", "recompute"): 4.0 * layout.mb * MIXTURE.count} if recompute == "full" else {}),
    }
    assert {(m.kind, m.phase): m.bytes for m in found} == ({} if capacity_factor else expected)
    assert all(m.times == trips for m in found)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("capacity_factor", [None, 1.5])
def test_every_layer_of_every_family_sends_its_rows_out_and_back(name: str, capacity_factor: float | None) -> None:
    c, e, layout = CONFIGS[name], experts_of(name), LAYOUTS["alone"]
    found = [m for m in moved(name, layout, capacity_factor=capacity_factor) if m.kind == "all_to_all"]
    large = [m for m in found if m.dtype == "bf16"]
    factor = capacity_of(S * e.active, e.count, capacity_factor) * e.count / S if capacity_factor else e.active
    assert {m.bytes for m in large} == {layout.mb * S * factor * D * BF16}
    assert sum(m.times for m in large) == 4 * layout.microbatches * (c.layers - c.dense_layers)
    assert {m.dtype for m in found} == {"bf16"} | (set() if capacity_factor else {"i32"})


@pytest.mark.parametrize("capacity_factor", [None, 1.5])
@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_experts_are_reduced_where_experts_are_copies_of_each_other(
    name: str, zero: int, capacity_factor: float | None
) -> None:
    layout = Layout(ep=4, dp=2, fsdp=2, global_batch=16, zero=zero)
    reduced = [
        m
        for m in moved(name, layout, capacity_factor=capacity_factor)
        if m.kind in ("all_reduce", "reduce_scatter") and not m.names & {"batch"} and m.names - {None}
    ]
    scattered = {"reduce_scatter": {"fsdp"}, "all_reduce": {"dp"}} if zero else {"all_reduce": {"dp", "fsdp"}}
    for experts in (True, False):
        axes: dict[str, set[str]] = {}
        for m in reduced:
            if ("experts" in m.names) is experts and "embed" in m.names:
                axes.setdefault(m.kind, set()).update(m.axes)
        with_ep = (
            {"reduce_scatter": {"fsdp", "ep"}, "all_reduce": {"dp"}} if zero else {"all_reduce": {"dp", "fsdp", "ep"}}
        )
        assert axes == (scattered if experts else with_ep)


def test_tensor_parallel_experts_gather_their_rows_and_scatter_the_sums() -> None:
    """Where a sequence is sharded over tp, so are its rows: they are gathered behind the shuffle, as Megatron does."""
    layout = LAYOUTS["sp"]
    found = [m for m in moved("mixtral", layout) if m.axes == {"tp"} and "experts" in m.names and "batch" in m.names]
    rows = float(layout.mb * S * MIXTURE.active * D * BF16)
    trips = layout.microbatches * SMALL.layers
    counted = {(m.kind, m.phase, m.bytes): 0.0 for m in found}
    for m in found:
        counted[m.kind, m.phase, m.bytes] += m.times
    assert counted == {
        (kind, phase, rows): trips for kind in ("all_gather", "reduce_scatter") for phase in ("forward", "backward")
    }


@pytest.mark.parametrize("capacity_factor", [None, 1.25])
def test_a_bias_behind_the_experts_does_not_hold_their_sums_up(capacity_factor: float | None) -> None:
    """They are scattered behind the shuffle back, with or without a capacity."""
    found = [m for m in moved("gpt_oss", LAYOUTS["sp"], "none", capacity_factor) if m.axes == {"tp"} and m.times > 1]
    assert "all_reduce" not in {m.kind for m in found if "batch" in m.names and m.bytes > 4096}


# -- what is computed ---------------------------------------------------------------------------------------------


def attention_matmuls(c: DecoderConfig, window: int | None) -> tuple[float, float]:
    """FLOPs per token of the projections, and of the scores and values, of which only those in the window count."""
    value = c.head_dim if c.latent is None else c.latent.value
    seen = min(window or S, S)
    core = 2.0 * seen * c.heads * (c.head_dim + value)
    if c.latent is None:
        return 2.0 * c.embed * c.head_dim * (2 * c.heads + 2 * c.kv_heads), core
    m = c.latent
    queries = m.query_rank * (c.embed + c.heads * c.head_dim) if m.query_rank else c.embed * c.heads * c.head_dim
    keys = c.embed * (m.key_value_rank + m.rotary) + m.key_value_rank * c.heads * (m.plain + m.value)
    return 2.0 * (queries + keys + c.heads * m.value * c.embed), core


def mlp_matmuls(c: DecoderConfig, capacity_factor: float | None) -> float:
    """FLOPs per token of the router, the visited experts and the shared ones."""
    e = c.experts
    assert e is not None
    rows = e.active if capacity_factor is None else capacity_of(S * e.active, e.count, capacity_factor) * e.count / S
    return 2.0 * c.embed * e.count + (rows + e.shared) * 6.0 * c.embed * e.width


@pytest.mark.parametrize("capacity_factor", [None, 1.5])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_costs_what_its_own_experts_cost(name: str, capacity_factor: float | None) -> None:
    c = CONFIGS[name]
    expected = 2.0 * c.embed * c.vocab
    for i in range(c.layers):
        dense = i < c.dense_layers
        mlp = 6.0 * c.embed * c.mlp if dense else mlp_matmuls(c, capacity_factor)
        expected += sum(attention_matmuls(c, c.windows[(i - c.dense_layers) % len(c.windows)])) + mlp
    tokens = MICROBATCHES * BATCH * S
    graph = traced(name, capacity_factor=capacity_factor)
    assert graph.flops(phases=("forward",)) == pytest.approx(tokens * expected, rel=1e-12)
    assert graph.model_flops() == pytest.approx(3.0 * tokens * expected, rel=1e-12)


def test_gradients_of_experts_cost_twice_the_forward_pass_but_for_biases() -> None:
    for name in ("mixtral", "deepseek_v3"):
        c = CONFIGS[name]
        windows = [attention_matmuls(c, None)[1] for _ in range(c.layers)]
        tokens = MICROBATCHES * BATCH * S
        graph = traced(name)
        forward = graph.flops(phases=("forward",))
        # The backward kernel of attention makes the scores anew, and five matmuls for the forward's two.
        latent = c.latent
        again = 2.0 * S * c.heads * (3 * c.head_dim + 2 * (latent.value if latent else c.head_dim)) * c.layers
        expected = 2.0 * (forward - tokens * sum(windows)) + tokens * again
        assert graph.flops(phases=("backward",)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("window", "seq"), [(5, 16), (16, 16), (100, 16), (1, 8)])
def test_a_window_executes_its_band_of_the_scores(window: int, seq: int) -> None:
    c = replace(GPT_OSS, windows=(window, None))
    graph = trace(train_program(c, seq_len=seq))
    shares = [work.share for _, op in graph.walk() for work in op.work if op.kind == "perfmodel.attention"]
    band = min(window / seq, 1.0)
    assert sorted({*shares}) == sorted({0.5, 1.0 - band / 2.0})
    full = 2.0 * MICROBATCHES * BATCH * seq * seq * c.heads * 2 * c.head_dim
    counted = [work.flops for _, op in graph.walk() if op.kind == "perfmodel.attention" for work in op.work]
    counted = [flops for flops in counted if flops > full / MICROBATCHES / seq / 4]
    assert {flops * MICROBATCHES for flops in counted} >= {full / 2, full / 2 * band}


def saved_bytes(graph: Graph) -> float:
    """What the forward pass over the layers leaves behind, stacked by layer."""
    (microbatches,) = (node for node in graph.nodes if isinstance(node, Loop))
    forward = next(node for node in microbatches.body if isinstance(node, Loop))
    slots = zip(forward.parameters, forward.yields, forward.results, strict=True)
    written = [result for parameter, value, result in slots if parameter != value]
    return sum(graph.bytes(v) for v in written if graph.values[v].dims and forward.trip in graph.values[v].dims[0])


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_layer_of_experts_saves_its_rows_once_on_each_side(recompute: str) -> None:
    c, e = CONFIGS["mixtral"], MIXTURE
    heads = c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    # The input, into both norms and out of them; rows, into the nonlinearity and out of it, and what came back.
    tokens = BF16 * (4 * D + heads + e.active * (D + 3 * e.width + D)) + e.active * (F32 + F32)
    counts = F32 * e.count / S
    statistics = F32 * c.heads if recompute == "none" else 0
    expected = BF16 * D if recompute == "full" else tokens + counts + statistics
    assert saved_bytes(traced("mixtral", recompute)) == c.layers * BATCH * S * expected


# -- parameters ---------------------------------------------------------------------------------------------------

# Of a token's parameters, some authors leave the input embedding out.
ACTIVE = {
    "mixtral-8x7b": (12.9e9, True),
    "mixtral-8x22b": (39e9, True),
    "qwen3-30b-a3b": (3.3e9, True),
    "qwen3-235b-a22b": (22e9, True),
    "deepseek-v3": (36.6e9, False),
    "gpt-oss-20b": (3.61e9, False),
    "gpt-oss-120b": (5.13e9, False),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_visits_the_parameters_that_the_authors_published(name: str) -> None:
    c, (published, with_embedding) = read_config(name), ACTIVE[name]
    assert c.experts is not None
    entries = jax.tree.leaves(layout_of(c), is_leaf=lambda node: isinstance(node, tuple))
    share = c.experts.active / c.experts.count
    active = sum(math.prod(shape) * (share if "experts" in names else 1.0) for shape, names in entries)
    active -= 0.0 if with_embedding else c.vocab * c.embed
    assert active == pytest.approx(published, rel=0.02)


# -- dispatch -----------------------------------------------------------------------------------------------------


def random_choice(batch: int, seq: int, experts: int, active: int) -> Any:
    random = np.random.default_rng(3)
    merit = random.standard_normal((batch, seq, experts)) + np.linspace(0.0, 2.0, experts)  # some are liked better
    return np.argsort(-merit, axis=-1)[..., :active].astype(np.int32)


@pytest.mark.parametrize("capacity", [None, 1, 3, 100])
@pytest.mark.parametrize(("seq", "experts", "active"), [(8, 4, 2), (7, 4, 3), (5, 8, 1), (1, 4, 4)])
def test_rows_are_the_tokens_of_each_expert_in_order_as_far_as_they_fit(
    seq: int, experts: int, active: int, capacity: int | None
) -> None:
    chosen = random_choice(2, seq, experts, active)
    x = np.random.default_rng(4).standard_normal((2, seq, 6)).astype(np.float32)
    weights = np.random.default_rng(5).random((2, seq, active)).astype(np.float32)
    layout = Rows(experts, capacity)
    rows, counts = dispatch(layout, x, chosen)
    outputs = np.asarray(rows) * 2.0 + 1.0
    result = np.asarray(combine(layout, outputs, chosen, weights))
    assert rows.shape[1] % experts == 0
    for b in range(2):
        place, kept = 0, set()
        for i in range(experts):
            mine = [s for s in range(seq) if i in chosen[b, s]][:capacity]
            start = place if capacity is None else i * capacity
            np.testing.assert_array_equal(np.asarray(rows)[b, start : start + len(mine)], x[b, mine])
            assert int(counts[b, i]) == len(mine)
            kept |= {(s, i) for s in mine}
            place += len(mine)
        for s in range(seq):
            heard = sum(w for i, w in zip(chosen[b, s], weights[b, s], strict=True) if (s, i) in kept)
            np.testing.assert_allclose(result[b, s], heard * (2.0 * x[b, s] + 1.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capacity", [None, 2])
def test_gradients_through_dispatch_and_combine_are_those_of_indexing(capacity: int | None) -> None:
    chosen, layout = random_choice(2, 6, 4, 2), Rows(4, capacity)
    random = np.random.default_rng(6)
    x, g = (random.standard_normal((2, 6, 5)).astype(np.float32) for _ in range(2))
    weights = random.random((2, 6, 2)).astype(np.float32)
    scale = random.standard_normal((4, 5)).astype(np.float32)
    limit = 6 if capacity is None else capacity
    rank = np.stack([[[(chosen[b, :s] == i).sum() for i in row] for s, row in enumerate(chosen[b])] for b in range(2)])

    def ours(x: Any, weights: Any) -> Any:
        rows, counts = dispatch(layout, x, chosen)
        ends = jnp.cumsum(counts, axis=1) if capacity is None else jnp.arange(1, 5)[None] * capacity
        owner = jnp.sum(jnp.arange(rows.shape[1])[None, :, None] >= ends[:, None, :], axis=2)
        return jnp.sum(combine(layout, jnp.sin(rows) * scale[jnp.minimum(owner, 3)], chosen, weights) * g)

    def theirs(x: Any, weights: Any) -> Any:
        heard = jnp.where(rank < limit, weights, 0.0)
        return jnp.sum(jnp.sum(heard[..., None] * jnp.sin(x)[:, :, None] * scale[chosen], axis=2) * g)

    for a, b in zip(jax.grad(ours, (0, 1))(x, weights), jax.grad(theirs, (0, 1))(x, weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan, True, "2"])
def test_a_capacity_factor_is_a_number_above_0(factor: Any) -> None:
    with pytest.raises(ModelError, match=r"^capacity factor: got .*, expected a number above 0"):
        load_program("mixtral-8x7b", capacity_factor=factor)


def test_only_a_model_with_experts_has_a_capacity() -> None:
    with pytest.raises(ModelError, match=r"^capacity factor: got 1.25 for llama3-8b, which has no experts"):
        load_program("llama3-8b", capacity_factor=1.25)


# -- ragged matmuls and sorts of any program ----------------------------------------------------------------------

E, K, N = 4, 6, 10


def ragged_program(rows: int, batch: int | None) -> Graph:
    """A ragged matmul and its gradients, rows of a batch or without one."""
    lead = () if batch is None else (batch,)
    numbers = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((len(lead) + 1,), (1,)), ((), ())),
        lhs_ragged_dimensions=[len(lead)],
        rhs_group_dimensions=[0],
    )

    def step(x: Any, w: Any, counts: Any) -> Any:
        return jax.grad(lambda x, w: jnp.sum(lax.ragged_dot_general(x, w, counts, numbers) ** 2), (0, 1))(x, w)

    def argument(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any = jnp.float32) -> Argument:
        return Argument(name=name, role="other", tree=jax.ShapeDtypeStruct(shape, dtype), axes=axes)

    names = ("batch",)[: len(lead)]
    return trace(
        Program(
            name="ragged",
            fn=step,
            arguments=(
                argument("x", (*lead, rows, K), (*names, None, "in")),
                argument("w", (E, K, N), ("experts", "in", "out")),
                argument("counts", (*lead, E), (*names, None), jnp.int32),
            ),
        )
    )


def ragged_ops(graph: Graph) -> list[Op]:
    return [op for _, op in graph.walk() if op.kind == "chlo.ragged_dot"]


def names_of(graph: Graph, op: Op, indices: Sequence[int]) -> list[str | None]:
    return [graph.factors[op.local[i]].name for i in indices]


@pytest.mark.parametrize("batch", [None, 3])
def test_the_groups_of_a_ragged_matmul_and_of_its_gradients_take_their_rows_along(batch: int | None) -> None:
    rows = 8
    graph = ragged_program(rows, batch)
    forward, *gradients = ragged_ops(graph)
    to_weights = [op for op in gradients if graph.shape(op.results[0]) == (E, K, N)]
    lead = ["batch"] if batch else []
    assert len(gradients) == 2
    assert len(to_weights) == 1
    for op in (forward, *gradients):
        assert op.blocked == ()
        assert sum(work.flops for work in op.work) == 2.0 * (batch or 1) * rows * K * N
        (ragged,) = (dim for dim in op.operand_dims[0] if len(dim) == 2)
        assert names_of(graph, op, ragged) == ["experts", None]
        assert [graph.factors[op.local[i]].size for i in ragged] == [E, rows // E]
        assert names_of(graph, op, [i for dim in op.operand_dims[2] for i in dim]) == [*lead, "experts"]
    assert names_of(graph, forward, forward.summed[0]) == ["in"]
    (op,) = to_weights
    assert names_of(graph, op, op.summed[0]) == [*lead, None]
    assert names_of(graph, op, [i for dim in op.result_dims[0] for i in dim]) == ["experts", "in", "out"]
    assert "every group of a ragged matmul, such as an expert, has equally many rows" in graph.notes


def test_groups_that_do_not_divide_the_rows_stay_whole() -> None:
    graph = ragged_program(E * 2 + 1, None)
    for op in ragged_ops(graph):
        assert {"experts"} <= set(names_of(graph, op, op.blocked))


def test_a_sort_leaves_no_name_on_the_dim_it_sorted() -> None:
    x = jax.ShapeDtypeStruct((3, 8), jnp.float32)
    argument = Argument(name="x", role="other", tree=x, axes=("batch", "seq"))
    graph = trace(Program(name="sort", fn=lambda x: jnp.argsort(x, axis=1), arguments=(argument,)))
    (result,) = graph.results
    names = [[graph.factors[f].name for f in dim] for dim in graph.values[result].dims]
    assert names == [["batch"], [None]]
