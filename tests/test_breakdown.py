"""The time of a step by kernel and by layer: everything is there, once, under the name that the program gave it."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from perfmodel import Estimate, Graph, Layout, load_machine, load_program, predict, trace
from perfmodel.estimate import ARRAYS
from perfmodel.layer import named_scopes
from perfmodel.report.breakdown import breakdown_json, by_layer, exposure, waits
from perfmodel.schedule import PHASES

LAYOUTS = {
    "one rank": Layout(zero=0, sp=False, global_batch=4),
    "sharded": Layout(dp=2, fsdp=4, tp=4, mb=2, global_batch=64),
    "pipeline, its last stage the slowest": Layout(pp=4, tp=2, zero=0, global_batch=16),
    "interleaved": Layout(pp=4, vpp=2, tp=2, zero=0, global_batch=16),
    "zero bubble": Layout(pp=2, zero=0, global_batch=8, schedule="zb-h1"),
    "context and ring": Layout(cp=4, fsdp=2, ring=True, global_batch=8),
}

PARTS = {"embed", "layers/attention", "layers/norm", "norm", "head", "gradients", "optimizer"}


@cache
def graph(name: str = "llama3.2-1b") -> Graph:
    return trace(load_program(name, seq_len=512))


def estimate(layout: str, model: str = "llama3.2-1b", machine: str = "trn2") -> Estimate:
    return predict(graph(model), LAYOUTS[layout], load_machine(machine))


@pytest.mark.parametrize("machine", ["trn2", "h100"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_sum_to_the_phases_and_all_parts_to_the_step(layout: str, machine: str) -> None:
    found = estimate(layout, machine=machine)
    phases: Counter[str] = Counter()
    for kernel in found.kernels:
        phases[kernel.phase] += float(kernel.seconds)  # type: ignore[assignment]
    for phase in PHASES:
        assert phases[phase] == pytest.approx(found.breakdown[phase], rel=1e-12)
    layers = sum(tally.seconds for tally in by_layer(found).values())
    assert layers == pytest.approx(sum(phases.values()), rel=1e-12)
    assert layers + sum(waits(found).values()) == pytest.approx(found.step_time_s, rel=1e-12)


@pytest.mark.parametrize("layout", ["one rank", "sharded"])
def test_what_decides_kernels_takes_the_seconds_of_that_engine(layout: str) -> None:
    """All but the launches; `engines` count every stage, so without a pipeline."""
    found, launch = estimate(layout), load_machine("trn2").kernel_launch_seconds
    decided: Counter[str] = Counter()
    for kernel in found.kernels:
        decided[kernel.decides] += float(kernel.seconds) - float(kernel.count) * launch  # type: ignore[assignment]
    for engine, seconds in found.engines.items():
        assert decided[engine] == pytest.approx(seconds, rel=1e-9)


def test_a_pipeline_lists_the_kernels_of_its_slowest_stage_only() -> None:
    """With four stages the head's is the slowest: embeddings are looked up on another one."""
    assert {"head", "layers/mlp"} <= by_layer(estimate("pipeline, its last stage the slowest")).keys()
    assert "embed" not in by_layer(estimate("pipeline, its last stage the slowest"))
    assert "embed" in by_layer(estimate("sharded"))


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("llama3.2-1b", {*PARTS, "layers/mlp"}),
        ("mixtral-8x7b", {*PARTS, "layers/experts"}),
    ],
)
def test_layers_are_called_as_the_model_calls_them(model: str, layers: set[str]) -> None:
    found = by_layer(estimate("sharded", model))
    assert layers <= found.keys()
    counted = sum(found[layer].flops for layer in layers)
    assert counted > 0.99 * sum(tally.flops for tally in found.values())
    assert set(found["optimizer"].phases) == {"update"}
    assert set(found["layers/attention"].phases) == {"forward", "recompute", "backward"}


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("jit(step)/mul", ()),
        ("jit(step)/optimizer/mul", ("optimizer",)),
        ("jit(step)/jvp(jit(take_along_axis))", ()),
        ("jit(step)/transpose(jvp(vmap(head)))/mul", ("head",)),
        ("jit(step)/while/jit(step)/while/body/closed_call/jvp(mlp)/bsd,df->bsf/dot_general", ("mlp",)),
        (
            "transpose(jvp(Net))/while/transpose(jvp(Net))/while/body/checkpoint/Block_0/Dense_1/add",
            ("Net", "Block_0", "Dense_1"),
        ),
        ("a/b/while/a/b/while/body/c/add", ("a", "b", "c")),
    ],
)
def test_named_scopes_are_told_from_what_jax_writes_between_them(scope: str, names: tuple[str, ...]) -> None:
    assert named_scopes(scope) == names


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_class_exposes_more_than_it_takes(layout: str) -> None:
    found = estimate(layout)
    for name, seconds in found.communication.items():
        assert 0.0 <= found.breakdown[name] <= float(seconds) * (1 + 1e-12)
    assert exposure(found).keys() == {name for name, seconds in found.communication.items() if seconds}


def test_without_a_pipeline_the_classes_are_the_sums_of_the_collectives() -> None:
    found = estimate("sharded")
    for name, seconds in found.communication.items():
        spent = sum(float(c.seconds) for c in found.collectives if c.klass == name)
        assert spent == pytest.approx(seconds, rel=1e-12)


def test_kernels_of_arrays_are_those_of_each_layout_and_cost_nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.array([1, 2, 4])
    many = predict(graph(), Layout(pp=sizes, tp=8 // sizes, zero=0, global_batch=16), load_machine("trn2"))
    for i, pp in enumerate(sizes):
        one = predict(graph(), Layout(pp=int(pp), tp=8 // int(pp), zero=0, global_batch=16), load_machine("trn2"))
        assert list(many.at(i).kernels) == list(one.kernels)

    def fail(*_: object) -> None:
        raise AssertionError("nobody asked for kernels")

    monkeypatch.setattr("perfmodel.price._kernel_costs", fail)
    again = predict(graph(), Layout(pp=sizes, tp=8 // sizes, zero=0, global_batch=16), load_machine("trn2"))
    assert all(np.array_equal(getattr(again, name), getattr(many, name)) for name in ARRAYS)
    assert again.at(1).step_time_s > 0.0


def test_equal_estimates_stay_equal() -> None:
    assert estimate("sharded") == estimate("sharded")


@pytest.mark.parametrize("by", ["kernel", "layer"])
def test_the_json_of_a_breakdown_sums_to_the_step(by: str) -> None:
    found = estimate("interleaved")
    document = breakdown_json(found, by)
    assert document.keys() == {f"{by}s", "waits", "communication"}
    total = sum(each["seconds"] for each in document[f"{by}s"]) + sum(document["waits"].values())
    assert total == pytest.approx(found.step_time_s, rel=1e-12)
