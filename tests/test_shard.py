"""Derived collectives against the textbook, counted per layer and in bytes from the sizes of the program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import B, D, F, L, M, S, mlp_graph

from perfmodel.graph import Graph
from perfmodel.layout import Layout, assignment
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, Reshard, ShardedGraph
from perfmodel.state import LOCAL
from perfmodel.trace import Argument, Program, trace
from perfmodel.work import MICROBATCH, PER_RANK, SYMBOLS, Evaluator

BF16, F32 = 2, 4


@cache
def graph() -> Graph:
    return mlp_graph()


def collectives(sharded: ShardedGraph, layout: Layout) -> Iterator[tuple[Reshard, float, float]]:
    """(collective, how often it runs in a step on a rank, bytes of each)."""
    evaluate = Evaluator(layout.sizes(sharded.graph))

    def visit(nodes: tuple[LocalNode, ...], times: float) -> Iterator[tuple[Reshard, float, float]]:
        for node in nodes:
            if isinstance(node, LocalLoop):
                yield from visit(node.body, times * float(evaluate.term(node.trips)))
            elif isinstance(node, Reshard) and node.kind not in LOCAL:
                yield node, times, float(evaluate.term(node.bytes))

    yield from visit(sharded.nodes, 1.0)


def totals(layout: Layout, *, smallest: float = 64.0) -> dict[tuple[str, str], float]:
    """Bytes per step and rank by (kind, axes of size above 1), scalars aside."""
    sizes = layout.sizes(graph())
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for node, times, size in collectives(shard(graph(), layout.assignment), layout):
        axes = "+".join(sorted({axis.split("_")[0] for axis in node.axes if sizes[axis] > 1}))
        if axes and size >= smallest:
            found[node.kind, axes] += times * size
    return dict(found)


W = L * 2 * D * F  # weights
G = 24  # sequences per step


def test_data_parallel_reduces_fp32_gradients_once_per_step() -> None:
    assert totals(Layout(dp=4, zero=0, global_batch=G)) == {("all_reduce", "dp"): F32 * W}


def test_zero_1_scatters_gradients_and_gathers_weights_once_per_step() -> None:
    assert totals(Layout(fsdp=4, zero=1, global_batch=G)) == {
        ("reduce_scatter", "fsdp"): F32 * W,
        ("all_gather", "fsdp"): BF16 * W,
    }


def test_zero_2_scatters_gradients_of_every_microbatch() -> None:
    layout = Layout(fsdp=4, zero=2, global_batch=G)
    assert totals(layout) == {
        ("reduce_scatter", "fsdp"): layout.microbatches * BF16 * W,
        ("all_gather", "fsdp"): BF16 * W,
    }


def test_fsdp_gathers_weights_twice_and_scatters_gradients_per_microbatch() -> None:
    layout = Layout(fsdp=4, zero=3, global_batch=G)
    assert totals(layout) == {
        ("all_gather", "fsdp"): layout.microbatches * 2 * BF16 * W,
        ("reduce_scatter", "fsdp"): layout.microbatches * BF16 * W,
    }


def test_hybrid_sharding_reduces_the_scattered_gradients_over_the_replicas() -> None:
    layout = Layout(dp=2, fsdp=4, zero=3, global_batch=G)
    assert totals(layout)["all_reduce", "dp"] == F32 * W / 4


def activations(layout: Layout) -> float:
    """Bytes of one block boundary on a data-parallel rank, all microbatches together."""
    return float(G / layout.data * S * D * BF16)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallel_reduces_once_forward_and_once_backward_per_block(tp: int) -> None:
    layout = Layout(tp=tp, sp=False, zero=0, global_batch=G)
    assert totals(layout) == {("all_reduce", "tp"): 2 * L * activations(layout)}


def test_sequence_parallel_splits_each_reduction_and_gathers_what_matmuls_need() -> None:
    layout = Layout(tp=4, sp=True, zero=0, global_batch=G)
    assert totals(layout) == {
        ("reduce_scatter", "tp"): 2 * L * activations(layout),
        ("all_gather", "tp"): 3 * L * activations(layout),
    }


def test_context_parallel_needs_no_collective_where_tokens_are_independent() -> None:
    layout = Layout(cp=4, zero=0, global_batch=G)
    assert totals(layout) == {("all_reduce", "cp"): F32 * W}


def test_pipeline_stages_divide_loop_trips_and_stacked_weights() -> None:
    layout = Layout(pp=3, dp=2, zero=0, global_batch=G)
    assert totals(layout) == {("all_reduce", "dp"): F32 * W / 3}


def test_tensor_parallel_divides_the_gradients_that_data_parallel_reduces() -> None:
    layout = Layout(tp=4, dp=2, zero=0, sp=False, global_batch=G)
    assert totals(layout)["all_reduce", "dp"] == F32 * W / 4


def test_axes_of_size_one_move_nothing() -> None:
    assert totals(Layout(global_batch=G)) == {}


def test_loops_know_their_trips() -> None:
    layout = Layout(dp=2, mb=2, pp=3, global_batch=G)
    sharded = shard(graph(), layout.assignment)
    evaluate = Evaluator(layout.sizes(graph()))
    (outer,) = (node for node in sharded.nodes if isinstance(node, LocalLoop))
    inner = [node for node in outer.body if isinstance(node, LocalLoop)]
    assert evaluate.term(outer.trips) == layout.microbatches == G / 2 / 2
    assert [evaluate.term(loop.trips) for loop in inner] == [L / 3, L / 3]


def test_sizes_of_copies_are_those_of_the_traced_program_on_one_rank() -> None:
    sharded = shard(graph(), assignment(zero=3, sp=True))
    evaluate = Evaluator({**dict.fromkeys(SYMBOLS, 1.0), PER_RANK: float(B), MICROBATCH: float(M)})
    for copy in sharded.copies:
        assert evaluate.term(copy.bytes) == graph().bytes(copy.value)


# -- gradients of a part ----------------------------------------------------------------------------------------------


def test_the_gradient_of_one_layer_of_a_stack_is_reduced_before_zeros_are_put_around_it() -> None:
    def step(w: Any, x: Any) -> Any:
        loss, gradient = jax.value_and_grad(lambda w, x: jnp.sum(jnp.tanh(x @ w[0])))(w, x)
        return w - gradient, loss

    arguments = (
        Argument(name="w", tree=jax.ShapeDtypeStruct((4, 32, 64), jnp.float32), axes=(None,) * 3, role="parameters"),
        Argument(name="x", tree=jax.ShapeDtypeStruct((8, 32), jnp.float32), axes=("batch", None), role="batch"),
    )
    traced = trace(Program(name="part", fn=step, arguments=arguments, donated=("w",)))
    layout = Layout(dp=4, mb=2, zero=0, global_batch=8)
    found = [size for _, _, size in collectives(shard(traced, layout.assignment), layout) if size > 4]
    assert found == [F32 * 32 * 64]


# -- parts of arrays ---------------------------------------------------------------------------------------------------

POSITIONS, WIDTH = 16, 32
PARTS: Mapping[str, tuple[Callable[[Any], Any], dict[str, list[int]]]] = {
    "first": (lambda y: y[:, 0], {"all_reduce": [1]}),
    "last": (lambda y: y[:, -1:], {"all_reduce": [1]}),
    "every fourth": (lambda y: y[:, ::4], {"all_reduce": [POSITIONS // 4]}),
    "half": (lambda y: y[:, : POSITIONS // 2], {"all_reduce": [POSITIONS // 2]}),
    "two": (lambda y: y[:, 1] * y[:, 2], {"all_reduce": [1, 1]}),
    "most": (lambda y: y[:, 1:], {"all_gather": [POSITIONS]}),
    "all in parts": (lambda y: y[:, :5].sum(1) + y[:, 5:10].sum(1) - y[:, 10:].sum(1), {"all_gather": [POSITIONS]}),
}


@pytest.mark.parametrize("part", PARTS)
def test_of_a_sharded_dim_up_to_a_half_is_added_up_from_those_that_have_it(part: str) -> None:
    """An array is gathered in the time in which half of it is all-reduced."""
    read, positions = PARTS[part]
    w, x = jax.ShapeDtypeStruct((WIDTH, 1), jnp.float32), jax.ShapeDtypeStruct((8, POSITIONS, WIDTH), jnp.float32)
    arguments = (
        Argument(name="w", tree=w, axes=(None, None), role="parameters"),
        Argument(name="x", tree=x, axes=("batch", "seq", None), role="batch"),
    )
    traced = trace(Program(name="part", fn=lambda w, x: jnp.tanh(read(jnp.tanh(x))) @ w, arguments=arguments))
    layout = Layout(dp=2, cp=4, mb=4, global_batch=8)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for node, _, size in collectives(shard(traced, layout.assignment), layout):
        if "cp" in node.axes:
            found[node.kind].append(size)
    assert found == {kind: [F32 * layout.mb * n * WIDTH for n in each] for kind, each in positions.items()}
