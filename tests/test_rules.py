"""Which layouts are legal, rule by rule, one layout at a time and many at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import fake_machine
from programs import L, mlp_graph, spec

from perfmodel.allocation import check_chips
from perfmodel.graph import Factor, Graph
from perfmodel.layout import AXES, Layout
from perfmodel.machine import Machine
from perfmodel.machine_file import load_machine
from perfmodel.models import load_program, read_config
from perfmodel.models.config import parse_config
from perfmodel.models.training import train_program
from perfmodel.place import place
from perfmodel.predict import predict
from perfmodel.rules import Constraint, constraints
from perfmodel.shard import shard
from perfmodel.trace import Argument, Program, trace

S = 512
G = 64


@cache
def llama() -> Graph:
    return trace(load_program("llama3.2-1b", seq_len=S))


@cache
def mlp() -> Graph:
    return mlp_graph()


def broken(graph: Graph, layout: Layout, machine: Machine | None = None) -> set[str]:
    """Rules that one layout breaks."""
    estimate = predict(graph, layout, machine or fake_machine())
    rules = [rule for rule, breaks in estimate.violations.items() if breaks]
    assert estimate.fits is (not rules)
    assert list(estimate.reasons) == rules
    return set(rules)


C = read_config("llama3.2-1b")
BATCH = "global batch not divisible by dp*fsdp*ep*mb"


@pytest.mark.parametrize(
    ("layout", "rules"),
    [
        (Layout(global_batch=G), set()),
        (Layout(dp=2, fsdp=2, tp=4, cp=2, pp=4, mb=2, global_batch=G), set()),
        (Layout(tp=C.heads, global_batch=G), set()),  # more than the key/value heads, which are copied
        (Layout(pp=3, global_batch=G), set()),  # 16 layers as 5, 6 and 5
        (Layout(pp=18, global_batch=G), set()),  # the embedding alone, 16 layers, the head alone
        (Layout(pp=19, global_batch=G), {f"layers {C.layers} too few for pp*vpp"}),
        (Layout(pp=3, vpp=6, global_batch=3 * G), set()),
        (Layout(pp=3, vpp=7, global_batch=3 * G), {f"layers {C.layers} too few for pp*vpp"}),
        (
            Layout(tp=3, sp=False, global_batch=G),
            {f"kv_heads {C.kv_heads} not divisible by tp", f"mlp {C.mlp} not divisible by tp"},
        ),
        (Layout(tp=2 * C.heads, sp=False, global_batch=G), {f"q_per_kv {C.q_per_kv} not divisible by tp"}),
        (
            Layout(cp=3, global_batch=G),
            {f"seq {S} not divisible by cp", f"seq {S} not divisible by cp*tp"},
        ),
        (Layout(cp=S // 4, tp=8, global_batch=G), {f"seq {S} not divisible by cp*tp"}),
        (Layout(fsdp=3, global_batch=3 * G), {f"embed {C.embed} not divisible by fsdp*ep"}),
        (Layout(fsdp=3, zero=0, global_batch=3 * G), set()),
        (Layout(dp=3, global_batch=G), {BATCH}),
        (Layout(dp=G, mb=2, global_batch=G), {BATCH}),  # half a microbatch
        (Layout(dp=2, mb=3, global_batch=9), {BATCH}),  # one and a half
    ],
    ids=lambda value: value.notation() if isinstance(value, Layout) else None,
)
def test_a_layout_breaks_the_rules_that_it_should(layout: Layout, rules: set[str]) -> None:
    assert broken(llama(), layout) == rules


@pytest.mark.parametrize(("heads", "kv_heads", "tp"), [(12, 4, 6), (12, 4, 3), (24, 8, 12), (8, 8, 16)])
def test_ranks_of_tp_must_share_heads_evenly(heads: int, kv_heads: int, tp: int) -> None:
    """6 ranks for 4 heads of keys would give each one and a half, though the 12 query heads divide; and heads that
    have no group of queries to share cannot go to more ranks than there are.
    """
    config = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 48 * heads,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": 48 * heads,
        "max_position_embeddings": 96,
        "hidden_act": "silu",
    }
    graph = trace(train_program(parse_config(config, "heads"), seq_len=96))
    layout = Layout(tp=tp, sp=False, zero=0, global_batch=1)
    assert any("heads" in rule or "q_per_kv" in rule for rule in broken(graph, layout))


def test_the_vocabulary_is_padded_instead() -> None:
    graph = trace(load_program("gpt2", seq_len=S))
    assert read_config("gpt2").vocab % 2 == 1
    assert broken(graph, Layout(tp=2, global_batch=G)) == set()


# -- machines -----------------------------------------------------------------------------------------------------


def test_ranks_must_fill_chips() -> None:
    machine = fake_machine(ranks_per_chip=4)
    assert broken(llama(), Layout(dp=2, global_batch=G), machine) == {"ranks do not fill whole chips"}
    assert broken(llama(), Layout(dp=4, global_batch=G), machine) == set()


@pytest.mark.parametrize(("tp", "allowed"), [(2, True), (4, False), (8, True)])
def test_groups_must_have_a_size_that_the_runtime_supports(tp: int, allowed: bool) -> None:
    machine = fake_machine(group_sizes={"tp": (1, 2, 8)})
    assert broken(llama(), Layout(tp=tp, global_batch=G), machine) == (
        set() if allowed else {"group of tp not supported by fake"}
    )


@pytest.mark.parametrize(
    ("name", "chips"),
    [
        *(("h100", 24), ("h100", 6), ("h100", 12), ("gb200-nvl72", 128), ("gb200-nvl72", 144), ("gb200-nvl72", 72)),
        *(("mi300x", 24), ("inf2", 24), ("trn2", 48), ("trn3-gen2", 72), ("tpu-v5e", 768)),
    ],
)
def test_groups_lie_evenly_on_the_fabric_where_a_walk_of_it_finds_no_gaps(name: str, chips: int) -> None:
    machine = load_machine(name)
    ranks = check_chips(machine, chips)
    layouts = [replace(Layout(recompute="none"), **sizes) for sizes in factorisations(ranks, 60)]
    astride = []
    for layout in layouts:
        found = predict(mlp(), layout, machine).violations
        astride.append(any(found[rule] for rule in found if rule.startswith("groups astride the ")))
    walked = [place(layout.mesh, machine).faults for layout in layouts]
    assert astride == [any("expected them to divide" in fault for fault in faults) for faults in walked]


def factorisations(ranks: int, count: int) -> Iterator[dict[str, Any]]:
    """Sizes of axes that multiply to `ranks`, each prime factor on any of them."""
    draw = np.random.default_rng(ranks)
    for _ in range(count):
        sizes, rest = dict.fromkeys(AXES, 1), ranks
        while rest > 1:
            prime = next(p for p in range(2, rest + 1) if rest % p == 0)
            sizes[AXES[draw.integers(len(AXES))]] *= prime
            rest //= prime
        yield sizes


def test_a_group_that_a_server_holds_a_part_of_names_the_server() -> None:
    h100 = load_machine("h100")
    assert broken(llama(), Layout(tp=4, dp=6, global_batch=6 * G), h100) == set()
    apart = Layout(tp=4, fsdp=3, dp=2, zero=0, global_batch=6 * G)
    assert broken(llama(), apart, h100) == {"groups astride the 8 ranks of NVSwitch"}


def test_the_reason_for_too_little_memory_says_how_much_is_needed() -> None:
    machine = fake_machine(memory_bytes=2.0**30)
    estimate = predict(llama(), Layout(global_batch=G), machine)
    needed = estimate.memory_bytes / 2**30
    assert estimate.reasons == (f"out of memory: needs {needed:.1f} GiB of 1.0 GiB per rank",)


@pytest.mark.parametrize("spare", [0.0, -1.0])
def test_memory_that_is_just_enough_is_enough(spare: float) -> None:
    needed = float(predict(mlp(), Layout(recompute="none"), fake_machine()).memory_bytes)
    machine = fake_machine(memory_bytes=needed + spare)
    assert predict(mlp(), Layout(recompute="none"), machine).fits is (spare == 0.0)


# -- programs without the usual names -----------------------------------------------------------------------------


def scaled(*axes: str | None) -> Graph:
    """y = 2 x, its two dims so named."""
    x = Argument(name="x", role="batch", tree=spec(8, 8, dtype=jnp.float32), axes=axes)
    return trace(Program(name="scaled", fn=lambda x: 2.0 * x, arguments=(x,)))


@pytest.mark.parametrize(
    ("axes", "layout", "rules"),
    [
        (("batch", None), {"dp": 4, "global_batch": 4}, set()),
        (("batch", None), {"dp": 4, "mb": 2, "global_batch": 8}, set()),
        (
            ("batch", None),
            {"dp": 4, "global_batch": 8},
            {"no dim named microbatch, so dp*fsdp*ep*mb must be the global batch"},
        ),
        (("batch", "seq"), {"cp": 2, "global_batch": 1}, set()),
        (("batch", "seq"), {"tp": 2, "global_batch": 1}, set()),
        (("batch", "mlp"), {"tp": 2, "sp": False, "global_batch": 1}, set()),
        (("layers", None), {"pp": 2, "global_batch": 1}, set()),
        (("batch", None), {"pp": 2}, {"no dim named layers to split over pp"}),
        (("batch", None), {"cp": 2}, {"no dim named seq to split over cp"}),
        (("batch", None), {"ep": 2, "global_batch": 2}, {"no dim named experts to split over ep"}),
        (("batch", None), {"tp": 2}, {"no dim named kv_heads or q_per_kv or mlp or vocab or seq to split over tp"}),
        (
            ("batch", "seq"),
            {"tp": 2, "sp": False},
            {"no dim named kv_heads or q_per_kv or mlp or vocab to split over tp"},
        ),
        ((None, None), {}, set()),
        (
            (None, None),
            {"dp": 4, "global_batch": 4},
            {"no dim of more than 1 named batch to split over dp*fsdp*ep*mb"},
        ),
        (
            (None, None),
            {"mb": 4, "global_batch": 4},
            {"no dim of more than 1 named batch to split over dp*fsdp*ep*mb"},
        ),
    ],
)
def test_a_program_is_split_along_the_names_that_it_has(
    axes: tuple[str | None, ...], layout: dict[str, Any], rules: set[str]
) -> None:
    assert broken(scaled(*axes), Layout(**layout, recompute="none")) == rules


# -- programs with a mesh of their own ----------------------------------------------------------------------------


def mapped(**bound: tuple[int, tuple[str, ...]]) -> Graph:
    """y = 2 x, its rows or columns spread by the program itself: (parts, over which mesh axes)."""
    graph = scaled("batch", None)
    factors = tuple(Factor(size=size, bound=axes) for size, axes in bound.values())
    return replace(graph, factors=(*graph.factors, *factors))


TP_4 = "tp not 4, for which the program's shard_map is written"
DATA_6 = "dp*fsdp not 6, for which the program's shard_map is written"


@pytest.mark.parametrize(
    ("sizes", "rules"),
    [
        ({"tp": 4, "dp": 2, "fsdp": 3}, set()),
        ({"tp": 2, "dp": 6}, {TP_4}),
        ({"tp": 4, "dp": 2}, {DATA_6}),
        ({}, {TP_4, DATA_6}),
    ],
)
def test_a_program_runs_on_the_mesh_that_its_shard_map_is_written_for(sizes: dict[str, int], rules: set[str]) -> None:
    """And it needs no dim with a name of ours to be split over tp."""
    graph = mapped(columns=(4, ("tp",)), rows=(6, ("dp", "fsdp")))
    layout = Layout(**sizes, zero=0, recompute="none")  # type: ignore[arg-type]
    assert broken(graph, replace(layout, global_batch=int(layout.data))) == rules


def constrained(axis: str, ranks: int) -> Graph:
    """y = 2 x, whose columns the program itself wants on a mesh axis."""
    mesh = jax.sharding.AbstractMesh((ranks,), (axis,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P(None, axis))
    x = Argument(name="x", role="batch", tree=spec(8, 8, dtype=jnp.float32), axes=("batch", None))
    fn = lambda x: jax.lax.with_sharding_constraint(2.0 * x, sharding)
    return trace(Program(name="constrained", fn=fn, arguments=(x,)))


@pytest.mark.parametrize("axis", ["tp", "cp", "ep"])
def test_an_axis_that_only_the_programs_own_constraint_uses_needs_no_name(axis: str) -> None:
    """Any other axis still does."""
    graph = constrained(axis, 4)
    layout = Layout(**{axis: 4}, sp=False, recompute="none")  # type: ignore[arg-type]
    layout = replace(layout, global_batch=int(layout.data))
    assert broken(graph, layout) == set()
    assert broken(graph, replace(layout, pp=2)) == {"no dim named layers to split over pp"}


# -- constraints --------------------------------------------------------------------------------------------------


def test_constraints_are_the_divisions_that_the_assignment_makes() -> None:
    found = constraints(shard(mlp(), Layout(zero=3, sp=False).assignment))
    assert Constraint(name="layers", size=L, axes=("pp",)) in found
    assert len(found) == len(set(found))
    assert {(c.name, c.axes) for c in found} == {
        ("layers", ("pp",)),
        ("mlp", ("tp_kv", "tp_q")),
        ("embed", ("fsdp", "ep")),
        ("seq", ("cp",)),
    }


@pytest.mark.parametrize(
    ("origin", "rule"), [("x.1", "x.1 8 not divisible by tp"), (None, "index of size 8 not divisible by tp")]
)
def test_an_index_without_a_name_is_called_by_its_origin_and_its_size_is_said_once(
    origin: str | None, rule: str
) -> None:
    graph = constrained("tp", 3)
    factors = tuple(replace(factor, origin=origin if factor.name is None else "x.0") for factor in graph.factors)
    assert broken(replace(graph, factors=factors), Layout(tp=3, sp=False, recompute="none")) == {rule}


# -- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trn2", "trn2-ultraserver", "h100"])
def test_masks_of_an_array_are_the_verdicts_on_its_elements(name: str) -> None:
    machine = load_machine(name)
    rng = np.random.default_rng(0)
    drawn = {axis: rng.choice([1, 2, 3, 4, 8, 64], 120) for axis in ("dp", "fsdp", "ep", "tp", "cp", "pp", "mb")}
    ranks = math.prod(drawn[axis] for axis in drawn if axis != "mb")
    whole = np.flatnonzero(ranks % 8 == 0)[:60]  # 12 GPUs would be 2 x 6, another machine
    layouts = Layout(**{axis: each[whole] for axis, each in drawn.items()}, global_batch=256)  # type: ignore[arg-type]
    many = predict(llama(), layouts, machine)
    for i in range(60):
        one = predict(llama(), layouts.at(i), machine)
        assert {rule: np.broadcast_to(mask, 60)[i] for rule, mask in many.violations.items()} == one.violations
        assert many.fits[i] == one.fits
