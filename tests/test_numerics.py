"""No collective is missing: sharded programs, run device by device, give what the whole programs give.

What a simulation proves is said in `simulated`; `test_a_collective_left_out_is_noticed` shows that it would notice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from numpy_ops import run
from programs import mlp_program
from random_programs import Case, cases
from recorded import Array, Recorded, record
from simulated import out_of_order, simulate

from perfmodel.layout import Assignment, assignment
from perfmodel.models import load_program
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import LOCAL, State, after, steps
from perfmodel.trace import Program

S, B, V = 8, 4, 32
"""Sequence, sequences of a microbatch, vocabulary."""

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "vocab_size": V,
}


def in_float32(program: Program) -> Program:
    """The same program on 32-bit arguments."""

    def widened(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    arguments = tuple(replace(a, tree=jax.tree.map(widened, a.tree)) for a in program.arguments)
    return replace(program, arguments=arguments)


def on_batches(program: Program) -> Program:
    """The same program on microbatches of B sequences."""

    def sized(x: Any) -> Any:
        return jax.ShapeDtypeStruct((x.shape[0], B, *x.shape[2:]), x.dtype)

    arguments = [replace(a, tree=jax.tree.map(sized, a.tree)) if a.role == "batch" else a for a in program.arguments]
    return replace(program, arguments=tuple(arguments))


def llama_program(recompute: str) -> Program:
    """A decoder with marked kernels, grouped heads, lookups and AdamW."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(LLAMA))
        return on_batches(load_program(str(path), seq_len=S, recompute=recompute))


@cache
def mlp() -> tuple[Recorded, list[Array]]:
    recorded = record(on_batches(mlp_program()))
    return recorded, arguments_of(recorded)


@cache
def llama(recompute: str) -> tuple[Recorded, list[Array]]:
    recorded = record(llama_program(recompute))
    return recorded, arguments_of(recorded)


def arguments_of(recorded: Recorded) -> list[Array]:
    """Random arguments; what an optimizer keeps may be under a root."""
    rng = np.random.default_rng(0)
    found: list[Array] = []
    for parameter in recorded.graph.parameters:
        shape, dtype = recorded.graph.shape(parameter.value), recorded.graph.values[parameter.value].dtype
        if "f" in dtype:
            x = rng.standard_normal(shape)
            found.append(np.abs(x) if parameter.role == "optimizer" else x)
        else:
            found.append(rng.integers(1, V, shape))
    return found


def check(recorded: Recorded, arguments: Sequence[Array], given: Assignment, mesh: Mapping[str, int]) -> ShardedGraph:
    """Run a program whole and sharded."""
    sharded = shard(recorded.graph, given)
    results = simulate(recorded, sharded, mesh, arguments)
    for found, expected in zip(results, run(recorded, arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    return sharded


# -- the interpreter ---------------------------------------------------------------------------------------------------


EPS = {"bfloat16": 2.0**-7, "float32": 2.0**-23, "int32": 0.0}
PROGRAMS = [
    pytest.param(mlp_program(), id="mlp"),
    pytest.param(llama_program("full"), id="llama", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_whole_programs_give_what_jax_gives(program: Program) -> None:
    program = replace(in_float32(program), donated=())  # its results are cast to what its arguments were
    recorded = record(program)
    arguments = arguments_of(recorded)
    leaves, structure = jax.tree.flatten([a.tree for a in program.arguments])
    typed = [jnp.asarray(x, leaf.dtype) for x, leaf in zip(arguments, leaves, strict=True)]
    step: Any = program.fn
    expected = jax.tree.leaves(jax.jit(step)(*jax.tree.unflatten(structure, typed)))
    for found, wanted in zip(run(recorded, arguments), expected, strict=True):
        rounding = EPS[str(wanted.dtype)]
        np.testing.assert_allclose(
            found, np.asarray(wanted, np.float64), rtol=0.0, atol=8 * rounding * np.abs(found).max()
        )


def reshards(nodes: Sequence[LocalNode]) -> Iterator[Reshard]:
    """Every collective of a sharded graph."""
    for node in nodes:
        if isinstance(node, LocalLoop):
            yield from reshards(node.body)
        elif isinstance(node, Reshard):
            yield node


def without(sharded: ShardedGraph, left_out: Reshard) -> ShardedGraph:
    """The same graph where what went into a collective is used as if it had come out of it."""

    def used(copies: Sequence[int]) -> tuple[int, ...]:
        return tuple(left_out.operand if copy == left_out.result else copy for copy in copies)

    def rewired(nodes: Sequence[LocalNode]) -> Iterator[LocalNode]:
        for node in nodes:
            if isinstance(node, LocalLoop):
                body = tuple(rewired(node.body))
                yield replace(node, operands=used(node.operands), body=body, yields=used(node.yields))
            elif isinstance(node, LocalOp):
                yield replace(node, operands=used(node.operands))
            elif node is not left_out:
                yield replace(node, operand=used(node.operands)[0])

    return replace(sharded, nodes=tuple(rewired(sharded.nodes)), results=used(sharded.results))


def test_a_collective_left_out_is_noticed() -> None:
    recorded, arguments = mlp()
    sharded = shard(recorded.graph, assignment(zero=3, sp=True))
    mesh = {"fsdp": 2, "tp_kv": 2, "cp": 2}
    unnoticed = []
    for reshard in reshards(sharded.nodes):
        if set(reshard.axes) & set(mesh):
            try:
                simulate(recorded, without(sharded, reshard), mesh, arguments)
                unnoticed.append(reshard)
            except AssertionError:
                continue
    assert not unnoticed


def test_a_shard_joins_a_sum_without_being_gathered() -> None:
    sharded, summand = State(((("ep",),),)), State((((),),), frozenset({"ep"}))
    assert steps(sharded, summand) == [("mask", ("ep",))]
    assert after(sharded, summand, "mask", ("ep",)) == summand


# -- known programs under known strategies -----------------------------------------------------------------------------

STRATEGIES = {
    "dp": ({"dp": 2}, 0, False),
    "zero-1": ({"fsdp": 2}, 1, False),
    "zero-2": ({"fsdp": 2}, 2, False),
    "fsdp": ({"fsdp": 2}, 3, False),
    "hybrid": ({"dp": 2, "fsdp": 2}, 3, False),
    "tp": ({"tp_kv": 4}, 0, False),
    "tp beyond key heads": ({"tp_kv": 4, "tp_q": 2}, 0, False),
    "tp and sp": ({"tp_kv": 2, "tp_q": 2}, 0, True),
    "cp": ({"cp": 4}, 0, False),
    "pp": ({"pp": 2}, 0, False),
    "fsdp over ep": ({"ep": 2, "fsdp": 2}, 3, False),
    "tp, sp and fsdp": ({"fsdp": 2, "tp_kv": 2}, 3, True),
    "tp, cp and zero-1": ({"fsdp": 2, "tp_kv": 2, "cp": 2}, 1, False),
    "all": ({"fsdp": 2, "tp_kv": 2, "cp": 2, "pp": 2}, 3, True),
}
QUICK = ("hybrid", "tp and sp", "pp", "all")


def strategies(names: Sequence[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("mesh", "zero", "sp"), [STRATEGIES[name] for name in names], ids=names)


@strategies(list(STRATEGIES))
def test_a_stack_of_mlps_under_every_strategy(mesh: dict[str, int], zero: int, sp: bool) -> None:
    check(*mlp(), assignment(zero=zero, sp=sp), mesh)


@strategies(QUICK)
def test_a_decoder(mesh: dict[str, int], zero: int, sp: bool) -> None:
    check(*llama("full"), assignment(zero=zero, sp=sp), mesh)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@strategies(list(STRATEGIES))
def test_a_decoder_under_every_strategy(recompute: str, mesh: dict[str, int], zero: int, sp: bool) -> None:
    check(*llama(recompute), assignment(zero=zero, sp=sp), mesh)


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("zero", range(4))
def test_axes_that_share_a_dim_join_and_leave_it_in_order(zero: int, sp: bool) -> None:
    """So that shards are blocks, and a collective is one collective on any runtime."""
    for recorded in (mlp()[0], llama("full")[0]):
        assert out_of_order(shard(recorded.graph, assignment(zero=zero, sp=sp))) == []


# -- random programs under random assignments --------------------------------------------------------------------------

quick = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
at_length = settings(quick, derandomize=False)


def check_case(case: Case) -> ShardedGraph:
    recorded = record(case.program)
    return check(recorded, arguments_of(recorded), case.assignment, case.mesh)


@settings(quick, max_examples=100)
@given(cases(training=False))
def test_random_programs(case: Case) -> None:
    check_case(case)


def test_random_training_steps_meet_every_collective() -> None:
    met = set[str]()

    @settings(quick, max_examples=60)
    @given(cases(training=True))
    def check_and_collect(case: Case) -> None:
        nodes = check_case(case).nodes
        met.update(each.kind for each in reshards(nodes) if any(case.mesh.get(axis, 1) > 1 for axis in each.axes))

    check_and_collect()
    assert met == {*LOCAL, "all_reduce", "reduce_scatter", "all_gather", "all_to_all"}


@pytest.mark.slow
@seed(1)
@settings(at_length, max_examples=1000)
@given(cases(training=False))
def test_many_random_programs(case: Case) -> None:
    check_case(case)


@pytest.mark.slow
@seed(1)
@settings(at_length, max_examples=500)
@given(cases(training=True))
def test_many_random_training_steps(case: Case) -> None:
    check_case(case)
