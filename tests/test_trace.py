"""Traced FLOPs, bytes and parameters, each re-derived by hand from the sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from perfmodel.cli.main import main
from perfmodel.errors import AxisNameError, TraceError
from perfmodel.graph import Graph, Loop
from perfmodel.graph_file import from_json, load_graph
from perfmodel.trace import Argument, Hints, Program, trace
from perfmodel.trace.stablehlo import check_version

F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32


def spec(*shape: int, dtype: Any = F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def program(fn: Callable[..., Any], *trees: Any, axes: Any = None, hints: Hints | None = None) -> Program:
    arguments = tuple(
        Argument(
            name=f"x{i}",
            role="parameters",
            tree=tree,
            axes=axes[i] if axes else jax.tree.map(lambda leaf: (None,) * leaf.ndim, tree),
        )
        for i, tree in enumerate(trees)
    )
    return Program(name="test", fn=fn, arguments=arguments, hints=hints or Hints())


def flops(fn: Callable[..., Any], *trees: Any) -> float:
    return trace(program(fn, *trees)).flops()


M, K, N, B = 6, 10, 14, 3


def test_matmul_is_two_mkn() -> None:
    assert flops(lambda a, b: a @ b, spec(M, K), spec(K, N)) == 2 * M * K * N


def test_batched_matmul_counts_the_batch() -> None:
    einsum = lambda a, b: jnp.einsum("bmk,bkn->bmn", a, b)
    assert flops(einsum, spec(B, M, K), spec(B, K, N)) == 2 * B * M * K * N


def test_gradient_of_a_matmul_is_two_more() -> None:
    grad = jax.grad(lambda a, b: jnp.sum(jnp.tanh(a @ b)), argnums=(0, 1))
    assert flops(grad, spec(M, K), spec(K, N)) == 3 * 2 * M * K * N


def test_scan_counts_every_trip() -> None:
    def fn(w: Any, x: Any) -> Any:
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert flops(fn, spec(7, K, K), spec(B, K)) == 7 * 2 * B * K * K


def test_static_fori_loop_counts_every_trip() -> None:
    fn = lambda w, x: lax.fori_loop(0, 5, lambda i, x: x @ w, x)
    assert flops(fn, spec(K, K), spec(B, K)) == 5 * 2 * B * K * K


def test_nested_scans_multiply() -> None:
    def fn(w: Any, x: Any) -> Any:
        inner = lambda x, w: (jnp.tanh(x @ w), None)
        return lax.scan(lambda x, _: (lax.scan(inner, x, w)[0], None), x, None, length=4)[0]

    assert flops(fn, spec(7, K, K), spec(B, K)) == 4 * 7 * 2 * B * K * K


def test_full_remat_recomputes_all_but_what_backward_does_not_need() -> None:
    layer = lambda x, w: jnp.tanh(jnp.tanh(x @ w[0]) @ w[1])

    def loss(remat: bool, w: Any, x: Any) -> Any:
        body = jax.checkpoint(layer) if remat else layer
        return jnp.sum(lax.scan(lambda x, w: (body(x, w), None), x, w)[0])

    L, one = 5, 2 * B * K * K
    weights, x = spec(L, 2, K, K), spec(B, K)
    plain = trace(program(jax.grad(lambda w, x: loss(False, w, x)), weights, x))
    remat = trace(program(jax.grad(lambda w, x: loss(True, w, x)), weights, x))
    assert plain.flops() == L * (2 + 4) * one
    assert remat.flops() == L * (2 + 4 + 2) * one
    assert remat.flops(phases=("recompute",)) == L * 2 * one
    assert remat.model_flops() == plain.model_flops() == 3 * L * 2 * one


def test_attention_is_four_s_squared_per_head() -> None:
    S, H, D = 8, 2, 4

    def attention(q: Any, k: Any, v: Any) -> Any:
        p = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        return jnp.einsum("hqk,khd->qhd", p, v)

    x = spec(S, H, D)
    assert flops(attention, x, x, x) == 2 * (2 * S * S * D * H)


@pytest.mark.parametrize(("window", "stride", "split"), [(3, 1, False), (3, 2, False), (1, 1, True)])
def test_the_gradient_of_a_kernel_is_summed_from_parts_of_images_only_if_it_is_a_point(
    window: int, stride: int, split: bool
) -> None:
    """Any other reaches over the edges of a rank's part."""

    def loss(w: Any, x: Any) -> Any:
        return jnp.sum(
            lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) ** 2
        )

    graph = trace(program(jax.grad(loss), spec(window, window, 3, 5), spec(2, 16, 16, 3)))
    backward = [op for _, op in graph.walk() if op.kind == "convolution"][-1]
    spatial = [
        i for dim in backward.operand_dims[0] for i in dim if graph.factors[backward.local[i]].size not in (2, 3)
    ]
    assert spatial
    assert all((i in backward.blocked) is not split for i in spatial)
    assert all((i in backward.summed[0]) is split for i in spatial)


def test_convolution_is_two_per_output_and_kernel_element() -> None:
    def conv(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = spec(B, 16, 16, 5), spec(3, 3, 5, 7)
    forward = 2 * (B * 8 * 8 * 7) * (3 * 3 * 5)
    assert flops(conv, x, w) == forward
    assert flops(jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), argnums=(0, 1)), x, w) >= 3 * forward


def test_gather_and_scatter_move_data_only() -> None:
    graph = trace(program(lambda t, i: t[i], spec(100, K), spec(5, dtype=I32)))
    assert graph.flops() == 0
    graph = trace(program(lambda t, i, u: t.at[i].add(u), spec(100, K), spec(5, dtype=I32), spec(5, K)))
    scatter = sum(w.flops for _, op in graph.walk() if op.kind == "scatter" for w in op.work)
    assert scatter == 5 * K


def test_einsum_moe_dispatch_is_exact() -> None:
    T, E, C, D, F = 12, 4, 3, 8, 16

    def moe(x: Any, dispatch: Any, w1: Any, w2: Any) -> Any:
        slots = jnp.einsum("tec,td->ecd", dispatch, x)
        hidden = jnp.tanh(jnp.einsum("ecd,edf->ecf", slots, w1))
        return jnp.einsum("tec,ecd->td", dispatch, jnp.einsum("ecf,efd->ecd", hidden, w2))

    dispatching = 2 * (2 * T * E * C * D)
    experts = 2 * (2 * E * C * D * F)
    assert flops(moe, spec(T, D), spec(T, E, C), spec(E, D, F), spec(E, F, D)) == dispatching + experts


def test_ragged_dot_counts_each_row_once() -> None:
    T, E, D, F = 24, 4, 8, 16
    fn = lambda x, w, sizes: lax.ragged_dot(x, w, sizes)
    assert flops(fn, spec(T, D), spec(E, D, F), spec(E, dtype=I32)) == 2 * T * D * F


def test_bytes_of_slices_are_those_of_the_slice() -> None:
    rows, table = spec(5, dtype=I32), spec(100, K)

    def moved(kind: str, fn: Callable[..., Any], *trees: Any) -> float:
        graph = trace(program(fn, *trees))
        return sum(times * graph.traffic(op) for times, op in graph.walk() if op.kind == kind)

    one, index = 4 * K, 4
    assert moved("gather", lambda t, i: t[i], table, rows) == 5 * index + 2 * 5 * one
    assert moved("scatter", lambda t, i, u: t.at[i].add(u), table, rows, spec(5, K)) == 5 * index + 2 * 5 * one
    walk = lambda t: lax.scan(lambda c, x: (c + x, c), jnp.zeros(K), t)
    scalars = 2 * index  # where to slice
    assert moved("dynamic_slice", walk, table) == 100 * (2 * one + scalars)
    assert moved("dynamic_update_slice", walk, table) == 100 * (2 * one + scalars)


@pytest.mark.parametrize(
    ("fn", "reducer"),
    [
        (lambda x: jnp.sum(x, 0), "add"),
        (lambda x: jnp.max(x, 0), "maximum"),
        (lambda x: jnp.any(x > 0, 0), "maximum"),
        (lambda x: lax.reduce(x, 0.0, lambda a, b: a + 2.0 * b, (0,)), "other"),
        (lambda x: lax.reduce(x, -jnp.inf, jnp.logaddexp, (0,)), "other"),
    ],
)
def test_only_a_reduction_that_adds_and_does_nothing_else_is_a_sum(fn: Callable[..., Any], reducer: str) -> None:
    (op,) = (op for _, op in trace(program(fn, spec(M, K))).walk() if op.kind == "reduce")
    assert op.reducer == reducer
    assert op.linear == ((0,) if reducer == "add" else ())


def test_a_step_without_gradients_is_all_forward_pass() -> None:
    forward = lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
    graph = trace(program(forward, spec(7, K, K), spec(B, K)))
    assert {op.phase for _, op in graph.walk()} == {node.phase for node in graph.nodes} == {"forward"}


def test_parameters_and_bytes() -> None:
    graph = trace(program(lambda w, x: x @ w, spec(K, N, dtype=BF16), spec(M, K, dtype=BF16)))
    assert graph.parameter_count() == K * N + M * K
    assert graph.bytes(graph.parameters[0].value) == 2 * K * N
    assert graph.shape(graph.results[0]) == (M, N)


def test_nothing_is_allocated() -> None:
    before = len(jax.live_arrays())
    trace(program(lambda a, b: a @ b, spec(1 << 20, 1 << 20), spec(1 << 20, 1 << 20)))
    assert len(jax.live_arrays()) == before


# -- names --------------------------------------------------------------------------------------------------------


def test_names_reach_every_value_by_unification() -> None:
    def fn(w: Any, x: Any) -> Any:
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    graph = trace(program(fn, spec(7, K, K), spec(B, M, K), axes=[("layers", "embed", None), ("batch", "seq", None)]))
    (loop,) = (node for node in graph.nodes if isinstance(node, Loop))
    assert graph.factors[loop.trip].name == "layers"
    result = graph.values[graph.results[0]]
    assert [graph.factors[f].name for dim in result.dims for f in dim] == ["batch", "seq", "embed"]


def test_two_names_that_meet_are_an_error_with_both_origins() -> None:
    with pytest.raises(AxisNameError, match=r"x1 dim 0.*x0 dim 1|x0 dim 1.*x1 dim 0"):
        trace(program(lambda a, b: a @ b, spec(M, K), spec(K, N), axes=[("rows", "embed"), ("mlp", None)]))


def test_factors_are_called_after_the_first_argument_dim_that_ranges_so() -> None:
    tree = {"dense": {"kernel": spec(K, N), "bias": [spec(N)]}}
    graph = trace(program(lambda p, x: x @ p["dense"]["kernel"] + p["dense"]["bias"][0], tree, spec(M, K)))
    origins = [[graph.factors[f].origin for dim in graph.values[p.value].dims for f in dim] for p in graph.parameters]
    bias, kernel, inputs = origins
    assert bias == ["x0.dense.bias.0.0"]
    assert kernel == ["x0.dense.kernel.0", "x0.dense.bias.0.0"]
    assert inputs == ["x1.0", "x0.dense.kernel.0"]


def test_parts_of_a_split_dim_are_numbered_from_the_major_one() -> None:
    graph = trace(program(lambda x: (x.reshape(M, 5, 2) * 2.0, jnp.zeros(3)), spec(M, K)))
    dims = graph.values[graph.results[0]].dims
    assert [graph.factors[f].origin for dim in dims for f in dim] == ["x0.0", "x0.1/0", "x0.1/1"]
    assert [graph.factors[f].origin for dim in graph.values[graph.results[1]].dims for f in dim] == [None]


def test_reshape_splits_a_named_dim() -> None:
    graph = trace(program(lambda x: x.reshape(M, 5, 2) * 2.0, spec(M, K), axes=[("batch", "heads")]))
    dims = graph.values[graph.results[0]].dims
    assert [graph.factors[f].name for dim in dims for f in dim] == ["batch", "heads", "heads.1"]


# -- errors -------------------------------------------------------------------------------------------------------


def test_a_loop_whose_count_depends_on_data_is_an_error_that_a_hint_mends() -> None:
    def fn(w: Any, x: Any, n: Any) -> Any:
        return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] @ w), (0, x))[1]

    args = spec(K, K), spec(B, K), spec(dtype=I32)
    with pytest.raises(TraceError, match=r"test_trace.py:\d+.*trip count.*Hints"):
        trace(program(fn, *args))
    try:
        trace(program(fn, *args))
    except TraceError as error:
        where = str(error).split(": got")[0]
    assert trace(program(fn, *args, hints=Hints(trip_counts={where: 9}))).flops() == 9 * 2 * B * K * K


def until(bound: Any, w: Any, x: Any) -> Any:
    return lax.while_loop(lambda s: s[0] < bound, lambda s: (s[0] + 1, s[1] @ w), (0, x))[1]


LOOP = until.__code__.co_firstlineno + 1
UNTIL = program(until, spec(dtype=I32), spec(K, K), spec(B, K))


def hinted(where: str, count: Any = 9) -> Graph:
    return trace(replace(UNTIL, hints=Hints(trip_counts={where: count})))


@pytest.mark.parametrize("where", [f"test_trace.py:{LOOP}", f"tests/test_trace.py:{LOOP}", f"{__file__}:{LOOP}"])
def test_a_hint_names_a_loop_by_its_file_and_as_many_folders_as_it_takes(where: str) -> None:
    assert hinted(where).flops() == 9 * 2 * B * K * K


@pytest.mark.parametrize("where", [f"trace.py:{LOOP}", f"other/test_trace.py:{LOOP}", str(LOOP)])
def test_a_hint_for_another_file_is_not_taken(where: str) -> None:
    with pytest.raises(TraceError, match="trip count depends on data"):
        hinted(where)


@pytest.mark.parametrize("count", [-3, 2.5, True, "9"])
def test_a_trip_count_is_a_whole_number(count: Any) -> None:
    with pytest.raises(TraceError, match=rf"^Hints.*: got {count!r}, expected how often the loop runs"):
        hinted(f"test_trace.py:{LOOP}", count)


def test_an_unknown_custom_call_is_an_error_that_a_hint_mends() -> None:
    def fn(x: Any) -> Any:
        return jax.ffi.ffi_call("my_kernel", spec(M, K))(x)

    with pytest.raises(TraceError, match=r"test_trace.py:\d+: got op 'my_kernel'.*Hints\(costs="):
        trace(program(fn, spec(M, K)))
    hints = Hints(costs={"my_kernel": lambda operands, results: 5.0 * np.prod(operands[0])})
    assert trace(program(fn, spec(M, K), hints=hints)).flops() == 5 * M * K


def test_wrong_axes_are_errors() -> None:
    with pytest.raises(TraceError, match=r"x0.*got 1 axis names.*expected 2"):
        trace(program(lambda x: x, spec(M, K), axes=[("batch",)]))
    with pytest.raises(TraceError, match="axes do not match"):
        trace(program(lambda x: x["a"], {"a": spec(M, K)}, axes=[{"b": ("batch", None)}]))


def test_dims_that_a_layout_resizes_have_one_size() -> None:
    first, second = (jax.ShapeDtypeStruct((size, 4), "float32") for size in (8, 16))
    arguments = tuple(
        Argument(name=name, role="batch", tree=tree, axes=("batch", None))
        for name, tree in (("few", first), ("many", second))
    )
    with pytest.raises(TraceError, match="axis name batch: got 8 in few, 16 in many, expected one size"):
        trace(Program(name="two", fn=lambda few, many: (few, many), arguments=arguments))


@pytest.mark.parametrize(("role", "axes"), [("batch", (None, None)), ("other", ("batch", None))])
def test_a_batch_of_nothing_is_an_error(role: str, axes: Any) -> None:
    argument = Argument(name="x", role=role, tree=spec(0, K), axes=axes)
    with pytest.raises(TraceError, match=r"^x: got shape \(0, 10\), expected at least 1 of everything"):
        trace(Program(name="none", fn=lambda x: x.sum(), arguments=(argument,)))


def test_an_array_without_elements_that_nobody_resizes_is_none() -> None:
    graph = trace(program(lambda a, b, none: (a @ b).sum() + none.sum(), spec(M, K), spec(K, N), spec(0)))
    assert graph.flops() == 2 * M * K * N


# -- donated arguments --------------------------------------------------------------------------------------------


def donating(fn: Callable[..., Any], *donated: str) -> Program:
    return replace(program(fn, {"a": spec(M, K)}, spec(M)), donated=donated)


def test_the_first_results_take_over_donated_arguments() -> None:
    graph = trace(donating(lambda w, v: (jax.tree.map(jnp.sin, w), v + 1, v.sum()), "x0", "x1"))
    assert [(p.name, p.alias) for p in graph.parameters] == [("x0['a']", 0), ("x1", 1)]
    graph = trace(donating(lambda w, v: (v + 1, w), "x1"))
    assert [p.alias for p in graph.parameters] == [None, 0]


@pytest.mark.parametrize(
    ("fn", "got"),
    [
        (lambda w, v: (v.sum(), w), r"float32\[\] for result 0, expected float32\[6,10\], the new x0\['a'\]"),
        (lambda w, v: (w, v.astype(BF16)), r"bfloat16\[6\] for result 1, expected float32\[6\], the new x1"),
        (lambda w, v: w, r"1 results for result 1, expected float32\[6\], the new x1"),
    ],
)
def test_a_result_that_cannot_take_over_is_an_error(fn: Callable[..., Any], got: str) -> None:
    with pytest.raises(TraceError, match=rf"^test: got {got}, which is donated: return the new values"):
        trace(donating(fn, "x0", "x1"))


def test_what_is_donated_is_an_argument() -> None:
    with pytest.raises(TraceError, match=r"^test: got donated 'x2', expected some of the arguments x0, x1: correct it"):
        trace(donating(lambda w, v: (w, v), "x0", "x2"))


def test_arguments_have_names_of_their_own() -> None:
    twice = program(lambda a, b: a + b, spec(M), spec(M))
    with pytest.raises(TraceError, match=r"^test: got several arguments named 'x0', expected one"):
        trace(replace(twice, arguments=twice.arguments[:1] * 2))


@pytest.mark.parametrize("version", ["0.9.2", "0.11.0", "1.0"])
def test_an_untested_jax_names_the_tested_range(version: str) -> None:
    with pytest.raises(TraceError, match=rf"{version}.*>=0\.10\.1,<0\.11\.0"):
        check_version(version)


# -- branches -----------------------------------------------------------------------------------------------------


def switch(index: Any, x: Any) -> Any:
    """One branch without, one with one, one with two matmuls (of a cond inside)."""
    two = lambda x: lax.cond(index > 5, jnp.sin, lambda x: jnp.tanh(x @ x) @ x, x)
    return lax.switch(index, [jnp.sin, lambda x: x @ x, two], x)


def test_a_cond_counts_as_its_dearest_branch_and_says_so() -> None:
    graph = trace(program(switch, spec(dtype=I32), spec(K, K)))
    assert graph.flops() == 2 * 2 * K**3
    assert graph.shape(graph.results[0]) == (K, K)
    inner, outer = graph.notes
    assert inner.startswith("test_trace.py:")
    assert inner.endswith(": cond counted as its dearer branch (1 of 2)")  # false comes first
    assert outer.endswith(": cond counted as its dearest branch (3 of 3)")


def test_the_gradient_of_a_cond_counts_as_the_gradient_of_its_dearest_branch() -> None:
    grad = jax.grad(lambda x, index: jnp.sum(switch(index, x)))
    graph = trace(program(grad, spec(K, K), spec(dtype=I32)))
    assert graph.flops() == 3 * 2 * 2 * K**3


def test_a_cond_in_a_loop_counts_each_trip() -> None:
    def fn(x: Any, w: Any) -> Any:
        return lax.scan(lambda x, w: (lax.cond(w[0, 0] > 0, lambda: x @ w, lambda: x), None), x, w)[0]

    graph = trace(program(fn, spec(B, K), spec(7, K, K), axes=[("batch", None), ("layers", None, None)]))
    assert graph.flops() == 7 * 2 * B * K * K
    assert [graph.factors[f].name for dim in graph.values[graph.results[0]].dims for f in dim] == ["batch", None]


def test_a_loop_in_a_branch_weighs_all_its_trips() -> None:
    def fn(p: Any, x: Any) -> Any:
        looped = lambda x: lax.fori_loop(0, 5, lambda _, x: x @ x, x)
        return lax.cond(p, looped, lambda x: jnp.tanh(x @ x) @ x, x)

    assert flops(fn, spec(dtype=jnp.bool_), spec(K, K)) == 5 * 2 * K**3


def test_names_reach_through_branches_that_were_not_taken() -> None:
    fn = lambda p, x, w, z: lax.cond(p, lambda: x @ w, lambda: z)
    axes = [(), (None, None), (None, None), ("batch", "mlp")]
    graph = trace(program(fn, spec(dtype=jnp.bool_), spec(M, K), spec(K, N), spec(M, N), axes=axes))
    assert graph.flops() == 2 * M * K * N
    assert [graph.factors[f].name for dim in graph.values[graph.results[0]].dims for f in dim] == ["batch", "mlp"]


def test_vector_work_and_bytes_decide_between_branches_without_matmuls() -> None:
    def kinds(fn: Callable[..., Any]) -> set[str]:
        return {op.kind for _, op in trace(program(fn, spec(dtype=jnp.bool_), spec(M))).walk()}

    assert "sine" in kinds(lambda p, x: lax.cond(p, lambda x: jnp.sin(jnp.sin(x)), jnp.cos, x))
    assert "transpose" in kinds(lambda p, x: lax.cond(p, lambda x: x, lambda x: x.reshape(2, 3).T.reshape(M), x))


def test_branches_that_cost_the_same_need_no_note() -> None:
    graph = trace(program(lambda p, x: lax.cond(p, jnp.sin, jnp.cos, x), spec(dtype=jnp.bool_), spec(M)))
    assert graph.notes == ()


def test_branches_that_were_not_taken_leave_nothing_in_the_graph() -> None:
    fn = lambda p, x: lax.cond(p, lambda x: x.reshape(2, 3).T.reshape(M), lambda x: x * jnp.sin(x), x)
    graph = trace(program(fn, spec(dtype=jnp.bool_), spec(M)))
    used = {v for _, op in graph.walk() for v in (*op.operands, *op.results)} | {p.value for p in graph.parameters}
    assert all(value.dims == () for i, value in enumerate(graph.values) if i not in used)


# -- marked kernels -----------------------------------------------------------------------------------------------


def attention_kernel(causal: bool) -> Callable[..., Any]:
    def body(q: Any, k: Any, v: Any, *, causal: bool) -> Any:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)

    kernel = lax.composite(body, name="perfmodel.attention")
    return lambda q, k, v: kernel(q, k, v, causal=causal)


def kernel_graph(causal: bool = False) -> Graph:
    x = spec(B, 8, 2, 4)
    axes = [("batch", "seq", "heads", "head_dim")] * 3
    return trace(program(attention_kernel(causal), x, x, x, axes=axes))


def test_a_marked_kernel_stays_one_op_with_the_work_of_its_body() -> None:
    graph = kernel_graph()
    (op,) = (op for _, op in graph.walk())
    assert op.kind == "perfmodel.attention"
    assert graph.flops() == 2 * (2 * B * 2 * 8 * 8 * 4)


def test_a_kernel_may_shard_what_it_never_sums_and_must_not_split_the_softmax() -> None:
    graph = kernel_graph()
    (op,) = (op for _, op in graph.walk())
    names = [graph.factors[f].name for f in op.local]
    queries, keys, values = op.operand_dims
    free = {names[i] for dim in queries[:3] for i in dim if i not in op.blocked}
    assert free == {"batch", "seq", "heads"}
    assert set(keys[1]) <= set(op.blocked)
    assert queries[1] != keys[1]
    assert keys[1] == values[1]


def test_a_causal_kernel_executes_half() -> None:
    shares = {work.share for _, op in kernel_graph(causal=True).walk() for work in op.work}
    assert shares == {0.5}


@pytest.mark.parametrize(("window", "keys"), [(3, 3), (100, 8)])
def test_an_attention_kernel_with_a_window_counts_the_keys_in_it(window: int, keys: int) -> None:
    x = spec(B, 8, 2, 4)
    body = lambda q, k, *, window: jnp.einsum("bqhd,bkhd->bhqk", q, k)
    fn = lambda q, k: lax.composite(body, name="perfmodel.attention_scores")(q, k, window=window)
    assert flops(fn, x, x) == 2 * B * 2 * 8 * keys * 4


def marked(name: str, *trees: Any, **static: Any) -> Graph:
    """A kernel that takes what static arguments it is given."""
    kernel = lax.composite(lambda x, *rest, **_: sum((x @ w for w in rest), x), name=name)
    return trace(program(lambda *arrays: kernel(*arrays, **static), *trees))


@pytest.mark.parametrize("static", [{"window": 3}, {"window": 3.0}, {"causal": True}, {"causal": 1}])
def test_other_kernels_have_no_scores_to_mask(static: Any) -> None:
    graph = marked("perfmodel.pool", spec(M, K), spec(K, K), **static)
    ((_, op),) = graph.walk()
    assert graph.flops() == 2 * M * K * K
    assert {work.share for work in op.work} == {1.0}


@pytest.mark.parametrize(
    ("static", "got"),
    [
        ({"window": 3.0}, r"got window=3.0\S* : f64, expected a whole number above 0"),
        ({"window": True}, "got window=true, expected a whole number above 0"),
        ({"window": 0}, "got window=0 : i64, expected a whole number above 0"),
        ({"causal": 1}, "got causal=1 : i64, expected True or False"),
        ({"rule": 3}, "got rule=3 : i64, expected a line such as"),
        ({"rule": ""}, 'got rule="", expected a line such as'),
    ],
)
def test_a_static_argument_of_another_kind_is_an_error(static: Any, got: str) -> None:
    with pytest.raises(TraceError, match=rf"^test_trace.py:\d+: perfmodel.attention: {got}.*: correct this static"):
        marked("perfmodel.attention", spec(M, K), spec(K, K), **static)


def test_a_window_is_one_of_keys() -> None:
    with pytest.raises(TraceError, match=r"perfmodel.attention: got window=3 with operands \(6, 10\), expected keys"):
        marked("perfmodel.attention", spec(M, K), window=3)


# -- forms --------------------------------------------------------------------------------------------------------


def train_graph() -> Graph:
    def step(w: Any, x: Any) -> Any:
        def loss(w: Any) -> Any:
            return jnp.sum(lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])

        return w - jax.grad(loss)(w)

    return trace(program(step, spec(7, K, K), spec(B, K)))


def test_a_graph_survives_json(tmp_path: Any) -> None:
    graph = train_graph()
    assert from_json(json.loads(json.dumps(graph.to_json()))) == graph
    graph.save(tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == graph


def test_a_full_disk_leaves_the_graph_file_as_it_was(tmp_path: Any) -> None:
    path = tmp_path / "graph.json"
    path.write_text("what was there")
    code = (
        "import pathlib, resource, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_trace import train_graph\n"
        "graph = train_graph()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: graph.save(pathlib.Path(sys.argv[1]))\n"
        "except OSError as error: print(error.strerror)\n"
    )
    words = [sys.executable, "-c", code, str(path), str(Path(__file__).parent)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert run.stdout == "File too large\n"
    assert [each.name for each in tmp_path.iterdir()] == ["graph.json"]
    assert path.read_text() == "what was there"


def test_a_graph_of_another_format_is_refused() -> None:
    with pytest.raises(TraceError, match="format 99"):
        from_json({"format": 99})


def test_networkx_keeps_loops_as_nodes_with_a_body() -> None:
    graph = train_graph()
    digraph = graph.to_networkx()
    loops = [data for _, data in digraph.nodes(data=True) if data["kind"] == "loop"]
    assert len(loops) == 2
    dots = [d for loop in loops for _, d in loop["body"].nodes(data=True) if d["kind"] == "dot_general"]
    assert sum(d["flops"] for d in dots) * 7 == graph.flops()
    assert digraph.number_of_edges() > 0


# -- source lines -------------------------------------------------------------------------------------------------


def borrowed() -> Program:
    """A step of JAX's own that no line of a program is behind; a new one, since JAX keeps what it traced."""
    return program(partial(lax.tanh), spec(M))


def test_what_commands_do_is_no_line_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "test_trace:borrowed", "--json"]) == 0
    assert [*json.loads(capsys.readouterr().out)["lines"]] == ["?"]


def test_an_op_without_a_line_of_its_own_has_that_of_the_call_for_the_trace() -> None:
    ((_, op),) = trace(borrowed()).walk()
    line = test_an_op_without_a_line_of_its_own_has_that_of_the_call_for_the_trace.__code__.co_firstlineno + 1
    assert op.source == f"test_trace.py:{line}"


# -- programs that JAX, or we, cannot take ---------------------------------------------------------------------------


def step_of(fn: Callable[[Any], Any]) -> Program:
    argument = Argument(name="x", role="batch", tree=jax.ShapeDtypeStruct((4, 8), jnp.float32), axes=("batch", None))
    return Program(name="step", fn=fn, arguments=(argument,))


def test_a_debug_print_costs_nothing() -> None:
    def chatty(x: Any) -> Any:
        jax.debug.print("{}", x.sum())
        return x * 2

    kinds = {op.kind for _, op in trace(step_of(chatty)).walk()}
    assert "multiply" in kinds
    assert not any("callback" in kind for kind in kinds)


def test_debug_prints_in_order_cost_nothing() -> None:
    """Tokens keep them in order, through loops and calls; they are neither arguments nor results."""

    def step(ordered: bool, w: Any, x: Any) -> Any:
        def body(x: Any, w: Any) -> Any:
            if ordered:
                jax.debug.print("{}", x.sum(), ordered=True)
            return jnp.tanh(x @ w), None

        return w + 1, lax.scan(body, x, w)[0]

    plain, chatty = (
        trace(replace(program(partial(step, ordered), spec(7, K, K), spec(B, K)), donated=("x0",)))
        for ordered in (False, True)
    )
    assert chatty.flops() == plain.flops() == 7 * 2 * B * K * K
    assert [(p.name, p.alias) for p in chatty.parameters] == [("x0", 0), ("x1", None)]
    assert [chatty.shape(v) for v in chatty.results] == [(7, K, K), (B, K)]
    assert sum(map(chatty.bytes, range(len(chatty.values)))) > 0.0


def test_a_callback_whose_result_is_used_has_no_known_cost() -> None:
    shape = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    with pytest.raises(TraceError, match=r"python_cpu_callback.*supply one"):
        trace(step_of(lambda x: jax.pure_callback(lambda a: a, shape, x)))


@pytest.mark.parametrize(
    ("fn", "error"),
    [
        (lambda x: x @ x, "TypeError: dot_general requires"),
        (lambda x: x if x.sum() > 0 else -x, "TracerBoolConversionError: "),
    ],
)
def test_a_step_that_jax_cannot_trace_is_the_users_to_mend(fn: Callable[[Any], Any], error: str) -> None:
    with pytest.raises(TraceError, match=rf"^step: got {error}.*test_trace.py:\d+.*mend it$"):
        trace(step_of(fn))


def test_a_typed_key_of_random_numbers_is_an_input_like_any_other() -> None:
    def fn(key: Any, x: Any) -> Any:
        return x * jax.random.bernoulli(key, 0.5, x.shape)

    key = jax.eval_shape(lambda: jax.random.key(0))
    tokens = Argument(name="x", tree=spec(B, K), axes=("batch", None), role="batch")
    found = trace(
        Program(name="one", fn=fn, arguments=(Argument(name="key", tree=key, axes=None, role="other"), tokens))
    )
    assert found.shape(found.parameters[0].value) == (2,)


def test_a_number_among_the_arrays_of_an_argument_is_refused_by_name() -> None:
    argument = Argument(name="x", tree={"a": spec(B), "steps": 3}, axes={"a": None, "steps": None}, role="batch")
    with pytest.raises(TraceError, match=r"x\['steps'\]: got 3, expected an array .*: close over constants"):
        trace(Program(name="one", fn=lambda x: x["a"] * x["steps"], arguments=(argument,)))


def test_a_jitted_lambda_is_called_by_its_quoted_name() -> None:
    assert trace(program(lambda x: jax.jit(lambda y: y @ y)(x), spec(K, K))).flops() == 2 * K**3


def test_images_are_no_tokens_whatever_their_dims_are_called() -> None:
    def of(*axes: str | None) -> int | None:
        x = Argument(name="x", tree=spec(*(2 * i + 2 for i in range(len(axes)))), axes=axes, role="batch")
        return trace(Program(name="one", fn=jnp.sum, arguments=(x,))).tokens()

    assert of("batch", "seq", None) == 4
    assert of("microbatch", "batch", "seq", None) == 6
    assert of("batch", "seq", None, None) is None
    assert of("batch", None) is None
