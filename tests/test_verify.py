"""`perfmodel verify`: what it says and returns, what it refuses, and that it can say no."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from programs import mlp_program

import perfmodel
from perfmodel.cli.main import main
from perfmodel.errors import LayoutError
from perfmodel.layout import Layout, assignment
from perfmodel.shard import shard
from perfmodel.trace import Argument, Program
from perfmodel.verify import Verification, question, verify, verify_all
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
    SCATTERED,
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


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(tp=5, global_batch=1, zero=0, sp=False), r"mlp 64 not divisible by tp = 5"),
        (Layout(dp=2, mb=2, global_batch=6, zero=0), r"global batch not divisible by dp\*fsdp\*ep\*mb = 4"),
    ],
)
def test_illegal_layouts_are_refused_in_a_line(layout: Layout, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        verify(mlp_program(), layout)


def test_xla_has_a_largest_number_of_ranks() -> None:
    with pytest.raises(LayoutError, match="XLA: got 4096 ranks, expected at most 2048"):
        verify(mlp_program(), Layout(dp=4096, mb=1, global_batch=4096, zero=0), xla=True)


def test_a_compiler_that_refuses_is_quoted() -> None:
    """An argument whose dim has no name of its own is placed by it all the same; JAX wants its dims to divide."""

    def step(x: Any) -> Any:
        if x.shape[0] != 4:
            raise ValueError("only four rows\nand more")
        return (jnp.sum(x),)

    rows = Argument(name="x", role="batch", tree=jax.ShapeDtypeStruct((4, 8), jnp.float32), axes=("batch", None))
    with pytest.raises(LayoutError, match=r"rows: got ValueError on lowering .*\(only four rows\), expected"):
        verify(Program(name="rows", fn=step, arguments=(rows,)), Layout(dp=2, mb=4, global_batch=8, zero=0))


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
