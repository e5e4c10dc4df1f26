"""The whole path from graph, layout and machine to an estimate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from machines import fake_machine, tier
from programs import D, F, L, S, mlp_graph, spec

from perfmodel.errors import LayoutError
from perfmodel.estimate import ARRAYS, TABLES, Estimate
from perfmodel.graph import Graph
from perfmodel.layout import AXES, Layout
from perfmodel.machine import ELEMENTWISE, Machine
from perfmodel.machine_file import load_machine
from perfmodel.models import load_program, read_config
from perfmodel.predict import predict
from perfmodel.schedule import CLASSES
from perfmodel.trace import Argument, Program, trace

MACHINES = ("trn2", "trn2-ultraserver", "h100")
BF16, F32 = 2, 4
G = 24
"""Sequences per step of the MLP."""


@cache
def machine(name: str) -> Machine:
    return load_machine(name)


@cache
def graph(name: str, recompute: str = "full") -> Graph:
    return mlp_graph() if name == "mlp" else trace(load_program(name, seq_len=512, recompute=recompute))


def mlp(layout: Layout, on: Machine | None = None) -> Estimate:
    return predict(graph("mlp"), replace(layout, recompute="none"), on or fake_machine())


def traced(fn: Any, **arguments: tuple[Any, tuple[str | None, ...]]) -> Graph:
    """A program of positional arguments (struct, names of its dims)."""
    named = tuple(
        Argument(name=name, role="batch" if "batch" in axes else "parameters", tree=struct, axes=axes)
        for name, (struct, axes) in arguments.items()
    )
    return trace(Program(name="drawn", fn=fn, arguments=named))


# -- timelines drawn by hand --------------------------------------------------------------------------------------

M, K, N = 32, 64, 16


@cache
def matmul() -> Graph:
    x, w = spec(M, K), spec(K, N)
    return traced(lambda x, w: x @ w, x=(x, ("batch", None)), w=(w, (None, "mlp")))


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_a_matmul_takes_its_flops_where_flops_are_scarce(dp: int, tp: int) -> None:
    layout = Layout(dp=dp, tp=tp, mb=M // dp, global_batch=M, recompute="none")
    estimate = predict(matmul(), layout, fake_machine(memory_bandwidth=1e9))
    assert estimate.step_time_s == estimate.breakdown["forward"] == 2 * M * K * N / (dp * tp)
    assert estimate.bound == "matrix engine"
    assert estimate.mfu == 1.0


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_a_matmul_takes_its_bytes_where_bandwidth_is_scarce(dp: int, tp: int) -> None:
    layout = Layout(dp=dp, tp=tp, mb=M // dp, global_batch=M, recompute="none")
    estimate = predict(matmul(), layout, fake_machine(tensor_flops={"bf16": 1e9}))
    assert estimate.step_time_s == BF16 * (M * K / dp + K * N / tp + M * N / dp / tp)
    assert estimate.bound == "memory bandwidth"


def test_a_chain_of_elementwise_ops_takes_the_bytes_of_its_ends() -> None:
    chain = traced(lambda x, y: jnp.tanh(x * y) + x, x=(spec(M, K), ("batch", None)), y=(spec(M, K), ("batch", None)))
    estimate = predict(
        chain, Layout(mb=M, global_batch=M, recompute="none"), fake_machine(elementwise=dict.fromkeys(ELEMENTWISE, 1e9))
    )
    assert estimate.step_time_s == (2 + 1) * BF16 * M * K


def test_two_kernels_follow_each_other_and_each_launch_costs() -> None:
    """
    | matmul: 2 M K N s | maxima of rows: bytes in and out |
    """
    two = traced(lambda x, w: (x @ w).max(1), x=(spec(M, K), ("batch", None)), w=(spec(K, N), (None, None)))
    layout = Layout(mb=M, global_batch=M, recompute="none")
    estimate = predict(
        two, layout, fake_machine(elementwise=dict.fromkeys(ELEMENTWISE, 1e9), kernel_launch_seconds=0.5)
    )
    assert estimate.step_time_s == 2 * M * K * N + 0.5 + BF16 * (M * N + M) + 0.5


def test_what_works_on_the_result_of_a_matmul_takes_its_time_beside_it() -> None:
    """
    | matmul: 2 M K N s             |
    | bytes in and out, but not between |
    """
    one = traced(lambda x, w: jnp.tanh(x @ w), x=(spec(M, K), ("batch", None)), w=(spec(K, N), (None, None)))
    layout = Layout(mb=M, global_batch=M, recompute="none")
    machine = fake_machine(elementwise=dict.fromkeys(ELEMENTWISE, 1e9))
    assert predict(one, layout, machine).step_time_s == 2 * M * K * N
    slow = replace(machine, memory_bandwidth=machine.memory_bandwidth / 100)
    assert predict(one, layout, slow).step_time_s == 100 * BF16 * (M * K + K * N + M * N)


def test_a_reduced_matmul_waits_for_its_all_reduce() -> None:
    """The contracted dim lies on tp: each rank sums its part, then 2 (n - 1) / n of the result cross the wire."""
    tp = 4
    reduced = traced(lambda x, w: x @ w, x=(spec(M, K), ("batch", "mlp")), w=(spec(K, N), ("mlp", None)))
    layout = Layout(tp=tp, mb=M, global_batch=M, recompute="none")
    estimate = predict(reduced, layout, fake_machine(memory_bandwidth=1e9))
    wire = 2 * (tp - 1) / tp * BF16 * M * N
    assert estimate.breakdown["forward"] == 2 * M * K * N / tp
    assert estimate.breakdown["tensor"] == wire
    (all_reduce,) = estimate.collectives
    assert (all_reduce.kind, all_reduce.axis, all_reduce.bytes, all_reduce.count) == (
        "all_reduce",
        "tp",
        BF16 * M * N,
        1,
    )
    assert all_reduce.seconds == wire


ONLY_MATMULS = {"memory_bandwidth": math.inf, "elementwise": dict.fromkeys(ELEMENTWISE, math.inf)}


@pytest.mark.parametrize("pp", [1, 2, 3, 6])
@pytest.mark.parametrize("mb", [1, 2])
@pytest.mark.parametrize("microbatches", [1, 2, 6])
def test_a_pipelined_step_is_its_microbatches_and_the_stages_before(pp: int, mb: int, microbatches: int) -> None:
    """Forward and backward matmuls of a stage's layers, and a send each way; the wire takes a byte per second."""
    layout = Layout(pp=pp, mb=mb, global_batch=mb * microbatches, zero=0)
    estimate = mlp(layout, fake_machine(**ONLY_MATMULS))
    matmuls = 3 * (L / pp) * 2 * (2 * mb * S * D * F)
    sends = 2 * BF16 * mb * S * D if pp > 1 else 0
    assert estimate.step_time_s == (microbatches + pp - 1) * (matmuls + sends)
    assert estimate.breakdown["forward"] + estimate.breakdown["backward"] == microbatches * matmuls
    assert estimate.breakdown["pipeline"] == microbatches * sends
    assert estimate.breakdown["bubble"] == (pp - 1) * (matmuls + sends)


def test_fsdp_hides_behind_its_share_of_every_microbatch() -> None:
    """Gathers weights twice and scatters gradients once, per layer and microbatch; half of the compute hides them."""
    n, microbatches = 4, 3
    layout = Layout(fsdp=n, zero=3, global_batch=n * microbatches)
    compute = 3 * L * 2 * (2 * S * D * F)
    traffic = 3 * (n - 1) / n * BF16 * L * 2 * D * F
    for share in (0.0, traffic / compute / 2, 1.0):
        estimate = mlp(layout, fake_machine(**ONLY_MATMULS, overlap={"fsdp": share}))
        exposed = traffic - share * compute if share < 1.0 else 0.0
        assert estimate.breakdown["fsdp"] == pytest.approx(microbatches * exposed, rel=1e-12)


def test_gradients_are_reduced_once_whatever_the_number_of_microbatches() -> None:
    n = 4
    reduction = 2 * (n - 1) / n * F32 * L * 2 * D * F
    for microbatches in (1, 2, 6):
        estimate = mlp(Layout(dp=n, zero=0, global_batch=n * microbatches), fake_machine(**ONLY_MATMULS))
        assert estimate.breakdown["data"] == pytest.approx(reduction, rel=1e-2)  # the loss is reduced too


# -- what bounds a step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "changes", "bound"),
    [
        (Layout(global_batch=G), {**ONLY_MATMULS}, "matrix engine"),
        (
            Layout(global_batch=G),
            {"tensor_flops": {"bf16": 1e9}, "elementwise": dict.fromkeys(ELEMENTWISE, 1e9)},
            "memory bandwidth",
        ),
        (Layout(global_batch=G), {"tensor_flops": {"bf16": 1e9}, "memory_bandwidth": 1e9}, "vector engine"),
        (Layout(global_batch=G), {"step_overhead_seconds": 1e12}, "step overhead"),
        (Layout(tp=8, zero=0, global_batch=G), {"tiers": (tier(bandwidth=1e-3),)}, "tensor-parallel collectives"),
        (Layout(fsdp=4, global_batch=G), {"tiers": (tier(bandwidth=1e-3),)}, "FSDP collectives"),
        (Layout(dp=4, zero=0, global_batch=4), {"tiers": (tier(bandwidth=1e-3),)}, "gradient reduction"),
        (Layout(pp=6, zero=0, global_batch=1), {**ONLY_MATMULS}, "pipeline bubble"),
        (Layout(pp=2, zero=0, global_batch=G), {"tiers": (tier(bandwidth=1e-3),)}, "pipeline sends"),
    ],
)
def test_bound_names_the_largest_part_of_the_step(layout: Layout, changes: dict[str, Any], bound: str) -> None:
    assert mlp(layout, fake_machine(**changes)).bound == bound


# -- one layout and many ------------------------------------------------------------------------------------------

SIZES = st.sampled_from([1, 2, 3, 4, 8, 16, 64])
NUMERIC = (*AXES, "mb", "global_batch")


def table(rows: int) -> st.SearchStrategy[Layout]:
    """Arrays of layouts of one structure."""
    columns = {name: st.lists(SIZES, min_size=rows, max_size=rows).map(np.array) for name in (*AXES, "mb")}
    batch = st.lists(st.sampled_from([64, 96, 1000, 4096]), min_size=rows, max_size=rows).map(np.array)
    return st.builds(Layout, **columns, global_batch=batch, zero=st.integers(0, 3), sp=st.booleans())


def assert_same(one: Estimate, other: Estimate) -> None:
    """Every field, its type included; a difference in the last bit is a difference."""
    for name in (*ARRAYS, "bound", "reasons", "assumptions", "sources"):
        assert (name, getattr(one, name)) == (name, getattr(other, name))
        assert type(getattr(one, name)) is type(getattr(other, name))
    for name in TABLES:
        assert (name, getattr(one, name)) == (name, getattr(other, name))
    assert one.collectives == other.collectives


ROWS = 6


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=8, deadline=None)
@given(layouts=table(ROWS))
def test_an_array_of_layouts_is_estimated_as_each_of_them_to_the_last_bit(name: str, layouts: Layout) -> None:
    if name == "h100":  # layouts that fill servers
        layouts = replace(layouts, fsdp=8 * np.asarray(layouts.fsdp))
    many = predict(graph("llama3.2-1b"), layouts, machine(name))
    for i in range(ROWS):
        assert_same(many.at(i), predict(graph("llama3.2-1b"), layouts.at(i), machine(name)))


@pytest.mark.parametrize("name", MACHINES)
def test_some_numbers_may_be_arrays_and_others_not(name: str) -> None:
    tp = np.array([1, 2, 4, 8])
    many = predict(graph("llama3.2-1b"), Layout(dp=4, tp=tp, global_batch=64), machine(name))
    for i, size in enumerate(tp):
        assert_same(
            many.at(i), predict(graph("llama3.2-1b"), Layout(dp=4, tp=int(size), global_batch=64), machine(name))
        )


def open_grid(**axes: list[int]) -> dict[str, Any]:
    """Each axis an array along a dim of its own: every combination."""
    return dict(zip(axes, np.ix_(*map(np.array, axes.values())), strict=True))


GRID = open_grid(
    global_batch=[64, 96], dp=[1, 3, 4], fsdp=[1, 8], ep=[1, 2], tp=[1, 2, 12, 16], cp=[1, 4], pp=[1, 2, 5], mb=[1, 3]
)


@cache
def grid_and_table(name: str, zero: int, sp: bool) -> tuple[Estimate, Estimate, tuple[int, ...]]:
    """An open grid of layouts, and the table of the same."""
    grid = grid_on(name)
    flat = dict(zip(grid, (size.ravel() for size in np.broadcast_arrays(*grid.values())), strict=True))
    found = [predict(graph("llama3.2-1b"), Layout(**sizes, zero=zero, sp=sp), machine(name)) for sizes in (grid, flat)]
    return found[0], found[1], np.broadcast_shapes(*map(np.shape, grid.values()))


def grid_on(name: str) -> dict[str, Any]:
    """The grid, on GPUs of layouts that fill servers: 12 of them would be two servers with 6 each, another machine."""
    return GRID if name != "h100" else {**GRID, "fsdp": 8 * GRID["fsdp"]}


def assert_equal_arrays(one: Any, other: Any, shape: tuple[int, ...]) -> None:
    """A grid's numbers, which may lie along some of its dims only, and those of a table, to the last bit."""
    assert np.array_equal(np.broadcast_to(one, shape).ravel(), np.broadcast_to(other, math.prod(shape)))


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize(("zero", "sp"), [(0, False), (1, True), (3, True)])
def test_an_open_grid_is_estimated_as_the_table_of_its_combinations(name: str, zero: int, sp: bool) -> None:
    grid, table, shape = grid_and_table(name, zero, sp)
    assert grid.shape == shape
    for field in (*ARRAYS, "bound"):
        assert_equal_arrays(getattr(grid, field), getattr(table, field), shape)
    for field in TABLES:
        assert getattr(grid, field).keys() == getattr(table, field).keys()
        for key, value in getattr(grid, field).items():
            assert_equal_arrays(value, getattr(table, field)[key], shape)
    for one, other in zip(grid.collectives, table.collectives, strict=True):
        assert (one.kind, one.axis, one.klass) == (other.kind, other.axis, other.klass)
        for key in ("bytes", "count", "seconds"):
            assert_equal_arrays(getattr(one, key), getattr(other, key), shape)


@pytest.mark.parametrize("name", MACHINES)
def test_an_element_of_a_grid_is_the_estimate_of_that_layout(name: str) -> None:
    grid, _, shape = grid_and_table(name, 3, True)
    sizes = {key: np.broadcast_to(size, shape).ravel() for key, size in grid_on(name).items()}
    for i in range(0, math.prod(shape), 97):
        layout = Layout(**{key: int(size[i]) for key, size in sizes.items()})  # type: ignore[arg-type]
        assert_same(grid.at(i), predict(graph("llama3.2-1b"), layout, machine(name)))


def test_a_million_layouts_of_a_grid_fit_in_little_memory() -> None:
    """What depends on few axes is kept along these; only what depends on all is an array of all layouts."""
    grid = predict(graph("llama3.2-1b"), Layout(**GRID), machine("trn2"))
    full = [name for name in ARRAYS if np.size(getattr(grid, name)) == math.prod(grid.shape)]
    assert "step_time_s" in full
    assert np.size(grid.cost_usd_per_hour) == 3 * 2 * 2 * 4 * 2 * 3  # the batch costs nothing


def test_choices_of_the_trace_stand_among_the_assumptions() -> None:
    noted = replace(graph("mlp"), notes=("took the dim of size 7 for the batch",))
    estimate = predict(noted, Layout(recompute="none"), fake_machine())
    assert "took the dim of size 7 for the batch" in estimate.assumptions


def test_an_estimate_out_of_an_array_gives_its_reasons() -> None:
    many = predict(graph("llama3.2-1b"), Layout(pp=np.array([1, 19]), global_batch=8), fake_machine())
    assert many.at(0).reasons == ()
    assert many.at(1).reasons == ("layers 16 too few for pp*vpp",)


# -- limits and monotony ------------------------------------------------------------------------------------------

layouts = st.builds(
    Layout,
    **{axis: st.sampled_from([1, 2, 4]) for axis in AXES},
    mb=st.sampled_from([1, 2]),
    global_batch=st.sampled_from([128, 256]),  # a microbatch at least, however the ranks share it
    zero=st.integers(0, 3),
    sp=st.booleans(),
)
names = st.sampled_from(MACHINES)
SLACK = 1 + 1e-12
"""Room for rounding."""


@settings(max_examples=20, deadline=None)
@given(layout=layouts, name=names)
def test_bounds_enclose_the_expected_time(layout: Layout, name: str) -> None:
    estimate = predict(graph("llama3.2-1b"), layout, machine(name))
    assert 0 < estimate.lower_s <= estimate.step_time_s * SLACK
    assert estimate.step_time_s <= estimate.upper_s * SLACK


@settings(max_examples=20, deadline=None)
@given(layout=layouts, name=names)
def test_parts_sum_to_the_whole(layout: Layout, name: str) -> None:
    estimate = predict(graph("llama3.2-1b"), layout, machine(name))
    assert sum(estimate.breakdown.values()) == estimate.step_time_s
    assert sum(estimate.memory_parts.values()) == estimate.memory_bytes
    assert min(*estimate.breakdown.values(), *estimate.memory_parts.values()) >= 0.0


@pytest.mark.parametrize("name", MACHINES)
def test_one_rank_communicates_nothing(name: str) -> None:
    estimate = predict(graph("llama3.2-1b"), Layout(global_batch=8), machine(name))
    assert all(c.seconds == 0.0 and c.axis == "" for c in estimate.collectives)
    assert {estimate.breakdown[klass] for klass in (*CLASSES, "data")} == {0.0}
    assert estimate.to_json()["collectives"] == []


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("axis", AXES)
def test_only_axes_with_ranks_communicate(name: str, axis: str) -> None:
    layout = Layout(**{axis: 4}, global_batch=64)  # type: ignore[arg-type]
    estimate = predict(graph("llama3.2-1b"), layout, machine(name))
    assert {c.axis for c in estimate.collectives if c.seconds > 0.0} == {axis}


def endless(on: Machine) -> Machine:
    """The machine with a network that costs nothing."""
    tiers = tuple(
        replace(
            t,
            bandwidth=(1e30,) * len(t.bandwidth),
            relay=1e30,
            latency=0.0,
            algorithms=tuple(replace(a, latency=0.0, inner=0.0, base=0.0, copy=0.0) for a in t.algorithms),
        )
        for t in on.tiers
    )
    return replace(on, tiers=tiers)


@settings(max_examples=20, deadline=None)
@given(layout=layouts, name=names)
def test_collectives_vanish_on_an_endless_network(layout: Layout, name: str) -> None:
    estimate = predict(graph("llama3.2-1b"), layout, endless(machine(name)))
    assert sum(estimate.breakdown[klass] for klass in (*CLASSES, "data")) < 1e-12 * estimate.step_time_s
    assert estimate.upper_s == pytest.approx(estimate.lower_s, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(layout=layouts, name=names, engine=st.sampled_from(["tensor", "vector", "memory", "network"]))
def test_no_faster_part_makes_a_step_slower(layout: Layout, name: str, engine: str) -> None:
    slow = machine(name)
    changes: Mapping[str, Any] = {
        "tensor": {"tensor_flops": {dtype: 2 * rate for dtype, rate in slow.tensor_flops.items()}},
        "vector": {"elementwise": {name: 2 * x for name, x in slow.elementwise.items()}},
        "memory": {"memory_bandwidth": 2 * slow.memory_bandwidth},
        "network": {
            "tiers": tuple(
                replace(t, bandwidth=tuple(2 * b for b in t.bandwidth), relay=2 * t.relay) for t in slow.tiers
            )
        },
    }
    before, after = (predict(graph("llama3.2-1b"), layout, on) for on in (slow, replace(slow, **changes[engine])))
    for field in ("lower_s", "step_time_s", "upper_s"):
        assert getattr(after, field) <= getattr(before, field) * SLACK


@settings(max_examples=20, deadline=None)
@given(layout=layouts, name=names, factor=st.floats(1.0, 4.0))
def test_more_memory_never_makes_a_layout_unfit(layout: Layout, name: str, factor: float) -> None:
    small = replace(machine(name), memory_bytes=2.0**32)
    large = replace(small, memory_bytes=factor * small.memory_bytes)
    before, after = (predict(graph("llama3.2-1b"), layout, on) for on in (small, large))
    assert set(after.reasons) <= set(before.reasons) or after.reasons[-1].startswith("out of memory")
    assert after.fits or not before.fits


@settings(max_examples=20, deadline=None)
@given(layout=layouts, name=names)
def test_twice_the_batch_doubles_what_every_microbatch_does_and_nothing_else(layout: Layout, name: str) -> None:
    assume(layout.microbatches >= 1)
    double = replace(layout, global_batch=2 * layout.global_batch)
    before, after = (predict(graph("llama3.2-1b"), each, machine(name)).breakdown for each in (layout, double))
    for part in ("forward", "recompute", "backward", *CLASSES):
        assert after[part] == 2 * before[part]
    for part in ("data", "bubble", "overhead"):
        assert after[part] == before[part]
    assert before["update"] < after["update"] < 2 * before["update"]  # gradients are summed every microbatch


# -- money and model FLOPs ----------------------------------------------------------------------------------------


def test_mfu_tokens_and_costs_follow_from_the_time() -> None:
    layout = Layout(dp=4, tp=2, global_batch=64)
    on = fake_machine(ranks_per_chip=4, usd_per_chip_hour=7200.0, quoted_flops={"bf16": 3.0}, step_overhead_seconds=1.0)
    estimate = predict(graph("llama3.2-1b"), layout, on)
    c = read_config("llama3.2-1b")
    weights = c.layers * (2 * c.embed * c.head_dim * (c.heads + c.kv_heads) + 3 * c.embed * c.mlp) + c.embed * c.vocab
    tokens = 64 * 512
    flops = (6 * weights + 12 * c.layers * c.heads * c.head_dim * 512) * tokens
    assert estimate.mfu == pytest.approx(flops / (estimate.step_time_s * 8 * 3.0), rel=1e-12)
    assert estimate.tokens_per_s == tokens / estimate.step_time_s
    assert estimate.cost_usd_per_hour == 8 / 4 * 7200
    per_second = 8 / 4 * 7200 / 3600
    assert estimate.usd_per_million_tokens == pytest.approx(per_second * estimate.step_time_s / tokens * 1e6, rel=1e-12)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_no_machine_beats_its_quoted_peak(name: str, recompute: str) -> None:
    layout = Layout(dp=4, mb=8, global_batch=64, recompute=recompute)
    assert 0 < predict(graph("llama3.2-1b", recompute), layout, machine(name)).mfu < 1


def test_recomputation_costs_time_and_saves_memory() -> None:
    found = [
        predict(graph("llama3.2-1b", recompute), Layout(mb=4, global_batch=8, recompute=recompute), machine("trn2"))
        for recompute in ("none", "selective", "full")
    ]
    times, activations = [e.step_time_s for e in found], [e.memory_parts["activations"] for e in found]
    assert times == sorted(times)
    assert activations == sorted(activations, reverse=True)


# -- errors and forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traced", ["none", "full"])
def test_a_layout_of_another_policy_than_the_graph_was_traced_with_is_an_error(traced: str) -> None:
    layout = Layout(recompute="selective")
    message = rf"got recompute=selective, expected {traced}, with which llama3.2-1b was traced: trace it again"
    with pytest.raises(LayoutError, match=message):
        predict(graph("llama3.2-1b", traced), layout, fake_machine())


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (Layout(tp=np.array([]), recompute="none"), "tp"),
        (Layout(dp=np.array([]), mb=np.ones((0, 2)), recompute="none"), "dp, mb"),
    ],
)
def test_arrays_without_a_layout_are_an_error(layout: Layout, names: str) -> None:
    with pytest.raises(LayoutError, match=f"^layout: got no value in {names}, expected one for each layout: leave out"):
        predict(mlp_graph(), layout, fake_machine())


PROMISED = {
    "step_time_s": float,
    "lower_s": float,
    "upper_s": float,
    "mfu": float,
    "tokens_per_s": float,
    "memory_bytes": float,
    "memory_capacity_bytes": float,
    "fits": bool,
    "reasons": list,
    "bound": str,
    "breakdown": dict,
    "memory_parts": dict,
    "collectives": list,
    "cost_usd_per_hour": float,
    "usd_per_million_tokens": float,
    "assumptions": list,
    "sources": list,
}
PLAIN = (dict, list, str, bool, float, int, type(None))


def assert_plain(value: Any) -> None:
    assert type(value) in PLAIN
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        assert_plain(inner)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("array", [False, True])
def test_json_holds_what_is_promised_in_plain_types(name: str, array: bool) -> None:
    layout = Layout(dp=2, tp=4, pp=19, global_batch=64)
    if array:
        columns: dict[str, Any] = {axis: np.array([getattr(layout, axis), 1]) for axis in NUMERIC}
        layout = replace(layout, **columns)
    estimate = predict(graph("llama3.2-1b"), layout, machine(name))
    found = (estimate.at(0) if array else estimate).to_json()
    assert {key: type(found[key]) for key in PROMISED} == PROMISED
    assert_plain(found)
    assert json.loads(json.dumps(found)) == found
    assert found["fits"] is False
    assert found["collectives"]
    for collective in found["collectives"]:
        types = {"kind": str, "axis": str, "bytes": float, "count": float, "seconds": float}
        assert {key: type(collective[key]) for key in types} == types
        assert collective["seconds"] > 0.0


def test_machines_hand_on_their_sources_and_assumptions() -> None:
    estimate = predict(graph("llama3.2-1b"), Layout(global_batch=8), machine("trn2"))
    assert set(machine("trn2").sources) <= set(estimate.sources)
    assert set(machine("trn2").assumptions) <= set(estimate.assumptions)


def test_the_same_graph_is_analysed_once() -> None:
    from perfmodel.predict import _structure

    _structure.cache_clear()
    for tp in (1, 2, 4):
        mlp(Layout(tp=tp, global_batch=G))
    assert _structure.cache_info().misses == 1
