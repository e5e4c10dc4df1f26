"""Machine files: what is read from them, how faults are reported, and what a check objects to."""

from __future__ import annotations

import ast
import math
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from machines import fake_machine, tier

import perfmodel
from perfmodel.catalog import machine_names
from perfmodel.check import check_machine
from perfmodel.errors import MachineError
from perfmodel.layout import AXES
from perfmodel.machine import ENGINES, Fact, Machine, check_chips, load_machine
from perfmodel.schedule import CLASSES
from perfmodel.spec_file import Groups, Overlap
from perfmodel.topology import KINDS, collective_seconds

GIB = 2.0**30
SHIPPED = machine_names()

MACHINE = """
name = "mine"
title = "A machine with round numbers"
assumptions = ["as I say"]
[chip]
ranks = { value = 2, unit = "1", kind = "datasheet", source = "a leaflet" }
memory = { value = 64, unit = "GiB", kind = "datasheet", source = "a leaflet" }
memory_reserve = { value = 1, unit = "GiB", kind = "assumed", source = "a guess" }
memory_bandwidth = { value = 2, unit = "TB/s", kind = "datasheet", source = "a leaflet" }
vector = { value = 4, unit = "TFLOP/s", kind = "datasheet", source = "a leaflet" }
kernel_launch = { value = 3, unit = "us", kind = "measured", source = "a clock" }
step_overhead = { value = 5, unit = "ms", kind = "measured", source = "a clock" }
[chip.tensor]
bf16 = { value = 100, unit = "TFLOP/s", kind = "datasheet", source = "a leaflet" }
[chip.quoted]
bf16 = { value = 0.12, unit = "PFLOP/s", kind = "datasheet", source = "a leaflet" }
[price]
instance = { value = 24, unit = "USD/h", kind = "datasheet", source = "a price list" }
chips = { value = 8, unit = "1", kind = "datasheet", source = "a leaflet" }
[power]
chip = { value = 300, unit = "W", kind = "datasheet", source = "a leaflet" }
[[tiers]]
name = "board"
kind = "torus"
per = "chip"
extents = { value = [2, 4], unit = "1", kind = "datasheet", source = "a leaflet" }
link = { value = 10, unit = "GB/s", kind = "datasheet", source = "a leaflet" }
links = { value = 2, unit = "1", kind = "datasheet", source = "a leaflet" }
latency = { value = 1, unit = "us", kind = "measured", source = "a clock" }
[[tiers]]
name = "wire"
kind = "switch"
per = "rank"
extents = { value = [0], unit = "1", kind = "datasheet", source = "a leaflet" }
link = { value = 8, unit = "Gbit/s", kind = "datasheet", source = "a leaflet" }
links = { value = 1, unit = "1", kind = "datasheet", source = "a leaflet" }
latency = { value = 7, unit = "us", kind = "measured", source = "a clock" }
[groups]
tp = { value = [1, 2], unit = "1", kind = "datasheet", source = "a leaflet" }
[[checks]]
of = "chip.memory"
times = 8
equals = { value = 512, unit = "GiB", kind = "datasheet", source = "another leaflet" }
within = 0.0
"""

ALGORITHM = """
latency = { value = 2, unit = "us", kind = "measured", source = "a clock" }
all_gather = { value = 0.5, unit = "1", kind = "measured", source = "a clock" }
reduce_scatter = { value = 0.25, unit = "1", kind = "measured", source = "a clock" }
all_to_all = { value = 0.1, unit = "1", kind = "measured", source = "a clock" }
"""
CALIBRATION = f"""
machine = "mine"
pipeline_depth = {{ value = 2, unit = "1", kind = "assumed", source = "a guess" }}
[fit]
date = "today"
data = "a clock"
residuals = "none"
[efficiency]
tensor = {{ value = 0.9, unit = "1", kind = "measured", source = "a clock" }}
attention = {{ value = 0.5, unit = "1", kind = "measured", source = "a clock" }}
vector = {{ value = 0.8, unit = "1", kind = "measured", source = "a clock" }}
memory = {{ value = 0.7, unit = "1", kind = "measured", source = "a clock" }}
[overlap]
tensor = {{ value = 0.0, unit = "1", kind = "assumed", source = "a guess" }}
context = {{ value = 0.1, unit = "1", kind = "assumed", source = "a guess" }}
fsdp = {{ value = 0.2, unit = "1", kind = "assumed", source = "a guess" }}
pipeline = {{ value = 0.3, unit = "1", kind = "assumed", source = "a guess" }}
data = {{ value = 0.4, unit = "1", kind = "assumed", source = "a guess" }}
[[tiers]]
name = "board"
relay = {{ value = 10, unit = "GB/s", kind = "measured", source = "a clock" }}
[[tiers.algorithms]]
name = "ring"
{ALGORITHM}
[[tiers]]
name = "wire"
[[tiers.algorithms]]
name = "recursive"
{ALGORITHM}
"""


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


def write(folder: Path, machine: str = MACHINE, calibration: str | None = None) -> Path:
    """Write `mine.toml`, and its calibration beside it."""
    (folder / "mine.toml").write_text(machine)
    if calibration is not None:
        (folder / "mine.calibration.toml").write_text(calibration)
    return folder / "mine.toml"


def complaint(source: str | Path) -> str:
    """The one line that loading a machine fails with."""
    with pytest.raises(MachineError) as caught:
        load_machine(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def raw_numbers(node: Any) -> Iterator[dict[str, Any]]:
    """Every table with a value in a parsed file, checks aside."""
    if isinstance(node, dict) and "value" in node:
        yield node
    elif isinstance(node, dict):
        for key, below in node.items():
            yield from raw_numbers(below) if key != "checks" else ()
    elif isinstance(node, list):
        for below in node:
            yield from raw_numbers(below)


# -- machines that ship -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_machine_passes_its_own_checks(name: str) -> None:
    assert check_machine(name) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_of_a_shipped_machine_is_a_fact_with_unit_kind_and_source(name: str) -> None:
    folder = resources.files("hardware_specs")
    facts = list(load_machine(name).facts.values())
    for file in (folder / f"{name}.toml", folder / "calibrations" / f"{name}.toml"):
        for number in raw_numbers(tomllib.loads(file.read_text())):
            facts.remove(Fact(**number))
    assert facts == []


def test_trainium2_is_read_in_si_and_per_rank() -> None:
    trn2 = load_machine("trn2")
    assert trn2.ranks_per_chip == 4
    assert trn2.memory_bytes == 96 * GIB / 4
    assert trn2.memory_bandwidth == pytest.approx(2.9e12 / 4)
    assert trn2.tensor_flops["bf16"] == pytest.approx(8 * 128 * 128 * 2 * 2.4e9 / 4, rel=1e-3)
    assert trn2.usd_per_chip_hour == pytest.approx(35.7608 / 16)
    assert trn2.group_sizes == {"tp": (1, 2, 4, 8, 16, 32, 64)}
    chip, torus, efa = trn2.tiers
    assert chip.bandwidth == pytest.approx((2 * 16 * 23e9,))
    assert torus.bandwidth == pytest.approx((1024e9 / 2 / 2 / 4,) * 2)  # one direction, each dim, each rank
    assert efa.bandwidth == pytest.approx((200e9 / 8 / 4,))


def test_an_ultraserver_differs_from_its_instance_by_the_links_between_four_of_them() -> None:
    one, four = load_machine("trn2"), load_machine("trn2-ultraserver")
    chip, torus, z, efa = four.tiers
    assert (chip, torus, efa) == one.tiers
    assert z.extents == (4,)
    assert z.bandwidth == pytest.approx((256e9 / 2 / 4,))
    assert {f.name for f in fields(Machine) if getattr(one, f.name) != getattr(four, f.name)} == {
        *("name", "title", "tiers", "facts", "assumptions", "sources")
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_without_calibration_a_machine_is_a_roofline_and_says_so(name: str) -> None:
    machine = load_machine(name, calibrated=False)
    assert machine.efficiency == dict.fromkeys(ENGINES, 1.0)
    assert machine.overlap == {}
    assert all(set(tier.algorithms[0].efficiency.values()) == {1.0} for tier in machine.tiers)
    assert machine.assumptions[-1] == f"{name} is taken without its calibration: a pure roofline, no overlap"


# -- a machine of one's own ---------------------------------------------------------------------------------------


def test_a_machine_described_in_one_new_file_is_read_in_si_and_per_rank(tmp_path: Path) -> None:
    mine = load_machine(write(tmp_path))
    assert (mine.name, mine.ranks_per_chip) == ("mine", 2)
    assert mine.memory_bytes == 64 * GIB / 2
    assert mine.memory_reserve_bytes == GIB / 2
    assert mine.memory_bandwidth == 2e12 / 2
    assert mine.vector_flops == 4e12 / 2
    assert mine.tensor_flops == {"bf16": 100e12 / 2}
    assert mine.quoted_flops == {"bf16": 120e12 / 2}
    assert mine.kernel_launch_seconds == pytest.approx(3e-6)
    assert mine.step_overhead_seconds == pytest.approx(5e-3)
    assert (mine.usd_per_chip_hour, mine.watts_per_chip) == (24 / 8, 300)
    assert mine.group_sizes == {"tp": (1, 2)}
    assert [tier.bandwidth for tier in mine.tiers] == [(10e9 * 2 / 2,) * 2, (1e9,)]
    assert mine.sources == ("a clock", "a guess", "a leaflet", "a price list")


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_described_in_one_new_file_prices_collectives(kind: str, tmp_path: Path) -> None:
    mine = load_machine(write(tmp_path))
    inside, across = (float(collective_seconds(kind, 1e9, 2, stride, mine)) for stride in (1, 8))
    assert 1e-6 < inside < across < math.inf


def test_a_file_is_calibrated_by_the_file_beside_it(tmp_path: Path) -> None:
    mine = load_machine(write(tmp_path, calibration=CALIBRATION))
    assert mine.efficiency == {"tensor": 0.9, "attention": 0.5, "vector": 0.8, "memory": 0.7}
    assert mine.overlap == {"tensor": 0.0, "context": 0.1, "fsdp": 0.2, "pipeline": 0.3, "data": 0.4}
    assert mine.pipeline_depth == 2
    board, wire = mine.tiers
    assert (board.relay, wire.relay) == (10e9, 0)
    assert [(a.name, a.efficiency["all_gather"]) for a in board.algorithms] == [("ring", 0.5)]
    assert mine.facts["calibration.tiers.wire.algorithms.recursive.all_to_all"].value == 0.1
    assert mine.assumptions[:1] == ("as I say",)


def test_a_file_without_calibration_says_so_whatever_name_it_bears(tmp_path: Path) -> None:
    shipped = resources.files("hardware_specs") / "trn2.toml"
    copy = load_machine(write(tmp_path, shipped.read_text()))
    assert copy.assumptions[-1] == "trn2 is not calibrated: a pure roofline, no overlap"
    assert copy == replace(load_machine("trn2", calibrated=False), assumptions=copy.assumptions)


def test_a_tier_that_the_calibration_leaves_out_is_ideal_and_named(tmp_path: Path) -> None:
    mine = load_machine(write(tmp_path, calibration=CALIBRATION[: CALIBRATION.rindex("[[tiers]]")]))
    assert set(mine.tiers[1].algorithms[0].efficiency.values()) == {1.0}
    assert "tier wire of mine is not calibrated: collectives reach its full bandwidth" in mine.assumptions


def test_shares_that_nobody_measured_are_said(tmp_path: Path) -> None:
    found = load_machine(write(tmp_path, calibration=CALIBRATION.replace('"measured"', '"assumed"')))
    assert found.assumptions[-1].startswith("assumed, not measured: efficiency.tensor 0.9, ")
    assert found.assumptions[-1].endswith("overlap.data 0.4")
    sure = load_machine(write(tmp_path, calibration=CALIBRATION.replace('"assumed"', '"measured"')))
    assert sure.assumptions == ("as I say",)


# -- faults -------------------------------------------------------------------------------------------------------

MEMORY = 'memory = { value = 64, unit = "GiB", kind = "datasheet", source = "a leaflet" }'
EXTENTS = "extents = { value = [2, 4]"
FAULTS = {
    "missing key": (MEMORY, "", "chip.memory", "got nothing, expected this key"),
    "extra key": (MEMORY, MEMORY + "\nmemoir = 3", "chip.memoir", "got 3, expected no such key"),
    "no table": (MEMORY, "memory = 64", "chip.memory", "got 64, expected a table"),
    "text": ("value = 64", 'value = "64"', "chip.memory.value", "got '64', expected a valid number"),
    "yes": ("value = 64", "value = true", "chip.memory.value", "got True, expected a valid number"),
    "list": ("value = 64", "value = [64]", "chip.memory.value", "got [64], expected a valid number"),
    "nan": ("value = 64", "value = nan", "chip.memory.value", "got nan, expected a finite number"),
    "infinity": ("value = 64", "value = inf", "chip.memory.value", "got inf, expected a finite number"),
    "negative": ("value = 3,", "value = -3,", "chip.kernel_launch.value", "got -3, expected a number greater"),
    "no memory": ("value = 64", "value = 0", "chip.memory.value", "got 0, expected a number greater"),
    "no ranks": ("value = 2,", "value = 0,", "chip.ranks.value", "got 0, expected a number greater"),
    "half ranks": ("value = 2,", "value = 2.5,", "chip.ranks.value", "got 2.5, expected a valid integer"),
    "uneven ranks": ("value = 2,", "value = 3,", "chip.ranks.value", "got 3, expected a divisor of the 8 ranks"),
    "no chips": ("value = 8,", "value = 0,", "price.chips.value", "got 0, expected a number greater"),
    "wrong unit": ('"GiB"', '"GB/s"', "chip.memory.unit", "got 'GB/s', expected one of B, kB"),
    "unknown unit": ('"Gbit/s"', '"Mbaud"', "tiers.wire.link.unit", "got 'Mbaud', expected one of B/s"),
    "no source": ('source = "a guess"', 'source = ""', "chip.memory_reserve.source", "got '', expected text"),
    "unsourced": (', source = "a guess"', "", "chip.memory_reserve.source", "got nothing, expected this key"),
    "wrong kind": ('"assumed"', '"guessed"', "chip.memory_reserve.kind", "got 'guessed', expected 'datasheet'"),
    "no rates": ("[chip.tensor]\nbf16", "[chip.tensor]\n[power.x]\nbf16", "chip.tensor", "got {}, expected"),
    "no quoted peak": (
        "[chip.quoted]\nbf16",
        "[chip.quoted]\nf8",
        "chip.quoted.bf16",
        "got nothing, expected the peak",
    ),
    "no link": ("value = 10,", "value = 0,", "tiers.board.link.value", "got 0, expected a number greater"),
    "scalar extent": (EXTENTS, "extents = { value = 8", "tiers.board.extents.value", "got 8, expected a valid list"),
    "half extent": (
        EXTENTS,
        "extents = { value = [2.5]",
        "tiers.board.extents.value.0",
        "got 2.5, expected a valid int",
    ),
    "negative extent": (
        EXTENTS,
        "extents = { value = [2, -4]",
        "tiers.board.extents.value.1",
        "got -4, expected a number greater",
    ),
    "no extent": (EXTENTS, "extents = { value = []", "tiers.board.extents.value", "got [], expected at least one item"),
    "endless inside": (
        EXTENTS,
        "extents = { value = [2, 0]",
        "tiers.board.extents.value",
        "got [2, 0], expected extents",
    ),
    "switch with dims": (
        "value = [0]",
        "value = [8, 8]",
        "tiers.wire.extents.value",
        "got [8, 8], expected one extent",
    ),
    "topology": ('"torus"', '"mesh"', "tiers.board.kind", "got 'mesh', expected 'torus' or 'switch'"),
    "twin tiers": ('"wire"', '"board"', "tiers.board", "got the name 'board' 2 times, expected it once"),
    "unknown axis": ("tp = {", "xp = {", "groups.xp", "got {'value': [1, 2], "),
    "empty group": ("value = [1, 2]", "value = [0, 2]", "groups.tp.value.0", "got 0, expected a number greater"),
    "loose check": ("within = 0.0", "within = -1.0", "checks.0.within", "got -1.0, expected a number greater"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_in_a_machine_file_is_named_by_its_place_with_what_was_got_and_expected(
    case: str, tmp_path: Path
) -> None:
    old, new, path, words = FAULTS[case]
    file = write(tmp_path, changed(MACHINE, old, new))
    message = complaint(file)
    assert message.startswith(f"{file}: {path}: {words}")
    assert message.endswith((": mend the file", ": write a unit of size", ": write a unit of bandwidth"))


CALIBRATION_FAULTS = {
    "another machine": ('"mine"', '"yours"', "machine", "got 'yours', expected 'mine'"),
    "missing engine": ("attention = {", "attraction = {", "efficiency.attention", "got nothing, expected this key"),
    "no efficiency": ("value = 0.9", "value = 0.0", "efficiency.tensor.value", "got 0.0, expected a number greater"),
    "overlap": ("value = 0.4", "value = 1.4", "overlap.data.value", "got 1.4, expected a number less"),
    "shallow": ("value = 2,", "value = 0.5,", "pipeline_depth.value", "got 0.5, expected a number greater"),
    "unknown tier": (
        '"board"',
        '"bored"',
        "tiers.bored",
        "got a tier that the machine lacks, expected one of board, wire",
    ),
    "unknown algorithm": ('"ring"', '"tree"', "tiers.board.algorithms.tree.name", "got 'tree', expected 'ring' or"),
    "twin tiers": ('"wire"', '"board"', "tiers.board", "got the name 'board' 2 times, expected it once"),
    "twin algorithms": (
        '[[tiers]]\nname = "wire"\n',
        "",
        "tiers.board.algorithms.recursive",
        "got the name 'recursive' 2 times, expected it once",
    ),
    "negative": (
        "value = 0.25",
        "value = -0.25",
        "tiers.board.algorithms.ring.reduce_scatter.value",
        "got -0.25, expected",
    ),
    "unit": ('"us"', '"GB"', "tiers.board.algorithms.ring.latency.unit", "got 'GB', expected one of s, ms, us, ns"),
}


@pytest.mark.parametrize("case", CALIBRATION_FAULTS)
def test_a_fault_in_a_calibration_is_named_by_its_place_with_what_was_got_and_expected(
    case: str, tmp_path: Path
) -> None:
    old, new, path, words = CALIBRATION_FAULTS[case]
    text = changed(CALIBRATION.replace('"ring"', '"recursive"') if case == "twin algorithms" else CALIBRATION, old, new)
    file = write(tmp_path, calibration=text)
    message = complaint(file)
    assert message.startswith(f"{file.with_suffix('.calibration.toml')}: {path}: {words}")
    assert load_machine(file, calibrated=False).name == "mine"


@pytest.mark.parametrize(
    ("name", "remedy"), [("trn3", "trn2?"), ("H100", "h100?"), ("abacus", "perfmodel hardware list")]
)
def test_an_unknown_machine_is_answered_with_the_known_ones(name: str, remedy: str) -> None:
    message = complaint(name)
    assert message.startswith(
        f"machine: got {name!r}, expected one of {', '.join(SHIPPED)}, or the path of a .toml file"
    )
    assert message.endswith(remedy)


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    absent, folder, broken, binary = (tmp_path / f"{name}.toml" for name in ("absent", "folder", "broken", "binary"))
    folder.mkdir()
    broken.write_text("name = \n")
    binary.write_bytes(b"\xff\xfe")
    reasons = {absent: "No such file", folder: "Is a directory", broken: "line 1", binary: "can't decode byte"}
    for file, reason in reasons.items():
        message = complaint(file)
        assert message.startswith(f"{file}: got ")
        assert reason in message
        assert ", expected TOML: " in message


def test_a_calibration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, calibration="machine =")
    assert complaint(file).startswith(f"{file.with_suffix('.calibration.toml')}: got ")


def test_mesh_axes_and_collective_classes_of_files_are_those_of_layouts_and_schedules() -> None:
    assert tuple(Groups.model_fields) == AXES
    assert set(Overlap.model_fields) == {*CLASSES, "data"}


# -- chips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chips", [1, 2, 4, 8, 16, 32, 160])
def test_chips_that_fill_rows_or_instances_evenly_are_taken(chips: int) -> None:
    assert check_chips(load_machine("trn2"), chips) == 4 * chips


@pytest.mark.parametrize("chips", [-16, 0, 3, 12, 17, 24])
def test_other_numbers_of_chips_are_answered_with_the_possible_ones(chips: int) -> None:
    with pytest.raises(MachineError, match=rf"chips: got {chips}, expected 1, 2, 4, 8, 16 or a multiple of 16 \("):
        check_chips(load_machine("trn2"), chips)


def test_a_fabric_without_bounds_takes_any_number_of_chips() -> None:
    machine = fake_machine(ranks_per_chip=4)
    assert [check_chips(machine, chips) for chips in (1, 3, 100)] == [4, 12, 400]
    with pytest.raises(MachineError, match=r"chips: got 0, expected 1 or a multiple of 1 \("):
        check_chips(machine, 0)


def test_a_bounded_fabric_takes_no_more_chips_than_it_has() -> None:
    machine = fake_machine(tiers=(tier(2, kind="torus", dims=2),))
    assert check_chips(machine, 4) == 4
    with pytest.raises(MachineError, match=r"chips: got 8, expected 1, 2, 4 \("):
        check_chips(machine, 8)


# -- findings -----------------------------------------------------------------------------------------------------

FINDINGS = {
    "sum": (
        "equals = { value = 512",
        "equals = { value = 500",
        "checks.0: got chip.memory x 8 = 512 GiB, expected 500 GiB",
    ),
    "name": (
        'of = "chip.memory"',
        'of = "chip.memry"',
        "checks.0: got of = 'chip.memry', expected the path of a number",
    ),
    "unit": (
        '"GiB", kind = "datasheet", source = "another',
        '"W", kind = "datasheet", source = "another',
        "checks.0: got 'W'",
    ),
    "source": (
        'source = "a leaflet"',
        'source = "(?)"',
        "chip.ranks.source: got '(?)', expected where this datasheet number",
    ),
    "reserve": ("value = 1, unit", "value = 64, unit", "chip.memory_reserve: got as much as chip.memory"),
    "quoted": (
        "[price]",
        'f8 = { value = 1, unit = "FLOP/s", kind = "assumed", source = "a guess" }\n[price]',
        "chip.quoted.f8: ",
    ),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_a_machine_file_that_contradicts_itself_is_a_finding(case: str, tmp_path: Path) -> None:
    old, new, words = FINDINGS[case]
    file = write(tmp_path, changed(MACHINE, old, new))
    assert load_machine(file).name == "mine"
    (finding,) = check_machine(file)
    assert finding.startswith(f"{file}: {words}")


CALIBRATION_FINDINGS = {
    "efficiency": ("value = 0.7", "value = 1.7", "efficiency.memory: got 1.7, expected a share of at most 1"),
    "share": ("value = 0.25", "value = 25", "tiers.board.algorithms.ring.reduce_scatter: got 25, expected a share"),
    "relay": (
        "value = 10,",
        "value = 11,",
        "tiers.board.relay: got more than the tier gives a rank, expected at most 10.0 GB/s",
    ),
    "source": (
        'source = "a clock"',
        'source = "TODO"',
        "efficiency.tensor.source: got 'TODO', expected where this measured",
    ),
    "tier": (CALIBRATION[CALIBRATION.rindex("[[tiers]]") :], "", "tiers.wire: got nothing, expected how this tier"),
}


@pytest.mark.parametrize("case", CALIBRATION_FINDINGS)
def test_a_calibration_that_cannot_be_right_is_a_finding(case: str, tmp_path: Path) -> None:
    old, new, words = CALIBRATION_FINDINGS[case]
    file = write(tmp_path, calibration=changed(CALIBRATION, old, new))
    (finding,) = check_machine(file)
    assert finding.startswith(f"{file.with_suffix('.calibration.toml')}: {words}")


def test_a_file_and_its_calibration_without_faults_yield_no_findings(tmp_path: Path) -> None:
    assert check_machine(write(tmp_path)) == []
    assert check_machine(write(tmp_path, calibration=CALIBRATION)) == []


def test_a_check_holds_up_to_its_tolerance(tmp_path: Path) -> None:
    for times, within, count in ((8.08, 0.011, 0), (8.08, 0.009, 1), (7.92, 0.011, 0), (7.92, 0.009, 1)):
        text = changed(MACHINE, "times = 8", f"times = {times}").replace("within = 0.0", f"within = {within}")
        assert len(check_machine(write(tmp_path, text))) == count


def test_what_does_not_load_is_an_error_of_the_check_too(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"chip\.memory\.value: got 0, expected a number greater than 0"):
        check_machine(write(tmp_path, changed(MACHINE, "value = 64", "value = 0")))


# -- where physical numbers live ----------------------------------------------------------------------------------

NOT_PHYSICAL = {
    ("predict.py", 1e6): "a million tokens, of which the price is given",
}


def test_rates_and_sizes_of_hardware_live_in_its_files_and_not_in_the_code() -> None:
    root = Path(perfmodel.__file__).parent
    found = {
        (file.relative_to(root).as_posix(), node.value)
        for file in root.rglob("*.py")
        if file.name != "units.py" and "models" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and abs(node.value) >= 1e6
    }
    assert found <= NOT_PHYSICAL.keys()
