"""Seconds per kernel and collective, and where in the step they are spent, re-derived from sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from machines import fake_machine, tier
from programs import B, D, F, L, S, block, mlp_graph, spec

from perfmodel.collective import collective_seconds
from perfmodel.errors import MachineError
from perfmodel.graph import Graph
from perfmodel.layout import Layout, assignment
from perfmodel.machine import ELEMENTWISE
from perfmodel.models import load_program, read_config
from perfmodel.network import Network
from perfmodel.plan import Compute, Plan, analyse, klass_of
from perfmodel.price import kernel_seconds, price, tensor_rate
from perfmodel.shard import shard
from perfmodel.stage import EVERY, FIRST, LAST, StageMap, together
from perfmodel.trace import Argument, Program, trace
from perfmodel.work import MESH, ONE, SYMBOLS, Amount, Evaluator

BF16, F32 = 2, 4
ONES = dict.fromkeys(SYMBOLS, 1.0)


@cache
def mlp() -> Graph:
    return mlp_graph()


@cache
def model(name: str) -> Graph:
    return trace(load_program(name, seq_len=512))


@cache
def plan(graph: Graph | str, zero: int = 0, sp: bool = False) -> Plan:
    traced = graph if isinstance(graph, Graph) else model(graph)
    return analyse(shard(traced, assignment(zero=zero, sp=sp)))


def flops(computes: Sequence[Compute], layout: Layout, graph: Graph, **where: Any) -> float:
    """Matmul FLOPs of one microbatch (or of what runs once) of the kernels whose fields are as in `where`."""
    evaluate = Evaluator(layout.sizes(graph))
    return sum(
        float(evaluate.amount(c.times)) * float(evaluate.amount(terms))
        for c in computes
        if all(getattr(c, key) == value for key, value in where.items())
        for (engine, _), terms in c.flops.items()
        if engine == "tensor"
    )


# -- kernels ------------------------------------------------------------------------------------------------------


def kernel(bytes: float, **flops: float) -> Compute:
    """A kernel with so many bytes, and FLOPs by engine, all in bf16."""
    counts: dict[tuple[str, str], Amount] = {(engine, "bf16"): {ONE: count} for engine, count in flops.items()}
    return Compute(
        flops=counts, bytes={ONE: bytes}, times={ONE: 1.0}, phase="forward", label="", repeated=True, stages=EVERY
    )


def test_each_engine_and_the_memory_need_their_work_over_their_rate() -> None:
    machine = fake_machine(
        tensor_flops={"bf16": 8.0},
        elementwise=dict.fromkeys(ELEMENTWISE, 4.0),
        memory_bandwidth=2.0,
        efficiency={"tensor": 0.5, "attention": 0.25, "vector": 0.5, "memory": 0.5},
    )
    seconds = kernel_seconds(kernel(100.0, tensor=100.0, attention=100.0, vector=100.0), Evaluator(ONES), machine)
    assert seconds == {"memory": 100 / 1, "tensor": 100 / 4, "attention": 100 / 2, "vector": 100 / 2}


@pytest.mark.parametrize(("memory", "tensor", "vector"), [*itertools.permutations((1.0, 2.0, 3.0))])
def test_the_slowest_engine_decides_and_every_launch_costs(memory: float, tensor: float, vector: float) -> None:
    launch = 0.5
    work = Plan(computes=(kernel(memory, tensor=tensor, vector=vector),), traffics=(), model_flops={})
    costs = price(work, ONES, fake_machine(kernel_launch_seconds=launch))
    assert list(costs.compute.values()) == [3.0 + launch]
    deciding = {"memory": memory, "tensor": tensor, "vector": vector}
    assert costs.engine == {name: 3.0 if seconds == 3.0 else 0.0 for name, seconds in deciding.items()}


@pytest.mark.parametrize(
    ("dtype", "row"),
    [("bf16", "bf16"), ("f16", "f16"), ("f32", "f32"), ("f64", "f32"), ("f8E4M3FN", "f8"), ("f8E5M2", "f8")],
)
def test_the_matrix_engine_has_a_rate_for_every_element_type(dtype: str, row: str) -> None:
    rates = {"bf16": 2.0, "f16": 3.0, "f32": 5.0, "f8": 7.0}
    assert tensor_rate(fake_machine(tensor_flops=rates), dtype) == rates[row]


@pytest.mark.parametrize(("dtype", "row"), [("f8E4M3FN", "f8"), ("i8", "i8")])
def test_an_element_type_that_the_machine_does_not_multiply_is_an_error(dtype: str, row: str) -> None:
    with pytest.raises(MachineError, match=rf"fake: got matmuls in {dtype}, expected one of bf16.*: add tensor\.{row}"):
        tensor_rate(fake_machine(tensor_flops={"bf16": 1.0}), dtype)


# -- collectives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "repeated", "klass"),
    [
        (("fsdp",), False, "data"),
        (("tp_kv", "tp_q"), False, "data"),
        (("fsdp",), True, "fsdp"),
        (("dp",), True, "batch"),
        (("ep", "fsdp", "dp"), True, "batch"),
        (("tp_kv", "fsdp"), True, "fsdp"),
        (("ep", "fsdp"), True, "fsdp"),
        (("ep",), True, "expert"),
        (("ep",), False, "data"),
        (("tp_kv", "tp_q"), True, "tensor"),
        (("tp_q", "cp"), True, "tensor"),
        (("cp",), True, "context"),
        (("cp", "pp"), True, "context"),
        (("pp",), True, "pipeline"),
    ],
)
def test_axes_tell_what_a_collective_may_overlap_with(axes: tuple[str, ...], repeated: bool, klass: str) -> None:
    assert klass_of(axes, repeated) == klass


KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")
TIERS = (tier(4, bandwidth=16.0, latency=1.0), tier(4, bandwidth=4.0, latency=2.0), tier(bandwidth=1.0, latency=4.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [("tp_kv", "tp_q"), ("cp", "ep"), ("tp_q", "cp", "ep", "fsdp", "dp"), MESH])
def test_neighbouring_axes_are_together_one_larger_axis(kind: str, axes: tuple[str, ...]) -> None:
    sizes = ONES | dict.fromkeys(MESH, 2.0)
    stride = 2.0 ** MESH.index(axes[0])
    machine = fake_machine(tiers=TIERS)
    cost = Network(sizes, machine).cost(kind, axes)
    assert cost.seconds(100.0) == collective_seconds(kind, 100.0, 2.0 ** len(axes), stride, machine)


@pytest.mark.parametrize("kind", KINDS)
def test_axes_apart_take_turns_and_the_outer_one_carries_what_the_inner_one_left(kind: str) -> None:
    inner, between, outer, size = 4.0, 8.0, 2.0, 100.0
    sizes = ONES | {"tp_kv": inner, "fsdp": between, "dp": outer}
    machine = fake_machine(tiers=TIERS)

    def alone(kind: str, size: float, ranks: float, stride: float) -> float:
        return float(collective_seconds(kind, size, ranks, stride, machine))

    halves = ("reduce_scatter", "all_gather") if kind == "all_reduce" else (kind,)
    left = size if kind == "all_to_all" else size / inner
    expected = sum(alone(half, size, inner, 1.0) for half in halves) + alone(kind, left, outer, inner * between)
    assert Network(sizes, machine).cost(kind, ("tp_kv", "dp")).seconds(size) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "permute"])
@pytest.mark.parametrize("axes", [("dp",), ("tp_kv", "tp_q"), ("tp_kv", "fsdp")])
def test_axes_of_size_one_cost_nothing_not_even_latency(kind: str, axes: tuple[str, ...]) -> None:
    assert Network(ONES, fake_machine(tiers=TIERS)).cost(kind, axes).seconds(100.0) == 0.0


@pytest.mark.parametrize(("sp", "kept"), [(False, 1), (True, 4)])
def test_every_stage_sends_the_activations_of_a_microbatch_on_and_their_gradients_back(sp: bool, kept: int) -> None:
    layout = Layout(pp=3, cp=2, tp=4, dp=2, mb=2, global_batch=24, zero=0, sp=sp)
    evaluate = Evaluator(layout.sizes(mlp()))
    sends = [t for t in plan(mlp(), sp=sp).traffics if t.kind == "permute"]
    assert [(t.axes, t.klass, t.repeated) for t in sends] == [(("pp",), "pipeline", True)] * 2
    assert {t.phase for t in sends} == {"forward", "backward"}
    assert {float(evaluate.amount(t.times)) for t in sends} == {1.0}
    assert {float(evaluate.term(t.bytes)) for t in sends} == {2 * S / 2 / kept * D * BF16}


def test_collectives_name_only_the_axes_that_have_more_than_one_rank() -> None:
    sizes = Layout(dp=2, tp=4, zero=0, global_batch=24).sizes(mlp())
    found = price(plan(mlp(), sp=True), sizes, fake_machine()).collectives
    for c in found:
        assert "+".join(c.sizes) == c.axis
        assert (float(c.seconds) > 0) == any(float(size) > 1 for size in c.sizes.values())
    assert {tuple(axis for axis, n in c.sizes.items() if n > 1) for c in found} >= {("dp",), ("tp",)}


# -- where in the step --------------------------------------------------------------------------------------------


def test_a_microbatch_is_three_times_the_forward_matmuls_on_a_stage() -> None:
    layout = Layout(pp=3, tp=2, mb=2, dp=2, global_batch=24, zero=0)
    forward = 2 * (2 * 2 * S * D * F) * L / 3 / 2
    found = {p: flops(plan(mlp()).computes, layout, mlp(), phase=p, repeated=True) for p in ("forward", "backward")}
    assert found == {"forward": forward, "backward": 2 * forward}
    assert flops(plan(mlp()).computes, layout, mlp(), repeated=False) == 0


def test_the_update_runs_once_and_the_sum_of_gradients_every_microbatch() -> None:
    updates = [c for c in plan(mlp()).computes if c.phase == "update"]
    evaluate = Evaluator(Layout(global_batch=24).sizes(mlp()))
    weights = L * D * F

    def moved(repeated: bool) -> float:
        found = (c for c in updates if c.repeated == repeated)
        return sum(float(evaluate.amount(c.times)) * float(evaluate.amount(c.bytes)) for c in found)

    accumulate = 2 * weights * (BF16 + F32 + F32)
    clear, momentum = 2 * weights * F32, 2 * weights * (F32 + F32 + F32 + BF16 + BF16)
    assert moved(True) == pytest.approx(accumulate, rel=1e-3)
    assert moved(False) == pytest.approx(clear + momentum, rel=1e-3)


def stack(w: Any, x: Any) -> Any:
    """A loss over a stack of layers, without microbatches."""
    x, _ = lax.scan(lambda x, w: (block(x, w), None), x, w)
    return jnp.mean(x.astype(jnp.float32) ** 2)


def stack_graph(fn: Any, *, donated: tuple[str, ...] = ()) -> Graph:
    weights = {"up": spec(L, D, F), "down": spec(L, F, D)}
    axes = {"up": ("layers", "embed", "mlp"), "down": ("layers", "mlp", "embed")}
    return trace(
        Program(
            name="stack",
            fn=fn,
            arguments=(
                Argument(name="w", role="parameters", tree=weights, axes=axes),
                Argument(name="x", role="batch", tree=spec(B, S, D), axes=("batch", "seq", "embed")),
            ),
            donated=donated,
        )
    )


@cache
def whole_batch() -> Graph:
    """A training step that takes its batch as one."""
    return stack_graph(lambda w, x: jax.tree.map(lambda w, g: w - g, w, jax.grad(stack)(w, x)), donated=("w",))


@cache
def inference() -> Graph:
    return stack_graph(stack)


def test_a_training_step_without_microbatches_is_one_microbatch_and_an_update() -> None:
    found = analyse(shard(whole_batch(), assignment(zero=0, sp=False)))
    layout = Layout(pp=3, mb=2, global_batch=2)
    forward = 2 * (2 * 2 * S * D * F) * L / 3
    assert flops(found.computes, layout, whole_batch(), repeated=True) == 3 * forward
    assert {c.repeated for c in found.computes if c.phase != "update"} == {True}
    assert {c.repeated for c in found.computes if c.phase == "update"} == {False}
    assert {t.klass for t in found.traffics if t.axes == ("tp_kv", "tp_q")} == {"tensor"}


def test_a_program_without_gradients_is_all_forward_pass() -> None:
    found = analyse(shard(inference(), assignment(zero=0, sp=False)))
    assert {(c.phase, c.repeated) for c in found.computes} == {("forward", True)}


def test_equal_kernels_are_priced_once_and_counted_twice() -> None:
    """Up and down projections have the same FLOPs but not the same shape, and of gate and up one takes in what joins
    them; those to keys and to values are alike in all.
    """
    layout = Layout(global_batch=24)
    evaluate = Evaluator(layout.sizes(mlp()))
    dots = [c for c in plan(mlp()).computes if c.label == "dot_general" and c.phase == "forward"]
    assert [evaluate.amount(c.times) for c in dots] == [L, L]
    found = analyse(shard(model("llama3.2-1b"), assignment(zero=0, sp=True)))
    times = [evaluate.amount(c.times) for c in found.computes if c.label == "dot_general" and c.phase == "forward"]
    assert sorted(times) == [1, 16, 16, 16, 16, 16, 32]


# -- stages -------------------------------------------------------------------------------------------------------


def test_what_happens_anywhere_on_every_stage_happens_on_every_stage() -> None:
    assert together([FIRST, LAST]) == FIRST | LAST
    assert together([FIRST, FIRST]) == FIRST
    assert together([FIRST, EVERY]) == EVERY


def stages_of_parameters(name: str) -> dict[str, frozenset[str]]:
    sharded = shard(model(name), assignment(zero=0, sp=True))
    stages = StageMap(sharded)
    return {p.name: stages.of_copy(copy) for p, copy in zip(sharded.graph.parameters, sharded.parameters, strict=True)}


STATES = ("parameters", "optimizer['master']", "optimizer['first']", "optimizer['second']")


@pytest.mark.parametrize("state", STATES)
def test_ends_of_the_model_and_their_optimizer_state_lie_on_the_ends_of_the_pipeline(state: str) -> None:
    found = stages_of_parameters("llama3-8b")
    assert found[f"{state}['embedding']"] == FIRST
    assert found[f"{state}['head']"] == LAST
    assert found[f"{state}['final_norm']"] == LAST
    assert {stages for name, stages in found.items() if name.startswith(f"{state}['layers']")} == {EVERY}


@pytest.mark.parametrize("state", STATES)
def test_a_tied_embedding_lies_on_both_ends(state: str) -> None:
    found = stages_of_parameters("gpt2")
    assert found[f"{state}['embedding']"] == FIRST | LAST
    assert found[f"{state}['positions']"] == FIRST


def test_tokens_go_to_the_first_stage_and_targets_to_the_last() -> None:
    found = stages_of_parameters("llama3-8b")
    assert (found["tokens"], found["targets"]) == (FIRST, LAST)


def test_the_head_is_multiplied_on_the_last_stage_only() -> None:
    c = read_config("llama3-8b")
    layout = Layout(pp=4, global_batch=8, zero=0)
    found = {s: flops(plan("llama3-8b").computes, layout, model("llama3-8b"), stages=s) for s in (FIRST, LAST)}
    assert found == {FIRST: 0, LAST: 3 * 2 * 512 * c.embed * c.vocab}


def test_each_end_updates_its_own_weights_and_no_other() -> None:
    """Adam moves 4 fp32 tensors in, 3 fp32 and a bf16 one out; before, gradients are averaged and their norm taken."""
    c = read_config("llama3-8b")
    evaluate = Evaluator(Layout(pp=4, global_batch=8, zero=0).sizes(model("llama3-8b")))
    once = [k for k in plan("llama3-8b").computes if not k.repeated]
    for stage in (FIRST, LAST):
        found = sum(
            float(evaluate.amount(k.times)) * float(evaluate.amount(k.bytes)) for k in once if k.stages == stage
        )
        clear, average, norm, adam = F32, 2 * F32, F32, 4 * F32 + 3 * F32 + BF16
        assert found == pytest.approx(c.vocab * c.embed * (clear + average + norm + adam), rel=1e-3)


# -- model FLOPs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3-8b", "gpt2"])
@pytest.mark.parametrize("layout", [Layout(global_batch=16), Layout(dp=4, tp=2, pp=2, mb=2, global_batch=16)])
def test_model_flops_are_six_per_weight_and_token_and_attention_in_full(name: str, layout: Layout) -> None:
    """Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T per token, whatever the layout."""
    c = read_config(name)
    tokens = 16 * 512
    projections = c.embed * c.head_dim * 2 * (c.heads + c.kv_heads)
    weights = c.layers * (projections + (3 if c.gated else 2) * c.embed * c.mlp) + c.embed * c.vocab
    attention = 12 * c.layers * c.heads * c.head_dim * 512
    found = Evaluator(layout.sizes(model(name))).amount(plan(name).model_flops)
    assert found == pytest.approx((6 * weights + attention) * tokens, rel=1e-12)


def test_a_program_without_gradients_counts_every_matmul_once() -> None:
    found = analyse(shard(inference(), assignment(zero=0, sp=False))).model_flops
    sizes = Layout(dp=2, mb=3, global_batch=6).sizes(inference())
    assert Evaluator(sizes).amount(found) == 6 * L * 2 * (2 * S * D * F)


# -- arrays -------------------------------------------------------------------------------------------------------


def test_prices_of_an_array_are_those_of_its_elements() -> None:
    tp, dp = (
        np.array(column, dtype=np.float64) for column in zip(*itertools.product((1, 2, 4), (1, 2, 8)), strict=True)
    )
    machine = fake_machine(tiers=TIERS, kernel_launch_seconds=0.25)
    many = price(plan(mlp(), 3, True), Layout(tp=tp, fsdp=dp, global_batch=24).sizes(mlp()), machine)
    for i in range(len(tp)):
        sizes = Layout(tp=float(tp[i]), fsdp=float(dp[i]), global_batch=24).sizes(mlp())
        one = price(plan(mlp(), 3, True), sizes, machine)
        for field in ("compute", "engine", "communication"):
            for key, value in getattr(many, field).items():
                assert np.broadcast_to(value, tp.shape)[i] == getattr(one, field)[key]
