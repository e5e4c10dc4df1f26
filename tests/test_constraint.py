"""Sharding constraints that a program states are obeyed, and values go on from where they put them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_manual import DATA, F32, HINTS, LAYOUT, MODEL, nodes, spec, traced, traffic
from zoo.constrained import constrained as stated_layers

from perfmodel.errors import TraceError
from perfmodel.graph import Graph, Op
from perfmodel.layout import Layout
from perfmodel.sharded import LocalOp
from perfmodel.state import Axes
from perfmodel.trace import Argument, Hints, Program, read_program, trace
from perfmodel.verify import verify

MESH = AbstractMesh((DATA, MODEL), ("data", "model"))
TP = ("tp_kv", "tp_q")
L, B, S, D, F, V = 3, 4, 8, 64, 32, 16
"""Layers, rows, sequence, width, inner width and vocabulary."""
ACTIVATION = B * S * D * F32 / DATA


def constrained(x: Any, *axes: Any, mesh: AbstractMesh = MESH) -> Any:
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))


def states(graph: Graph) -> list[list[Axes]]:
    """Mesh axes of each dim of each constrained value, in order."""
    found = []
    for node, _ in nodes(graph, LAYOUT):
        if isinstance(node, LocalOp) and node.op.kind == "sharding_constraint":
            found.append([tuple(axis for i in dim for axis in node.axes[i]) for dim in node.op.result_dims[0]])
    return found


def constraints(graph: Graph) -> list[Op]:
    return [op for _, op in graph.walk() if op.kind == "sharding_constraint"]


def block(x: Any, up: Any, down: Any) -> Any:
    """Megatron's sequence parallelism: along the sequence between matmuls, along the inner width within."""
    x = constrained(x, "data", "model", None)
    y = constrained(x, "data", None, None)
    z = constrained(jax.nn.relu(y @ up), "data", None, "model")
    return x + constrained(z @ down, "data", "model", None)


SHAPES = ((B, S, D), (D, F), (F, D))


def test_sequence_parallel_constraints_gather_before_and_scatter_after_the_matmuls() -> None:
    axes = [(None, None, None), (None, "mlp"), ("mlp", None)]
    graph = traced(lambda x, up, down: jnp.sum(block(x, up, down)), *SHAPES, axes=axes)
    activations = B * S * D * F32 / DATA
    assert states(graph) == [
        [("dp",), TP, ()],
        [("dp",), (), ()],
        [("dp",), (), TP],
        [("dp",), TP, ()],
    ]
    large = {key: size for key, size in traffic(graph).items() if size > F32}  # the loss is one number
    assert large == {("all_gather", "tp"): activations, ("reduce_scatter", "tp"): activations}
    assert graph.flops() == 2 * 2 * B * S * D * F


def step(loss: Callable[..., Any], x: Any, axes: Any, **weights: tuple[int, ...]) -> Program:
    """A step of gradient descent on `loss(weights, x)` whose weights have no axis names: constraints place them."""

    def fn(w: Any, x: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(w, x)
        return jax.tree.map(lambda w, g: w - g, w, gradients), value

    return Program(
        name="test",
        fn=fn,
        arguments=(
            Argument(
                name="w", role="parameters", tree={k: spec(*v) for k, v in weights.items()}, axes=dict.fromkeys(weights)
            ),
            Argument(name="x", role="batch", tree=x, axes=axes),
        ),
        donated=("w",),
        hints=HINTS,
    )


def alone(x: Any, up: Any, down: Any) -> Any:
    """Sequence parallelism that says where activations lie, and only there."""
    z = constrained(jnp.tanh(constrained(x, "data", "model", None) @ up), "data", None, "model")
    return constrained(z @ down, "data", "model", None)


def ids_to_scores(w: Any, ids: Any) -> Any:
    """Layers between a table and scores; these are whole along the sequence, and read the ids a second time."""
    x = constrained(w["table"][ids], "data", "model", None)
    x = lax.scan(lambda x, w: (x + alone(x, *w), None), x, (w["up"], w["down"]))[0]
    scores = constrained(constrained(x, "data", None, None) @ w["head"], "data", None, "model")
    hits = jnp.where(ids[..., None] == jnp.arange(V), scores, 0.0)
    return jnp.mean(jax.nn.logsumexp(scores, -1) - jnp.sum(hits, -1))


def positions(w: Any, x: Any) -> Any:
    """Positions are multiplied with rates, but activations with neither."""
    x = x * jnp.cos(jnp.einsum("s,d->sd", w["angles"], w["rates"]))
    return jnp.sum(alone(x, w["up"], w["down"]) ** 2)


def put_together(w: Any, x: Any) -> Any:
    """What the first matmul makes is stated whole, but then each rank only goes on with its own rows."""
    mesh = AbstractMesh((DATA,), ("data",))
    z = jnp.tanh(constrained(x @ w["up"], None, None, None, mesh=mesh))
    return jnp.sum(constrained(z, "data", None, None, mesh=mesh) @ w["down"])


def spread(w: Any, x: Any) -> Any:
    """Rows over more ranks than the layout has them on."""
    return jnp.sum(jnp.tanh(constrained(x @ w["up"], ("data", "model"), None, None)) @ w["down"])


def squares(block: Callable[..., Any]) -> Callable[..., Any]:
    return lambda w, x: jnp.sum(block(x, w["up"], w["down"]) ** 2)


X, IDS = jax.ShapeDtypeStruct((B, S, D), jnp.float32), jax.ShapeDtypeStruct((B, S), jnp.int32)
MLP = {"up": (D, F), "down": (F, D)}
LAYERS = {"up": (L, D, F), "down": (L, F, D), "table": (V, D), "head": (D, V)}
STEPS = {
    "alone": step(squares(alone), X, ("batch", None, None), **MLP),
    "alone, sequence named": step(squares(alone), X, ("batch", "seq", None), **MLP),
    "whole before matmuls": step(squares(block), X, ("batch", None, None), **MLP),
    "positions": step(positions, X, ("batch", None, None), angles=(S,), rates=(D,), **MLP),
    "ids to scores": step(ids_to_scores, IDS, ("batch", None), **LAYERS),
    "spread": step(spread, jax.ShapeDtypeStruct((DATA * MODEL, S, D), jnp.float32), ("batch", None, None), **MLP),
    "put together": replace(step(put_together, X, ("batch", None, None), **MLP), hints=Hints(mesh={"data": ("dp",)})),
}


def layout_of(name: str) -> Layout:
    batch = DATA * MODEL if name == "spread" else B
    tp = 1 if name == "put together" else MODEL
    return Layout(dp=DATA, tp=tp, mb=batch // DATA, global_batch=batch, zero=0, sp=False)


@pytest.mark.parametrize("name", ["alone", "alone, sequence named", "whole before matmuls"])
def test_sequence_parallelism_that_only_constraints_state_is_megatrons(name: str) -> None:
    found = traffic(trace(STEPS[name]), layout_of(name))
    del found["all_reduce", "dp+tp"]  # of the loss
    assert found == {
        ("all_gather", "tp"): 2 * ACTIVATION,  # what enters the first matmul, and the gradient that enters the second
        ("reduce_scatter", "tp"): ACTIVATION,  # what the second makes; nobody wants the gradient of x
        ("all_reduce", "dp"): 2 * D * F * F32 / MODEL,
    }


@pytest.mark.parametrize("name", STEPS)
def test_what_constraints_alone_state_moves_what_shardy_moves(name: str) -> None:
    verification = verify(STEPS[name], layout_of(name))
    rows = [(row.kind, row.axis, row.agrees) for row in verification.rows if row.compared]
    assert rows
    assert all(agrees for *_, agrees in rows), rows


def test_layers_that_constraints_alone_split_are_those_whose_dims_have_names() -> None:
    layout = Layout(dp=2, tp=2, mb=2, global_batch=4, zero=0, sp=False)
    named, unnamed = (traffic(trace(stated_layers(named=each)), layout) for each in (True, False))
    assert named == unnamed
    assert named["reduce_scatter", "tp"] > 0.0


def test_what_is_stated_whole_is_not_put_together_where_nobody_reads_it_whole() -> None:
    found = traffic(trace(STEPS["put together"]), layout_of("put together"))
    assert found == {("all_reduce", "dp"): 2 * D * F * F32 + F32}  # gradients and the loss


@pytest.mark.parametrize(("reader", "axes"), [("matmul", ()), ("square matmul", ()), ("product", TP)])
def test_what_every_trip_of_a_loop_reads_whole_is_put_together_before_it(reader: str, axes: Axes) -> None:
    def read(y: Any, w: Any, square: Any) -> Any:
        if reader == "matmul":
            return constrained(y @ w, "data", None, "model") @ w.T
        return constrained(y @ square, "data", None, "model") if reader == "square matmul" else y * w[:, 0]

    def fn(x: Any, *w: Any) -> Any:
        x = constrained(x, "data", "model", None)
        y = constrained(x, "data", None, None)
        return lax.scan(lambda x, w: (constrained(x + read(y, *w), "data", "model", None), None), x, w)[0]

    graph = traced(fn, (B, S, D), (L, D, F), (L, D, D), axes=[("batch", None, None), (None,) * 3, (None,) * 3])
    assert states(graph)[1] == [("dp",), axes, ()]


def test_of_constraints_in_a_row_that_are_read_whole_each_is_whole() -> None:
    def fn(x: Any, up: Any) -> Any:
        x = constrained(x, "data", "model", None)
        x = constrained(constrained(x, "data", None, None), "data", None, None)
        return constrained(x @ up, "data", None, "model")

    graph = traced(fn, (B, S, D), (D, F), axes=[("batch", None, None), (None, None)])
    assert states(graph)[1:3] == [[("dp",), (), ()]] * 2


def test_a_batch_that_is_stated_over_more_ranks_than_the_layouts_stays_there() -> None:
    def fn(x: Any) -> Any:
        x = constrained(x, ("data", "model"), None) * 2.0
        return jnp.tanh(constrained(x, None, None)) * 3.0

    graph = traced(fn, (B, D), axes=[("batch", None)])
    assert [dims[0][:1] + dims[0][-2:] for dims in states(graph)] == [("dp", *TP)] * 2


def test_gradients_are_constrained_like_the_values() -> None:
    grad = jax.grad(lambda w, x: jnp.sum(block(x, *w)))

    def step(up: Any, down: Any, x: Any) -> Any:
        return grad((up, down), x)

    graph = traced(step, (D, F), (F, D), (B, S, D))
    assert len(constraints(graph)) == 4 + 2  # two of the backward pass lead to gradients of x, which nobody wants
    assert states(graph)[-1] == [("dp",), (), TP]


def test_an_open_dim_is_the_layouts_and_a_closed_one_without_axes_whole() -> None:
    (op,) = constraints(traced(lambda x: constrained(x, P.UNCONSTRAINED, "model"), (B, D)))
    assert [axes for _, axes in op.pinned] == [("tp",)]
    (op,) = constraints(traced(lambda x: constrained(x, None, "model"), (B, D)))
    assert [axes for _, axes in op.pinned] == [(), ("tp",)]


def test_an_open_dim_with_axes_lies_at_least_there(tmp_path: Path) -> None:
    """JAX writes such dims for `shard_map` only, other compilers anywhere."""
    text = """
      sdy.mesh @mesh = <["fsdp"=2, "tp"=4]>
      func.func @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {
        %y = sdy.sharding_constraint %x <@mesh, [{"fsdp", ?}, {?}]> : tensor<8x8xf32>
        return %y : tensor<8x8xf32>
      }"""
    (tmp_path / "step.mlir").write_text(text)
    (op,) = constraints(trace(read_program(str(tmp_path / "step.mlir"))))
    assert op.pinned == ((0, ("fsdp",)),)


def test_several_axes_on_a_dim_and_a_dim_of_several_factors() -> None:
    def fn(x: Any) -> Any:
        return constrained(x.reshape(B * S, D), ("data", "model"), None).reshape(B, S, D) * 2.0

    graph = traced(fn, (B, S, D))
    assert states(graph) == [[("dp", *TP), ()]]
    (op,) = constraints(graph)
    major = op.result_dims[0][0][0]
    assert graph.factors[op.local[major]].size == B
    assert op.pinned[0] == (major, ("dp", "tp"))


def test_a_constraint_inside_a_loop_holds_on_each_trip() -> None:
    def fn(x: Any, w: Any) -> Any:
        return lax.scan(lambda x, w: (constrained(x @ w, "data", None), None), x, w)[0]

    graph = traced(fn, (B, D), (3, D, D))
    assert states(graph) == [[("dp",), ()]]
    assert graph.flops() == 3 * 2 * B * D * D


@pytest.mark.parametrize("axes", [("data", None), (P.UNCONSTRAINED, P.UNCONSTRAINED)])
def test_a_constraint_that_says_nothing_vanishes(axes: Sequence[Any]) -> None:
    graph = traced(lambda x: constrained(x, *axes) * 2.0, (B, D), hints=Hints(mesh={"data": ()}))
    assert constraints(graph) == []


def test_axes_of_a_layout_stand_for_themselves() -> None:
    mesh = AbstractMesh((2, 2), ("fsdp", "tp"))
    sharding = NamedSharding(mesh, P("fsdp", "tp"))
    graph = traced(lambda x: lax.with_sharding_constraint(x, sharding), (B, D), hints=Hints())
    assert [axes for _, axes in constraints(graph)[0].pinned] == [("fsdp",), ("tp",)]


def test_an_axis_of_size_one_needs_no_explanation() -> None:
    mesh = AbstractMesh((2, 1), ("fsdp", "tensor"))
    sharding = NamedSharding(mesh, P("fsdp", "tensor"))
    graph = traced(lambda x: lax.with_sharding_constraint(x, sharding), (B, D), hints=Hints())
    assert [axes for _, axes in constraints(graph)[0].pinned] == [("fsdp",), ()]


def test_an_axis_that_nobody_explained_is_an_error_that_says_what_to_write() -> None:
    advice = r"Hints\(mesh=\{'data': \('dp',\)\}\)"
    with pytest.raises(
        TraceError, match=rf"test_constraint.py:\d+: got mesh axis 'data', expected one of tp, cp.*{advice}"
    ):
        traced(block, *SHAPES, hints=Hints())


def test_where_arguments_lie_is_for_the_layout_to_say() -> None:
    sharded = jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=NamedSharding(MESH, P("data", "model")))
    fn: Callable[..., Any] = lambda x: x * 2.0
    argument = Argument(name="x", role="batch", tree=sharded, axes=(None, None))
    graph = trace(Program(name="test", fn=fn, arguments=(argument,), hints=HINTS))
    assert constraints(graph) == []
    (note,) = graph.notes
    assert note == "shardings of 1 arguments are left to the layout"
    assert traced(fn, (B, D), hints=Hints()).notes == ()
