"""Frameworks: what running in a step adds, their files, and fits to measured steps."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from machines import fake_machine, tier
from test_validate import RUN, row, write

from perfmodel import MachineError, load_machine, predict, trace, validate
from perfmodel.cli.main import main
from perfmodel.framework import Framework, slower
from perfmodel.framework_file import framework_names, framework_text, read_framework
from perfmodel.layout import Layout
from perfmodel.models.training import train_program
from perfmodel.predict import part_for, structure_of
from perfmodel.schema import numbers
from perfmodel.validate.cross import crossed, measured_of
from perfmodel.validate.fit import ON_MACHINE, USUAL, Measured, fit_framework, held_out, interval
from perfmodel.validate.framework_text import fitted_text
from perfmodel.validate.hardware import machine_of
from perfmodel.validate.program import config_of
from perfmodel.validate.runs import Runs, run_of

GRAPH = trace(train_program(config_of(row()), seq_len=128, recompute="none"))
_LAYOUTS = (
    Layout(dp=8, mb=1, global_batch=64, zero=0),
    Layout(fsdp=8, mb=2, global_batch=64),
    Layout(dp=2, tp=2, pp=2, mb=4, global_batch=64, zero=0),
    Layout(dp=2, cp=2, tp=2, mb=1, global_batch=64, zero=0),
)
LAYOUTS = tuple(replace(layout, recompute="none").settled() for layout in _LAYOUTS)
SLOW = Framework(
    name="slow", slower=slower(matrix=1.2, attention=1.5, memory=2.0), host_seconds=3e-5, accumulation=0.25
)
OVERLAP = {"tensor": 0.1, "context": 0.2, "expert": 0.3, "fsdp": 0.4, "batch": 0.5, "pipeline": 0.6, "data": 0.7}


# -- what a framework adds ----------------------------------------------------------------------------------------


def test_a_framework_that_adds_nothing_changes_nothing() -> None:
    plain = fake_machine()
    neutral = replace(plain, framework=Framework(slower=slower(1.0, 1.0, 1.0)))
    for layout in LAYOUTS:
        assert predict(GRAPH, layout, neutral).step_time_s == predict(GRAPH, layout, plain).step_time_s


@pytest.mark.parametrize(("engine", "name"), [("tensor", "matrix"), ("memory", "memory"), ("attention", "attention")])
def test_kernels_are_slower_by_what_decides_them(engine: str, name: str) -> None:
    factors = {"matrix": 1.0, "attention": 1.0, "memory": 1.0} | {name: 1.5}
    plain = fake_machine(memory_bandwidth=2.0)
    before, after = (
        predict(GRAPH, LAYOUTS[0], replace(plain, framework=f)).engines
        for f in (Framework(), Framework(slower=slower(**factors)))
    )
    assert float(after[engine]) >= float(before[engine]) > 0.0
    assert sum(map(float, after.values())) > sum(map(float, before.values()))


def test_accumulation_that_matmuls_do_is_left_out() -> None:
    update = [
        float(predict(GRAPH, LAYOUTS[0], fake_machine(framework=Framework(accumulation=x))).breakdown["update"])
        for x in (1.0, 0.5, 0.0)
    ]
    assert update[0] > update[1] > update[2] > 0.0
    assert update[0] - update[1] == pytest.approx(update[1] - update[2])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.notation())
def test_a_step_takes_at_least_as_long_as_the_host_needs_to_launch_it(layout: Layout) -> None:
    never, always = (fake_machine(framework=Framework(host_seconds=s)) for s in (1e-30, 1e30))
    fast, slow = (predict(GRAPH, layout, machine) for machine in (never, always))
    assert fast.breakdown["host"] == 0.0
    assert float(slow.breakdown["host"]) > 1e30
    assert sum(map(float, slow.breakdown.values())) == pytest.approx(float(slow.step_time_s))
    for estimate in (fast, slow):
        assert float(estimate.lower_s) <= float(estimate.step_time_s) <= float(estimate.upper_s)


def test_arrays_of_layouts_wait_for_the_host_as_each_does() -> None:
    machine = fake_machine(framework=replace(SLOW, host_seconds=3e7))
    tp = np.array([1, 2, 4])
    table = predict(GRAPH, replace(LAYOUTS[0], dp=8 // tp, tp=tp, sp=True), machine)
    for i, size in enumerate(tp.tolist()):
        one = predict(GRAPH, replace(LAYOUTS[0], dp=8 // size, tp=size, sp=True), machine)
        assert one.step_time_s == np.broadcast_to(table.step_time_s, 3)[i]


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", framework_names())
def test_shipped_frameworks_load_and_name_themselves(name: str) -> None:
    spec = read_framework(name)
    assert spec.name == name
    assert (resources.files("hardware_specs") / "frameworks" / f"{name}.toml").is_file()
    for path, number in numbers(spec):
        assert number.source, path


def test_a_machine_runs_by_its_own_framework_or_by_the_one_asked_for() -> None:
    own, asked = load_machine("h100"), load_machine("h100", framework="megatron")
    assert (own.framework.name, asked.framework.name) == ("xla-gpu", "megatron")
    assert load_machine("trn2").framework.name == "neuron"
    assert asked.overlap["tensor"] == read_framework("megatron").overlap.tensor.value  # type: ignore[union-attr]
    assert "framework.host" in asked.facts
    assert load_machine("h100", calibrated=False).framework == Framework()


def test_a_framework_of_ones_own_is_a_path(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(framework_text("torch").replace('name = "torch"', 'name = "mine"'))
    assert load_machine("h100", framework=mine).framework.name == "mine"
    for text, message in (("tch", "expected one of"), (str(tmp_path / "none.toml"), "cannot be read")):
        with pytest.raises(MachineError, match=message):
            load_machine("h100", framework=text)
    mine.write_text(framework_text("torch").replace('unit = "us"', 'unit = "GiB"', 1))
    with pytest.raises(MachineError, match=r"host\.unit"):
        load_machine("h100", framework=mine)


def test_a_framework_knows_the_same_chips_in_other_servers(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    text = framework_text("torch")
    mine.write_text(
        text[: text.index("[machines.")]
        + '[machines.h100]\nmatrix = { value = 1.5, unit = "1", kind = "measured", source = "a clock" }\n'
    )
    loaded = {name: load_machine(name, framework=mine) for name in ("h100", "dgx-h100", "h200", "dgx-h200")}
    known = {name for name, machine in loaded.items() if machine.framework.slower["tensor"] == 1.5}
    assert known == {"h100", "dgx-h100"}
    assert "of which no run on dgx-h200 was fitted" in loaded["dgx-h200"].assumptions[-1]


def test_what_no_run_told_of_a_machine_is_said() -> None:
    known, unknown = (load_machine(name, framework="megatron").assumptions[-1] for name in ("a100-80", "tpu-v4"))
    assert "fitted to" in known
    assert "of which no run on tpu-v4 was fitted" in unknown


@pytest.mark.parametrize(
    ("hardware", "framework", "name"),
    [
        ("NVIDIA H100", "Megatron-LM", "megatron"),
        ("NVIDIA H100", "MaxText", "xla-gpu"),
        ("TPU v5e", "MaxText", "xla-tpu"),
        ("NVIDIA H100", "PyTorch FSDP + torch.compile", "torch"),
        ("trn1.32xlarge", "neuronx-nemo-megatron", "neuron"),
        ("NVIDIA H100", "", "xla-gpu"),
    ],
)
def test_rows_are_run_by_what_they_say(hardware: str, framework: str, name: str) -> None:
    machine, differs = machine_of(row(hardware=hardware, framework=framework))
    assert machine.framework.name == name
    assert any("predicted as run by" in text for text in differs) == (not framework)


# -- fits ---------------------------------------------------------------------------------------------------------


def measured(seconds: list[float] | None = None, **changes: str) -> list[Measured]:
    machine = load_machine("h100")
    runs = [
        run_of(structure_of(GRAPH, layout, machine.framework).plan, layout.sizes(GRAPH), part_for(machine, layout))
        for layout in LAYOUTS
    ]
    stated = {"machine": "h100", "source": "us", "model": "small", **changes}
    return [Measured(run=run, seconds=s, **stated) for run, s in zip(runs, seconds or [1.0] * len(runs), strict=True)]


def test_runs_side_by_side_take_what_each_takes_by_itself() -> None:
    machine = load_machine("h100")
    slow = replace(machine, framework=replace(SLOW, combine=machine.framework.combine), overlap=OVERLAP)
    alone = [float(predict(GRAPH, layout, slow).step_time_s) for layout in LAYOUTS]
    assert Runs([m.run for m in measured()]).seconds(SLOW, OVERLAP) == pytest.approx(alone, rel=1e-12)


def test_gathers_of_a_layer_travel_together_as_far_as_the_framework_combines_them() -> None:
    """With a network that is all latency, a step takes as long as it has messages."""
    fsdp = replace(LAYOUTS[1], mb=8)
    times = []
    for combine in (0.0, 1.0, 5e5, 1e9):
        machine = fake_machine(tiers=(tier(latency=1e9),), framework=Framework(combine=combine))
        times.append(float(predict(GRAPH, fsdp, machine).step_time_s))
    assert times[0] == pytest.approx(times[1], rel=1e-3)  # no more messages than there are gathers
    assert times[1] > times[2] > times[3]


def test_a_fit_finds_what_made_the_steps() -> None:
    """Steps that a slow host made tell the host, and nothing of what it hides."""
    truth = replace(SLOW, host_seconds=1e-4, accumulation=0.0, slower=slower(1.0, 1.0, 1.35))
    seconds = Runs([m.run for m in measured()]).seconds(truth, {})
    found = fit_framework(read_framework("megatron"), measured(seconds.tolist()))
    assert found.values["host"] == pytest.approx(1e-4, rel=0.1)
    assert "host" in found.told
    assert "machines.h100.matrix" not in found.told
    assert np.abs(found.after).max() < 0.1 < np.abs(found.before).max()
    assert found.fitted == {*USUAL, *(f"machines.h100.{name}" for name in ON_MACHINE)}


def test_numbers_that_are_known_are_not_fitted() -> None:
    found = fit_framework(read_framework("neuron"), measured([0.01] * 4))
    assert found.values["host"] == 0.0
    assert found.values["overlap.tensor"] == 0.0
    assert not {"host", "accumulation", "overlap.tensor"} & found.fitted


def test_what_is_held_out_is_predicted_without_its_group() -> None:
    spec = read_framework("megatron")
    ours, theirs = measured([1.0] * 4), measured([9.0] * 4, source="them")
    both = held_out(spec, ours + theirs, lambda m: m.source)
    alone = held_out(spec, ours + measured([0.1] * 4, source="them"), lambda m: m.source)
    assert both[4:] == pytest.approx(alone[4:])  # what they measured has no say in what is predicted for them
    assert both[:4] != pytest.approx(alone[:4])


def test_an_interval_holds_four_of_five_errors() -> None:
    many = [m for m in measured() for _ in range(25)]
    truth = np.exp(np.linspace(-1.0, 1.0, len(many)))
    found = [replace(m, seconds=float(s)) for m, s in zip(many, truth, strict=True)]
    low, high = interval(np.ones(len(many)), found)
    assert np.mean((truth >= low) & (truth <= high)) == pytest.approx(0.8, abs=0.02)
    assert interval(truth * 3.0, found)[1] == 1.0  # the prediction itself is always inside


def test_a_fitted_framework_is_a_file_that_predicts_as_the_fit_does(tmp_path: Path) -> None:
    spec = read_framework("torch")
    runs = measured([0.02, 0.03, 0.04, 0.05]) + measured([0.02, 0.02, 0.05, 0.06], source="them", machine="b200")
    text = fitted_text(framework_text("torch"), spec, runs, date="2026-01-02")
    (path := tmp_path / "torch.toml").write_text(text)
    machine = load_machine("h100", framework=path)
    found = fit_framework(spec, runs)
    assert machine.framework.host_seconds == pytest.approx(found.values["host"], rel=0.01)
    assert machine.framework.slower["tensor"] == pytest.approx(found.values["machines.h100.matrix"], rel=0.01)
    assert machine.framework.interval is not None
    assert tomllib.loads(text)["fit"]["data"] == "8 runs of 2 sources"
    assert read_framework(path).accumulation == spec.accumulation
    again = fitted_text(text, read_framework(path), runs, date="2026-01-02")
    assert again == text  # a fit does not start from what a fit found


# -- the command --------------------------------------------------------------------------------------------------


def test_rows_are_predicted_without_their_own_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(
        tmp_path / "runs.csv", {}, {"source": "them", "step_time_s": 0.05}, {"source": "them", "dp": 4, "tp": 2}
    )
    found = validate(table, runs=True)
    out = crossed(found, "source")
    assert [p.case.row.id for p in out.predictions] == [p.case.row.id for p in found.predictions]
    assert [p.seconds for p in out.predictions] != [p.seconds for p in found.predictions]
    for p in out.predictions:
        assert p.bounds[0] <= p.seconds <= p.bounds[1]
    assert measured_of(found.predictions[0]).source == RUN["source"]
    assert main(["validate", table, "--cross", "source"]) == 0
    assert "Error of predicted step times" in capsys.readouterr().out


def test_the_command_fits_a_framework_that_estimates_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "runs.csv", {}, {"source": "them", "dp": 4, "tp": 2})
    mine = str(tmp_path / "mine.toml")
    assert main(["validate", table, "--fit", "xla-gpu", "--out", mine]) == 0
    where = ["--machine", "h100", "--chips", "8", "--layout", "fsdp=8", "--framework", mine]
    assert main(["estimate", "llama3-8b", *where]) in (0, 1)
    assert "four of five runs" in capsys.readouterr().out
    for options, message in (
        (["--fit", "xla-gpu"], "expected --out FILE.toml too"),
        (["--out", mine], "expected --fit FRAMEWORK too"),
        (["--fit", "neuron", "--out", mine], "got no run by neuron"),
        (["--fit", "xla-gpu", "--out", str(tmp_path / "nowhere" / "mine.toml")], "expected to write a file"),
    ):
        assert main(["validate", table, *options]) == 2
        assert message in capsys.readouterr().err
