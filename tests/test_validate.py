"""Published runs against predictions: what a row asks for, why others are left out, and how agreement is scored."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from perfmodel import Graph, ModelError, load_machine, predict, trace, validate
from perfmodel.cli.main import main
from perfmodel.models import read_config
from perfmodel.models.precision import PRESETS
from perfmodel.models.training import train_program
from perfmodel.validate.case import Case, case_of
from perfmodel.validate.cross import measured_of
from perfmodel.validate.execution import execution_of
from perfmodel.validate.hardware import GIGABIT, machine_name, machine_of
from perfmodel.validate.measured import CONVENTIONS, measured_seconds, step_flops
from perfmodel.validate.program import config_of
from perfmodel.validate.rows import Row, RowError, read_rows
from perfmodel.validate.score import errors, ranking

SHAPE = {"n_layers": 2, "d_model": 256, "n_heads": 4, "n_kv_heads": 2, "d_ff": 512, "seq_len": 128}
LAYOUT = {"global_batch_seqs": 64, "micro_batch": 2, "dp": 8, "tp": 1, "pp": 1, "zero_stage": 0, "sp": 0}
RUN: dict[str, object] = {
    **SHAPE,
    **LAYOUT,
    "hardware": "NVIDIA H100 80GB SXM",
    "n_devices": 8,
    "model_name": "small",
    "mlp": "gated",
    "vocab": 512,
    "recompute": "none",
    "precision": "bf16",
    "step_time_s": 0.01,
    "source": "us",
}


def row(**changes: object) -> Row:
    cells = {**RUN, **changes}
    return Row(id="run", cells={name: "" if cell is None else str(cell) for name, cell in cells.items()})


def write(path: Path, *rows: dict[str, object]) -> str:
    cells = [{"id": f"run-{i}", **RUN, **changes} for i, changes in enumerate(rows)]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for each in cells for name in each)))
        table.writeheader()
        table.writerows(cells)
    return str(path)


# -- layouts ------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "copies": ({}, {"dp": 8, "fsdp": 1, "zero": 0, "mb": 2}, ""),
    "a stage shards over all copies": ({"zero_stage": 1}, {"dp": 1, "fsdp": 8, "zero": 1}, ""),
    "a shard axis of its own": ({"dp": 2, "fsdp": 4, "zero_stage": 3}, {"dp": 2, "fsdp": 4, "zero": 3}, ""),
    "copies fill what is left": ({"dp": None, "tp": 2}, {"dp": 4, "tp": 2}, ""),
    "sequence parallelism": ({"dp": 4, "tp": 2, "sp": 2}, {"sp": True}, ""),
    "none of it": ({"dp": 4, "tp": 2, "sp": 1}, {"sp": False}, ""),
    "unknown": ({"dp": 4, "tp": 2, "sp": None}, {"sp": True}, "sequence parallelism not stated"),
    "context": ({"dp": 4, "cp": 2}, {"dp": 4, "cp": 2}, ""),
    "pipeline": ({"dp": 4, "pp": 2, "vpp": 1}, {"pp": 2}, ""),
    "virtual stages": ({"dp": 4, "pp": 2, "vpp": 3}, {"pp": 2, "vpp": 3}, ""),
    "experts within copies": ({"n_experts": 4, "ep": 4}, {"dp": 2, "ep": 4}, ""),
    "experts within shards": ({"n_experts": 4, "ep": 4, "zero_stage": 1}, {"fsdp": 2, "ep": 4}, ""),
    "experts over more": ({"n_experts": 32, "ep": 16}, {"dp": 1, "ep": 8}, "experts over 16 ranks, predicted over 8"),
    "experts over parts of sequences": ({"dp": 4, "cp": 2, "n_experts": 8, "ep": 8}, {"ep": 4, "experts": "cp+ep"}, ""),
    "experts over tensor ranks": ({"dp": 4, "tp": 2, "n_experts": 8, "ep": 8}, {"ep": 4, "experts": "tp+cp+ep"}, ""),
    "no microbatch": ({"micro_batch": None}, {"mb": 1}, "microbatch not stated"),
    "no stage": ({"zero_stage": None}, {"zero": 0}, "ZeRO stage not stated"),
    "no policy": ({"recompute": None}, {"recompute": "none"}, "recompute policy not stated"),
    "a policy": ({"recompute": "full"}, {"recompute": "full"}, ""),
    "a near policy": (
        {"recompute": "minimal"},
        {"recompute": "selective"},
        "recompute minimal, predicted with selective",
    ),
    "ranks of a chip": ({"n_devices": 4}, {"dp": 8}, ""),
}


@pytest.mark.parametrize(("cells", "expected", "differs"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_what_the_columns_say(cells: dict[str, object], expected: dict[str, object], differs: str) -> None:
    found = execution_of(row(**cells), ranks_per_chip=2)
    assert {name: getattr(found.layout, name) for name in expected} == expected
    assert [text.partition(", predicted")[0] for text in found.differs] == (
        [differs.partition(", predicted")[0]] if differs else []
    )
    assert differs in " ".join(found.differs)


# -- rows that are left out ---------------------------------------------------------------------------------------

LEFT_OUT: dict[str, tuple[dict[str, object], str]] = {
    "sizes that do not multiply": ({"tp": 3}, "contradicts itself: dp 8 x tp 3 = 24, on 8 devices"),
    "a batch that does not divide": ({"global_batch_seqs": 12}, "contradicts itself: 12 sequences over 8 data"),
    "microbatches that do not": ({"micro_batch": 3}, "contradicts itself: microbatches of 3 in 8 sequences"),
    "marked by the table": ({"exclude": "two columns are swapped"}, "contradicts itself: two columns are swapped"),
    "prefill": ({"category": "prefill"}, "inference is not predicted yet"),
    "adapters": ({"category": "lora"}, "adapters only are trained"),
    "no layout": ({"dp": None, "tp": None, "pp": None}, "no layout is stated"),
    "no shape": ({"n_layers": None}, "no n_layers"),
    "no number": ({"n_layers": "many"}, "n_layers is 'many'"),
    "half a layer": ({"n_layers": "2.5"}, "n_layers is '2.5', which is no whole number"),
    "no MLP": ({"mlp": None}, "plain or gated MLP is not stated"),
    "heads that cannot share": ({"n_kv_heads": 3}, "4 heads cannot share 3 key/value heads"),
    "odd heads": ({"n_heads": 6, "n_kv_heads": 6}, "6 heads do not divide d_model 256"),
    "no preset": ({"like": "our-own"}, "like 'our-own', which is no preset"),
    "no machine": ({"hardware": "Abacus 3"}, "no machine file for Abacus 3"),
    "no such part of a torus": ({"hardware": "TPU v5p", "n_devices": 3, "dp": 3, "global_batch_seqs": 6}, "3 ranks of"),
    "no 8-bit matmuls": (
        {"hardware": "NVIDIA A100 40GB", "precision": "fp8"},
        "matmuls in f8, which dgx-a100-40 has no",
    ),
    "precision": ({"precision": "unary"}, "precision 'unary' is not known"),
    "policy": ({"recompute": "some"}, "recompute policy 'some' is not known"),
    "nothing measured": ({"step_time_s": None}, "no step time, nor tokens/s, TFLOP/s or MFU"),
    "uncounted FLOPs": ({"step_time_s": None, "tflops_per_device": 9}, "not how FLOPs were counted"),
}


@pytest.mark.parametrize(("cells", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_row_is_left_out_for_its_own_reason(cells: dict[str, object], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        case_of(row(**cells))
    assert reason in str(caught.value)


# -- machines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H100 80GB SXM (DGX H100)", "h100"),
        ("NVIDIA GB200 NVL72", "gb200-nvl72"),
        ("NVIDIA Blackwell GPU (GB200)", "gb200-nvl72"),
        ("NVIDIA Blackwell GPU (B200-SXM-180GB)", "b200"),
        ("NVIDIA A100 40GB SXM", "a100-40"),
        ("NVIDIA A100", "a100-80"),
        ("TPU v6e (Trillium)", "tpu-v6e"),
        ("TPU7x (Ironwood)", "tpu-v7"),
        ("trn1.32xlarge/trn1n.32xlarge", "trn1"),
        ("trn2.48xlarge", "trn2"),
        ("mi300x", "mi300x"),
    ],
)
def test_hardware_names_lead_to_machines(text: str, name: str) -> None:
    assert machine_name(row(hardware=text)) == name


def test_a_machine_of_ones_own_is_named_by_the_path_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "h100"\nname = "mine"\ntitle = "A box"\n')
    assert machine_of(row(hardware=str(file)))[0].title == "A box"


@pytest.mark.parametrize(
    ("cells", "name", "differs"),
    [
        ({"interconnect": "InfiniBand"}, "dgx-h100", []),
        ({"interconnect": "8x ConnectX-7 IB NDR 400Gb/s"}, "dgx-h100", []),
        ({"interconnect": "EFA"}, "h100", []),
        ({"interconnect": "RoCE"}, "dgx-h100", ["RoCE predicted as InfiniBand"]),
        ({}, "dgx-h100", ["network not stated, predicted as InfiniBand"]),
        ({"n_devices": 8}, "dgx-h100", []),
        ({"hardware": "NVIDIA H100 (p5.48xlarge)"}, "h100", []),
        ({"hardware": "p5.48xlarge, 8 x H100"}, "h100", []),
        ({"hardware": "h100"}, "h100", []),
        ({"hardware": "h100", "interconnect": "InfiniBand"}, "dgx-h100", []),
        ({"hardware": "NVIDIA A100 40GB SXM", "interconnect": "Omni-Path"}, "dgx-a100-40", ["Omni-Path predicted as"]),
        ({"hardware": "NVIDIA A100 80GB", "interconnect": "InfiniBand"}, "dgx-a100", []),
        ({"hardware": "NVIDIA H200", "interconnect": "InfiniBand"}, "dgx-h200", []),
        ({"hardware": "NVIDIA B200", "interconnect": "InfiniBand"}, "dgx-b200", []),
        ({"hardware": "NVIDIA GB200", "n_devices": 64}, "dgx-gb200", []),
        ({"hardware": "NVIDIA GB200", "n_devices": 128}, "dgx-gb200", ["network not stated"]),
        ({"hardware": "MI300X", "interconnect": "InfiniBand"}, "mi300x", []),
    ],
)
def test_a_run_has_the_network_that_its_row_states(cells: dict[str, object], name: str, differs: list[str]) -> None:
    machine, said = machine_of(row(**{"n_devices": 16, "framework": "MaxText", **cells}))
    assert machine.name == name
    assert len(said) == len(differs)
    assert all(text in found for text, found in zip(differs, said, strict=True))


def test_networks_of_published_runs_are_of_few_kinds() -> None:
    kinds = {row.text("interconnect") for row in read_rows()}
    assert kinds == {"", "InfiniBand", "RoCE", "Ethernet", "EFA", "Omni-Path", "GPUDirect-TCPX"}


def test_runs_are_fitted_and_left_out_by_their_chips_whatever_joins_the_servers(tmp_path: Path) -> None:
    table = write(tmp_path / "runs.csv", {"interconnect": "InfiniBand"}, {"interconnect": "EFA"})
    found = validate(table, runs=True)
    assert [p.case.machine.name for p in found.predictions] == ["dgx-h100", "h100"]
    assert {measured_of(p).machine for p in found.predictions} == {"h100"}


def test_a_stated_bandwidth_takes_the_place_of_the_networks_own() -> None:
    own, slow = load_machine("dgx-h100"), machine_of(row(network_gbps=100))[0]
    assert slow.tiers[-1].bandwidth == (100 * GIGABIT,)
    assert replace(slow, tiers=own.tiers) == own
    assert slow.tiers[:-1] == own.tiers[:-1]


@pytest.mark.parametrize(
    ("text", "preset", "quoted"),
    [
        ("bf16", "bf16", "bf16"),
        ("FP16/Matmult-BF16", "bf16", "bf16"),
        ("", "bf16", "bf16"),
        ("fp16", "fp16", "bf16"),
        ("FP32", "fp32", "bf16"),
        ("fp8 hybrid", "fp8", "f8"),
        ("FP8-CS", "fp8", "f8"),
        ("MXFP8", "mxfp8", "f8"),
        ("FP8-MX", "mxfp8", "f8"),
        ("FP8 sub-channel (1x128/128x128)", "fp8-block", "f8"),
        ("int8 (AQT)", "fp8", "f8"),
        ("NVFP4", "nvfp4", "f4"),
    ],
)
def test_a_stated_precision_leads_to_a_program_and_to_the_peak_of_its_mfu(text: str, preset: str, quoted: str) -> None:
    case = case_of(row(precision=text, hardware="NVIDIA B200"))
    assert case.precision == PRESETS[preset]
    assert case.peak == load_machine("b200").quoted_flops[quoted]


# -- models and measurements --------------------------------------------------------------------------------------


def shaped(name: str) -> dict[str, object]:
    """The columns of a preset."""
    c = read_config(name)
    return {
        "n_layers": c.layers,
        "d_model": c.embed,
        "n_heads": c.heads,
        "n_kv_heads": c.kv_heads,
        "d_ff": c.mlp if c.experts is None else c.experts.width,
        "vocab": c.vocab,
        "n_experts": c.experts and c.experts.count,
        "top_k": c.experts and c.experts.active,
        "mlp": "gated" if c.gated else "plain",
    }


@pytest.mark.parametrize("name", ["llama3-8b", "gpt3-175b", "mixtral-8x7b", "qwen3-235b-a22b", "deepseek-v3"])
def test_columns_of_a_preset_are_that_preset(name: str) -> None:
    preset = read_config(name)
    assert replace(config_of(row(**shaped(name))), name=preset.name) == preset
    fewer = config_of(row(**{**shaped(name), "n_layers": 8}))
    assert replace(fewer, name=preset.name, layers=preset.layers) == preset


def test_a_row_like_a_preset_differs_from_it_in_what_it_states() -> None:
    found, preset = config_of(row(like="deepseek-v3", n_experts=384, top_k=8, d_ff=1024)), read_config("deepseek-v3")
    assert found.latent == preset.latent
    assert found.experts is not None
    assert preset.experts is not None
    assert found.experts == replace(preset.experts, count=384, width=1024)


@pytest.mark.parametrize("mlp", ["plain", "gated"])
def test_flops_of_a_source_are_those_of_the_traced_program(mlp: str) -> None:
    case = case_of(row(mlp=mlp))
    estimate = predict(
        trace(train_program(case.config, seq_len=case.seq_len, recompute="none")), case.layout, case.machine
    )
    traced = float(estimate.mfu * estimate.step_time_s) * case.machine.quoted_flops["bf16"] * 8
    assert step_flops(case.config, 128, 64 * 128, CONVENTIONS["model_full"]) == pytest.approx(traced, rel=1e-6)


def test_all_that_tells_a_step_time_tells_the_same() -> None:
    config, peak, seconds, tokens = config_of(row()), 1e15, 0.25, 64 * 128
    full, again = (step_flops(config, 128, tokens, CONVENTIONS[name]) for name in ("model_full", "recompute_full"))
    assert again == pytest.approx(4 / 3 * full)
    stated = (
        {"step_time_s": seconds},
        {"tokens_per_s_per_device": tokens / seconds / 8},
        {"tflops_per_device": full / seconds / 8 / 1e12, "flops_convention": "model_full"},
        {"tflops_per_device": again / seconds / 8 / 1e12, "flops_convention": "recompute_full"},
        {"mfu_pct": 100 * full / seconds / 8 / peak, "flops_convention": "model_full"},
    )
    for cells in stated:
        assert measured_seconds(row(**{"step_time_s": None, **cells}), config, peak) == pytest.approx(seconds)


# -- scores -------------------------------------------------------------------------------------------------------


def test_errors_are_relative_to_what_was_measured() -> None:
    found = errors([1.1, 1.8, 5.0], [1.0, 2.0, 4.0], [(1.0, 1.2), (1.0, 1.5), (3.0, 6.0)])
    assert found.rows == 3
    assert found.median_ape == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.1)
    assert found.mape == pytest.approx((0.1 + 0.1 + 0.25) / 3)
    assert found.coverage == pytest.approx(2 / 3)
    assert np.isnan(errors([], []).mape)


def test_ranking_is_of_layouts_within_groups() -> None:
    right = [[(1.0, 10.0)], [(2.0, 20.0)], [(3.0, 30.0)]]
    wrong = [[(3.0, 10.0)], [(2.0, 20.0)], [(1.0, 30.0)]]
    twice = [[(1.0, 10.0), (1.0, 14.0)], [(2.0, 11.0)]]
    alone = [[(1.0, 10.0)]]
    assert ranking([right]).kendall_tau == pytest.approx(1.0)
    assert ranking([right]).pick_cost == 0.0
    assert ranking([wrong]).kendall_tau == pytest.approx(-1.0)
    assert ranking([wrong]).pick_cost == pytest.approx(2.0)
    assert ranking([twice]).kendall_tau == pytest.approx(-1.0)
    both = ranking([right, wrong, alone])
    assert both.groups == 2
    assert both.kendall_tau == pytest.approx(0.0)
    assert both.worst_pick == pytest.approx(2.0)


# -- the whole ----------------------------------------------------------------------------------------------------


def test_programs_are_traced_once_and_every_row_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, traced = sys.modules["perfmodel.validate"], list[Case]()  # as an attribute it is the function
    honest: Callable[[Case], Graph] = room._graph

    def counted(case: Case) -> Graph:
        traced.append(case)
        return honest(case)

    monkeypatch.setattr(room, "_graph", counted)
    table = write(
        tmp_path / "runs.csv",
        {},
        {"dp": 4, "tp": 2},
        {"recompute": "full"},
        {"category": "decode"},
        {"step_time_s": 1e-9},
    )
    found = validate(table)
    assert [p.case.row.id for p in found.predictions] == ["run-0", "run-1", "run-2"]
    assert [s.row.id for s in found.skipped] == ["run-3", "run-4"]
    assert "times the peak of dgx-h100" in found.skipped[1].reason
    assert Counter(case.layout.recompute for case in traced) == {"none": 1, "full": 1}
    for p in found.predictions:
        assert p.bounds[0] <= p.seconds <= p.bounds[1]


def test_a_prediction_is_that_of_the_same_call_by_hand(tmp_path: Path) -> None:
    (p,) = validate(write(tmp_path / "runs.csv", {})).predictions
    graph = trace(train_program(config_of(row()), seq_len=128, recompute="none"))
    layout = execution_of(row(), 1).layout
    expected = predict(graph, layout, load_machine("h100"))
    assert p.seconds == expected.step_time_s
    assert p.ideal == predict(graph, layout, load_machine("h100", calibrated=False)).step_time_s
    assert p.error == pytest.approx(float(expected.step_time_s) / 0.01 - 1.0)


def test_the_command_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "runs.csv", {}, {"dp": 4, "tp": 2}, {"category": "decode"})
    assert main(["validate", table, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    scores = {"mape", "median_ape", "p90_ape", "bias", "coverage", "kendall_tau", "pick_cost"}
    assert {"rows", "skipped", *scores} <= document.keys()
    keys = {"id", "source", "hardware", "measured_s", "predicted_s", "lower_s", "upper_s", "error"}
    for each in document["rows"]:
        assert keys <= each.keys()
        assert each["error"] == pytest.approx(each["predicted_s"] / each["measured_s"] - 1)
    assert [each["id"] for each in document["skipped"]] == ["run-2"]
    assert document["mape"] == pytest.approx(np.mean([abs(each["error"]) for each in document["rows"]]))


def test_too_large_an_error_is_a_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "runs.csv", {})
    assert main(["validate", table, "--max-mape", "0.000001"]) == 1
    assert main(["validate", table, "--max-mape", "1e9"]) == 0
    assert "small on 8 x dgx-h100" in capsys.readouterr().out


def test_nothing_predicted_is_no_proof(tmp_path: Path) -> None:
    assert main(["validate", write(tmp_path / "runs.csv", {"category": "decode"}), "--max-mape", "1e9"]) == 1


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    table, picture = write(tmp_path / "runs.csv", {}), tmp_path / "picture.png"
    assert main(["validate", table, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["validate", table, "--plot", str(tmp_path / "nowhere" / "picture.png")]) == 2
    assert "expected a picture to write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("id,hardware\n", {}, "expected also n_devices and seq_len"),
        ("hardware,n_devices,seq_len,global_batch_seqs,step_time_s\n", {}, "got no row with a run"),
        ("hardware,n_devices,seq_len,global_batch_seqs,step_time_s\nx,1,1,1,1\n", {"source": "us"}, "source 'us'"),
        ("hardware,n_devices,seq_len,global_batch_seqs,step_time_s\n", {"hardware": "("}, "expected a regular"),
    ],
)
def test_wrong_tables_and_filters_are_refused(
    tmp_path: Path, content: str, options: dict[str, str], message: str
) -> None:
    table = tmp_path / "runs.csv"
    table.write_text(content)
    with pytest.raises(ModelError) as caught:
        validate(table, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_most_published_runs_that_determine_a_prediction_can_be_expressed() -> None:
    every, reasons = Counter[str](), Counter[str]()
    ids = set()
    for each in read_rows():
        assert each.id not in ids
        assert each.source
        assert each.text("locator")
        ids.add(each.id)
        every[each.text("grade")] += 1
        try:
            case_of(each)
        except RowError:
            reasons[each.text("grade")] += 1
    assert len(ids) > 2900
    assert reasons["A"] + reasons["B"] <= 0.1 * (every["A"] + every["B"])


def test_scores_have_no_number_without_rows() -> None:
    nothing = errors([], [])
    assert all(np.isnan(getattr(nothing, f.name)) for f in fields(nothing) if f.name != "rows")
    assert np.isnan(ranking([]).kendall_tau)
