"""Kernels written elsewhere: what they cost is what they or the user say, on every rank as their rule has it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from machines import fake_machine

from perfmodel import Argument, Cost, Graph, Hints, Layout, Program, TraceError, load_graph, predict, trace
from perfmodel.graph import Op
from perfmodel.trace import read_program

M, K, N = 256, 128, 512
BF16, F32 = 2, 4
ESTIMATE = pl.CostEstimate(flops=2 * M * K * N, transcendentals=7 * M, bytes_accessed=1000)
"""Of the kernel below, with numbers that tell it apart from what could be counted."""


def product(x: Any, w: Any, *, estimate: pl.CostEstimate | None = None, name: str = "product") -> Any:
    def body(x: Any, w: Any, out: Any) -> None:
        out[...] = jnp.dot(x[...], w[...], preferred_element_type=jnp.float32).astype(out.dtype)

    shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
    return pl.pallas_call(body, out_shape=shape, cost_estimate=estimate, name=name)(x, w)


def program(fn: Callable[..., Any], **hints: Any) -> Program:
    """A function of a matrix and of the weights that it meets."""
    return Program(
        name="custom",
        fn=fn,
        arguments=(
            Argument(name="x", role="batch", tree=jax.ShapeDtypeStruct((M, K), jnp.bfloat16), axes=("batch", None)),
            Argument(name="w", role="parameters", tree=jax.ShapeDtypeStruct((K, N), jnp.bfloat16), axes=(None, "mlp")),
        ),
        hints=Hints(**hints),
    )


def kernel(graph: Graph) -> Op:
    (op,) = (op for _, op in graph.walk() if op.kind.startswith("perfmodel.kernel."))
    return op


def work(op: Op) -> Mapping[str, float]:
    return {each.engine: each.flops for each in op.work}


# -- Pallas -------------------------------------------------------------------------------------------------------


def test_a_pallas_kernel_costs_what_it_says() -> None:
    graph = trace(program(lambda x, w: product(x, w, estimate=ESTIMATE)))
    op = kernel(graph)
    assert op.kind == "perfmodel.kernel.product"
    assert work(op) == {"tensor": 2 * M * K * N, "scalar": 7 * M}
    assert {each.dtype for each in op.work} == {"bf16"}
    assert graph.traffic(op) == 1000
    assert graph.notes == ("product: its FLOPs by its own estimate, all of them the matrix engine's",)


def test_a_pallas_kernel_without_an_estimate_is_an_error_with_its_own_name() -> None:
    with pytest.raises(TraceError, match=r"test_custom.py:\d+: got op 'product'.*Hints\(costs=.*kernels="):
        trace(program(product))


def test_what_the_user_says_of_a_kernel_comes_before_what_it_says_itself() -> None:
    step = program(
        lambda x, w: product(x, w, estimate=ESTIMATE), kernels={"product": lambda *_: Cost(flops={"vector": 5.0})}
    )
    op = kernel(trace(step))
    assert work(op) == {"vector": 5.0}
    assert trace(step).traffic(op) == BF16 * (M * K + K * N + M * N)


def test_a_pallas_kernel_is_priced_by_its_slowest_engine_or_its_bytes() -> None:
    """One FLOP/s on every engine, and one byte per second."""
    graph = trace(program(lambda x, w: product(x, w, estimate=ESTIMATE)))
    assert predict(graph, alone(), fake_machine()).breakdown["forward"] == 2 * M * K * N
    slow = fake_machine(memory_bandwidth=1e-9)
    assert predict(graph, alone(), slow).breakdown["forward"] == pytest.approx(1000 / 1e-9)


def alone(**sizes: Any) -> Layout:
    return Layout(**{"zero": 0, "sp": False, "recompute": "none", "mb": M, "global_batch": M, **sizes})


def test_the_same_kernel_in_a_loop_counts_for_each_trip() -> None:
    def fn(x: Any, w: Any) -> Any:
        square = jnp.zeros((K, K), x.dtype)
        return jax.lax.scan(lambda x, _: (product(x, square, estimate=ESTIMATE), None), x, None, length=5)[0] @ w

    times = [times for times, op in trace(program(fn)).walk() if op.kind == "perfmodel.kernel.product"]
    assert times == [5.0]


def test_a_kernel_that_pallas_refuses_is_one_clear_error() -> None:
    def fn(x: Any, w: Any) -> Any:
        def body(x: Any, out: Any) -> None:
            out[...] = jnp.linalg.cholesky(x[...])

        return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct((K, K), jnp.float32))(x[:K].astype(jnp.float32)) @ w

    with pytest.raises(TraceError, match=r"^custom: got .*expected a step that JAX can lower for tpu"):
        trace(program(fn))


# -- other custom calls -------------------------------------------------------------------------------------------


def called(x: Any, w: Any) -> Any:
    return jax.ffi.ffi_call("my_kernel", jax.ShapeDtypeStruct((M, N), x.dtype))(x, w)


def matmul(operands: Any, results: Any) -> Cost:
    (m, k), (_, n) = (each.shape for each in operands)
    return Cost(
        flops={"tensor": 2.0 * m * k * n, "scalar": float(m * n)},
        bytes=sum(each.bytes for each in (*operands, *results)) + m * F32,
        rule="m k, k n -> m n; summed: k",
    )


@pytest.mark.parametrize(
    ("layout", "parts", "moved"),
    [
        (alone(), 1, {}),
        (alone(dp=4, mb=M // 4), 4, {}),
        (alone(tp=8), 8, {}),
        (alone(dp=2, tp=4, mb=M // 2), 8, {}),
    ],
)
def test_a_rule_spreads_the_work_and_the_bytes_of_a_custom_call(layout: Layout, parts: int, moved: object) -> None:
    graph = trace(program(called, kernels={"my_kernel": matmul}))
    assert graph.traffic(kernel(graph)) == BF16 * (M * K + K * N + M * N) + M * F32
    estimate = predict(graph, layout, fake_machine())
    assert estimate.breakdown["forward"] == 2 * M * K * N / parts
    slow = predict(graph, layout, fake_machine(memory_bandwidth=1e-9))
    assert slow.breakdown["forward"] == pytest.approx((BF16 * (M * K + K * N + M * N) + M * F32) / parts / 1e-9)
    assert not [c for c in estimate.collectives if c.seconds]


def test_without_a_rule_a_custom_call_has_its_operands_whole() -> None:
    graph = trace(program(called, kernels={"my_kernel": lambda *_: Cost(flops={"tensor": 1e9})}))
    estimate = predict(graph, alone(tp=4), fake_machine())
    assert estimate.breakdown["forward"] == 1e9
    assert [(c.kind, c.axis) for c in estimate.collectives if c.seconds] == [("all_gather", "tp")]


def test_inside_a_shard_map_every_rank_runs_the_kernel_on_its_part() -> None:
    mesh = jax.sharding.AbstractMesh((4,), ("tp",))
    spec: Any = jax.sharding.PartitionSpec

    def fn(x: Any, w: Any) -> Any:
        part: Any = jax.ffi.ffi_call("my_kernel", jax.ShapeDtypeStruct((M, N // 4), x.dtype))
        shard: Any = jax.shard_map
        body = shard(part, mesh=mesh, in_specs=(spec(), spec(None, "tp")), out_specs=spec(None, "tp"), check_vma=False)
        return body(x, w)

    graph = trace(
        program(fn, kernels={"my_kernel": lambda o, r: Cost(flops={"tensor": 2.0 * M * K * N / 4}, bytes=3e9)})
    )
    assert graph.flops() == 2 * M * K * N
    kernel_seconds = predict(graph, alone(tp=4), fake_machine()).engines
    assert kernel_seconds["memory"] >= 3e9


def test_a_kernel_from_elsewhere_fuses_with_nothing() -> None:
    graph = trace(program(lambda x, w: jnp.tanh(called(x, w)) + 1, kernels={"my_kernel": matmul}))
    labels = [kernel.label for kernel in predict(graph, alone(), fake_machine()).kernels]
    assert sorted(labels) == ["add", "perfmodel.kernel.my_kernel"]


@pytest.mark.parametrize("key", ["flash_fwd", "AwsNeuronCustomNativeKernel"])
def test_nki_kernels_go_by_their_name_or_by_their_target(tmp_path: Path, key: str) -> None:
    """As the Neuron SDK writes them: one target for all, and a configuration in base 64 that tells them apart."""
    config = base64.b64encode(json.dumps({"func_name": "flash_fwd", "grid": [2]}).encode()).decode()
    path = tmp_path / "step.mlir"
    path.write_text(
        "func.func @main(%x: tensor<8x16xbf16>) -> tensor<8x16xbf16> {\n"
        '  %0 = stablehlo.custom_call @AwsNeuronCustomNativeKernel(%x) {backend_config = "' + config + '"} : '
        "(tensor<8x16xbf16>) -> tensor<8x16xbf16>\n  return %0 : tensor<8x16xbf16>\n}\n"
    )
    from dataclasses import replace

    step = read_program(str(path))
    with pytest.raises(TraceError, match="got op 'flash_fwd'"):
        trace(step)
    hinted = replace(step, hints=Hints(kernels={key: lambda operands, _: Cost(flops={"tensor": operands[0].bytes})}))
    assert trace(hinted).flops() == 8 * 16 * BF16


@pytest.mark.parametrize(
    ("cost", "fault"),
    [
        (lambda *_: 5.0, r"got 5.0 from its cost function, expected a perfmodel.Cost"),
        (lambda *_: Cost(flops={"fpga": 1.0}), "got FLOPs of fpga, expected of tensor, vector, scalar, gpsimd"),
        (lambda *_: Cost(flops={"tensor": -1.0}), "got tensor=-1.0, expected a number from 0"),
        (lambda *_: Cost(bytes=float("nan")), "got bytes=nan"),
        (lambda *_: Cost(rule="a b -> a b"), "rule 'a b -> a b': got 1 operands and 1 results|got 2 operands"),
        (lambda operands, _: operands[7], r"got IndexError.*from its cost function"),
    ],
)
def test_a_wrong_cost_is_an_error_that_names_the_kernel(cost: Any, fault: str) -> None:
    with pytest.raises(TraceError, match=rf"test_custom.py:\d+: kernel 'my_kernel': .*({fault})"):
        trace(program(called, kernels={"my_kernel": cost}))


def test_a_saved_graph_keeps_what_its_kernels_move(tmp_path: Path) -> None:
    graph = trace(program(called, kernels={"my_kernel": matmul}))
    graph.save(tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == graph
