"""`shard_map`: work and traffic of a rank against hand formulas."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxlib.mlir import ir
from zoo.explicit import explicit

from perfmodel.errors import TraceError
from perfmodel.graph import Graph, Loop
from perfmodel.graph_file import from_json
from perfmodel.layout import Layout
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard
from perfmodel.state import LOCAL
from perfmodel.trace import Argument, Hints, Program, trace
from perfmodel.trace.stablehlo import lower
from perfmodel.work import Evaluator

DATA, MODEL = 2, 4
MESH = AbstractMesh((DATA, MODEL), ("data", "model"))
HINTS = Hints(mesh={"data": ("dp",), "model": ("tp",)})
L, B, S, D, F, E, C = 3, 8, 12, 16, 32, 8, 5
"""Layers, rows, sequence, width, inner width, experts, and the capacity of an expert on a rank."""
F32 = 4

LAYOUT = Layout(dp=DATA, tp=MODEL, mb=B // DATA, global_batch=B, zero=0, sp=False)


def spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def traced(fn: Callable[..., Any], *shapes: Sequence[int], axes: Any = None, hints: Hints = HINTS) -> Graph:
    trees = [spec(*shape) for shape in shapes]
    names = axes or [(None,) * len(shape) for shape in shapes]
    arguments = tuple(
        Argument(name=f"x{i}", role="parameters", tree=tree, axes=name)
        for i, (tree, name) in enumerate(zip(trees, names, strict=True))
    )
    return trace(Program(name="test", fn=fn, arguments=arguments, hints=hints))


def mapped(body: Callable[..., Any], ins: Any, outs: Any, **options: Any) -> Callable[..., Any]:
    return jax.shard_map(body, mesh=MESH, in_specs=ins, out_specs=outs, **options)


def nodes(graph: Graph, layout: Layout) -> Iterator[tuple[LocalOp | Reshard, float]]:
    """Everything that a rank does, and how often."""
    evaluate = Evaluator(layout.sizes(graph))

    def visit(each: tuple[LocalNode, ...], times: float) -> Iterator[tuple[LocalOp | Reshard, float]]:
        for node in each:
            if isinstance(node, LocalLoop):
                yield from visit(node.body, times * float(evaluate.term(node.trips)))
            else:
                yield node, times

    yield from visit(shard(graph, layout.assignment).nodes, 1.0)


def traffic(graph: Graph, layout: Layout = LAYOUT) -> dict[tuple[str, str], float]:
    """Bytes that a rank passes, by (kind, axes of size above 1)."""
    sizes, evaluate = layout.sizes(graph), Evaluator(layout.sizes(graph))
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for node, times in nodes(graph, layout):
        if isinstance(node, Reshard) and node.kind not in LOCAL:
            axes = "+".join(sorted({axis.split("_")[0] for axis in node.axes if sizes[axis] > 1}))
            if axes:
                found[node.kind, axes] += times * float(evaluate.term(node.bytes))
    return dict(found)


def rank_flops(graph: Graph, layout: Layout = LAYOUT) -> float:
    """Matrix FLOPs of a rank."""
    sizes = layout.sizes(graph)
    total = 0.0
    for node, times in nodes(graph, layout):
        if isinstance(node, LocalOp):
            for work in node.op.work:
                parts = math.prod(float(sizes[axis]) for i in work.over for axis in node.axes[i])
                total += times * work.flops / parts if work.engine == "tensor" else 0.0
    return total


def mlp(x: Any, w: Any) -> Any:
    """Megatron's MLP as a rank runs it."""
    return x + lax.psum(jax.nn.relu(x @ w[0]) @ w[1], "model")


def stack(x: Any, up: Any, down: Any) -> Any:
    return lax.scan(lambda x, w: (mlp(x, w), None), x, (up, down))[0]


STACK_SPECS = (P("data"), P(None, None, "model"), P(None, "model", None))


def test_a_megatron_mlp_splits_its_work_and_reduces_once_a_layer() -> None:
    graph = traced(mapped(stack, STACK_SPECS, P("data")), (B, D), (L, D, F), (L, F, D))
    assert graph.flops() == L * 2 * 2 * B * D * F
    assert rank_flops(graph) == graph.flops() / DATA / MODEL
    assert traffic(graph) == {("all_reduce", "tp"): L * B / DATA * D * F32}


@pytest.mark.parametrize("checked", [True, False])
def test_its_gradient_reduces_activations_backwards_and_weights_over_data(checked: bool) -> None:
    forward = mapped(stack, STACK_SPECS, P("data"), check_vma=checked)

    def step(up: Any, down: Any, x: Any) -> Any:
        gradients = jax.grad(lambda w: jnp.sum(forward(x, *w)))((up, down))
        return up - gradients[0], down - gradients[1]

    axes = [("layers", "embed", "mlp"), ("layers", "mlp", "embed"), ("batch", "embed")]
    graph = traced(step, (L, D, F), (L, F, D), (B, D), axes=axes)
    activations = L * B / DATA * D * F32
    assert graph.flops() == L * 3 * 2 * 2 * B * D * F
    assert rank_flops(graph) == graph.flops() / DATA / MODEL
    found = traffic(graph)
    assert found["all_reduce", "dp"] == L * 2 * D * F / MODEL * F32
    if checked:  # without the check JAX cannot know that the sum's gradient is whole, and sums it again
        assert found["all_reduce", "tp"] == 2 * activations
    assert set(found) == {("all_reduce", "dp"), ("all_reduce", "tp")}


def ring(x: Any, w: Any, *, checked: bool = True) -> Any:
    """Each rank sees the rows of all, one at a time."""

    def step(carry: Any, _: Any) -> Any:
        x, total = carry
        return (lax.ppermute(x, "model", [(i, (i + 1) % MODEL) for i in range(MODEL)]), total + x @ w), None

    start = jnp.zeros((x.shape[0], w.shape[1]))
    start = lax.pcast(start, ("model",), to="varying") if checked else start
    return lax.scan(step, (x, start), None, length=MODEL)[0][1]


@pytest.mark.parametrize("options", [{"check_vma": False}, {"axis_names": {"model"}}])
def test_a_ring_passes_every_part_on_once_a_trip(options: Any) -> None:
    body = partial(ring, checked="check_vma" not in options)
    graph = traced(mapped(body, (P("model"), P()), P("model"), **options), (B, D), (D, D))
    assert graph.flops() == MODEL * 2 * B * D * D
    assert rank_flops(graph) == graph.flops() / MODEL
    assert traffic(graph) == {("permute", "tp"): MODEL * B / MODEL * D * F32}
    (permute,) = (op for _, op in graph.walk() if op.kind == "collective_permute")
    assert [axes for _, axes in permute.pinned] == [("tp",)]


def experts(x: Any, w: Any) -> Any:
    """Every rank sends each expert its rows, and gets them back."""
    x = lax.all_to_all(x, "model", split_axis=0, concat_axis=1, tiled=True)
    y = jnp.einsum("ecd,edf->ecf", x, w)
    return lax.all_to_all(y, "model", split_axis=1, concat_axis=0, tiled=True)


def test_experts_exchange_their_rows_twice() -> None:
    fn = mapped(experts, (P(None, "model"), P("model")), P(None, "model"))
    graph = traced(fn, (E, MODEL * C, D), (E, D, F))
    assert graph.shape(graph.results[0]) == (E, MODEL * C, F)
    assert graph.flops() == 2 * E * MODEL * C * D * F
    assert rank_flops(graph) == graph.flops() / MODEL
    assert traffic(graph) == {("all_to_all", "tp"): E * C * (D + F) * F32}
    assert {node.kind for node, _ in nodes(graph, LAYOUT) if isinstance(node, Reshard)} == {"all_to_all"}


def test_gathered_weights_are_whole_and_their_gradients_scattered() -> None:
    def body(x: Any, w: Any) -> Any:
        y = x @ lax.all_gather(w, "data", axis=0, tiled=True)
        return lax.psum_scatter(x.T @ y, "data", scatter_dimension=0, tiled=True)

    graph = traced(mapped(body, (P("data"), P("data")), P("data")), (B, D), (D, F))
    assert rank_flops(graph) == 2 * (2 * B * D * F) / DATA
    assert traffic(graph) == {("all_gather", "dp"): D * F * F32, ("reduce_scatter", "dp"): D * F * F32}


def test_a_maximum_over_both_axes_is_one_collective() -> None:
    graph = traced(mapped(lambda x: lax.pmax(x, ("data", "model")), P(("data", "model")), P()), (B, D))
    assert traffic(graph) == {("all_reduce", "dp+tp"): B / DATA / MODEL * D * F32}


@pytest.mark.parametrize(("options", "bound"), [({}, {"dp", "tp"}), ({"axis_names": {"model"}}, {"tp"})])
def test_a_rank_that_slices_by_its_index_moves_nothing(options: Any, bound: set[str]) -> None:
    rows = B // MODEL
    body = lambda x: lax.dynamic_slice_in_dim(x, lax.axis_index("model") * rows, rows, 0)
    graph = traced(mapped(body, P(), P("model"), **options), (B, D))
    assert graph.shape(graph.results[0]) == (B, D)
    assert {axis for factor in graph.factors for axis in factor.bound} == bound
    assert traffic(graph) == {}


def test_axes_of_the_mesh_that_stay_automatic_are_the_layouts() -> None:
    body = lambda x, w: lax.psum(x @ w, "model")
    fn = mapped(body, (P(None, "model"), P("model")), P(), axis_names={"model"})
    graph = traced(fn, (B, D), (D, F), axes=[("batch", None), (None, None)], hints=Hints(mesh={"model": ("tp",)}))
    assert rank_flops(graph) == 2 * B * D * F / DATA / MODEL
    assert set(traffic(graph)) == {("all_reduce", "tp")}


def test_values_that_ranks_share_are_computed_once_for_all() -> None:
    body = lambda x, w: x @ (w @ w)
    graph = traced(mapped(body, (P("model"), P()), P("model")), (B, D), (D, D))
    assert graph.flops() == 2 * D**3 + 2 * B * D * D
    assert rank_flops(graph) == 2 * D**3 + 2 * B * D * D / MODEL


@pytest.mark.parametrize("options", [{}, {"axis_names": {"model"}}])
@pytest.mark.parametrize(("reduce", "reducer"), [(lax.psum, "psum"), (lax.pmax, "maximum")])
def test_what_is_reduced_over_ranks_is_told_where_other_axes_stay_automatic(
    reduce: Callable[..., Any], reducer: str, options: Any
) -> None:
    fn = mapped(lambda x: reduce(x, "model"), P(None, "model"), P(), **options)
    (op,) = (op for _, op in traced(fn, (B, F)).walk() if any(op.summed))
    assert op.reducer == reducer


@pytest.mark.parametrize(("options", "parts"), [({}, MODEL), ({"axis_names": {"model"}}, MODEL * DATA)])
def test_no_dim_of_a_body_is_spread_over_a_manual_axis(options: Any, parts: int) -> None:
    """The layout shards `seq` over tp and `batch` over dp where it may: not over axes that a body keeps for itself."""
    body = lambda x, w: lax.psum(jnp.tanh(x @ w) @ w.T, "model")
    fn = mapped(body, (P(), P(None, "model")), P(), **options)
    graph = traced(fn, (B, S, D), (D, F), axes=[("batch", "seq", None), (None, None)])
    layout = replace(LAYOUT, sp=True)
    assert rank_flops(graph, layout) == graph.flops() / parts
    assert graph.flops() == 2 * 2 * B * S * D * F


def test_a_loop_may_start_with_what_ranks_share_and_go_on_with_what_they_do_not() -> None:
    def body(x: Any, w: Any) -> Any:
        return lax.scan(lambda y, _: (y @ w + x, None), jnp.zeros_like(x), None, length=L)[0]

    shapes = (B, D), (D, D)
    graph = traced(mapped(body, (P("model"), P()), P("model"), check_vma=False), *shapes)
    assert graph.flops() == L * 2 * B * D * D
    (loop,) = (node for node in graph.nodes if isinstance(node, Loop))
    for values in zip(loop.operands, loop.parameters, loop.yields, loop.results, strict=True):
        assert len({graph.values[v].dims for v in values}) == 1
    used = {v for _, op in graph.walk() for v in (*op.operands, *op.results)} | {p.value for p in graph.parameters}
    used |= {*loop.operands, *loop.parameters, *loop.yields, *loop.results}
    assert all(value.dims == () for i, value in enumerate(graph.values) if i not in used)


def test_a_marked_kernel_in_a_body_runs_on_each_rank() -> None:
    kernel = lax.composite(lambda a, b: jnp.tanh(a @ b), name="perfmodel.fused")
    graph = traced(mapped(kernel, (P("model"), P()), P("model")), (B, D), (D, F))
    (op,) = (op for _, op in graph.walk() if op.kind == "perfmodel.fused")
    assert sum(work.flops for work in op.work if work.engine == "tensor") == 2 * B * D * F
    assert rank_flops(graph) == 2 * B * D * F / MODEL


COLLECTIVES = {
    "stablehlo.all_gather": "all_gather",
    "stablehlo.reduce_scatter": "reduce_scatter",
    "stablehlo.all_reduce": "all_reduce",
    "stablehlo.all_to_all": "all_to_all",
    "stablehlo.collective_permute": "permute",
}


def written(module: ir.Module, trips: int) -> dict[str, float]:
    """Bytes of the collectives that stand in a module, by kind: the larger side; every loop runs `trips` times."""
    functions = {ir.StringAttr(op.operation.attributes["sym_name"]).value: op for op in module.body.operations}
    found: defaultdict[str, float] = defaultdict(float)

    def visit(op: Any, times: int) -> None:
        for inner in (inner for region in op.regions for block in region.blocks for inner in block.operations):
            each = inner.operation
            if each.name in COLLECTIVES:
                sides = [math.prod(value.type.shape) * F32 for value in (each.operands[0], each.results[0])]
                found[COLLECTIVES[each.name]] += times * max(sides)
            elif each.name == "func.call":
                visit(functions[each.attributes["callee"].value], times)
            else:
                visit(each, times * trips if each.name == "stablehlo.while" else times)

    visit(functions["main"], 1)
    return dict(found)


def test_a_rank_passes_what_its_program_writes() -> None:
    """FSDP, tensor parallelism, experts and a ring, forward and backward."""
    program = explicit()
    arguments = [
        replace(each, axes=jax.tree.map(lambda leaf: (None,) * leaf.ndim, each.tree)) for each in program.arguments
    ]
    program = replace(program, arguments=tuple(arguments))
    found: defaultdict[str, float] = defaultdict(float)
    for (kind, _), size in traffic(trace(program), Layout(dp=2, fsdp=2, tp=2, zero=0)).items():
        found[kind] += size
    assert dict(found) == written(lower(program), trips=2)


def test_bound_factors_know_their_size_and_survive_json() -> None:
    graph = traced(mapped(stack, STACK_SPECS, P("data")), (B, D), (L, D, F), (L, F, D))
    assert {(factor.size, factor.bound) for factor in graph.factors if factor.bound} == {(2, ("dp",)), (4, ("tp",))}
    assert {f.origin for f in graph.factors if f.bound and f.origin} == {"x0.0/0", "x1.2/0"}
    assert from_json(graph.to_json()) == graph


def test_each_shard_map_has_a_mesh_of_its_own() -> None:
    """Also where both meshes name an axis alike."""
    other = AbstractMesh((8, DATA), ("model", "rows"))

    def fn(x: Any, y: Any) -> Any:
        x = mapped(lambda x: lax.psum(x, "model"), P(None, "model"), P())(x)
        return x, jax.shard_map(lambda y: lax.psum(y, "rows"), mesh=other, in_specs=P("rows"), out_specs=P())(y)

    graph = traced(fn, (B, D), (B, F), hints=Hints(mesh={**HINTS.mesh, "rows": ("dp",)}))
    assert traffic(graph) == {("all_reduce", "tp"): B * D / MODEL * F32, ("all_reduce", "dp"): B / DATA * F * F32}


def test_a_dim_that_two_shard_maps_split_differently_is_gathered_in_between() -> None:
    def fn(x: Any) -> Any:
        x = mapped(lambda x: x * 2.0, P("model"), P("model"))(x)
        return mapped(lambda x: x * 2.0, P("data"), P("data"))(x)

    graph = traced(fn, (B, D))
    assert traffic(graph) == {("all_gather", "tp"): B * D * F32}


# -- errors -------------------------------------------------------------------------------------------------------


def test_a_mesh_axis_that_nobody_explained_is_an_error_that_says_what_to_write() -> None:
    fn = mapped(lambda x: x * 2, P("model"), P("model"))
    with pytest.raises(
        TraceError, match=r"test_manual.py:\d+: got mesh axis 'model', expected one of.*Hints\(mesh=.*ignore it$"
    ):
        traced(fn, (B, D), hints=Hints())
    with pytest.raises(TraceError, match=r"'model' of size 4 ignored, but shard_map"):
        traced(fn, (B, D), hints=Hints(mesh={"model": ()}))
    with pytest.raises(TraceError, match=r"got 'tensor', expected one of tp"):
        traced(fn, (B, D), hints=Hints(mesh={"model": ("tensor",)}))


def test_groups_that_are_no_mesh_axes_are_an_error() -> None:
    body = lambda x: lax.psum(x, "model", axis_index_groups=[[0, 1], [2, 3]])
    with pytest.raises(TraceError, match=r"test_manual.py:\d+: got groups of 2 ranks.*axis_index_groups"):
        traced(mapped(body, P("model"), P("model"), check_vma=False), (B, D))


# -- constants ---------------------------------------------------------------------------------------------------------

WRITTEN: Mapping[str, Any] = {
    "sum": (lambda y: lax.psum(y, "model"), "all_reduce", 1),
    "maximum": (lambda y: lax.pmax(y, "model"), "all_reduce", 1),
    "gather": (lambda y: lax.all_gather(y, "model", tiled=True), "all_gather", MODEL),
    "scatter": (lambda y: lax.psum_scatter(y, "model", tiled=True), "reduce_scatter", 1),
    "exchange": (lambda y: lax.all_to_all(y, "model", 0, 1, tiled=True), "all_to_all", 1),
    "next": (lambda y: lax.ppermute(y, "model", [(i, (i + 1) % MODEL) for i in range(MODEL)]), "permute", 1),
}


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("written", WRITTEN)
def test_what_the_program_itself_moves_is_moved_though_all_ranks_have_it(written: str, constant: bool) -> None:
    move, kind, times = WRITTEN[written]

    def body(x: Any, w: Any) -> Any:
        return x * jnp.sum(jnp.tanh(move(jnp.ones((D, F)) if constant else w)))

    graph = traced(mapped(body, (P("data", "model"), P()), P("data", "model"), check_vma=False), (B, S), (D, F))
    assert traffic(graph) == {(kind, "tp"): times * D * F * F32}


def test_the_gradient_of_an_exchange_is_an_exchange_though_it_starts_from_ones() -> None:
    def body(x: Any) -> Any:
        return lax.all_to_all(jnp.tanh(lax.all_to_all(x, "model", 1, 0, tiled=True)), "model", 0, 1, tiled=True)

    exchanged = mapped(body, P("model"), P("model"))
    graph = traced(jax.value_and_grad(lambda x: jnp.sum(exchanged(x))), (B, D))
    assert traffic(graph)["all_to_all", "tp"] == 4 * B * D / MODEL * F32
