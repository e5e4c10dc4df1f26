"""Shapes of local matmuls and what a matrix engine makes of them; engines by kind of op; rows; limits of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import fake_machine, tier
from programs import spec

from perfmodel import Argument, Layout, LayoutError, Program, load_machine, load_program, predict, slice_of, trace
from perfmodel.formulas.matmul import operand_share, padded_flops, steps_of
from perfmodel.graph import Graph
from perfmodel.layout import assignment
from perfmodel.limits import communicators, instructions, warnings
from perfmodel.machine import Machine, Matrix
from perfmodel.plan import Compute, Plan, analyse
from perfmodel.price import kernel_seconds
from perfmodel.shard import shard
from perfmodel.work import Evaluator

F32 = jnp.float32


def traced(fn: Callable[..., Any], **arguments: tuple[jax.ShapeDtypeStruct, tuple[str | None, ...]]) -> Graph:
    found = tuple(
        Argument(name=name, tree=tree, axes=axes, role="batch" if "batch" in axes else "parameters")
        for name, (tree, axes) in arguments.items()
    )
    return trace(Program(name="test", fn=fn, arguments=found))


def planned(graph: Graph) -> Plan:
    return analyse(shard(graph, assignment(zero=0, sp=False)))


def only(graph: Graph, label: str) -> Compute:
    (found,) = [c for c in planned(graph).computes if c.label == label]
    return found


def at(graph: Graph, **sizes: int) -> Evaluator:
    layout = Layout(**{"mb": 1, "global_batch": 1, **sizes})  # type: ignore[arg-type]
    return Evaluator(layout.sizes(graph))


# -- shapes -------------------------------------------------------------------------------------------------------


def product(tp: int, dp: int) -> tuple[float, ...]:
    """m, n, k and batch of 3 heads of (32 x 8) @ (8 x 64) on one rank, with 6 sequences a rank."""
    graph = traced(
        lambda x, w: jnp.einsum("bshe,hef->bshf", x, w),
        x=(spec(12, 32, 3, 8), ("batch", None, None, None)),
        w=(spec(3, 8, 64), (None, None, "mlp")),
    )
    shape = only(graph, "dot_general").matmul
    assert shape is not None
    evaluate = at(graph, tp=tp, dp=dp, mb=6)
    sizes = [float(evaluate.term(size)) for size in (shape.m, shape.n, shape.k, shape.batch)]
    return (*sorted(sizes[:2]), *sizes[2:])


def test_a_matmul_has_the_sizes_that_a_rank_is_left_with() -> None:
    assert product(tp=1, dp=1) == (64, 6 * 32, 8, 3)
    assert product(tp=4, dp=2) == (16, 6 * 32, 8, 3)


@given(m=st.integers(1, 4096), n=st.integers(1, 4096), k=st.integers(1, 4096), batch=st.integers(1, 64))
def test_an_engine_without_tiles_does_what_there_is_to_do(m: int, n: int, k: int, batch: int) -> None:
    assert padded_flops(m, n, k, batch, (1, 1, 1), 1.0, 0.0) == 2.0 * m * n * k * batch


@given(m=st.integers(1, 9999), n=st.integers(1, 9999), k=st.integers(1, 9999), units=st.integers(1, 200))
def test_padding_never_loses_work_and_vanishes_for_large_matmuls(m: int, n: int, k: int, units: int) -> None:
    tile = (128, 256, 64)
    assert padded_flops(m, n, k, 1, tile, units, 1.0) >= 2.0 * m * n * k
    huge = padded_flops(1e7, 1e7, 1e7, 1, tile, units, 1.0) / 2e21
    assert huge == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("m", "n", "k", "batch", "units", "fill", "steps"),
    [
        (128, 512, 128, 1, 1, 0, 1),  # one tile, one step
        (129, 512, 128, 1, 1, 0, 2),  # one row more is a tile more
        (128, 512, 129, 1, 1, 0, 2),
        (128, 512, 256, 1, 1, 3, 5),  # the fill comes with every tile
        (256, 512, 128, 4, 8, 0, 8),  # 8 tiles on 8 units: one wave
        (256, 512, 128, 4.5, 8, 0, 16),  # 9 tiles: two waves of 8
        (1, 1, 1, 1, 2, 0, 2),  # a unit waits
    ],
)
def test_tiles_are_worked_on_whole_in_waves(
    m: float, n: float, k: float, batch: float, units: float, fill: float, steps: float
) -> None:
    assert padded_flops(m, n, k, batch, (128, 512, 128), units, fill) == steps * 2 * 128 * 512 * 128


def test_a_smaller_tile_fetches_more_for_each_flop() -> None:
    assert operand_share((64, 64, 1), 32.0) == 1 / (1 + 32 * 2 / 64) == 0.5
    assert operand_share((128, 256, 1), 32.0) > operand_share((128, 128, 1), 32.0)


def gemm_seconds(machine: Machine, m: int, n: int, k: int) -> float:
    graph = traced(lambda x, w: x @ w, x=(spec(m, k), ("batch", None)), w=(spec(k, n), (None, None)))
    seconds = kernel_seconds(only(graph, "dot_general"), at(graph, mb=m, global_batch=m), machine)
    return float(np.asarray(seconds["tensor"]))


def test_the_engine_takes_the_tile_and_the_orientation_that_are_fastest() -> None:
    matrix = Matrix(units=1.0, tiles=((128, 512, 128), (32, 32, 32)))
    machine = fake_machine(matrix=matrix)
    assert gemm_seconds(machine, 128, 512, 128) == gemm_seconds(machine, 512, 128, 128) == 2 * 128 * 512 * 128
    assert gemm_seconds(machine, 32, 32, 32) == 2 * 32**3
    assert gemm_seconds(replace(machine, matrix=replace(matrix, ramp=7.0)), 32, 32, 32) == 2 * 32**3 + 7


def test_an_element_type_may_reach_another_share_of_its_peak() -> None:
    machine = fake_machine(
        tensor_flops={"bf16": 1.0, "f8": 2.0},
        matrix=Matrix(shares={"f8": 0.25}),
        efficiency={"tensor": 0.5, "memory": 1},
    )
    assert gemm_seconds(machine, 8, 8, 8) == 2 * 2 * 8**3
    narrow = traced(
        lambda x, w: jax.lax.dot(x, w, preferred_element_type=F32),
        x=(spec(8, 8, dtype=jnp.float8_e4m3fn), ("batch", None)),
        w=(spec(8, 8, dtype=jnp.float8_e4m3fn), (None, None)),
    )
    seconds = kernel_seconds(only(narrow, "dot_general"), at(narrow, mb=8, global_batch=8), machine)
    assert seconds["tensor"] == 2 * 8**3 / 2 / 0.25


def test_h100_and_trainium2_lose_to_tiles_what_their_shapes_say() -> None:
    """A tall thin product leaves most of Trainium's 512 moving columns idle, unless it is turned round."""
    trn2, h100 = load_machine("trn2"), load_machine("h100")
    for machine in (trn2, h100):
        large, small = gemm_seconds(machine, 8192, 8192, 8192), gemm_seconds(machine, 64, 64, 8192)
        assert large / (2 * 8192**3) < small / (2 * 64 * 64 * 8192)
    assert gemm_seconds(trn2, 8192, 128, 8192) == gemm_seconds(trn2, 128, 8192, 8192)


# -- engines, rows and keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "engine"),
    [
        (lambda x: x + x, "vector"),
        (lambda x: jnp.maximum(x, 0.0), "vector"),
        (lambda x: jnp.exp(x), "scalar"),
        (lambda x: jax.nn.sigmoid(x), "scalar"),
        (lambda x: jax.lax.rsqrt(x), "scalar"),
        (lambda x: jnp.sort(x, axis=1), "gpsimd"),
    ],
)
def test_what_an_op_computes_decides_its_engine(fn: Callable[..., Any], engine: str) -> None:
    graph = traced(fn, x=(spec(64, 32, dtype=F32), ("batch", None)))
    engines = {name for c in planned(graph).computes for name, _ in c.flops}
    assert engine in engines
    assert engines <= {engine, "vector"}


def test_engines_beside_each_other_take_as_long_as_the_slowest() -> None:
    graph = traced(lambda x: jnp.exp(x) * x + x, x=(spec(64, 32, dtype=F32), ("batch", None)))
    (fused,) = planned(graph).computes
    machine = fake_machine(elementwise={"vector": 1.0, "scalar": 0.25, "gpsimd": 1.0}, memory_bandwidth=math.inf)
    seconds = kernel_seconds(fused, at(graph, mb=64, global_batch=64), machine)
    assert (seconds["vector"], seconds["scalar"]) == (2 * 64 * 32, 4 * 64 * 32)


@pytest.mark.parametrize(("width", "share"), [(64, 0.25), (256, 1.0), (4096, 1.0)])
def test_short_rows_are_fetched_at_a_share_of_the_bandwidth(width: int, share: float) -> None:
    graph = traced(
        lambda table, ids: jnp.take(table, ids, axis=0, mode="clip"),
        table=(spec(1000, width, dtype=F32), (None, None)),
        ids=(jax.ShapeDtypeStruct((16,), jnp.int32), ("batch",)),
    )
    (lookup,) = [c for c in planned(graph).computes if c.label == "gather"]
    evaluate = at(graph, mb=16, global_batch=16)
    plain, curved = (fake_machine(descriptors=curve) for curve in ((), ((256.0, 0.25), (1024.0, 1.0))))
    assert lookup.row is not None
    assert evaluate.term(lookup.row) == 4 * width
    slower = kernel_seconds(lookup, evaluate, curved)["memory"] / kernel_seconds(lookup, evaluate, plain)["memory"]
    assert slower == pytest.approx(1 / share)


def test_a_query_of_attention_costs_more_than_the_keys_it_sees() -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=2048))
    (kernel, *_) = [c for c in planned(graph).computes if c.label.startswith("perfmodel.attention")]
    assert {engine for engine, _ in kernel.flops} == {"attention"}
    evaluate = at(graph, mb=1, global_batch=8)
    plain, blocked = (fake_machine(matrix=Matrix(query_keys=keys)) for keys in (0.0, 512.0))
    seconds = [float(kernel_seconds(kernel, evaluate, machine)["attention"]) for machine in (plain, blocked)]
    assert seconds[1] == pytest.approx(1.5 * seconds[0])


@pytest.mark.parametrize(
    ("static", "seen"), [({}, 512), ({"causal": True}, 256), ({"window": 64}, 64), ({"window": 64, "causal": True}, 60)]
)
def test_a_query_sees_what_mask_and_window_leave(static: dict[str, Any], seen: float) -> None:
    body = lambda q, k, **_: jnp.einsum("bqhd,bkhd->bhqk", q, k)
    kernel = jax.lax.composite(body, name="perfmodel.attention_scores")
    axes = ("batch", "seq", "heads", None)
    graph = traced(lambda q, k: kernel(q, k, **static), q=(spec(8, 512, 2, 4), axes), k=(spec(8, 512, 2, 4), axes))
    (found,) = [c for c in planned(graph).computes if c.label.startswith("perfmodel.attention")]
    assert found.keys is not None
    assert at(graph, mb=8, global_batch=8).term(found.keys) == seen


# -- limits -------------------------------------------------------------------------------------------------------


def test_instructions_are_the_steps_of_all_tiles() -> None:
    graph = traced(lambda x, w: x @ w, x=(spec(256, 384), ("batch", None)), w=(spec(384, 1024), (None, "mlp")))
    machine = fake_machine(matrix=Matrix(tiles=((128, 512, 128),)))
    sizes = Layout(mb=256, global_batch=256).sizes(graph)
    assert instructions(planned(graph), sizes, machine) == 2 * 2 * 3 == steps_of(256, 1024, 384, 1, (128, 512, 128))
    halved = Layout(mb=256, global_batch=256, tp=2).sizes(graph)
    assert instructions(planned(graph), halved, machine) == 2 * 1 * 3


def test_groups_are_counted_by_the_axes_that_communicate_together() -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=512))
    plan = analyse(shard(graph, assignment(zero=3, sp=True)))
    assert communicators(plan, Layout(global_batch=8).sizes(graph)) == 0
    assert communicators(plan, Layout(fsdp=8, global_batch=8).sizes(graph)) == 1
    assert communicators(plan, Layout(fsdp=4, tp=2, global_batch=8).sizes(graph)) > 1


def test_a_layout_is_warned_of_what_a_graph_does_not_hold() -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=512))
    layout = Layout(fsdp=4, tp=2, global_batch=8)
    small = fake_machine(limits={"instructions": 10, "communicators": 1})
    found = predict(graph, layout, small)
    assert found.fits
    assert [line.partition(":")[0] for line in found.warnings] == ["instructions", "communicators"]
    assert found.to_json()["warnings"] == list(found.warnings)
    assert predict(graph, layout, fake_machine()).warnings == ()
    assert warnings(planned(graph), layout.sizes(graph), fake_machine(limits={"instructions": 10**15})) == ()


# -- fixed costs, prices, slices and optima -----------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "seconds"), [(1, 0.0), (2, 0.5), (64, 3.0)])
def test_each_doubling_of_the_ranks_lengthens_the_barrier(ranks: int, seconds: float) -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=512))
    layout = Layout(dp=ranks, global_batch=64)
    assert predict(graph, layout, fake_machine(barrier_seconds=0.5)).breakdown["overhead"] == seconds


def test_a_machine_without_a_price_costs_nobody_knows_what() -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=512))
    estimate = predict(graph, Layout(global_batch=8), fake_machine(usd_per_chip_hour=math.nan))
    assert estimate.to_json()["cost_usd_per_hour"] is None
    assert estimate.to_json()["usd_per_million_tokens"] is None


def test_a_job_gets_the_most_cubic_part_of_a_torus_that_is_let_in_parts() -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=512))
    pod = replace(tier(4, kind="torus", bandwidth=1.0, dims=3), shapes=((2, 2, 1), (1, 2, 2), (4, 1, 1), (4, 4, 4)))
    machine, cube = (fake_machine(tiers=(replace(pod, extents=e),)) for e in ((4, 4, 4), (1, 2, 2)))
    layout = Layout(dp=4, global_batch=8)
    assert predict(graph, layout, machine).upper_s == predict(graph, layout, cube).upper_s
    with pytest.raises(LayoutError, match="got from 4 to 64 ranks, expected one number on fake"):
        predict(graph, Layout(dp=np.array([4, 64]), global_batch=64), machine)


def test_a_job_on_a_part_of_each_of_several_switches_pays_for_that_part() -> None:
    """128 GPUs are 64 in each of two racks of 72: a group of 64 lies within one, and two of 72 would not."""
    graph, machine = trace(load_program("llama3.2-1b", seq_len=512)), load_machine("gb200-nvl72")
    layout = Layout(dp=2, fsdp=64, global_batch=128)
    assert predict(graph, layout, machine).step_time_s == predict(graph, layout, slice_of(machine, 128)).step_time_s
    assert not any(predict(graph, layout, machine).violations.values())
    both = replace(layout, dp=np.array([2, 4]), global_batch=256)
    alone = predict(graph, replace(both, dp=4), machine)
    assert predict(graph, both, machine).at(1).step_time_s == alone.step_time_s
    with pytest.raises(LayoutError, match="got from 128 to 144 ranks, expected one number on gb200-nvl72"):
        predict(graph, replace(layout, fsdp=np.array([64, 72])), machine)


def test_every_collective_of_an_estimate_has_its_optimum() -> None:
    graph = trace(load_program("llama3.2-1b", seq_len=512))
    found = predict(graph, Layout(fsdp=16, tp=4, global_batch=64), load_machine("trn2"))
    ran = [c for c in found.collectives if c.seconds > 0]
    assert ran
    assert all(0 < c.optimum < c.seconds for c in ran)
    many = predict(graph, Layout(fsdp=np.array([16, 8]), tp=np.array([4, 8]), global_batch=64), load_machine("trn2"))
    assert [c.optimum for c in many.at(0).collectives] == [c.optimum for c in found.collectives]
