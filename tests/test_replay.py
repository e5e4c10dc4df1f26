"""Estimates of many programs, layouts and machines stay as they were accepted: whoever changes one says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import pytest
from conftest import GOLDEN, approximately
from zoo.dlrm import dlrm
from zoo.mamba import mamba
from zoo.resnet import resnet
from zoo.t5 import t5
from zoo.vit import vit

from perfmodel import Estimate, Graph, Layout, Program, load_machine, load_program, predict, trace
from perfmodel.catalog import machine_names
from perfmodel.formulas.pipeline import SCHEDULES
from perfmodel.layout import AXES, EXPERTS, RECOMPUTE

REPLAY = GOLDEN / "replay.json"
"""A case for each line: what is asked, the answer, and why it was last accepted."""

ASKED = ("program", "machine", "layout", "global_batch")
ACCEPTED = "accepted"

PROGRAMS: Mapping[str, Callable[[], Program]] = {
    **{f"llama3.2-1b {r}": partial(load_program, "llama3.2-1b", seq_len=2048, recompute=r) for r in RECOMPUTE},
    "gpt3-175b full": partial(load_program, "gpt3-175b", seq_len=2048),
    "mixtral-8x7b full": partial(load_program, "mixtral-8x7b", seq_len=2048),
    "gpt-oss-20b selective": partial(load_program, "gpt-oss-20b", seq_len=4096, recompute="selective"),
    "dlrm": dlrm,
    "mamba": partial(mamba, batch=2, layers=24, embed=768, state=16, vocab=50280),
    "resnet": partial(resnet, batch=2, image=224, width=64, stages=(1, 1, 1, 1), classes=1000),
    "t5": partial(t5, batch=2, inputs=512, targets=128, layers=6, embed=512, heads=8, head=64, mlp=2048, vocab=32128),
    "vit": partial(vit, batch=2, image=224, patch=16, layers=12, embed=768, heads=12, mlp=3072, classes=1000),
}


@cache
def graph(program: str) -> Graph:
    return trace(PROGRAMS[program]())


def layout_of(case: Mapping[str, Any]) -> Layout:
    """The layout as it is written, on as many ranks as its sizes multiply to."""
    given = Layout.read_keys(case["layout"])
    ranks = math.prod(given.get(axis, 1) for axis in AXES)
    layout = Layout.parse(case["layout"], ranks=ranks, global_batch=case["global_batch"])
    return layout.suited(graph(case["program"]), given=given)


def answer(case: Mapping[str, Any]) -> dict[str, Any]:
    """What is estimated for a case: times, memory, and the parts of both that are not 0."""
    found = predict(graph(case["program"]), layout_of(case), load_machine(case["machine"]))
    return {
        **{name: getattr(found, name) for name in ("step_time_s", "lower_s", "upper_s", "memory_bytes", "bound")},
        "breakdown": _present(found.breakdown),
        "memory_parts": _present(found.memory_parts),
        "collectives": _moved(found),
        "reasons": list(found.reasons),
    }


def _present(parts: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in parts.items() if value}


def _moved(estimate: Estimate) -> dict[str, float]:
    """Bytes of a step by kind of collective and axes."""
    moved: dict[str, float] = {}
    for each in estimate.collectives:
        if each.seconds:
            key = f"{each.kind} {each.axis}"
            moved[key] = moved.get(key, 0.0) + float(each.bytes * each.count)
    return moved


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(REPLAY.read_text())
    return found


def _write(replayed: Iterable[Mapping[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(case) for case in replayed)
    REPLAY.write_text(f"[\n{lines}\n]\n")


def test_estimates_replayed_are_as_accepted(request: pytest.FixtureRequest) -> None:
    """Those that differ are told in a table; with --accept they take the place of the old ones."""
    accepted = cases()
    answers = [answer(case) for case in accepted]
    changed = [i for i, case in enumerate(accepted) if not _same(case, answers[i])]
    if why := request.config.getoption("--accept"):
        for i in changed:
            accepted[i] = {**{key: accepted[i][key] for key in ASKED}, **answers[i], ACCEPTED: why}
        _write(accepted)
    else:
        table = "\n".join(line for i in changed for line in _differences(accepted[i], answers[i]))
        assert not changed, f"{len(changed)} of {len(accepted)} estimates changed:\n{table}"


def _same(case: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    told = {key: value for key, value in case.items() if key not in (*ASKED, ACCEPTED)}
    return bool(found == approximately(told))


def _differences(case: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """A case, and a line for each of its numbers that differs: before, after, and by how much."""
    yield f"| {case['program']} | {case['machine']} | {case['layout']} | {case['global_batch']} |"
    before, after = dict(_flat(case)), dict(_flat(found))
    for name in dict.fromkeys((*after, *before)):
        old, new = before.get(name, 0.0), after.get(name, 0.0)
        if name.partition(".")[0] not in (*ASKED, ACCEPTED) and new != approximately(old):
            ratio = f" ({new / old - 1:+.2%})" if isinstance(new, float) and isinstance(old, float) and old else ""
            yield f"|   {name} | {old} | {new}{ratio} |"


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_replay_set_covers_what_there_is() -> None:
    """Every machine, program, schedule, ZeRO stage, recompute policy, way of experts, axis; rings, virtual stages."""
    replayed = cases()
    layouts = [layout_of(case) for case in replayed]
    assert len(replayed) == 50
    assert len({tuple(case[key] for key in ASKED) for case in replayed}) == len(replayed)
    assert {case["machine"] for case in replayed} == set(machine_names())
    assert {case["program"] for case in replayed} == PROGRAMS.keys()
    assert {layout.schedule for layout in layouts} == set(SCHEDULES)
    assert {layout.zero for layout in layouts} == {0, 1, 2, 3}
    assert {layout.recompute for layout in layouts} == set(RECOMPUTE)
    assert {layout.experts for layout in layouts} == EXPERTS.keys()
    assert {layout.ring for layout in layouts} == {layout.sp for layout in layouts} == {False, True}
    for key in (*AXES, "vpp", "mb"):
        assert any(getattr(layout, key) > 1 for layout in layouts), key
    assert all(case[ACCEPTED] for case in replayed)


def test_a_replayed_estimate_that_differs_is_told_with_both_numbers() -> None:
    asked = {key: cases()[0][key] for key in ASKED}
    case, changed = {**asked, **answer(asked), ACCEPTED: "for a start"}, answer(asked)
    assert _same(case, changed)
    changed["step_time_s"] *= 1.5
    changed["breakdown"]["bubble"] = 2.0
    assert not _same(case, changed)
    head, *lines = _differences(case, changed)
    assert all(str(case[key]) in head for key in ASKED)
    assert [line.split("|")[1].strip() for line in lines] == ["step_time_s", "breakdown.bubble"]
    assert "(+50.00%)" in lines[0]
