"""Collectives that perfmodel derives against those that Shardy and XLA's SPMD partitioner insert, in bytes per step.

What the compilers are known to do otherwise is modelled by name (`perfmodel.verify.rewrites`, `perfmodel.verify.
derived`); all else must agree within 1 %, in every kind and mesh axis with at least 1 % of the bytes of the step.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from partitioner import TINY_LLAMA

from perfmodel.layout import Layout
from perfmodel.models import load_program
from perfmodel.trace import trace
from perfmodel.verify import Verification, verify_all
from perfmodel.verify.collective import Instruction
from perfmodel.verify.groups import device_groups
from perfmodel.verify.question import pose
from perfmodel.verify.rewrites import collectives_of
from perfmodel.verify.shardy import ask_shardy
from perfmodel.verify.stated import state_layout
from perfmodel.verify.xla import ask_xla

SEQ_LEN = 32
EMBED, LAYERS = TINY_LLAMA["hidden_size"], TINY_LLAMA["num_hidden_layers"]


def layout(
    *,
    dp: int = 1,
    fsdp: int = 1,
    ep: int = 1,
    tp: int = 1,
    cp: int = 1,
    zero: int = 0,
    sp: bool = False,
    experts: str = "ep",
) -> Layout:
    return Layout(dp=dp, fsdp=fsdp, ep=ep, tp=tp, cp=cp, mb=2, global_batch=24, zero=zero, sp=sp, experts=experts)


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
    "FSDP x CP x TP+SP": layout(fsdp=2, cp=2, tp=2, zero=3, sp=True),
    "TP beyond key/value heads": layout(tp=8),
}
PROGRAMS = ("mlp", "llama")
CASES = [(program, name) for program in PROGRAMS for name in LAYOUTS]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("models") / "config.json"
    path.write_text(json.dumps(TINY_LLAMA))
    return str(path)


@pytest.fixture(scope="module")
def found(llama: str) -> dict[tuple[str, str], Verification]:
    programs = {"mlp": load_program("programs:mlp_program"), "llama": load_program(llama, seq_len=SEQ_LEN)}
    asked = [(programs[program], LAYOUTS[name]) for program, name in CASES]
    return dict(zip(CASES, verify_all(asked, xla=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["Shardy", "XLA"])
@pytest.mark.parametrize(("program", "name"), CASES)
def test_derived_collectives_are_those_of_the_compilers(
    found: dict[tuple[str, str], Verification], program: str, name: str, compiler: str
) -> None:
    rows = [row for row in found[program, name].rows if row.compiler == compiler and row.compared]
    assert rows
    assert [row for row in rows if not row.agrees] == []


EXPERTS = {
    **TINY_LLAMA,
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.0,
}
EXPERT_LAYOUTS = {
    "EP": layout(ep=4),
    "EP x DP": layout(ep=2, dp=2),
    "EP x FSDP": layout(ep=2, fsdp=2, zero=3),
    "EP x TP": layout(ep=4, tp=2),
    "EP over TP": layout(ep=2, tp=2, experts="tp+cp+ep"),
    "EP over TP x FSDP": layout(ep=2, fsdp=2, tp=2, zero=3, experts="tp+cp+ep"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERT_LAYOUTS)
def test_tokens_go_to_their_experts_as_shardy_has_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(EXPERTS))
    program = load_program(str(tmp_path / "config.json"), seq_len=SEQ_LEN, capacity_factor=1.25)
    (found,) = verify_all([(program, EXPERT_LAYOUTS[name])])
    compared = [row for row in found.rows if row.compared]
    assert ("all_to_all", "ep") in {(row.kind, row.axis) for row in compared}
    assert [row for row in compared if not row.agrees] == []


Answers = dict[tuple[str, str], tuple[Instruction, ...]]


@pytest.fixture(scope="module")
def answers(llama: str) -> Answers:
    """What both compilers say about the model under TP and TP+SP."""
    program = load_program(llama, seq_len=SEQ_LEN)
    graph = trace(program)
    names = ("TP", "TP+SP")
    asked = [pose(program, graph, LAYOUTS[name]) for name in names]
    stated = [state_layout(program, graph, each.layout.assignment, each.sizes, each.mesh) for each in asked]
    told = {"Shardy": [ask_shardy(each) for each in stated], "XLA": ask_xla(stated)}
    return {(compiler, name): told[compiler][i] for compiler in told for i, name in enumerate(names)}


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["Shardy", "XLA"])
@pytest.mark.parametrize(("name", "kind"), [("TP", "all_reduce"), ("TP+SP", "reduce_scatter")])
def test_compilers_reduce_each_summand_of_an_input_gradient_where_their_sum_is_enough(
    answers: Answers, name: str, kind: str, compiler: str
) -> None:
    """Per layer and microbatch: 2 forward, 1 recomputed, and 5 backward (queries, keys, values; gate, up) against 2."""
    size = 2 * 2 * SEQ_LEN * EMBED
    trips = LAYERS * float(LAYOUTS[name].microbatches)
    collectives = collectives_of(answers[compiler, name], {"tp_kv": 4})
    inside = [each for each in collectives if (each.kind, each.bytes, each.times) == (kind, size, trips)]
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
    assert sorted(device_groups(text).tolist()) == groups
