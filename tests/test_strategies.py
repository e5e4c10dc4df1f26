"""Parallelism strategies on a transformer: what each moves in a step, against its closed form in the model's sizes."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from partitioner import TINY_LLAMA, derived

from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.models import load_program
from perfmodel.plan import analyse
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import LOCAL
from perfmodel.trace import trace
from perfmodel.work import Evaluator

BF16, F32 = 2, 4
L, D, F, V = (TINY_LLAMA[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"))
H, K = TINY_LLAMA["num_attention_heads"], TINY_LLAMA["num_key_value_heads"]
S, MB, G = 8, 2, 32
"""Sequence length, microbatch size and sequences per step."""

KEYS = D * K * (D // H)  # weights of the keys' projection of a layer, or of the values'
LAYER = 2 * D * D + 2 * KEYS + 3 * D * F + 2 * D  # weights of a layer: queries and output, keys and values, MLP, norms
WEIGHTS = L * LAYER + 2 * V * D + D


@cache
def graph(recompute: str = "full") -> Graph:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(TINY_LLAMA))
        return trace(load_program(str(path), seq_len=S, recompute=recompute))


def layout(
    *, dp: int = 1, fsdp: int = 1, tp: int = 1, cp: int = 1, zero: int = 0, sp: bool = False, ring: bool = False
) -> Layout:
    return Layout(dp=dp, fsdp=fsdp, tp=tp, cp=cp, mb=MB, global_batch=G, zero=zero, sp=sp, ring=ring)


def moved(given: Layout, *, recompute: str = "full") -> dict[tuple[str, str, str], float]:
    """Bytes per step and rank by (kind, axes, phase); statistics and indices aside, one number a token or fewer."""
    found: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for each in derived(graph(recompute), given):
        if each.bytes > F32 * MB * S:
            axes = "+".join(sorted({axis.split("_")[0] for axis in each.axes}))
            found[each.kind, axes, each.name] += each.times * each.bytes
    return dict(found)


def totals(given: Layout, *, recompute: str = "full") -> dict[tuple[str, str], float]:
    """Bytes per step and rank by (kind, axes)."""
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (kind, axes, _), size in moved(given, recompute=recompute).items():
        found[kind, axes] += size
    return dict(found)


def activations(given: Layout) -> float:
    """Bytes of the activations between two layers on a data-parallel rank, all microbatches together."""
    return float(given.microbatches * BF16 * MB * S * D)


def test_the_closed_forms_count_the_programs_weights() -> None:
    assert graph().parameter_count() == WEIGHTS


def test_data_parallel_reduces_fp32_gradients_once_per_step() -> None:
    assert totals(layout(dp=4)) == {("all_reduce", "dp"): F32 * WEIGHTS}


def test_fsdp_gathers_weights_forward_and_backward_and_scatters_bf16_gradients() -> None:
    given = layout(fsdp=4, zero=3)
    once = 2 * V * D + D  # embedding, head and last norm are used within one pass of one loop body
    assert totals(given) == {
        ("all_gather", "fsdp"): given.microbatches * BF16 * (2 * L * LAYER + once),
        ("reduce_scatter", "fsdp"): given.microbatches * BF16 * WEIGHTS,
    }


def test_zero_1_scatters_fp32_gradients_and_gathers_bf16_weights_once_per_step() -> None:
    assert totals(layout(fsdp=4, zero=1)) == {
        ("reduce_scatter", "fsdp"): F32 * WEIGHTS,
        ("all_gather", "fsdp"): BF16 * WEIGHTS,
    }


def test_zero_2_scatters_bf16_gradients_of_every_microbatch() -> None:
    given = layout(fsdp=4, zero=2)
    assert totals(given) == {
        ("reduce_scatter", "fsdp"): given.microbatches * BF16 * WEIGHTS,
        ("all_gather", "fsdp"): BF16 * WEIGHTS,
    }


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize(("recompute", "repeated"), [("none", 0), ("selective", 0), ("full", 1)])
def test_tensor_parallel_reduces_twice_forward_twice_backward_and_once_where_recomputed(
    tp: int, recompute: str, repeated: int
) -> None:
    given = layout(tp=tp)
    expected = {
        ("all_reduce", "tp", "forward"): (2 * L + 1) * activations(given),  # + vocabulary-parallel embedding
        ("all_reduce", "tp", "recompute"): repeated * L * activations(given),
        ("all_reduce", "tp", "backward"): (2 * L + 1) * activations(given),  # + vocabulary-parallel head
    }
    found = moved(given, recompute=recompute)
    gradients = found.pop(("all_reduce", "tp", "update"), 0.0)
    replicated = replicated_heads(given)
    found["all_reduce", "tp", "backward"] -= replicated["keys"]
    assert found == {key: size for key, size in expected.items() if size}
    assert gradients == replicated["values"]


def replicated_heads(given: Layout) -> dict[str, float]:
    """What ranks that share key/value heads must sum: gradients of keys at once, since rotary positions widen them
    to fp32; gradients of the values' projection once per step.
    """
    if given.tp <= K:
        return {"keys": 0.0, "values": 0.0}
    return {"keys": L * float(given.microbatches) * BF16 * MB * S * D / H, "values": F32 * L * KEYS / K}


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize(("recompute", "repeated"), [("none", 0), ("selective", 0), ("full", 1)])
def test_sequence_parallel_scatters_the_same_bytes_and_gathers_before_each_pair_of_matmuls(
    tp: int, recompute: str, repeated: int
) -> None:
    whole, given = layout(tp=tp), layout(tp=tp, sp=True)
    found = totals(given, recompute=recompute)
    assert found == {
        ("reduce_scatter", "tp"): totals(whole, recompute=recompute)["all_reduce", "tp"],
        ("all_gather", "tp"): (6 * L + 2) * activations(given),
        ("all_reduce", "tp"): F32 * (2 * L + 1) * D,  # norms, whose tokens are sharded
    }


def test_context_parallel_gathers_keys_and_values_and_scatters_their_gradients() -> None:
    given = layout(cp=4)
    pair = 2 * L * activations(given) * K / H
    assert moved(given) == {
        ("all_gather", "cp", "forward"): pair,
        ("all_gather", "cp", "recompute"): pair,
        ("reduce_scatter", "cp", "backward"): pair,
        ("all_reduce", "cp", "update"): F32 * WEIGHTS,
    }


@pytest.mark.parametrize("cp", [2, 4, 8])
@pytest.mark.parametrize(("recompute", "repeated"), [("none", 0), ("selective", 1), ("full", 1)])
def test_ring_attention_passes_keys_and_values_to_the_next_rank(cp: int, recompute: str, repeated: int) -> None:
    """n - 1 passes of a rank's keys and values forward, again where attention is recomputed, and of both and their
    gradients backward.
    """
    given = layout(cp=cp, ring=True)
    evaluate = Evaluator(given.sizes(graph(recompute)))
    plan = analyse(shard(graph(recompute), given.assignment))
    passes: defaultdict[str, float] = defaultdict(float)
    for each in plan.traffics:
        if each.axes == ("cp",) and each.klass == "context":
            assert each.kind == "permute"
            assert evaluate.term(each.bytes) == BF16 * MB * S * D * K / H / cp
            passes[each.phase] += float(evaluate.amount(each.times))
    assert passes.pop("recompute", 0.0) == repeated * 2 * L * (cp - 1)
    assert passes == {"forward": 2 * L * (cp - 1), "backward": 4 * L * (cp - 1)}


def test_a_ring_holds_two_parts_where_a_gather_holds_all() -> None:
    whole = float(BF16 * MB * S * D * K / H)
    for ring, expected in ((False, whole), (True, whole * 2 / 8)):
        given = layout(cp=8, ring=ring)
        sharded = shard(graph(), given.assignment)
        evaluate = Evaluator(given.sizes(graph()))
        gathered = [
            sharded.copies[node.result]
            for node in nodes_of(sharded.nodes)
            if isinstance(node, Reshard) and node.kind == "all_gather" and node.axes == ("cp",)
        ]
        assert {float(evaluate.term(copy.held or copy.bytes)) for copy in gathered} == {expected}


def test_tensor_parallelism_divides_what_fsdp_and_data_parallelism_move() -> None:
    alone, given = layout(fsdp=2, dp=2, zero=3), layout(fsdp=2, dp=2, tp=2, zero=3)
    norms = (2 * L + 1) * D
    gathered = (2 * L * (LAYER + 2 * D) + 2 * V * D + 2 * D) / 2  # norms are not divided
    assert totals(given) == {
        ("all_gather", "fsdp"): given.microbatches * BF16 * gathered,
        ("reduce_scatter", "fsdp"): given.microbatches * BF16 * (WEIGHTS + norms) / 2,
        ("all_reduce", "dp"): F32 * (WEIGHTS + norms) / 2 / 2,
        ("all_reduce", "tp"): (5 * L + 2) * activations(given),
    }
    assert totals(alone)["all_reduce", "dp"] == F32 * WEIGHTS / 2


LAYOUTS = {
    "data parallel": layout(dp=4),
    "ZeRO-1": layout(fsdp=4, zero=1),
    "ZeRO-2": layout(fsdp=4, zero=2),
    "FSDP": layout(fsdp=4, zero=3),
    "tensor parallel": layout(tp=4),
    "more ranks than key/value heads": layout(tp=8),
    "the same with sequence parallelism": layout(tp=8, sp=True),
    "sequence parallel": layout(tp=4, sp=True),
    "context parallel": layout(cp=4),
    "all at once": layout(dp=2, fsdp=2, tp=8, cp=2, zero=3, sp=True),
}


@pytest.mark.parametrize("given", LAYOUTS.values(), ids=LAYOUTS)
def test_every_result_is_fully_reduced(given: Layout) -> None:
    sharded = shard(graph(), given.assignment)
    assert all(not sharded.copies[result].state.partial for result in sharded.results)


def nodes_of(nodes: tuple[LocalNode, ...]) -> list[LocalOp | Reshard]:
    flat: list[LocalOp | Reshard] = []
    for node in nodes:
        flat.extend(nodes_of(node.body) if isinstance(node, LocalLoop) else [node])
    return flat


def collectives_of_logits(sharded: ShardedGraph) -> list[Reshard]:
    """Collectives of values that range over sequences and the vocabulary."""
    found = []
    for node in nodes_of(sharded.nodes):
        if isinstance(node, Reshard) and node.kind not in LOCAL:
            dims = sharded.graph.values[sharded.copies[node.operand].value].dims
            names = {sharded.graph.factors[f].name for dim in dims for f in dim}
            if {"batch", "vocab"} <= names:
                found.append(node)
    return found


@pytest.mark.parametrize("given", LAYOUTS.values(), ids=LAYOUTS)
def test_logits_are_never_moved(given: Layout) -> None:
    assert collectives_of_logits(shard(graph(), given.assignment)) == []


def test_the_loss_over_a_sharded_vocabulary_needs_a_maximum_a_sum_and_the_targets_logit() -> None:
    given = layout(tp=4)
    statistics = [each for each in derived(graph(), given) if each.bytes == F32 * MB * S]
    assert [(each.kind, each.dtype, each.name) for each in statistics] == [("all_reduce", "f32", "forward")] * 3
    assert all(each.times == given.microbatches for each in statistics)


def test_values_made_of_constants_are_made_where_they_are_needed() -> None:
    """Rotary angles enter the loop over layers as constants of every trip; no rank fetches another's."""
    sharded = shard(graph(), layout(tp=4, sp=True).assignment)
    moved_values = [
        sharded.graph.values[sharded.copies[node.operand].value]
        for node in nodes_of(sharded.nodes)
        if isinstance(node, Reshard) and node.kind == "all_gather"
    ]
    named = [{sharded.graph.factors[f].name for dim in value.dims for f in dim} for value in moved_values]
    assert all("batch" in names for names in named)
