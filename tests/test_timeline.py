"""Pipelines of estimates, drawn: against the closed form of the step, and as a reader sees them."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from machines import fake_machine
from programs import mlp_graph
from rich.console import Console

from perfmodel.errors import ModelError
from perfmodel.estimate import Estimate
from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.machine_file import load_machine
from perfmodel.models import load_program
from perfmodel.pipeline import Task
from perfmodel.predict import predict
from perfmodel.report.timeline import Rows, caption, check, trace_events, write
from perfmodel.timeline import Run, Timeline, timeline
from perfmodel.trace import trace


@cache
def graph() -> Graph:
    return trace(load_program("llama3.2-1b", seq_len=256))


LAYOUTS = [
    Layout(global_batch=8),
    Layout(pp=2, global_batch=8),
    Layout(pp=4, tp=2, dp=2, global_batch=16),
    Layout(pp=4, global_batch=16, schedule="gpipe"),
    Layout(pp=4, global_batch=16, schedule="zb-h1"),
    Layout(pp=4, vpp=2, global_batch=16),
    Layout(pp=3, global_batch=9),
    Layout(pp=5, global_batch=10),
    Layout(pp=4, cut="balanced", global_batch=16),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.notation)
@pytest.mark.parametrize("name", ["trn2", "h100"])
def test_what_is_drawn_takes_as_long_as_the_step_or_less(name: str, layout: Layout) -> None:
    """As long with 1F1B where the last stage is the slowest, here by the head."""
    machine = load_machine(name)
    found, estimate = timeline(graph(), layout, machine), predict(graph(), layout, machine)
    assert found.microbatches == found.of == layout.microbatches
    drawn = found.end + found.behind
    assert found.behind > 0.0
    slowest = max(range(len(found.stages)), key=found.busy)
    if layout.schedule == "1f1b" and layout.vpp == 1:
        assert drawn <= float(estimate.step_time_s) * (1 + 1e-12)
        if slowest == len(found.stages) - 1:
            assert drawn == pytest.approx(float(estimate.step_time_s), rel=1e-12)
    assert found.end >= sum(run.end - run.start for run in found.stages[slowest]) * (1 - 1e-12)


@pytest.mark.parametrize("pp", [2, 3])
@pytest.mark.parametrize("choice", [{}, {"schedule": "gpipe"}, {"schedule": "zb-h1"}, {"vpp": 2}], ids=str)
def test_stages_that_are_alike_take_what_the_step_takes(choice: dict[str, Any], pp: int) -> None:
    """Of a program without embedding, whose head is a mean: stages differ by 3 in a thousand."""
    layout = Layout(pp=pp, global_batch=12, recompute="none", **choice)
    found, estimate = (each(mlp_graph(), layout, fake_machine()) for each in (timeline, predict))
    assert isinstance(found, Timeline)
    assert isinstance(estimate, Estimate)
    shares = [found.busy(stage) for stage in range(pp)]
    assert max(shares) - min(shares) < 3e-3
    assert found.end + found.behind == pytest.approx(float(estimate.step_time_s), rel=1e-5)


def test_every_stage_has_its_layers() -> None:
    cuts = {pp: timeline(graph(), Layout(pp=pp, global_batch=2), load_machine("trn2")).layers for pp in (1, 3, 6, 14)}
    assert {pp: (len(layers), sum(layers)) for pp, layers in cuts.items()} == {pp: (pp, 16) for pp in cuts}
    assert all(max(layers[1:-1]) - min(layers[1:-1]) <= 1 for layers in (cuts[6], cuts[14]))


@pytest.mark.parametrize(
    ("layout", "drawn"), [(Layout(pp=4, global_batch=64), 10), (Layout(pp=4, vpp=2, global_batch=64), 8)]
)
def test_of_many_microbatches_the_first_are_drawn_and_the_caption_says_so(layout: Layout, drawn: int) -> None:
    found = timeline(graph(), layout, load_machine("trn2"), microbatches=10)
    assert (found.microbatches, found.of) == (drawn, 64)
    assert f"the first {drawn} of 64 microbatches on 4 stages" in caption(found)


BY_HAND = Timeline(
    schedule="1f1b",
    stages=[
        [Run(Task("F", 0), 0.0, 4.0), Run(Task("B", 0), 10.0, 16.0)],
        [Run(Task("F", 0), 4.0, 5.0), Run(Task("B", 0), 5.0, 10.0)],
    ],
    layers=[2, 1],
    microbatches=1,
    of=1,
    behind=2.0,
)


def rows(found: Timeline, width: int, color: bool) -> list[str]:
    page = io.StringIO()
    console = Console(file=page, width=width, force_terminal=color, color_system="truecolor" if color else None)
    console.print(Rows(found))
    return [line for line in page.getvalue().splitlines() if line.startswith("stage ")]


def test_a_terminal_shows_letters_numbers_and_idle_time() -> None:
    """16 s in 32 columns, behind the names of the stages."""
    width = len("stage 1 (2 layers) ") + 32 + len(" 100 %")
    plain = rows(BY_HAND, width, color=False)
    assert plain[0] == "stage 1 (2 layers) " + "F1------" + "." * 12 + "B1----------" + "  62 %"
    assert plain[1] == "stage 2 (1 layers) " + "." * 8 + "F1" + "B1--------" + "." * 12 + "  38 %"
    assert not any("\x1b" in line for line in plain)
    assert any("\x1b" in line for line in rows(BY_HAND, width, color=True))


def test_a_trace_holds_every_task_in_microseconds() -> None:
    found = trace_events(BY_HAND)
    tasks = [e for e in found["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["tid"], e["ts"], e["dur"]) for e in tasks] == [
        ("F1", 0, 0.0, 4e6),
        ("B1", 0, 10e6, 6e6),
        ("once per step", 0, 16e6, 2e6),
        ("F1", 1, 4e6, 1e6),
        ("B1", 1, 5e6, 5e6),
        ("once per step", 1, 16e6, 2e6),
    ]
    names = {e["tid"]: e["args"]["name"] for e in found["traceEvents"] if e["name"] == "thread_name"}
    assert names == {0: "stage 1 (2 layers)", 1: "stage 2 (1 layers)"}


@pytest.mark.parametrize(
    ("name", "start"), [("t.png", b"\x89PNG"), ("t.svg", b"<?xml"), ("t.json", b'{"displayTimeUnit')]
)
def test_files_are_what_their_names_say(tmp_path: Path, name: str, start: bytes) -> None:
    write(BY_HAND, str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(start)
    if name.endswith("json"):
        assert json.loads((tmp_path / name).read_text()) == trace_events(BY_HAND)


def test_a_file_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"got t\.gif, expected a name that ends in one of \.png"):
        check("t.gif")
    with pytest.raises(ModelError, match="got No such file or directory"):
        write(BY_HAND, str(tmp_path / "nowhere" / "t.png"))
