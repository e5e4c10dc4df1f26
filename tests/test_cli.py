"""The shell command: what it prints, its exit status, and one clear line for every wrong request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unannotated import BATCH

from perfmodel import Layout, StudyError, __version__
from perfmodel.catalog import machine_names
from perfmodel.cli.main import main

ESTIMATE = ("--machine", "trn2", "--chips", "4", "--global-batch", "16", "--seq-len", "128")
TUNE = (*ESTIMATE, "--fix", "recompute=full,zero=3", "--storage", "none")
"""A search of few structures: each takes a moment to analyse."""

Golden = Callable[[str, Any], None]


def document(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    """Run a command with --json; standard output must hold one document and nothing else."""
    assert main([*words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def line(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """Run a command that fails; nothing on standard output, one line on standard error."""
    assert main(list(words)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("perfmodel: ")
    assert captured.err.count("\n") == 1
    return captured.err


# -- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["trn2", "trn2-ultraserver", "h100"])
@pytest.mark.parametrize(
    "layout", ["dp=1,fsdp=2,tp=2", "pp=2,tp=2,zero=0,recompute=none", "cp=4,sp=0,recompute=selective"]
)
def test_estimates_are_as_accepted(
    capsys: pytest.CaptureFixture[str], golden: Golden, tiny: str, machine: str, layout: str
) -> None:
    chips = "1" if machine.startswith("trn2") else "4"
    words = ("--machine", machine, "--chips", chips, "--global-batch", "16", "--seq-len", "128", "--layout", layout)
    name = f"estimate-{machine}-{layout.replace('=', '').replace(',', '-')}"
    golden(name, document(capsys, "estimate", tiny, *words))


def test_an_estimate_draws_its_pipeline(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path) -> None:
    """In letters, in a file, or within the one JSON document."""
    words = ("estimate", tiny, *ESTIMATE, "--layout", "pp=4", "--timeline")
    assert main(list(words)) == 0
    shown = capsys.readouterr().out
    assert "microbatches on 4 stages" in shown
    assert shown.count("\nstage ") == 4
    path = tmp_path / "timeline.json"
    assert main([*words, str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    written, inside = json.loads(path.read_text()), document(capsys, *words)["timeline"]
    assert {event["tid"] for event in written["traceEvents"] if event["ph"] == "X"} == {0, 1, 2, 3}
    assert inside.keys() == written.keys()
    assert "ends in one of .png" in line(capsys, *words, str(tmp_path / "timeline.txt"))


def test_a_search_is_as_accepted(capsys: pytest.CaptureFixture[str], golden: Golden, tiny: str) -> None:
    found = document(capsys, "tune", tiny, *TUNE, "--top", "3")
    assert found.pop("seconds") > 0.0
    golden("tune", found)


def test_a_traced_graph_is_as_accepted(
    capsys: pytest.CaptureFixture[str], golden: Golden, tiny: str, tmp_path: Path
) -> None:
    out = tmp_path / "graph.json"
    counted = document(capsys, "trace", tiny, "--seq-len", "128", "--out", str(out))
    counted.pop("lines")  # they move with every edit of the models
    for loop in counted["loops"]:
        loop.pop("source")
    golden("trace", counted)
    from perfmodel import load_graph

    assert load_graph(out).parameter_count() == counted["parameters"]


def test_machines_are_listed_shown_and_checked(capsys: pytest.CaptureFixture[str], golden: Golden) -> None:
    golden("hardware-list", document(capsys, "hardware", "list"))
    shown = document(capsys, "hardware", "show", "trn2")
    assert shown["facts"]["chip.memory"] | {"note": ""} == {
        "value": 96.0,
        "unit": "GiB",
        "kind": "datasheet",
        "source": "aws-neuron-sdk: about-neuron/arch/neuron-hardware/trainium2.rst",
        "note": "",
    }
    assert document(capsys, "hardware", "check") == {"findings": {name: [] for name in machine_names()}}


def test_the_json_of_an_estimate_has_what_others_rely_on(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    found = document(capsys, "estimate", tiny, *ESTIMATE, "--layout", "fsdp=4,tp=4")
    assert {
        *("step_time_s", "lower_s", "upper_s", "mfu", "tokens_per_s", "memory_bytes", "memory_capacity_bytes"),
        *("fits", "reasons", "breakdown", "collectives", "cost_usd_per_hour", "usd_per_million_tokens"),
        *("assumptions", "sources"),
    } <= found.keys()
    assert all({"kind", "axis", "bytes", "count", "seconds"} <= each.keys() for each in found["collectives"])
    assert sum(found["breakdown"].values()) == pytest.approx(found["step_time_s"], rel=1e-12)


def test_the_json_of_an_estimate_has_its_breakdown_and_its_explanation_when_asked(
    capsys: pytest.CaptureFixture[str], tiny: str
) -> None:
    words = ("estimate", tiny, *ESTIMATE, "--layout", "fsdp=4,tp=4")
    plain = document(capsys, *words)
    by_kernel, by_layer = (document(capsys, *words, "--by", by) for by in ("kernel", "layer"))
    assert by_kernel.keys() - plain.keys() == {"kernels", "waits", "communication"}
    assert by_layer.keys() - plain.keys() == {"layers", "waits", "communication"}
    assert {"label", "source", "layer", "phase", "decides", "count", "seconds", "flops", "bytes"} == set(
        by_kernel["kernels"][0]
    )
    explained = document(capsys, *words, "--explain")
    assert explained.keys() - plain.keys() == {"explanation"}
    assert explained["explanation"]["bound"] == plain["bound"]
    assert all(change["layout"] for change in explained["explanation"]["changes"])
    assert main([*words, "--explain", "--by", "layer"]) == 0
    text = capsys.readouterr().out
    assert all(line in text for line in explained["explanation"]["lines"])
    assert "layers/attention" in text


def test_the_json_of_a_search_has_what_others_rely_on(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    found = document(capsys, "tune", tiny, *TUNE)
    assert {"best", "top", "evaluated", "feasible", "seconds", "study"} <= found.keys()
    assert found["best"] == found["top"][0]
    assert {"layout", "estimate"} <= found["best"].keys()


def test_the_layout_that_tune_prints_can_be_estimated(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    main(["tune", tiny, *TUNE, "--top", "1"])
    place, layout, *_ = next(row for row in capsys.readouterr().out.splitlines() if "mb=" in row).split()
    assert place == "1"
    best = document(capsys, "tune", tiny, *TUNE, "--top", "1")["best"]
    estimate = document(capsys, "estimate", tiny, *ESTIMATE, "--layout", layout)
    assert estimate["layout"] == best["layout"]
    assert estimate["step_time_s"] == best["estimate"]["step_time_s"]


@pytest.mark.parametrize("chips", ["64", "128"])
def test_a_job_may_leave_gpus_of_each_rack_idle(chips: str, capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    job = ("--machine", "gb200-nvl72", "--chips", chips, "--global-batch", "128")
    best = document(capsys, "tune", tiny, *job, "--storage", "none")["best"]
    estimate = document(capsys, "estimate", tiny, *job, "--layout", best["layout"])
    assert estimate["step_time_s"] == best["estimate"]["step_time_s"]


@pytest.mark.parametrize(
    "words",
    [
        ("trace", "{tiny}", "--seq-len", "128"),
        ("estimate", "{tiny}", *ESTIMATE, "--layout", "tp=4,fsdp=4"),
        ("tune", "{tiny}", *TUNE),
        ("hardware", "list"),
        ("hardware", "show", "trn2"),
        ("hardware", "check"),
    ],
    ids=lambda words: "-".join(words[:2]).replace("{tiny}", "tiny"),
)
def test_text_in_a_pipe_is_plain_and_uncut(
    capsys: pytest.CaptureFixture[str], tiny: str, words: tuple[str, ...]
) -> None:
    assert main([word.format(tiny=tiny) for word in words]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "…" not in text
    assert text.strip()


def test_equal_batches_are_compared_once(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    once = document(capsys, "tune", tiny, *TUNE, "--global-batch", "16")
    twice = document(capsys, "tune", tiny, *TUNE, "--global-batch", "16,16")
    assert once["evaluated"] == twice["evaluated"]


def test_a_machine_without_calibration_says_so(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path) -> None:
    from importlib import resources

    mine = tmp_path / "mine.toml"
    mine.write_text((resources.files("hardware_specs") / "trn2.toml").read_text())
    words = [str(mine) if word == "trn2" else word for word in TUNE]
    assert main(["tune", tiny, *words]) == 0
    assert "is not calibrated: a pure roofline" in capsys.readouterr().out


def test_a_sampler_says_how_many_it_tried(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    found = document(capsys, "tune", tiny, *TUNE, "--sampler", "random", "--trials", "7")
    assert found["tried"] == 7
    assert main(["tune", tiny, *TUNE, "--sampler", "random", "--trials", "7"]) == 0
    assert "7 of those that fit" in capsys.readouterr().out


def test_choices_are_those_that_the_search_knows() -> None:
    from tuner import command
    from tuner.objective import OBJECTIVES
    from tuner.study import SAMPLERS

    assert set(command.OBJECTIVES) == set(OBJECTIVES)
    assert set(command.SAMPLERS) == set(SAMPLERS)


def test_tune_says_how_many_were_priced_what_fits_and_where_the_study_is(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", tiny, *ESTIMATE, "--fix", "recompute=full,zero=3"]) == 0
    text = capsys.readouterr().out
    (journal,) = tmp_path.glob("perfmodel-studies/*.journal")
    assert str(journal.relative_to(tmp_path)) in text
    assert "priced in" in text
    assert "fit" in text


def test_a_program_with_one_policy_need_not_be_told_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_program.py").write_text(
        "import jax\n"
        "from perfmodel import Argument, Program\n"
        "x = jax.ShapeDtypeStruct((8, 64), 'float32')\n"
        "arguments = (Argument(name='x', role='batch', tree=x, axes=('batch', None)),)\n"
        "program = Program(name='plain', fn=lambda x: x @ x.T, arguments=arguments)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("estimate", "plain_program:program", "--machine", "h100", "--chips", "1", "--layout", "mb=8")
    assert document(capsys, *words)["layout"].endswith("recompute=none")
    text = line(capsys, *words[:-1], "mb=8,recompute=full")
    assert "got recompute=full, expected none" in text


UNANNOTATED = ("estimate", "unannotated:decoder", "--machine", "h100", "--chips", "8", "--assign", "auto", "--layout")


@pytest.mark.parametrize(("batch", "mb"), [((), BATCH // 2), (("--global-batch", "12"), 6)])
def test_a_program_without_microbatches_takes_its_batch_at_once(
    capsys: pytest.CaptureFixture[str], batch: tuple[str, ...], mb: int
) -> None:
    found = document(capsys, *UNANNOTATED, "dp=2,tp=4,sp=0", *batch)
    assert f",mb={mb}," in found["layout"]
    text = line(capsys, *UNANNOTATED, "dp=2,tp=4,sp=0,mb=1", *batch)
    assert text.endswith(f": leave mb out, or write mb={mb}, the only legal value\n")


def test_quiet_leaves_standard_error_empty(capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    assert main(["estimate", tiny, *ESTIMATE, "--layout", "tp=4,fsdp=4", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_study_that_fails_is_said_beside_the_result_also_when_quiet(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise StudyError("the disk is full")

    monkeypatch.setattr("tuner.study.Study.record", full)
    words = ["tune", tiny, *TUNE[:-1], str(tmp_path / "a.journal"), "--quiet"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "mb=" in captured.out
    assert captured.err == "perfmodel: the disk is full\n"
    assert main([*words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["study_error"] == "the disk is full"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"perfmodel {__version__}\n"
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in ("trace", "estimate", "tune", "hardware"))


# -- the answer is no ---------------------------------------------------------------------------------------------


def huge(tmp_path: Path) -> str:
    """A model that no single chip holds."""
    from conftest import TINY

    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 64}))
    return str(path)


def test_a_layout_out_of_memory_is_explained_and_exits_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("estimate", huge(tmp_path), "--machine", "trn2", "--chips", "1", "--layout", "tp=4", "--seq-len", "128")
    found = document(capsys, *words, status=1)
    assert found["fits"] is False
    assert found["reasons"][0].startswith("out of memory: needs ")


def test_when_nothing_fits_tune_exits_1_with_the_rules_and_the_nearest_miss(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["tune", huge(tmp_path), "--machine", "trn2", "--chips", "1", "--seq-len", "128", "--storage", "none"]
    words += ["--fix", "recompute=full,zero=3"]
    found = document(capsys, *words, status=1)
    assert found["best"] is None
    assert found["top"] == []
    assert sum(found["fallen"].values()) == found["evaluated"]
    assert found["nearest"]["estimate"]["reasons"][0].startswith("out of memory: needs ")
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "nothing fits" in text
    assert "nearest miss" in text
    assert ": out of memory" in text


# -- wrong requests -----------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no command": ((), "COMMAND"),
    "unknown command": (("tun",), "invalid choice: 'tun'"),
    "planned command": (("measure", "llama3-8b"), "measure is not in this release yet"),
    "unknown flag": (("trace", "llama3-8b", "--fast"), "--fast"),
    "missing machine": (("tune", "llama3-8b", "--chips", "4"), "--machine"),
    "unknown model": (("trace", "lama3-8b"), "got 'lama3-8b', expected one of .*did you mean llama3-8b"),
    "unknown machine": (("tune", "llama3-8b", "--machine", "trn22", "--chips", "1"), "got 'trn22'.*did you mean trn2"),
    "chips of text": (("tune", "llama3-8b", "--machine", "trn2", "--chips", "many"), "--chips: got 'many', expected"),
    "no chips": (("tune", "llama3-8b", "--machine", "trn2", "--chips", "0"), "--chips: got '0', expected"),
    "odd chips": (
        ("tune", "llama3-8b", "--machine", "trn2", "--chips", "24"),
        "chips: got 24, expected .*multiple of 16",
    ),
    "unknown key": (("estimate", "{tiny}", *ESTIMATE, "--layout", "tpp=4"), "got key 'tpp', expected one of"),
    "unknown axis": (("estimate", "{tiny}", *ESTIMATE, "--layout", "xp=4"), "got key 'xp', expected one of"),
    "chunks of layers": (("estimate", "{tiny}", *ESTIMATE, "--layout", "pp=2,vpp=7"), "layers 4 too few for pp\\*vpp"),
    "wrong product": (("estimate", "{tiny}", *ESTIMATE, "--layout", "dp=3,tp=2"), "multiply to 6, expected 16 ranks"),
    "too many ranks": (
        ("estimate", "{tiny}", *ESTIMATE, "--layout", "tp=32"),
        "multiply to 32, expected a divisor of 16",
    ),
    "odd layers": (("estimate", "{tiny}", *ESTIMATE, "--layout", "pp=16"), "layers 4 too few for pp"),
    "odd batch": (("estimate", "{tiny}", *ESTIMATE, "--layout", "dp=16,mb=3"), "global batch not divisible .*batch 16"),
    "negative seed": (("tune", "{tiny}", *ESTIMATE, "--sampler", "tpe", "--seed", "-1"), "--seed"),
    "huge seed": (("tune", "{tiny}", *ESTIMATE, "--sampler", "tpe", "--seed", "9" * 20), "--seed: got '9+', expected"),
    "idle seed": (("tune", "{tiny}", *ESTIMATE, "--seed", "3"), "--seed: got 3 for an exhaustive search"),
    "idle trials": (("tune", "{tiny}", *ESTIMATE, "--trials", "3"), "--trials: got 3 for an exhaustive search"),
    "huge chips": (("tune", "{tiny}", "--machine", "trn2", "--chips", "9" * 20), "--chips: got '9+', expected"),
    "huge batch": (("tune", "{tiny}", *ESTIMATE, "--global-batch", "9" * 20), "--global-batch: got '9+', expected"),
    "batch of text": (
        ("tune", "{tiny}", *ESTIMATE, "--global-batch", "8,many"),
        "--global-batch: got 'many', expected",
    ),
    "idle microbatch": (("tune", "{tiny}", *ESTIMATE, "--fix", "mb=7"), "got mb=7, with which there is no layout"),
    "no layout": (("estimate", "{tiny}", *ESTIMATE, "--layout", " , "), "--layout: got ' , ', expected"),
    "semicolons": (("estimate", "{tiny}", *ESTIMATE, "--layout", "dp=2;tp=8"), "keys with commas"),
    "other digits": (("trace", "{tiny}", "--seq-len", "\u0663"), "--seq-len: got '\u0663', expected"),
    "idle machine": (("hardware", "list", "trn2"), "hardware list: got trn2, expected no machine"),
    "flag of another command": (("tune", "{tiny}", *ESTIMATE, "--layout", "tp=4"), "see perfmodel tune --help"),
    "study of another kind": (("tune", "{tiny}", *ESTIMATE, "--storage", "{tiny}"), "a file of another kind"),
    "unfixable": (
        ("tune", "{tiny}", *ESTIMATE, "--fix", "tp=3"),
        "got tp=3, with which there is no layout of 16 ranks",
    ),
    "later measure": (
        ("tune", "{tiny}", *ESTIMATE, "--measure", "device"),
        "--measure: got device.*not in this release",
    ),
    "later export": (
        ("tune", "{tiny}", *ESTIMATE, "--export", "maxtext"),
        "--export: got maxtext.*not in this release",
    ),
    "unwritable study": (
        ("tune", "{tiny}", *ESTIMATE, "--storage", "/proc/no/a.journal"),
        "study /proc/no/a.journal: got",
    ),
    "unreadable config": (("trace", "/no/such/config.json"), "/no/such/config.json.*No such file"),
    "unwritable graph": (
        ("trace", "{tiny}", "--seq-len", "64", "--out", "/no/such/g.json"),
        "--out /no/such/g.json: got",
    ),
    "misspelt name": (
        ("trace", "unannotated:decoder", "--assign", "*.down.1=mpl"),
        r"got 'mpl' for '\*.down.1', expected one of .*: did you mean mlp\?",
    ),
    "unknown name": (("trace", "unannotated:decoder", "--assign", "auto", "--assign", "*.1=xyz"), "got 'xyz' .*choose"),
    "unknown policy": (
        ("tune", "unannotated:decoder", *ESTIMATE[:4], "--assign", "tokens.0=batch", "--fix", "recompute=full"),
        "got recompute=full, expected none, the only policy that unannotated:decoder has: fix that",
    ),
    "python file": (("trace", "src/steps.py:step"), "got 'src/steps.py', expected .* module .*: write steps:step, in"),
    "capacity of text": (("trace", "{tiny}", "--capacity-factor", "x"), "got 'x', expected a number such as 1.25"),
    "no action": (("hardware",), "required: action: see perfmodel hardware --help"),
    "no machine to show": (("hardware", "show"), "got 0 machines, expected one"),
    "bad machine file": (("hardware", "check", "{tiny}.toml"), "No such file"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_wrong_request_is_one_clear_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tiny: str, case: str
) -> None:
    import re

    words, expected = WRONG[case]
    text = line(capsys, *(word.format(tiny=tiny) for word in words))
    assert re.search(expected, text), text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("text", "place"),
    [("import sys; sys.exit(0)", "on importing leaving"), ("def step(): raise SystemExit(0)", "from step")],
)
def test_a_program_that_ends_the_process_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, place: str
) -> None:
    (tmp_path / "leaving.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "leaving", raising=False)
    assert f"got an exit (0) {place}, expected" in line(capsys, "trace", "leaving:step")


def test_a_wrong_request_with_json_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "trace", "lama3-8b", status=2)
    assert found["error"].startswith("model: got 'lama3-8b'")


def test_debug_shows_where_an_error_comes_from() -> None:
    from perfmodel import ModelError

    with pytest.raises(ModelError):
        main(["trace", "lama3-8b", "--debug"])


def test_a_fault_of_our_own_is_one_line_and_status_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr("perfmodel.catalog.machine_names", broken)
    text = line(capsys, "hardware", "list", status=3)
    assert "internal error: ZeroDivisionError: seven" in text
    assert "--debug" in text


# -- as a process -------------------------------------------------------------------------------------------------


def shell(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perfmodel", *words], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("hardware", "list")])
def test_light_commands_import_neither_jax_nor_optuna_nor_numpy(words: tuple[str, ...]) -> None:
    code = (
        "import sys; from perfmodel.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([m for m in ('jax', 'optuna', 'numpy', 'scipy', 'pydantic') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_package_itself_is_light() -> None:
    code = "import sys, perfmodel, tuner; print([m for m in ('jax', 'optuna', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_ctrl_c_is_one_line_and_status_130_and_the_study_goes_on(tiny: str, tmp_path: Path) -> None:
    journal = tmp_path / "a.journal"
    words = [
        "tune",
        tiny,
        *ESTIMATE,
        "--fix",
        "recompute=full,zero=3",
        "--sampler",
        "random",
        "--trials",
        "100000",
        "--storage",
        str(journal),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "perfmodel", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 20_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert "mb=" in out  # the best so far
    done = len({row for row in journal.read_text().splitlines() if '"layout"' in row})
    again = shell(*words[:-4], "--trials", str(done), "--storage", str(journal), "--json")
    assert json.loads(again.stdout)["evaluated"] > 0
    assert again.returncode == 0


def bash(command: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-o", "pipefail", "-c", command.replace("perfmodel", f"{sys.executable} -m perfmodel")]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_closed_pipe_is_no_error() -> None:
    run = bash("perfmodel hardware show trn2 | head -1")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses /dev/full and the options of Linux's script")


@LINUX
@pytest.mark.parametrize("sink", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("command", ["hardware show trn2", "hardware show trn2 --json", "trace no-such-model --json"])
def test_an_output_that_takes_nothing_is_one_line_and_status_2(command: str, sink: str) -> None:
    run = bash(f"perfmodel {command} {sink}")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("perfmodel: standard output: got" if "no-such" not in command else "perfmodel: model")


@LINUX
@pytest.mark.parametrize("columns", [80, 120])
def test_layouts_are_never_folded_on_a_narrow_terminal(tiny: str, columns: int) -> None:
    words = " ".join(["tune", tiny, *TUNE, "--top", "3", "--quiet"])
    command = f"stty cols {columns}; {sys.executable} -m perfmodel {words}"
    run = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, check=True)
    found = document_of(tiny, "--top", "3")
    from tuner.table import short

    for entry in found["top"]:
        layout = short(Layout.parse(entry["layout"], ranks=16, global_batch=16))
        assert f" {layout} " in run.stdout


def document_of(tiny: str, *words: str) -> Any:
    return json.loads(shell("tune", tiny, *TUNE, *words, "--json").stdout)


def test_sigterm_ends_a_search_with_what_it_has_found(tiny: str, tmp_path: Path) -> None:
    journal = tmp_path / "a.journal"
    words = ["tune", tiny, *ESTIMATE, "--sampler", "random", "--trials", "100000", "--storage", str(journal)]
    process = subprocess.Popen(
        [sys.executable, "-m", "perfmodel", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 20_000):
        time.sleep(0.01)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "mb=" in out


@LINUX
def test_colour_is_for_terminals_that_want_it(tiny: str) -> None:
    def on_a_terminal(**environment: str) -> str:
        command = f"{sys.executable} -m perfmodel hardware show trn2"
        run = subprocess.run(
            ["script", "-qec", command, "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        return run.stdout

    assert "\x1b[1m" in on_a_terminal()
    assert "\x1b[3" not in on_a_terminal(NO_COLOR="1")
