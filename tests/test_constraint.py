"""Sharding constraints that a program states are obeyed, and values go on from where they put them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_manual import DATA, F32, HINTS, LAYOUT, MODEL, nodes, traced, traffic

from perfmodel.errors import TraceError
from perfmodel.graph import Graph, Op
from perfmodel.sharded import LocalOp
from perfmodel.state import Axes
from perfmodel.trace import Argument, Hints, Program, read_program, trace

MESH = AbstractMesh((DATA, MODEL), ("data", "model"))
TP = ("tp_kv", "tp_q")
B, S, D, F = 4, 8, 16, 32
"""Rows, sequence, width and inner width."""


def constrained(x: Any, *axes: Any) -> Any:
    return lax.with_sharding_constraint(x, NamedSharding(MESH, P(*axes)))


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
