"""Collectives that perfmodel derives against those that XLA's SPMD partitioner inserts, in bytes per step and rank.

Two differences are modelled by name, and all else must agree within 1 %:

- the rewrites of `hlo.Body`, which the partitioner leaves to passes that the CPU's pipeline lacks;
- `every_microbatch`: XLA reduces the bf16 gradients of each microbatch, since no loop carries a partial sum; perfmodel
  reduces their fp32 sum once per step, as trainers do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hlo import Collective, device_groups
from partitioner import TINY_LLAMA, Question, ask, derived

from perfmodel.layout import Layout
from perfmodel.models import load_program
from perfmodel.trace import trace

Totals = Mapping[tuple[str, str], float]
"""Bytes per step and rank by (kind, mesh axes)."""

TOLERANCE = 0.01
SMALL = 0.01
"""Kinds and axes with less than this share of a step's bytes (statistics, norms, indices) are not compared."""

SEQ_LEN = 32


def layout(*, dp: int = 1, fsdp: int = 1, tp: int = 1, cp: int = 1, zero: int = 0, sp: bool = False) -> Layout:
    return Layout(dp=dp, fsdp=fsdp, tp=tp, cp=cp, mb=2, global_batch=24, zero=zero, sp=sp)


LAYOUTS = {
    "DP": layout(dp=4),
    "ZeRO-1": layout(fsdp=4, zero=1),
    "ZeRO-2": layout(fsdp=4, zero=2),
    "FSDP": layout(fsdp=4, zero=3),
    "TP": layout(tp=4),
    "TP+SP": layout(tp=4, sp=True),
    "FSDP x TP": layout(fsdp=4, tp=2, zero=3),
    "FSDP x TP+SP": layout(fsdp=4, tp=2, zero=3, sp=True),
    "DP x FSDP x TP": layout(dp=2, fsdp=2, tp=2, zero=3),
    "CP": layout(cp=4),
    "CP x TP+SP": layout(cp=2, tp=2, sp=True),
    "TP beyond key/value heads": layout(tp=8),
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Why the two differ, and by how much [B]: for each (kind, axes), ours and XLA's."""

    reason: str
    bytes: Mapping[tuple[str, str], tuple[float, float]]


M = 3  # microbatches of layouts that spread the batch over 4 ranks
VOCAB, EMBED, LAYERS = (TINY_LLAMA[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers"))
SUMMED_TWICE = M * 2 * (VOCAB * EMBED / 2 + (2 * LAYERS + 1) * EMBED)
"""Bytes on a rank of bf16 gradients of the embedding (over two ranks of tp) and the norms, in a step."""

EXCEPTIONS: Mapping[tuple[str, str], Difference] = {
    ("llama", "TP beyond key/value heads"): Difference(
        reason=(
            "Ranks that share a head hold its whole key and value gradients, and parts of its queries'. XLA reduces "
            "what flows back through keys and values over heads, and what flows back through queries over all ranks; "
            "we count the former once and reduce their sum."
        ),
        bytes={("all_reduce", "tp_kv"): (48.0, 12 * LAYERS * 2 * 2 * SEQ_LEN * EMBED + 8.0)},
    ),
    ("llama", "DP x FSDP x TP"): Difference(
        reason=(
            "Gradients of the embedding and the norms come from a scatter and from sums, not from matmuls: XLA reduces "
            "them over dp and fsdp at once, and then each rank takes its part. We scatter first and reduce the part."
        ),
        bytes={
            ("reduce_scatter", "fsdp"): (544128.0, 544128.0 - SUMMED_TWICE),
            ("all_reduce", "dp"): (272064.0, 272064.0 - SUMMED_TWICE / 2),
            ("all_reduce", "dp+fsdp"): (6.0, SUMMED_TWICE + 12.0),
        },
    ),
    ("llama", "FSDP x TP+SP"): Difference(
        reason=(
            "Where sequences are sharded over fsdp, and both their tokens and the vocabulary over tp, XLA moves what a "
            "gather or scatter works on: three times the fp32 logits, and the embedding's gradient, which it reduces "
            "whole. We mask what is not in a rank's part of the vocabulary, and sum."
        ),
        bytes={
            ("all_to_all", "fsdp"): (0.0, M * 3 * 4 * 2 * SEQ_LEN * VOCAB / 2),
            ("all_gather", "tp_kv"): (642048.0, 814848.0),
            ("all_reduce", "fsdp+tp_kv"): (12.0, 101808.0),
            ("reduce_scatter", "fsdp"): (544128.0, 491520.0),
            ("reduce_scatter", "tp_kv"): (542208.0, 518400.0),
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What both say about each program under each layout."""

    ours: Mapping[tuple[str, str], list[Collective]]
    xlas: Mapping[tuple[str, str], list[Collective]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    path: Path = tmp_path_factory.mktemp("models") / "config.json"
    path.write_text(json.dumps(TINY_LLAMA))
    models = {"mlp": ("programs:mlp_program", None), "llama": (str(path), SEQ_LEN)}
    cases = [(program, name) for program in models for name in LAYOUTS]
    questions = [
        Question(model=models[program][0], seq_len=models[program][1], layout=LAYOUTS[name]) for program, name in cases
    ]
    graphs = {program: trace(load_program(model, seq_len=length)) for program, (model, length) in models.items()}
    return Answers(
        ours={(program, name): derived(graphs[program], LAYOUTS[name]) for program, name in cases},
        xlas=dict(zip(cases, ask(questions), strict=True)),
    )


def every_microbatch(collectives: Iterable[Collective], microbatches: float) -> list[Collective]:
    """The same, but for fp32 sums over microbatches of gradients: reduced in bf16 for each microbatch."""
    return [
        replace(each, dtype="bf16", bytes=each.bytes / 2, times=microbatches)
        if (each.times, each.dtype, each.name) == (1.0, "f32", "update")
        else each
        for each in collectives
    ]


def totals(collectives: Iterable[Collective]) -> Totals:
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for each in collectives:
        found[each.kind, "+".join(sorted(each.axes))] += each.times * each.bytes
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("program", ["mlp", "llama"])
def test_derived_collectives_are_those_of_xlas_partitioner(answers: Answers, program: str, name: str) -> None:
    ours = totals(every_microbatch(answers.ours[program, name], float(LAYOUTS[name].microbatches)))
    xlas = totals(answers.xlas[program, name])
    small = SMALL * sum(xlas.values())
    compared = {key for key in {*ours, *xlas} if max(ours.get(key, 0.0), xlas.get(key, 0.0)) >= small}
    assert compared
    exception = EXCEPTIONS.get((program, name), Difference(reason="there is none", bytes={}))
    for key in compared - set(exception.bytes):
        assert ours.get(key, 0.0) == pytest.approx(xlas.get(key, 0.0), rel=TOLERANCE), key
    pinned = {key: (ours.get(key, 0.0), xlas.get(key, 0.0)) for key in exception.bytes}
    assert pinned == exception.bytes, exception.reason


@pytest.mark.slow
def test_exceptions_are_exceptions(answers: Answers) -> None:
    """Each pinned figure differs by more than the tolerance: an exception that is none must leave the table."""
    for case, exception in EXCEPTIONS.items():
        assert case in answers.ours
        for ours, xlas in exception.bytes.values():
            assert ours != pytest.approx(xlas, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("TP", "all_reduce"), ("TP+SP", "reduce_scatter")])
def test_xla_reduces_each_summand_of_an_input_gradient_where_their_sum_is_enough(
    answers: Answers, name: str, kind: str
) -> None:
    """Per layer and microbatch: 2 forward, 1 recomputed, and 5 backward (queries, keys, values; gate, up) against 2."""
    size = 2 * 2 * SEQ_LEN * EMBED
    trips = LAYERS * float(LAYOUTS[name].microbatches)
    reductions = [each for each in answers.xlas["llama", name] if (each.kind, each.bytes) == (kind, size)]
    inside = [each for each in reductions if each.times == trips]
    assert sum(each.summands for each in inside) == 2 + 1 + 5
    assert sum(1 for each in inside) == 2 + 1 + 2


PAIRS, COLUMNS = [[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add", PAIRS),
        ("replica_groups=[4,2]<=[8], to_apply=%add", PAIRS),
        ("replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add", COLUMNS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add", COLUMNS),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2] {'c'}, to_apply=%add", PAIRS),
        ("replica_groups=mesh['a'=8] {'a':(4)2}, to_apply=%add", PAIRS),
        ("replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%add", COLUMNS),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%add", COLUMNS),
    ],
)
def test_groups_of_devices_are_read_in_every_notation(text: str, groups: list[list[int]]) -> None:
    assert sorted(device_groups(text)) == groups
