"""`perfmodel verify`: what it says and returns, what it refuses, and that it can say no."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from partitioner import TINY_LLAMA
from programs import mlp_program

import perfmodel
from perfmodel import load_program
from perfmodel.cli.main import main
from perfmodel.errors import LayoutError, TraceError
from perfmodel.layout import Layout, assignment
from perfmodel.shard import shard
from perfmodel.trace import Argument, Program
from perfmodel.trace.program import StableHLO
from perfmodel.verify import Verification, question, stated, verify, verify_all
from perfmodel.verify.collective import Instruction
from perfmodel.verify.compare import compare
from perfmodel.verify.derived import EAGER
from perfmodel.verify.rewrites import (
    EXCHANGED,
    IN_PLACE,
    JOINED,
    MERGED,
    NARROWED,
    NESTED,
    RANKED,
    REASSOCIATED,
    REWRITES,
    SCALED,
    SCATTERED,
    SLICED,
    collectives_of,
)

TP_SP = Layout(tp=4, mb=2, global_batch=24, zero=0)


@pytest.fixture(scope="module")
def tp_sp() -> Verification:
    return verify(mlp_program(), TP_SP)


# -- the answer ---------------------------------------------------------------------------------------------------


def test_rows_agree_and_say_what_was_compared(tp_sp: Verification) -> None:
    assert tp_sp.ok
    assert {(row.kind, row.axis) for row in tp_sp.rows if row.compared} == {
        ("all_gather", "tp"),
        ("reduce_scatter", "tp"),
    }
    assert {row.compiler for row in tp_sp.rows} == {"Shardy"}
    assert all(abs(row.difference) <= 0.01 for row in tp_sp.rows if row.compared)


def test_a_layout_that_is_derived_otherwise_than_it_is_stated_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer can be no: without sequence parallelism the same bytes are all-reduces."""
    monkeypatch.setattr(question, "shard", lambda graph, _: shard(graph, assignment(zero=0, sp=False)))
    found = verify(mlp_program(), TP_SP)
    assert not found.ok
    assert ("all_reduce", "tp") in {(row.kind, row.axis) for row in found.rows if row.compared and not row.agrees}


def test_known_differences_are_named_with_bytes_before_and_after(tp_sp: Verification) -> None:
    scattered = [each for each in tp_sp.differences if each.name == SCATTERED]
    ((_, lost), (_, won)) = ((each.kind, each.after - each.before) for each in scattered)
    assert [each.kind for each in scattered] == ["all_reduce", "reduce_scatter"]
    assert lost == -won != 0.0


def test_gradients_are_reduced_once_or_in_every_microbatch() -> None:
    """Compilers reduce bf16 gradients M times, perfmodel their fp32 sum once: M / 2 times the bytes."""
    (dp,) = (
        each
        for each in verify(mlp_program(), Layout(dp=4, mb=2, global_batch=24, zero=0)).differences
        if each.name == EAGER
    )
    microbatches, bf16, fp32 = 24 / (4 * 2), 2, 4
    assert dp.after / dp.before == pytest.approx(microbatches * bf16 / fp32, rel=1e-3)


def test_all_questions_are_answered_in_their_order() -> None:
    program = mlp_program()
    layouts = [Layout(dp=2, mb=2, global_batch=8, zero=0), Layout(global_batch=2, mb=2, zero=0), TP_SP]
    found = verify_all([(program, layout) for layout in layouts], xla=True)
    assert [each.ranks for each in found] == [2, 1, 4]
    assert [{row.axis for row in each.rows if row.compared} for each in found] == [{"dp"}, set(), {"tp"}]
    assert all(each.ok for each in found)
    assert {row.compiler for row in found[2].rows} == {"Shardy", "XLA"}


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"pp": 2}, "compilers know no pipelines"),
        ({"cp": 2, "ring": True}, "compilers know no rings"),
        ({"mb": 1, "global_batch": 3}, "microbatches of two sequences"),
    ],
)
def test_what_compilers_do_not_know_is_left_out_and_said(change: dict[str, Any], note: str) -> None:
    found = verify(mlp_program(), Layout(**{"tp": 2, "mb": 2, "global_batch": 8, "zero": 0, **change}))
    assert any(note in each for each in found.notes)
    assert found.ok


def test_a_first_token_is_summed_from_the_rank_that_has_it() -> None:
    """Its gradient too: XLA does so, and Shardy's gather of all tokens is counted as if it did."""
    batch, seq, width = 8, 16, 32

    def loss(w: Any, x: Any) -> Any:
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w)[:, 0] @ w))

    arguments = (
        Argument(name="w", role="parameters", tree=jax.ShapeDtypeStruct((width, width), "float32"), axes=(None,) * 2),
        Argument(
            name="x",
            role="batch",
            tree=jax.ShapeDtypeStruct((batch, seq, width), "float32"),
            axes=("batch", "seq", None),
        ),
    )
    layout = Layout(dp=2, cp=4, mb=batch // 2, global_batch=batch, zero=0)
    found = verify(Program(name="pooled", fn=jax.grad(loss), arguments=arguments), layout, xla=True)
    assert found.ok
    assert {
        (row.compiler, row.compiler_bytes) for row in found.rows if (row.kind, row.axis) == ("all_reduce", "cp")
    } == {(compiler, 4 * batch // 2 * width) for compiler in ("Shardy", "XLA")}
    assert {each.of for each in found.differences if each.name == SLICED} == {"Shardy"}


def test_convolutions_gather_images_that_are_split_along_their_height() -> None:
    """For the gradient of the kernel too, which sums over the height."""
    batch, height, channels = 4, 16, 8

    def loss(w: Any, x: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(jnp.tanh(lax.conv_general_dilated(jnp.tanh(x), w, (1, 1), "SAME", dimension_numbers=numbers)))

    kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), "float32")
    images = jax.ShapeDtypeStruct((batch, height, height, channels), "float32")
    arguments = (
        Argument(name="w", role="parameters", tree=kernel, axes=(None,) * 4),
        Argument(name="x", role="batch", tree=images, axes=("batch", "seq", None, None)),
    )
    layout = Layout(cp=4, mb=batch, global_batch=batch, zero=0)
    found = verify(Program(name="convolution", fn=jax.grad(loss), arguments=arguments), layout, xla=True)
    assert found.ok
    assert {(row.compiler, row.kind, row.derived_bytes) for row in found.rows if row.compared} == {
        (compiler, "all_gather", 2 * 4 * batch * height**2 * channels) for compiler in ("Shardy", "XLA")
    }


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(tp=5, global_batch=1, zero=0, sp=False), r"mlp 64 not divisible by tp"),
        (Layout(dp=2, mb=2, global_batch=6, zero=0), r"global batch not divisible by dp\*fsdp\*ep\*mb"),
        (Layout(ep=2, mb=1, global_batch=2, zero=0), r"no dim named experts to split over ep"),
    ],
)
def test_illegal_layouts_are_refused_in_a_line(layout: Layout, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        verify(mlp_program(), layout)


def test_xla_has_a_largest_number_of_ranks() -> None:
    with pytest.raises(LayoutError, match="XLA: got 4096 ranks, expected at most 2048"):
        verify(mlp_program(), Layout(dp=4096, mb=1, global_batch=4096, zero=0), xla=True)


def test_a_step_that_takes_no_other_batch_is_quoted() -> None:
    def step(x: Any) -> Any:
        if x.shape[0] != 4:
            raise ValueError("only four rows\nand more")
        return (jnp.sum(x),)

    rows = Argument(name="x", role="batch", tree=spec(4, 8), axes=("batch", None))
    with pytest.raises(TraceError, match=r"rows: got ValueError: only four rows \(test_verify.py:\d+\) for arrays"):
        verify(Program(name="rows", fn=step, arguments=(rows,)), Layout(dp=2, mb=4, global_batch=8, zero=0))


def test_jax_is_quoted_where_it_refuses_a_sharding() -> None:
    """A table that is padded to 4 parts, and a result that the step cuts to its own idea of the size."""

    def step(table: Any, x: Any) -> Any:
        return (x @ table)[:, :10]

    arguments = (
        Argument(name="table", role="parameters", tree=spec(16, 10), axes=("embed", "vocab")),
        Argument(name="x", role="batch", tree=spec(4, 16), axes=("batch", None)),
    )
    with pytest.raises(LayoutError, match=r"logits: got IndivisibleError: .*the dimension size is 10 .* on lowering"):
        verify(Program(name="logits", fn=step, arguments=arguments), Layout(tp=4, mb=4, global_batch=4, zero=0))


def test_what_is_not_the_layouts_fault_is_no_layout_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stated, "on_platform", lambda traced: traced.nothing)
    with pytest.raises(AttributeError, match="nothing"):
        verify(mlp_program(), TP_SP)


def test_a_step_that_is_lowered_already_is_refused_before_anything_else_is_wrong_with_it() -> None:
    lowered = Program(name="step", fn=StableHLO(path="step.mlir", data=b"not a module"), arguments=())
    with pytest.raises(
        LayoutError, match=r"step: got a step that is lowered already, .*: give package.module:function"
    ):
        verify(lowered, Layout(dp=2, mb=1, global_batch=2))


# -- reading, rewrite by rewrite ----------------------------------------------------------------------------------

MESH = {"tp_kv": 2, "tp_q": 2, "fsdp": 4, "dp": 2}


def reduced(name: str, of: str, *axes: str, size: float = 64.0) -> Instruction:
    return Instruction(
        name=name, opcode="all-reduce", dtype="bf16", elements=32, bytes=size, operands=(of,), axes=axes, detail="g"
    )


def op(name: str, opcode: str, *operands: str, elements: int = 32) -> Instruction:
    return Instruction(name=name, opcode=opcode, elements=elements, operands=operands)


def moved(name: str, opcode: str, of: str, axis: str = "fsdp") -> Instruction:
    return Instruction(name=name, opcode=opcode, bytes=64.0, operands=(of,), axes=(axis,), detail="g")


def exchanged(name: str, of: str, *axes: str) -> Instruction:
    return Instruction(name=name, opcode="collective-permute", bytes=64.0, operands=(of,), axes=axes, detail="g")


def cut(name: str, of: str, *dims: int) -> Instruction:
    return Instruction(name=name, opcode="slice", bytes=16.0, operands=(of,), dims=dims)


X, Y = op("x", "parameter"), op("y", "parameter")
REWRITTEN: dict[str, tuple[tuple[Instruction, ...], list[tuple[str, str, float]], list[tuple[str, str, float]]]] = {
    MERGED: (
        (X, moved("a", "all-gather", "x"), moved("b", "all-gather", "x"), op("r", "add", "a", "b")),
        [("all_gather", "fsdp", 64.0)] * 2,
        [("all_gather", "fsdp", 64.0)],
    ),
    NARROWED: (
        (X, moved("a", "all-gather", "x"), op("c", "copy", "a"), replace(op("n", "convert", "c"), bytes=32.0)),
        [("all_gather", "fsdp", 64.0)],
        [("all_gather", "fsdp", 32.0)],
    ),
    SLICED: (
        (
            X,
            replace(moved("a", "all-gather", "x"), dims=(1,)),
            cut("s", "a", 1),
            cut("t", "a", 0, 1),
            op("r", "add", "s", "t"),
        ),
        [("all_gather", "fsdp", 64.0)],
        [("all_reduce", "fsdp", 32.0)],
    ),
    JOINED: (
        (X, reduced("a", "x", "dp"), op("c", "convert", "a"), reduced("b", "c", "fsdp"), op("r", "tuple", "b")),
        [("all_reduce", "dp", 64.0), ("all_reduce", "fsdp", 64.0)],
        [("all_reduce", "dp+fsdp", 64.0)],
    ),
    SCATTERED: (
        (X, reduced("a", "x", "dp", "fsdp"), op("s", "dynamic-slice", "a", elements=8), op("r", "tuple", "s")),
        [("all_reduce", "dp+fsdp", 64.0)],
        [("reduce_scatter", "fsdp", 64.0), ("all_reduce", "dp", 16.0)],
    ),
    REASSOCIATED: (
        (X, Y, reduced("a", "x", "dp"), reduced("b", "y", "dp"), op("s", "add", "a", "b"), op("r", "tuple", "s")),
        [("all_reduce", "dp", 64.0)] * 2,
        [("all_reduce", "dp", 64.0)],
    ),
    NESTED: (
        (
            X,
            Y,
            reduced("a", "x", "dp"),
            reduced("b", "y", "dp", "fsdp"),
            op("s", "add", "a", "b"),
            op("r", "tuple", "s"),
        ),
        [("all_reduce", "dp", 64.0), ("all_reduce", "dp+fsdp", 64.0)],
        [("all_reduce", "dp+fsdp", 64.0)],
    ),
    IN_PLACE: (
        (
            *(X, Y, moved("a", "all-to-all", "x"), op("c", "copy", "a"), op("s", "scatter", "c", "y")),
            *(moved("b", "all-to-all", "s"), op("r", "tuple", "b")),
        ),
        [("all_to_all", "fsdp", 64.0)] * 2,
        [],
    ),
    RANKED: (
        (X, moved("a", "all-gather", "x"), op("t", "topk", "a"), op("r", "tuple", "t")),
        [("all_gather", "fsdp", 64.0)],
        [],
    ),
    EXCHANGED: (
        (X, reduced("a", "x", "dp"), exchanged("p", "a", "dp", "tp_kv"), op("r", "tuple", "p")),
        [("collective_permute", "dp+tp", 64.0), ("all_reduce", "dp", 64.0)],
        [("reduce_scatter", "dp", 128.0)],
    ),
    SCALED: (
        (
            *(X, Y, reduced("a", "x", "dp"), op("b", "broadcast_in_dim", "y"), op("m", "multiply", "a", "b")),
            *(op("s", "dynamic-slice", "m", elements=16), op("r", "tuple", "s")),
        ),
        [("all_reduce", "dp", 64.0)],
        [("reduce_scatter", "dp", 64.0)],
    ),
}
"""A program, its collectives as they stand, and as they are after one rewrite (and those it builds on)."""


def shown(program: tuple[Instruction, ...], rewrites: tuple[str, ...]) -> list[tuple[str, str, float]]:
    return [(*each.key, each.bytes) for each in collectives_of(program, MESH, rewrites)]


@pytest.mark.parametrize("name", REWRITTEN)
def test_each_rewrite_does_what_it_says(name: str) -> None:
    program, before, after = REWRITTEN[name]
    assert shown(program, tuple(each for each in REWRITES if each != name)) == before
    assert shown(program, REWRITES) == after


@pytest.mark.parametrize(
    ("axes", "kept"), [(("dp",), "dp"), (("dp", "tp_q"), "tp"), (("dp", "fsdp"), "dp"), (("dp", "tp_kv", "fsdp"), "tp")]
)
def test_what_is_sliced_lies_along_the_axes_that_it_is_summed_over(axes: tuple[str, ...], kept: str) -> None:
    """HLO tells a slice's size only, half here: axes of size 2 that the sum is over, those of tp before dp."""
    program = (X, reduced("a", "x", *axes), op("s", "dynamic-slice", "a", elements=16), op("r", "tuple", "s"))
    assert shown(program, REWRITES)[0] == ("reduce_scatter", kept, 64.0)


def test_a_slice_may_go_beyond_the_axes_of_its_sum() -> None:
    """A quarter: of tp_kv, which is summed over, and of tp_q; fsdp, of size 4, has nothing to do with it."""
    sums = (reduced("a", "x", "tp_kv"), reduced("b", "y", "tp_kv", "tp_q"))
    parts = (op("c", "dynamic-slice", "a", elements=8), op("d", "dynamic-slice", "b", elements=8))
    program = (X, Y, *sums, *parts, op("s", "add", "c", "d"), op("r", "tuple", "s"))
    assert shown(program, REWRITES) == [("reduce_scatter", "tp", 64.0)]


def test_a_sum_of_which_a_part_is_summed_on_is_one_with_it() -> None:
    """Over fsdp and dp, as its summand y is."""
    parts = (op("c", "dynamic-slice", "a", elements=8), op("d", "dynamic-slice", "b", elements=8))
    sums = (reduced("a", "x", "fsdp"), reduced("b", "y", "dp", "fsdp"), *parts, reduced("e", "c", "dp", size=16.0))
    program = (X, Y, *sums, op("s", "add", "d", "e"), op("r", "tuple", "s"))
    assert shown(program, REWRITES) == [("reduce_scatter", "fsdp", 64.0), ("all_reduce", "dp", 16.0)]


def test_a_value_is_gathered_once_in_whatever_order() -> None:
    program = (X, op("v", "reverse", "x"), moved("a", "all-gather", "x"), moved("b", "all-gather", "v"))
    assert shown(program, REWRITES) == [("all_gather", "fsdp", 64.0)]


@pytest.mark.parametrize(
    "uses",
    [
        pytest.param((cut("s", "a", 0),), id="along another dim"),
        pytest.param((cut("s", "a", 1), op("t", "tanh", "a")), id="read whole as well"),
        pytest.param((cut("s", "a", 1), cut("t", "a", 1), cut("u", "a", 1)), id="more than half"),
    ],
)
def test_what_is_needed_whole_is_gathered_though_slices_are_taken(uses: tuple[Instruction, ...]) -> None:
    gather = replace(moved("a", "all-gather", "x"), dims=(1,))
    assert shown((X, gather, *uses), REWRITES) == [("all_gather", "fsdp", 64.0)]


def test_a_top_k_among_gathered_scores_needs_them() -> None:
    scores = replace(moved("a", "all-gather", "x"), minor=True)
    assert shown((X, scores, op("t", "topk", "a")), REWRITES) == [("all_gather", "fsdp", 64.0)]


def test_a_reduction_that_is_used_whole_stays_one() -> None:
    program = (X, reduced("a", "x", "dp"), op("s", "dynamic-slice", "a", elements=16), op("r", "tuple", "a", "s"))
    assert shown(program, REWRITES) == [("all_reduce", "dp", 64.0)]


def test_loops_multiply_what_they_run() -> None:
    body = (X, moved("a", "all-gather", "x"), op("r", "tuple", "a"))
    program = (Instruction(name="w", opcode="while", runs=((body, 3.0), (body, 4.0))),)
    assert [each.times for each in collectives_of(program, MESH)] == [3.0, 4.0]


@pytest.mark.parametrize(("bytes_", "ok"), [(64.0, True), (64.6, True), (64.7, False), (0.0, False)])
def test_rows_differ_beyond_the_tolerance(bytes_: float, ok: bool) -> None:
    theirs = (X, moved("a", "all-gather", "x"))
    ours = collectives_of((X, replace(theirs[1], bytes=bytes_)), MESH)
    (row,) = compare("Shardy", theirs, MESH, ours, 0.01)
    assert (row.agrees, row.compared) == (ok, True)


# -- programs of one's own ----------------------------------------------------------------------------------------


def branching() -> Program:
    """Two layers of which the second is dearer than what stands beside it."""

    def step(w: Any, x: Any) -> Any:
        y = lax.cond(jnp.sum(x) > 0, lambda x: (x @ w) @ w.T, lambda x: x, x)
        return (jnp.sum(y.astype(jnp.float32)),)

    weight, rows = jax.ShapeDtypeStruct((16, 64), jnp.bfloat16), jax.ShapeDtypeStruct((8, 32, 16), jnp.bfloat16)
    return Program(
        name="branching",
        fn=step,
        arguments=(
            Argument(name="w", role="parameters", tree=weight, axes=("embed", "mlp")),
            Argument(name="x", role="batch", tree=rows, axes=("batch", "seq", "embed")),
        ),
    )


def test_branches_count_as_their_dearest_in_both() -> None:
    found = verify(branching(), Layout(tp=4, mb=8, global_batch=8, zero=0, sp=False), xla=True)
    assert [(row.kind, row.axis, row.compiler) for row in found.rows if row.compared] == [
        ("all_reduce", "tp", "Shardy"),
        ("all_reduce", "tp", "XLA"),
    ]
    assert found.ok


B, T, D, F = 8, 512, 64, 256
"""Sequences, tokens, width and inner width; more tokens than weights have rows."""
DP_TP, FSDP = Layout(dp=2, tp=2, mb=4, global_batch=B, zero=0, sp=False), Layout(fsdp=4, mb=2, global_batch=B)


def spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


WEIGHTS = {"up": spec(D, F), "down": spec(F, D)}
AXES = {"up": ("embed", "mlp"), "down": ("mlp", "embed")}
BATCH = Argument(name="x", role="batch", tree=spec(B, T, D), axes=("batch", "seq", "embed"))


def loss(w: Any, x: Any) -> Any:
    return jnp.mean((jax.nn.relu(x @ w["up"]) @ w["down"]) ** 2)


def updated(w: Any, x: Any) -> tuple[Any, Any]:
    value, gradient = jax.value_and_grad(loss)(w, x)
    return jax.tree.map(lambda w, g: w - 1e-3 * g, w, gradient), value


def own(fn: Callable[..., Any], donated: tuple[str, ...] = ("w",)) -> Program:
    weights = Argument(name="w", role="parameters", tree=WEIGHTS, axes=AXES)
    return Program(name="own", fn=fn, arguments=(weights, BATCH), donated=donated)


def moved_bytes(found: Verification) -> dict[tuple[str, str], float]:
    return {(row.kind, row.axis): row.derived_bytes for row in found.rows if row.compared}


FP32 = 4
FORWARD, GRADIENTS = B * T * D * FP32, 2 * D * F * FP32
TRAINED: dict[Layout, dict[tuple[str, str], float]] = {
    DP_TP: {("all_reduce", "tp"): FORWARD / 2, ("all_reduce", "dp"): GRADIENTS / 2 + FP32},
    FSDP: {("all_gather", "fsdp"): GRADIENTS, ("reduce_scatter", "fsdp"): GRADIENTS},
}
"""One forward reduction of activations over tp, and gradients (with the loss) over dp or fsdp, on each rank."""


def printed(w: Any, x: Any) -> Any:
    new, value = updated(w, x)
    jax.debug.print("loss {}", value)
    return new, value


def nested(w: Any, x: Any) -> Any:
    new, value = updated(w, x)
    return new, (value, {"more": None})


STEPS: dict[str, Program] = {
    "tuple": own(updated),
    "list": own(lambda w, x: list(updated(w, x))),
    "dict": own(lambda w, x: dict(zip("ab", updated(w, x), strict=True))),
    "nested": own(nested),
    "loss first": own(lambda w, x: updated(w, x)[::-1], donated=()),
    "printed": own(printed),
    "jitted": own(jax.jit(updated)),
}


@pytest.mark.parametrize("layout", [DP_TP, FSDP], ids=["DP x TP", "FSDP"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_returns_its_results_in_whatever_structure(name: str, layout: Layout) -> None:
    found = verify(STEPS[name], layout)
    assert found.ok
    kept_whole = name == "loss first" and layout is FSDP  # nobody says that the updated weights are kept in parts
    gathered = {("all_gather", "fsdp"): 2 * GRADIENTS} if kept_whole else {}
    assert moved_bytes(found) == TRAINED[layout] | gathered


ARRAYS: dict[str, Callable[..., Any]] = {
    "scalar": loss,
    "array": lambda w, x: jnp.mean(jax.nn.relu(x @ w["up"]) @ w["down"], axis=(0, 1)),
    "weights": lambda w, x: updated(w, x)[0],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_step_returns_one_thing(name: str) -> None:
    found = verify(own(ARRAYS[name], donated=("w",) if name == "weights" else ()), DP_TP)
    assert found.ok
    assert moved_bytes(found)["all_reduce", "tp"] == FORWARD / 2


@pytest.mark.parametrize("fn", [lambda w, x: None, lambda w, x: ()], ids=["None", "()"])
def test_a_step_that_returns_nothing_moves_nothing(fn: Callable[..., Any]) -> None:
    assert verify(own(fn, donated=()), DP_TP).rows == ()


def test_without_a_batch_what_else_is_spread_is_verified() -> None:
    rows = Argument(name="x", role="batch", tree=spec(B, T, D), axes=(None, "seq", "embed"))
    weights = Argument(name="w", role="parameters", tree=WEIGHTS, axes=AXES)
    program = Program(name="no batch", fn=updated, arguments=(weights, rows), donated=("w",))
    found = verify(program, Layout(tp=4, zero=0, sp=False))
    assert found.ok
    assert (moved_bytes(found), found.notes) == ({("all_reduce", "tp"): FORWARD}, ())
    with pytest.raises(LayoutError, match=r"no dim of more than 1 named batch to split over dp\*fsdp\*ep\*mb"):
        verify(program, Layout(dp=2, global_batch=2, zero=0))


def test_a_sum_that_shrinks_before_it_is_reduced_runs_once() -> None:
    """Derived: a scalar, reduced at the end. As compilers do: activations, where they arise; that runs once as well."""
    (row,) = (
        row
        for row in verify(own(lambda w, x: jnp.sum(jnp.tanh(x @ w["up"]) @ w["down"]), donated=()), DP_TP).rows
        if (row.kind, row.axis) == ("all_reduce", "tp")
    )
    assert (row.derived_bytes, row.derived_count) == (row.compiler_bytes, row.compiler_count) == (FORWARD / 2, 1.0)


# -- known limits -------------------------------------------------------------------------------------------------

MIXTRAL = {
    **TINY_LLAMA,
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.0,
}
UNSAYABLE, UNSPLIT, SHORT = "no sharding can say", "ragged matmuls", "fewer than weights have rows"


@pytest.mark.parametrize(
    ("keys", "seq_len", "capacity", "said"),
    [
        ("ep=2,tp=2,sp=1,mb=4", 32, None, {UNSAYABLE: "verify with sp=0", UNSPLIT: "--capacity-factor"}),
        ("ep=2,cp=2,mb=4", 32, 1.25, {UNSAYABLE: "verify with cp=1"}),
        ("ep=2,tp=2,sp=0,mb=4", 32, None, {UNSPLIT: "--capacity-factor"}),
        ("ep=2,tp=2,sp=0,mb=4", 32, 1.25, {}),
        ("ep=2,tp=2,sp=0,mb=1", 8, 1.25, {SHORT: "verify with mb=4, or sequences 4 times as long"}),
    ],
)
def test_known_limits_name_what_to_change(
    tmp_path: Path, keys: str, seq_len: int, capacity: float | None, said: dict[str, str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    program = load_program(str(tmp_path / "config.json"), seq_len=seq_len, capacity_factor=capacity)
    found = verify(program, replace(Layout.parse(keys, ranks=4), global_batch=8))
    assert found.ok is (not said)
    assert len(found.notes) == len(said)
    for note, (limit, remedy) in zip(found.notes, said.items(), strict=True):
        assert limit in note
        assert remedy in note


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_returns_success(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", tiny, "--layout", "fsdp=2,tp=2,sp=0", "--global-batch", "8"]) == 0
    page = capsys.readouterr().out
    assert "agrees: 3 of 3 kinds within 1 %" in page
    assert "at least 1 % of the compiler's bytes" in page
    assert "Known differences taken into account" in page
    assert SCATTERED in page


def test_the_command_fills_dp_and_prints_json(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", tiny, "--layout", "tp=2", "--ranks", "8", "--global-batch", "8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layout"].startswith("dp=4,fsdp=1,tp=2,")
    assert document["ok"] is True
    assert {"compiler", "kind", "axis", "derived_bytes", "compiler_bytes", "difference", "compared", "agrees"} <= set(
        document["rows"][0]
    )
    assert {"name", "why", "of", "kind", "axis", "before", "after"} == set(document["differences"][0])


def test_the_command_returns_1_where_something_differs(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(question, "shard", lambda graph, _: shard(graph, assignment(zero=0, sp=False)))
    assert main(["verify", tiny, "--layout", "tp=2", "--global-batch", "8"]) == 1
    assert "differs: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layout", "tp=3"), "not divisible by tp"),
        (("--layout", " "), "expected at least one key"),
        (("--layout", "tp=2", "--ranks", "3"), "expected a divisor of 3 ranks"),
        (("--layout", "tp=2", "--tolerance", "2"), "expected a share from 0 to below 1"),
        (("--layout", "tp=2", "--tolerance", "nan"), "expected a share from 0 to below 1"),
    ],
)
def test_wrong_requests_end_with_2_and_a_line(
    tiny: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main(["verify", tiny, "--global-batch", "8", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_lowered_step_is_refused_with_2_whatever_its_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lowered.mlir"
    path.write_text(jax.jit(updated).lower(WEIGHTS, spec(B, T, D)).as_text())
    assert main(["verify", str(path), "--layout", "dp=3,tp=2"]) == 2
    assert "lowered already" in capsys.readouterr().err


def test_a_function_of_the_users_own_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_step_to_verify.py").write_text("from programs import mlp_program as step\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["verify", "own_step_to_verify:step", "--layout", "dp=2", "--quiet"]) == 0
    assert "program   mlp" in capsys.readouterr().out


def test_verify_is_public() -> None:
    assert perfmodel.verify is verify
    assert perfmodel.Verification is Verification
