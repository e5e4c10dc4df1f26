"""Which ops share a kernel and what such a kernel moves, from shapes and against XLA's own accounting."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import pytest
from jax import lax
from programs import B, D, F, L, M, mlp_graph, spec

from perfmodel.fuse import fuse, regions
from perfmodel.graph import Graph
from perfmodel.kernel import Kernel
from perfmodel.layout import assignment
from perfmodel.models import load_program
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, ShardedGraph
from perfmodel.trace import Argument, Program, trace
from perfmodel.work import SYMBOLS, Evaluator

F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32
N, C = 512, 1024
"""Rows and columns of most operands here; T is one such tensor in fp32 [B]."""
T = N * C * 4

ONE_RANK = dict.fromkeys(SYMBOLS, 1.0)
TRACED = ONE_RANK | {"mb": float(B), "microbatch": float(M)}


def traced(fn: Callable[..., Any], *args: Any) -> Graph:
    nameless = jax.tree.map(lambda leaf: (None,) * leaf.ndim, args)
    arguments = tuple(
        Argument(name=f"x{i}", role="other", tree=tree, axes=axes)
        for i, (tree, axes) in enumerate(zip(args, nameless, strict=True))
    )
    return trace(Program(name="test", fn=fn, arguments=arguments))


def local(graph: Graph) -> ShardedGraph:
    return shard(graph, assignment(zero=0, sp=False))


def kernels(fn: Callable[..., Any], *args: Any, epilogues: bool = True) -> list[Kernel]:
    """Kernels of a program on one rank, of the whole program and of its loops."""
    sharded = local(traced(fn, *args))
    found = (fuse(sharded, nodes, kept, epilogues=epilogues) for _, nodes, kept in regions(sharded))
    return [kernel for each in found for kernel in each]


def moved(found: list[Kernel]) -> list[float]:
    """Bytes of each kernel on one rank."""
    evaluate = Evaluator(ONE_RANK)
    return [float(evaluate.amount(kernel.bytes)) for kernel in found]


def flops(found: list[Kernel], engine: str) -> float:
    evaluate = Evaluator(ONE_RANK)
    return sum(float(evaluate.amount(terms)) for k in found for (name, _), terms in k.flops.items() if name == engine)


def tensor(dtype: Any = F32) -> jax.ShapeDtypeStruct:
    return spec(N, C, dtype=dtype)


# -- one kernel ---------------------------------------------------------------------------------------------------


def test_a_chain_of_elementwise_ops_reads_its_inputs_and_writes_its_result_once() -> None:
    found = kernels(lambda x, y: jnp.tanh(x * y) + x - 3.0 * y, tensor(), tensor())
    assert moved(found) == [2 * T + T]


def test_its_flops_are_those_of_all_its_ops() -> None:
    found = kernels(lambda x, y: jnp.tanh(x * y) + x - 3.0 * y, tensor(), tensor())
    assert (flops(found, "vector"), flops(found, "scalar")) == (4 * N * C, N * C)


def test_a_kernel_with_several_results_writes_each_and_still_reads_once() -> None:
    found = kernels(lambda x: (lambda y: (y, jnp.cos(y)))(jnp.sin(x)), tensor())
    assert moved(found) == [T + 2 * T]


def test_kernels_that_share_no_more_than_an_input_read_it_each() -> None:
    assert moved(kernels(lambda x: (jnp.sin(x), jnp.cos(x)), tensor())) == [2 * T, 2 * T]


def test_a_reduction_ends_the_kernel_that_feeds_it() -> None:
    assert moved(kernels(lambda x: jnp.sum(jnp.exp(x), axis=1), tensor())) == [T + 4 * N]


def test_a_matmul_stores_what_follows_it_element_by_element_and_reads_its_operands_from_memory() -> None:
    found = kernels(
        lambda x, a, y: jnp.tanh(jnp.sin(x) @ a) + y, tensor(), spec(C, 32, dtype=F32), spec(N, 32, dtype=F32)
    )
    other = result = 4 * N * 32
    assert moved(found) == [2 * T, T + 4 * C * 32 + other + result]
    assert [kernel.matmul is not None for kernel in found] == [False, True]
    assert [flops(found, engine) for engine in ("tensor", "scalar", "vector")] == [
        2 * N * C * 32,
        N * C + N * 32,
        N * 32,
    ]


def test_a_constant_costs_nothing_to_read() -> None:
    assert moved(kernels(lambda x: x + jnp.arange(C, dtype=F32), tensor())) == [2 * T]


@pytest.mark.parametrize("fn", [lambda x: x.reshape(C, N), lambda x: lax.broadcast_in_dim(x, (1, N, C), (1, 2))])
def test_renaming_memory_costs_nothing(fn: Callable[..., Any]) -> None:
    assert moved(kernels(fn, tensor())) == []


def test_a_lookup_reads_the_rows_it_wants() -> None:
    rows = 7
    (size,) = moved(kernels(lambda table, ids: table.at[ids].get(mode="clip"), tensor(), spec(rows, dtype=I32)))
    assert size == 2 * 4 * rows * C + 4 * rows


def test_a_loop_reads_one_layer_of_stacked_weights_per_trip_and_writes_one_layer_of_its_results() -> None:
    def fn(x: Any, w: Any) -> Any:
        return lax.scan(lambda x, w: (x * w, x + w), x, w)

    layer, counter = 4 * C, 4
    assert moved(kernels(fn, spec(C, dtype=F32), spec(N, C, dtype=F32))) == [2 * layer + 2 * layer + counter]


def test_arithmetic_on_single_numbers_takes_no_kernel() -> None:
    assert kernels(lambda a, b: jnp.sqrt(a) + b, spec(dtype=F32), spec(dtype=F32)) == []


# -- epilogues of matmuls ------------------------------------------------------------------------------------------


INPUT, WEIGHT, OUTPUT, SQUARE = 2 * N * C, 2 * C * 4 * C, 2 * N * 4 * C, 2 * C * C
"""Bytes of bf16 matrices: N x C, C x 4C, N x 4C and C x C."""

# (program, operands by the shapes above, bytes of each kernel). XLA for TPU v5e (libtpu 0.0.52) fuses the same ops and
# moves the same bytes, but that it takes in reductions too.
EPILOGUES: list[tuple[str, Callable[..., Any], str, list[int]]] = [
    ("bias and GELU", lambda x, w, b: jax.nn.gelu(x @ w + b), "iwb", [INPUT + WEIGHT + 8 * C + OUTPUT]),
    ("residual", lambda x, w, y: x @ w + y, "isi", [INPUT + SQUARE + INPUT + INPUT]),
    (
        "gate",
        lambda x, w, v: jax.nn.silu(x @ w) * (x @ v),
        "iww",
        [INPUT + WEIGHT + OUTPUT, INPUT + WEIGHT + OUTPUT + OUTPUT],
    ),
    (
        "sum of matmuls",
        lambda x, w, y, v, z, u: x @ w + y @ v + z @ u,
        "isisis",
        [2 * INPUT + SQUARE, 3 * INPUT + SQUARE, 3 * INPUT + SQUARE],
    ),
    ("itself and more", lambda x, w: (lambda y: (y, jax.nn.gelu(y)))(x @ w), "iw", [INPUT + WEIGHT + 2 * OUTPUT]),
    ("narrowed", lambda x, w: jnp.dot(x, w, preferred_element_type=F32).astype(BF16), "iw", [INPUT + WEIGHT + OUTPUT]),
    ("turned", lambda x, w: jnp.tanh((x @ w).T).reshape(-1, 2, N), "iw", [INPUT + WEIGHT + OUTPUT]),
    ("accumulated", lambda a, x, y: a + (x.T @ y).astype(F32), "WiO", [2 * WEIGHT + INPUT + OUTPUT + 2 * WEIGHT]),
    (
        "residual and statistics",
        lambda x, w, y: (lambda h: (h, jnp.sum(jnp.square(h.astype(F32)), axis=1)))(x @ w + y),
        "isi",
        [INPUT + SQUARE + INPUT + INPUT, INPUT + 4 * N],
    ),
    (
        "statistics",
        lambda x, w: jnp.sum(jnp.exp((x @ w).astype(F32)), axis=1),
        "iw",
        [INPUT + WEIGHT + OUTPUT, OUTPUT + 4 * N],
    ),
    (
        "what its own statistics scale",
        lambda x, w: (lambda y: y * jnp.sum(y.astype(F32), axis=1, keepdims=True).astype(BF16))(x @ w),
        "iw",
        [INPUT + WEIGHT + OUTPUT, OUTPUT + 4 * N, OUTPUT + 4 * N + OUTPUT],
    ),
]


@pytest.mark.parametrize(("name", "fn", "args", "sizes"), EPILOGUES, ids=[case[0] for case in EPILOGUES])
def test_a_matmul_takes_in_what_works_on_its_result(
    name: str, fn: Callable[..., Any], args: str, sizes: list[int]
) -> None:
    shapes = {
        "i": tensor(BF16),
        "w": spec(C, 4 * C),
        "W": spec(C, 4 * C, dtype=F32),
        "O": spec(N, 4 * C),
        "s": spec(C, C),
        "b": spec(4 * C),
    }
    assert moved(kernels(fn, *(shapes[each] for each in args))) == sizes


def test_a_loop_writes_the_result_of_a_matmul_into_a_stack_in_place() -> None:
    def fn(x: Any, y: Any) -> Any:
        return lax.scan(lambda _, each: (0, each[0].T @ each[1]), 0, (x, y))[1]

    counter = 4
    assert moved(kernels(fn, spec(3, N, C), spec(3, N, 4 * C))) == [INPUT + OUTPUT + WEIGHT + counter]


def test_a_bias_of_a_partial_sum_stays_as_small_as_it_is() -> None:
    """On all ranks but one it is left out before it is broadcast."""
    args = {"x": (spec(N, C), ("batch", "mlp")), "w": (spec(C, C), ("mlp", None)), "b": (spec(C), (None,))}
    named = tuple(Argument(name=k, role="other", tree=tree, axes=axes) for k, (tree, axes) in args.items())
    graph = trace(Program(name="bias", fn=lambda x, w, b: x @ w + b, arguments=named))
    sharded = shard(graph, assignment(zero=0, sp=False))
    (kernel,) = fuse(sharded, sharded.nodes, sharded.results)
    tp = 2
    evaluate = Evaluator(ONE_RANK | {"mb": float(N), "tp_kv": float(tp)})
    assert evaluate.amount(kernel.bytes) == INPUT / tp + SQUARE / tp + 2 * C + INPUT


MADE: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a @ b,
    lambda a, b: a + b,
    lambda a, b: jnp.tanh(a),
    lambda a, b: a.sum(1) * b,
]


@pytest.mark.parametrize("seed", range(20))
def test_kernels_of_random_programs_can_run_one_after_another(seed: int) -> None:
    """Matmuls, sums over rows and elementwise ops on square matrices, in any order."""

    def fn(*args: Any) -> Any:
        choose = random.Random(seed)
        values = list(args)
        for _ in range(40):
            a, b = choose.choice(values[-6:]), choose.choice(values)
            values.append(choose.choice(MADE)(a, b))
        return values[-3:]

    sharded = local(traced(fn, *[spec(8, 8, dtype=F32)] * 3))
    assert nx.is_directed_acyclic_graph(order_of(sharded, sharded.nodes, fuse(sharded, sharded.nodes, sharded.results)))


# -- several kernels ----------------------------------------------------------------------------------------------


def test_a_value_that_two_kernels_read_is_written_once_and_read_by_each() -> None:
    found = kernels(lambda x: (lambda e: e / jnp.sum(e, axis=1, keepdims=True))(jnp.exp(x)), tensor())
    assert moved(found) == [T + T + 4 * N, T + 4 * N + T]


def test_what_is_cheap_is_computed_again_where_that_moves_less() -> None:
    """RMS norm in bf16: both kernels widen x themselves, so that fp32 is never in memory."""

    def norm(x: Any, w: Any) -> Any:
        wide = x.astype(F32)
        return (wide * lax.rsqrt(jnp.mean(wide * wide, axis=1, keepdims=True))).astype(BF16) * w

    half = T // 2
    assert moved(kernels(norm, tensor(BF16), spec(C, dtype=BF16))) == [half + 4 * N, half + 4 * N + 2 * C + half]


def test_what_is_computed_again_counts_its_flops_again() -> None:
    def fn(x: Any) -> Any:
        y = 2.0 * x
        return y + jnp.sum(y, axis=1, keepdims=True)

    found = kernels(fn, tensor())
    assert moved(found) == [T + 4 * N, T + 4 * N + T]
    scale, total, add = N * C, N * C, N * C
    assert flops(found, "vector") == 2 * scale + total + add


def test_a_broadcast_is_never_in_memory() -> None:
    """The weights of a norm do not wait, expanded, for the statistics that they will scale."""

    def fn(x: Any, w: Any) -> Any:
        return jnp.sum(x, axis=1, keepdims=True) * w

    assert moved(kernels(fn, tensor(), spec(C, dtype=F32))) == [T + 4 * N, 4 * N + 4 * C + T]


def test_what_would_have_to_fetch_more_is_stored() -> None:
    def fn(x: Any, y: Any) -> Any:
        z = x + y
        return z - jnp.sum(z, axis=1, keepdims=True)

    assert moved(kernels(fn, tensor(), tensor())) == [2 * T + T + 4 * N, T + 4 * N + T]


def test_what_only_one_other_kernel_reads_is_computed_there() -> None:
    def fn(x: Any, y: Any) -> Any:
        return jnp.exp(x.astype(F32)) * jnp.sum(y, axis=1, keepdims=True)

    found = kernels(fn, tensor(BF16), tensor())
    assert moved(found) == [T + 4 * N, T // 2 + 4 * N + T]
    assert flops(found, "scalar") == N * C


def test_transcendentals_are_stored_rather_than_computed_again() -> None:
    def fn(x: Any) -> Any:
        e = jnp.exp(x)
        return e - jnp.sum(e, axis=1, keepdims=True)

    found = kernels(fn, tensor())
    assert moved(found) == [T + T + 4 * N, T + 4 * N + T]
    assert (flops(found, "vector"), flops(found, "scalar")) == (2 * N * C, N * C)


def test_an_optimizer_touches_each_of_its_tensors_once() -> None:
    found = kernels(adam, *[tensor()] * 4)
    reads, writes = 4, 3
    assert moved(found) == [(reads + writes) * T]


def test_clipping_by_the_global_norm_reads_the_gradients_once_more() -> None:
    number = 4
    assert moved(kernels(clipped_adam, *[tensor()] * 4)) == [T + number, 7 * T + number]


# -- whole programs -----------------------------------------------------------------------------------------------


@cache
def graph(name: str) -> Graph:
    return mlp_graph() if name == "mlp" else trace(load_program(name, seq_len=128, recompute="selective"))


def trips(loops: tuple[LocalLoop, ...], evaluate: Evaluator) -> float:
    return math.prod(float(evaluate.term(loop.trips)) for loop in loops)


@pytest.mark.parametrize("name", ["mlp", "llama3.2-1b", "gpt2"])
def test_fusion_neither_loses_nor_repeats_a_matmul(name: str) -> None:
    sharded, found = local(graph(name)), 0.0
    evaluate = Evaluator(ONE_RANK | {"mb": 2.0, "microbatch": float(graph(name).size("microbatch"))})
    for loops, nodes, kept in regions(sharded):
        for kernel in fuse(sharded, nodes, kept):
            terms = [terms for (engine, _), terms in kernel.flops.items() if engine in ("tensor", "attention")]
            found += trips(loops, evaluate) * sum(float(evaluate.amount(t)) for t in terms)
    executed = sum(
        times * work.flops * work.share
        for times, op in graph(name).walk()
        for work in op.work
        if work.engine == "tensor"
    )
    assert found == pytest.approx(executed, rel=1e-12)


def region_kernels(name: str) -> Iterator[tuple[ShardedGraph, list[LocalNode], tuple[int, ...], list[Kernel]]]:
    sharded = local(graph(name))
    for _, nodes, kept in regions(sharded):
        yield sharded, list(nodes), kept, fuse(sharded, nodes, kept)


@pytest.mark.parametrize("name", ["mlp", "llama3.2-1b", "gpt2"])
def test_every_op_runs_in_at_most_one_kernel_of_its_own(name: str) -> None:
    for _, _, _, found in region_kernels(name):
        positions = [i for kernel in found for i in kernel.nodes]
        assert len(positions) == len(set(positions))


def order_of(sharded: ShardedGraph, nodes: Sequence[LocalNode], found: Sequence[Kernel]) -> nx.DiGraph:
    """Which kernels, and nodes that are in none, read results of which."""
    home = {i: k for k, kernel in enumerate(found) for i in kernel.nodes}
    maker = {copy: home.get(i, f"node {i}") for i, node in enumerate(nodes) for copy in node.results}
    order = nx.DiGraph()
    for i, node in enumerate(nodes):
        for copy in set(node.operands) - sharded.free:
            if copy in maker and maker[copy] != home.get(i, f"node {i}"):
                order.add_edge(maker[copy], home.get(i, f"node {i}"))
    return order


@pytest.mark.parametrize("name", ["mlp", "llama3.2-1b", "gpt2"])
def test_kernels_can_run_one_after_another(name: str) -> None:
    for sharded, nodes, _, found in region_kernels(name):
        assert nx.is_directed_acyclic_graph(order_of(sharded, nodes, found))


@pytest.mark.parametrize("name", ["mlp", "llama3.2-1b", "gpt2"])
def test_what_matmuls_collectives_and_loops_read_is_in_memory(name: str) -> None:
    for sharded, nodes, kept, found in region_kernels(name):
        stored = {copy for kernel in found for copy in kernel.stored}
        home = {i: kernel for kernel in found for i in kernel.nodes}
        made = {copy: home.get(i) for i, node in enumerate(nodes) for copy in node.results}
        alone = [node for i, node in enumerate(nodes) if i not in home]
        wanted = {copy for node in alone if not hasattr(node, "op") for copy in node.operands} | set(kept)
        for copy in wanted - sharded.free:
            kernel = made.get(copy)
            assert kernel is None or copy in stored


def test_gradients_accumulate_by_one_read_and_one_write_of_fp32() -> None:
    """The MLP's two gradients, bf16 from the backward pass and fp32 in the sum."""
    sharded = local(graph("mlp"))
    evaluate = Evaluator(TRACED)
    sizes = [
        float(evaluate.amount(kernel.bytes))
        for _, nodes, kept in regions(sharded)
        for kernel in fuse(sharded, nodes, kept)
        if kernel.label == "add" and kernel.phase == "update"
    ]
    weights = L * D * F
    assert sizes.count((2 + 4 + 4) * weights) == 2


# -- XLA ----------------------------------------------------------------------------------------------------------


def layer_norm(x: Any, w: Any, b: Any) -> Any:
    y = x - jnp.mean(x, axis=1, keepdims=True)
    return y * lax.rsqrt(jnp.mean(y * y, axis=1, keepdims=True) + 1e-5) * w + b


def rms_norm(x: Any, w: Any) -> Any:
    return x * lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + 1e-5) * w


def mlp(x: Any, a: Any, b: Any) -> Any:
    return jax.nn.gelu(x @ a) @ b


def adam(w: Any, m: Any, v: Any, g: Any) -> Any:
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    return w - 1e-3 * (m / (jnp.sqrt(v) + 1e-8) + 0.1 * w), m, v


def clipped_adam(w: Any, m: Any, v: Any, g: Any) -> Any:
    return adam(w, m, v, g * jnp.minimum(1.0, 1.0 / (jnp.sqrt(jnp.sum(g * g)) + 1e-8)))


def residuals(x: Any, y: Any, z: Any) -> Any:
    x = x + jnp.tanh(y)
    x = x + jax.nn.silu(z)
    return x, x * x


def attention(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(0.1 * jnp.einsum("bqd,bkd->bqk", q, k))
    return jnp.einsum("bqk,bkd->bqd", weights, v)


def cross_entropy(x: Any, ids: Any) -> Any:
    return jnp.mean(jax.nn.logsumexp(x, axis=1) - jnp.take_along_axis(x, ids[:, None], axis=1)[:, 0])


def gradient(fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    return jax.grad(lambda *args: jnp.sum(fn(*args) ** 2), argnums=tuple(range(count)))


HEADS, KEYS, HEAD = 8, 256, 64
SCORES = 4 * HEADS * KEYS * KEYS
INNER = 4 * N * 4 * C
row, column = spec(C, dtype=F32), spec(N, dtype=I32)
x = tensor()
head = spec(HEADS, KEYS, HEAD, dtype=F32)
up, down = spec(C, 4 * C, dtype=F32), spec(4 * C, C, dtype=F32)

# (program, operands, bytes by which XLA's CPU backend is known to differ, above the kernels of an accelerator, and
# why). It never fuses two results into one kernel ("again": what it therefore reads again), its reductions are library
# calls that take no elementwise producer, and a fused lookup is counted as if it read the whole table. Its matmuls are
# library calls too, without epilogues: the test takes them from ours.
CASES: list[tuple[str, Callable[..., Any], tuple[Any, ...], float, str]] = [
    ("softmax", jax.nn.softmax, (x,), 0, ""),
    ("softmax gradient", jax.grad(lambda x, y: jnp.sum(jax.nn.softmax(x) * y)), (x, x), 0, ""),
    ("RMS norm", rms_norm, (x, row), 0, ""),
    ("layer norm", layer_norm, (x, row, row), 2 * T, "x - mean, written for a reduction and read back"),
    ("GELU MLP", mlp, (x, up, down), 0, ""),
    ("GELU MLP gradient", gradient(mlp, 3), (x, up, down), 2 * INNER, "again: x @ a and its tanh"),
    ("Adam", adam, (x, x, x, x), 3 * T, "again: g for v, m and v for w"),
    ("Adam, clipped", clipped_adam, (x, x, x, x), 3 * T, "again: g for v, m and v for w"),
    ("residual chain", residuals, (x, x, x), T, "again: the sum for its square"),
    ("attention", attention, (head,) * 3, -2 * SCORES, "scores never written, but the sum reads what exp wrote"),
    ("attention gradient", gradient(attention, 3), (head,) * 3, 0, ""),
    ("cross-entropy", cross_entropy, (x, column), T, "the whole of x for one column of each row"),
    ("cross-entropy gradient", jax.grad(cross_entropy), (x, column), T, "the sum reads what exp wrote"),
]


@pytest.mark.parametrize(("name", "fn", "args", "known", "why"), CASES, ids=[case[0] for case in CASES])
def test_traffic_is_what_xla_counts(
    name: str, fn: Callable[..., Any], args: tuple[Any, ...], known: float, why: str
) -> None:
    analysis = jax.jit(fn).lower(*args).compile().cost_analysis()
    assert analysis is not None
    assert sum(moved(kernels(fn, *args, epilogues=False))) == pytest.approx(
        analysis["bytes accessed"] - known, rel=0.05
    )
