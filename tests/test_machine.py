"""Machine files: what is read from them, how faults are reported, and what a check objects to."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pint
import pytest
from machines import fake_machine, raw_numbers, tier
from programs import mlp_graph
from rich.console import Console

import perfmodel
from perfmodel.allocation import check_chips, slice_of
from perfmodel.calibration_spec import Overlap
from perfmodel.catalog import machine_names
from perfmodel.check import check_machine
from perfmodel.cli.main import main
from perfmodel.collective import KINDS, axis_cost, collective_seconds
from perfmodel.errors import MachineError
from perfmodel.layout import AXES, Layout
from perfmodel.machine import ELEMENTWISE, ENGINES, Fact, Machine
from perfmodel.machine_file import load_machine
from perfmodel.machine_spec import Check, Chip, Groups, Instance, Limits, MachineSpec, Offer, TierSpec
from perfmodel.predict import predict
from perfmodel.report.fabric import drawing, fabric
from perfmodel.report.machine import machine_json, machine_report
from perfmodel.schedule import CLASSES
from perfmodel.schema import Number
from perfmodel.spec_file import finite_ranks
from perfmodel.topology import closes
from perfmodel.units import DIMENSIONS

GIB = 2.0**30
SHIPPED = machine_names()
ROOT = Path(__file__).parent.parent

BELOW = {
    **dict.fromkeys(("trn2-3xlarge", "trn2-lnc1", "trn2-ultraserver"), ("trn2",)),
    **dict.fromkeys(("trn1n", "inf2"), ("trn1",)),
    "trn3-gen2": ("trn3-gen1",),
    "a100-80": ("a100-40",),
    **dict.fromkeys(("h200", "b200"), ("h100",)),
    "gb200-nvl72": ("b200", "h100"),
    "dgx-a100-40": ("a100-40",),
    "dgx-a100": ("a100-80", "a100-40"),
    "dgx-h100": ("h100",),
    **{f"dgx-{name}": (name, "h100") for name in ("h200", "b200")},
    "dgx-gb200": ("gb200-nvl72", "b200", "h100"),
}
"""What shipped machines extend, nearest first."""

ALIKE = {
    **dict.fromkeys(("h200", "b200", "gb200-nvl72", "mi300x"), ("h100",)),
    **dict.fromkeys(("trn1", "trn1n", "trn3-gen1", "trn3-gen2"), ("trn2",)),
    "inf2": ("trn1", "trn2"),
    **dict.fromkeys(("dgx-h200", "dgx-b200", "dgx-gb200"), ("dgx-h100", "h100")),
    **dict.fromkeys(("tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e"), ("tpu-v7",)),
}
"""Machines that the calibrations of others take theirs, or tiers of it, to be like."""

MACHINE = """
name = "mine"
title = "A machine with round numbers"
assumptions = ["as I say"]
[chip]
ranks = { value = 2, unit = "1", kind = "datasheet", source = "a leaflet, page 1" }
memory = { value = 64, unit = "GiB", kind = "datasheet", source = "a leaflet, page 1" }
memory_reserve = { value = 1, unit = "GiB", kind = "assumed", source = "a guess" }
memory_bandwidth = { value = 2, unit = "TB/s", kind = "datasheet", source = "a leaflet, page 1" }
vector = { value = 4, unit = "TFLOP/s", kind = "datasheet", source = "a leaflet, page 1" }
kernel_launch = { value = 3, unit = "us", kind = "measured", source = "a clock" }
step_overhead = { value = 5, unit = "ms", kind = "measured", source = "a clock" }
[chip.tensor]
bf16 = { value = 100, unit = "TFLOP/s", kind = "datasheet", source = "a leaflet, page 1" }
[chip.quoted]
bf16 = { value = 0.12, unit = "PFLOP/s", kind = "datasheet", source = "a leaflet, page 1" }
[instance]
name = "eight of mine"
chips = { value = 8, unit = "1", kind = "datasheet", source = "a leaflet, page 1" }
[[offers]]
name = "list"
region = "here"
date = "2026-11"
price = { value = 24, unit = "USD/h", kind = "datasheet", source = "a price list, page 1" }
[power]
chip = { value = 300, unit = "W", kind = "datasheet", source = "a leaflet, page 1" }
[[tiers]]
name = "board"
kind = "torus"
per = "chip"
extents = { value = [2, 8], unit = "1", kind = "datasheet", source = "a leaflet, page 1" }
link = { value = 10, unit = "GB/s", kind = "datasheet", source = "a leaflet, page 1" }
links = { value = 2, unit = "1", kind = "datasheet", source = "a leaflet, page 1" }
latency = { value = 1, unit = "us", kind = "measured", source = "a clock" }
[[tiers]]
name = "wire"
kind = "switch"
per = "rank"
extents = { value = [0], unit = "1", kind = "datasheet", source = "a leaflet, page 1" }
link = { value = 8, unit = "Gbit/s", kind = "datasheet", source = "a leaflet, page 1" }
links = { value = 1, unit = "1", kind = "datasheet", source = "a leaflet, page 1" }
latency = { value = 7, unit = "us", kind = "measured", source = "a clock" }
[groups]
tp = { value = [1, 2], unit = "1", kind = "datasheet", source = "a leaflet, page 1" }
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


def has_calibration(name: str) -> bool:
    return (resources.files("hardware_specs") / "calibrations" / f"{name}.toml").is_file()


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


# -- machines that ship -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_machine_passes_its_own_checks(name: str) -> None:
    assert check_machine(name) == []


def chain(name: str, folder: Traversable) -> list[dict[str, Any]]:
    """A shipped file and those that it extends, nearest first; none where there is no such file."""
    file = folder / f"{name}.toml"
    data = tomllib.loads(file.read_text()) if file.is_file() else {}
    return [data, *chain(data["extends"], folder)] if "extends" in data else [data]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_fact_of_a_shipped_machine_stands_in_its_file_or_in_one_that_it_extends(name: str) -> None:
    folder = resources.files("hardware_specs")
    files = chain(name, folder)
    assert tuple(data["extends"] for data in files if "extends" in data) == BELOW.get(name, ())
    calibrated = next(filter(has_calibration, (name, *BELOW.get(name, ()))), None)
    files += chain(calibrated, folder / "calibrations") if calibrated else []
    machine = load_machine(name)
    files += chain(machine.framework.name, folder / "frameworks")
    facts = list(machine.facts.values())
    for number in raw_numbers(files[0]):
        assert Fact(**number) in facts
    stated = [Fact(**number) for data in files for number in raw_numbers(data)]
    alike = [file for other in ALIKE.get(name, ()) for file in chain(other, folder / "calibrations")]
    known = [Fact(**number) for data in (*files, *alike) for number in raw_numbers(data)]
    taken = [(fact.value, fact.unit) for fact in known]
    strange = [fact for fact in facts if fact not in stated]
    assert all(fact.source.startswith("as ") and fact.kind == "assumed" for fact in strange)
    assert all((fact.value, fact.unit) in taken for fact in strange)


@pytest.mark.parametrize("name", ["h100", "trn2"])
def test_every_number_of_a_file_that_extends_none_is_a_fact(name: str) -> None:
    folder = resources.files("hardware_specs")
    machine = load_machine(name)
    facts = list(machine.facts.values())
    framework = tomllib.loads((folder / "frameworks" / f"{machine.framework.name}.toml").read_text())
    of_others = [other for other in framework.get("machines", {}) if other != name]
    for other in of_others:
        del framework["machines"][other]
    files = (folder / f"{name}.toml", folder / "calibrations" / f"{name}.toml")
    for data in (framework, *(tomllib.loads(file.read_text()) for file in files)):
        for number in raw_numbers(data):
            facts.remove(Fact(**number))
    assert facts == []


def test_a_tier_is_like_one_that_the_calibration_has(tmp_path: Path) -> None:
    like = CALIBRATION[: CALIBRATION.rindex("[[tiers]]")] + '[[tiers]]\nname = "wire"\nlike = "board"\n'
    board, wire = load_machine(write(tmp_path, calibration=like)).tiers
    assert wire.algorithms == board.algorithms
    wrong = complaint(write(tmp_path, calibration=like.replace('like = "board"', 'like = "bored"')))
    assert "tiers.wire.like: got 'bored', expected one of board: mend the file" in wrong


def test_a_calibration_like_another_takes_its_numbers_as_assumed(tmp_path: Path) -> None:
    head = CALIBRATION[: CALIBRATION.index("[efficiency]")]
    tiers = '[[tiers]]\nname = "board"\nlike = "h100: NVSwitch"\n[[tiers]]\nname = "wire"\nlike = "h100: EFA"\n'
    own = '[efficiency]\ntensor = { value = 0.5, unit = "1", kind = "measured", source = "a clock" }\n'
    machine = load_machine(write(tmp_path, calibration=f'like = "h100"\n{head}{own}{tiers}'))
    assert machine.efficiency == {**load_machine("h100").efficiency, "tensor": 0.5}
    fact = machine.facts["calibration.efficiency.memory"]
    assert (fact.kind, fact.source) == ("assumed", "as h100")
    assert machine.facts["calibration.efficiency.tensor"].kind == "measured"


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_machine_is_priced_at_its_peaks(name: str) -> None:
    machine = load_machine(name)
    assert 0.3 < machine.efficiency["tensor"] <= 1.0
    assert 0.3 < machine.efficiency["attention"] < 0.7
    assert not any("not calibrated" in line for line in machine.assumptions)


def test_a_tier_is_like_one_of_another_machine(tmp_path: Path) -> None:
    like = CALIBRATION[: CALIBRATION.rindex("[[tiers]]")] + '[[tiers]]\nname = "wire"\nlike = "h100: EFA"\n'
    machine = load_machine(write(tmp_path, calibration=like))
    assert [a.latency for a in machine.tiers[1].algorithms] == [
        a.latency for a in load_machine("h100").tiers[1].algorithms
    ]
    taken = [fact for path, fact in machine.facts.items() if path.startswith("calibration.tiers.wire.")]
    assert {(fact.kind, fact.source) for fact in taken} == {("assumed", "as h100: EFA")}
    wrong = complaint(write(tmp_path, calibration=like.replace("EFA", "IB")))
    assert "tiers.wire.like: got 'IB', expected one of NVSwitch, EFA: mend the file" in wrong
    wrong = complaint(write(tmp_path, calibration=like.replace("h100", "h1000")))
    assert "got 'h1000', expected a machine with a calibration: mend extends or like" in wrong


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_machine_prices_collectives_inside_and_across_what_is_rented(name: str, kind: str) -> None:
    machine = load_machine(name)
    within = finite_ranks(tier.extents for tier in machine.tiers)
    inside, across = (float(collective_seconds(kind, 1e9, 2, stride, machine)) for stride in (1, within))
    both = axis_cost(kind, 2 * within, 1, machine)
    assert 1e-5 < inside < across < math.inf
    assert 0 < (1 - 1e-12) * both.optimum(1e9) <= both.seconds(1e9) < math.inf


BF16 = {
    **dict.fromkeys(("trn1", "trn1n", "inf2"), 190e12),
    **dict.fromkeys(("trn2", "trn2-3xlarge", "trn2-lnc1", "trn2-ultraserver"), 667e12),
    **dict.fromkeys(("trn3-gen1", "trn3-gen2"), 671e12),
    **dict.fromkeys(("a100-40", "a100-80", "dgx-a100-40", "dgx-a100"), 312e12),
    **dict.fromkeys(("h100", "h200", "dgx-h100", "dgx-h200"), 989e12),
    **dict.fromkeys(("b200", "dgx-b200"), 2250e12),
    **dict.fromkeys(("gb200-nvl72", "dgx-gb200"), 2500e12),
    "mi300x": 1307e12,
    "tpu-v4": 275e12,
    "tpu-v5e": 197e12,
    "tpu-v5p": 459e12,
    "tpu-v6e": 918e12,
    "tpu-v7": 2307e12,
}
"""Dense bf16 peak of a chip as everybody quotes it [FLOP/s]."""


@pytest.mark.parametrize("name", SHIPPED)
def test_the_matrix_peak_of_a_shipped_machine_is_what_everybody_quotes_within_what_its_clock_allows(name: str) -> None:
    machine = load_machine(name)
    assert machine.quoted_flops["bf16"] * machine.ranks_per_chip == pytest.approx(BF16[name])
    assert machine.tensor_flops["bf16"] == pytest.approx(machine.quoted_flops["bf16"], rel=0.07)
    assert machine.tensor_flops["f32"] <= machine.tensor_flops["bf16"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_multiply_add_counts_as_one_result_of_the_vector_engine(name: str) -> None:
    """No vector engine gives more than a fourteenth of the FLOP/s of its chip's matrix engine."""
    machine = load_machine(name)
    assert machine.elementwise["vector"] < machine.tensor_flops["bf16"] / 14
    assert machine.elementwise["scalar"] <= 2 * machine.elementwise["vector"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_machine_has_a_price_with_a_date_or_none(name: str) -> None:
    machine = load_machine(name)
    assert all(offer.usd_per_hour > 0 and offer.date.startswith("20") and offer.region for offer in machine.offers)
    chip = machine.usd_per_chip_hour
    assert math.isnan(chip) if not machine.offers else 0.5 < chip < 20
    assert 100 <= machine.watts_per_chip <= 1500
    assert machine.facts["power.chip"].confidence in ("high", "medium", "low")


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
        *("name", "title", "tiers", "instance", "offers", "facts", "assumptions", "sources")
    }


def test_links_between_the_instances_of_an_ultraserver_reach_what_those_inside_do_as_long_as_none_is_measured() -> None:
    _, torus, z, _ = load_machine("trn2-ultraserver").tiers
    assert z.algorithms == torus.algorithms


DGX = {
    "dgx-a100-40": "a100-40",
    "dgx-a100": "a100-80",
    "dgx-h100": "h100",
    "dgx-h200": "h200",
    "dgx-b200": "b200",
    "dgx-gb200": "gb200-nvl72",
}
"""Servers that InfiniBand joins -> those of AWS with the same chips."""


@pytest.mark.parametrize(("name", "other"), DGX.items())
def test_a_dgx_differs_from_the_server_with_its_chips_by_the_network_and_the_price(name: str, other: str) -> None:
    dgx, aws = load_machine(name), load_machine(other)
    assert dgx.tiers[0] == aws.tiers[0]
    assert ([tier.name for tier in dgx.tiers[1:]], dgx.offers) == (["InfiniBand"], ())
    assert {f.name for f in fields(Machine) if getattr(dgx, f.name) != getattr(aws, f.name)} <= {
        *("name", "title", "tiers", "instance", "offers", "usd_per_chip_hour", "facts", "assumptions", "sources")
    }


INTEL, AMD = (1.0, 1.9, 3.4), (2.0, 2.0, 6.0)
"""Step inside a server by protocol: a hop over NVLink, but no less than the host takes to post it [us]."""
TREE_LL128 = 0.92 * 120 / 128
TREE = {"LL": (6.8, 5.0, 1.0), "LL128": (14.0, 8.5, TREE_LL128), "": (8.4, 14.0, 0.92)}
RING = {"LL": (6.6, 2.7, 1.0), "LL128": (14.0, 4.0, 0.92), "": (8.4, 14.0, 1.0)}
"""Protocol -> base and step over the network, as NCCL's tuning has them [us], and share of what a ring reaches."""
CORRECTION = {"LL": (1.0, 1.0), "LL128": (0.6, 1.0), "": (0.5, 1.0)}
"""Of trees, for the smallest and the largest messages."""


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("servers", [2, 4, 8, 16, 64])
@pytest.mark.parametrize(
    ("name", "link", "slowest", "inner"), [("dgx-h100", 50e9, 20.4e9, INTEL), ("dgx-a100", 25e9, 19e9, AMD)]
)
def test_collectives_over_infiniband_take_what_the_constants_of_nccl_say(
    name: str, link: float, slowest: float, inner: tuple[float, ...], servers: int, ranks: int
) -> None:
    """Of a server whose inside costs nothing: trees and rings of each protocol, the fastest of which runs."""
    inside, network = load_machine(name).tiers
    free = replace(tier(8, bandwidth=math.inf), name=inside.name)
    machine = replace(load_machine(name), tiers=(free, network))
    n, all_ranks = servers, servers * ranks
    reached = {p: slowest / 8 if p == "LL" else 0.97 * link for p in TREE}
    for large, size in enumerate((2048.0, 4.0 * GIB)):
        carried = size / ranks
        rings, trees = [], []
        for hop, protocol in zip(inner, TREE, strict=True):
            base, step, share = RING[protocol]
            around = (n - 1) * step + (n * (ranks - 1)) * hop
            rings.append((base * 1e-6, around * 1e-6 + (1 - 1 / all_ranks) * carried / (share * reached[protocol])))
            base, step, share = TREE[protocol]
            rate = share * CORRECTION[protocol][large] * reached[protocol]
            trees.append(base * 1e-6 + 2 * (math.log2(n) * step * 1e-6 + min(n, 4) / 4 * carried / rate))
        expected = {
            "all_gather": min(base + once for base, once in rings),
            "reduce_scatter": min(base + once for base, once in rings),
            "all_reduce": min(*trees, *(base + 2 * once for base, once in rings)),
        }
        for kind, seconds in expected.items():
            got = float(collective_seconds(kind, size, all_ranks, 8 // ranks, machine))
            assert got == pytest.approx(seconds, rel=2e-3)  # shares of the file have three digits


@pytest.mark.parametrize(("size", "seconds"), [(2**29, 2984.6e-6), (2**31, 11163e-6), (2**33, 43980e-6)])
def test_large_all_reduces_of_twelve_servers_take_what_was_published(size: int, seconds: float) -> None:
    """96 H100 over InfiniBand NDR (CoreWeave: nccl-tests README), by which no number was fitted."""
    assert float(collective_seconds("all_reduce", size, 96, 1, load_machine("dgx-h100"))) == pytest.approx(
        seconds, rel=0.1
    )


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
    assert mine.elementwise == dict.fromkeys(ELEMENTWISE, 4e12 / 2)
    assert mine.tensor_flops == {"bf16": 100e12 / 2}
    assert mine.quoted_flops == {"bf16": 120e12 / 2}
    assert mine.kernel_launch_seconds == pytest.approx(3e-6)
    assert mine.step_overhead_seconds == pytest.approx(5e-3)
    assert (mine.usd_per_chip_hour, mine.watts_per_chip) == (24 / 8, 300)
    assert mine.group_sizes == {"tp": (1, 2)}
    assert [tier.bandwidth for tier in mine.tiers] == [(10e9 * 2 / 2,) * 2, (1e9,)]
    assert mine.sources == ("a clock", "a guess", "a leaflet, page 1", "a price list, page 1")


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_described_in_one_new_file_prices_collectives(kind: str, tmp_path: Path) -> None:
    mine = load_machine(write(tmp_path))
    inside, across = (float(collective_seconds(kind, 1e9, 2, stride, mine)) for stride in (1, 8))
    assert 1e-6 < inside < across < math.inf


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_a_machine_described_in_one_new_file_runs_a_program(calibration: str | None, tmp_path: Path) -> None:
    mine = load_machine(write(tmp_path, calibration=calibration))
    one = predict(mlp_graph(), Layout(mb=6, global_batch=24, recompute="none"), mine)
    more = predict(mlp_graph(), Layout(dp=4, tp=2, mb=6, global_batch=24, recompute="none"), mine)
    assert 0 < one.step_time_s < math.inf
    assert {float(found.seconds) for found in one.collectives} == {0.0}
    spent = {found.axis: float(found.seconds) for found in more.collectives if found.axis}
    assert spent.keys() >= {"dp", "tp"}
    assert all(0 < seconds < math.inf for seconds in spent.values())
    assert more.cost_usd_per_hour == pytest.approx(24 / 8 * 4)


EXAMPLES = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "machines.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_files_that_the_documentation_shows_are_machines(example: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(example)
    assert check_machine(file) == []
    mine = load_machine(file)
    estimate = predict(mlp_graph(), Layout(dp=2, tp=4, mb=6, global_batch=24, recompute="none"), mine)
    assert 0 < estimate.step_time_s < math.inf


def test_the_documentation_lists_the_shipped_machines_with_their_numbers() -> None:
    page = (ROOT / "docs" / "machines.md").read_text().partition("## The machines that ship")[2]
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows] == list(SHIPPED)
    for name, _, ranks, peak, memory, bandwidth, usd, watts in rows:
        machine = load_machine(name)
        chip = machine.ranks_per_chip
        said = [machine.quoted_flops["bf16"] / 1e12, machine.memory_bytes / GIB, machine.memory_bandwidth / 1e12]
        assert [float(peak), float(memory), float(bandwidth)] == pytest.approx([x * chip for x in said], rel=1e-3)
        assert int(ranks) == chip
        assert usd == (f"{machine.usd_per_chip_hour:.2f}" if machine.offers else "unknown")
        fact = machine.facts["power.chip"]
        assert watts == f"{fact.value:g}{' assumed' * (fact.kind == 'assumed')}"


def test_the_documentation_has_every_key_of_a_machine_file() -> None:
    page = (ROOT / "docs" / "machines.md").read_text()
    for model in (MachineSpec, Chip, Instance, Offer, TierSpec, Limits, Check, Number):
        assert [key for key in model.model_fields if not re.search(rf"`\[*{key}\]*`", page)] == []


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
    *_, shares, fabric = found.assumptions
    assert shares.startswith("assumed, not measured: efficiency.tensor 0.9, ")
    assert shares.endswith("overlap.data 0.4")
    assert fabric == "assumed of the fabric: all of board (a clock); all of wire (a clock)"
    sure = load_machine(write(tmp_path, calibration=CALIBRATION.replace('"assumed"', '"measured"')))
    assert sure.assumptions == ("as I say",)


def test_what_nobody_measured_of_a_tier_is_said_in_one_phrase(tmp_path: Path) -> None:
    guessed = '{ value = 0.1, unit = "1", kind = "assumed", source = "a guess" }'
    board = changed(CALIBRATION, ALGORITHM, ALGORITHM.replace(ALGORITHM.splitlines()[-1], f"all_to_all = {guessed}"))
    both = changed(
        board,
        'relay = { value = 10, unit = "GB/s", kind = "measured"',
        'relay = { value = 10, unit = "GB/s", kind = "assumed"',
    )
    wire = both[: both.rindex("[[tiers]]")] + '[[tiers]]\nname = "wire"\nlike = "board"\n'
    said = {
        name: load_machine(write(tmp_path, calibration=text)).assumptions[-1]
        for name, text in (("b", board), ("w", wire))
    }
    assert said == {
        "b": "assumed of the fabric: all_to_all of board (a guess)",
        "w": "assumed of the fabric: relay, all_to_all of board (a clock, a guess); all of wire (as board)",
    }


# -- faults -------------------------------------------------------------------------------------------------------

MEMORY = 'memory = { value = 64, unit = "GiB", kind = "datasheet", source = "a leaflet, page 1" }'
EXTENTS = "extents = { value = [2, 8]"
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
    "uneven ranks": ("value = 2,", "value = 3,", "chip.ranks.value", "got 3, expected a divisor of the 16 ranks"),
    "no chips": ("value = 8,", "value = 0,", "instance.chips.value", "got 0, expected a number greater"),
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
    "topology": ('"torus"', '"mesh"', "tiers.board.kind", "got 'mesh', expected 'torus', 'switch' or 'full'"),
    "twin tiers": ('"wire"', '"board"', "tiers.board", "got the name 'board' 2 times, expected it once"),
    "unknown axis": ("tp = {", "xp = {", "groups.xp", "got {'value': [1, 2], "),
    "empty group": ("value = [1, 2]", "value = [0, 2]", "groups.tp.value.0", "got 0, expected a number greater"),
    "twin offers": (
        "[power]",
        '[[offers]]\nname = "list"\nregion = "there"\ndate = "2026"\n'
        'price = { value = 2, unit = "USD/h", kind = "datasheet", source = "a price list" }\n[power]',
        "offers.list",
        "got the name 'list' 2 times, expected it once",
    ),
    "offer without date": ('date = "2026-11"\n', "", "offers.list.date", "got nothing, expected this key"),
    "free offer": ("value = 24,", "value = 0,", "offers.list.price.value", "got 0, expected a number greater"),
    "price in coins": ('"USD/h"', '"EUR/h"', "offers.list.price.unit", "got 'EUR/h', expected one of USD/h"),
    "slice of other dims": (
        EXTENTS,
        'shapes = { value = [[2]], unit = "1", kind = "datasheet", source = "a leaflet" }\n' + EXTENTS,
        "tiers.board.shapes.value",
        "got [2], expected shapes that fit into [2, 8]",
    ),
    "slice beyond the whole": (
        EXTENTS,
        'shapes = { value = [[4, 2]], unit = "1", kind = "datasheet", source = "a leaflet" }\n' + EXTENTS,
        "tiers.board.shapes.value",
        "got [4, 2], expected shapes that fit into [2, 8]",
    ),
    "undersubscribed": (
        EXTENTS,
        'oversubscription = { value = 0.5, unit = "1", kind = "assumed", source = "a guess" }\n' + EXTENTS,
        "tiers.board.oversubscription.value",
        "got 0.5, expected a number greater",
    ),
    "flat tiles": (
        "[chip.tensor]",
        'tiles = { value = [[8, 8]], unit = "1", kind = "datasheet", source = "a leaflet" }\n[chip.tensor]',
        "chip.tiles.value.0",
        "got [8, 8], expected ",
    ),
    "falling rows": (
        "[chip.tensor]",
        'descriptors = { value = [[64, 0.5], [64, 0.9]], unit = "B", kind = "datasheet", source = "a leaflet" }\n'
        "[chip.tensor]",
        "chip.descriptors.value",
        "got [64.0, 64.0], expected sizes that rise",
    ),
    "no instructions": (
        "[groups]",
        '[limits]\ninstructions = { value = 0, unit = "1", kind = "datasheet", source = "a leaflet" }\n[groups]',
        "limits.instructions.value",
        "got 0, expected a number greater",
    ),
    "sure": (
        'unit = "W", kind = "datasheet"',
        'unit = "W", confidence = "sure", kind = "datasheet"',
        "power.chip.confidence",
        "got 'sure', expected 'high', 'medium' or 'low'",
    ),
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
    assert message.endswith((": mend the file", *(f": write a unit of {name}" for name in DIMENSIONS)))


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
    "unknown algorithm": (
        '"ring"',
        '"star"',
        "tiers.board.algorithms.star.name",
        "got 'star', expected one of mesh, ",
    ),
    "falling curve": (
        "latency = { value = 2,",
        'curve = { value = [[2, 0.5], [1, 0.9]], unit = "MB", kind = "measured", source = "a clock" }\n'
        "latency = { value = 2,",
        "tiers.board.algorithms.ring.curve.value",
        "got [2.0, 1.0], expected sizes that rise",
    ),
    "curve of nothing": (
        "latency = { value = 2,",
        'curve = { value = [[0, 0.5]], unit = "MB", kind = "measured", source = "a clock" }\nlatency = { value = 2,',
        "tiers.board.algorithms.ring.curve.value.0.0",
        "got 0, expected a number greater",
    ),
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


@pytest.mark.parametrize(
    ("name", "chips", "extents"),
    [
        *(("gb200-nvl72", chips, 72) for chips in (1, 6, 35, 64, 71, 72, 144, 720)),
        ("gb200-nvl72", 128, 64),  # of two racks
        ("gb200-nvl72", 1024, 64),
        ("gb200-nvl72", 111, 37),  # of three
        ("h100", 6, 8),
        ("h100", 12, 6),  # of two servers
        ("h100", 28, 7),
        ("trn3-gen1", 96, 48),
    ],
)
def test_a_job_has_any_part_of_a_switch_or_as_much_of_each_of_the_fewest(name: str, chips: int, extents: int) -> None:
    machine = load_machine(name)
    part = slice_of(machine, check_chips(machine, chips))
    assert part.tiers[-2].extents == (extents,)
    assert slice_of(part, check_chips(part, chips)).tiers == part.tiers


@pytest.mark.parametrize("chips", [9, 13, 17, 9 * 11])
def test_less_than_half_of_each_server_would_be_more_servers_than_needed(chips: int) -> None:
    with pytest.raises(MachineError, match=rf"chips: got {chips}, expected 1 to 8 or a multiple of any of 4 to 8 \("):
        check_chips(load_machine("h100"), chips)


def test_racks_of_servers_are_used_alike() -> None:
    machine = load_machine("trn3-gen2")
    extents = {
        chips: [tier.extents[0] for tier in slice_of(machine, check_chips(machine, chips)).tiers[1:]]
        for chips in (3, 72, 9, 78, 144, 128)
    }
    assert extents == {
        3: [4, 18, 2, 0],
        72: [4, 18, 2, 0],
        9: [3, 18, 2, 0],  # three chips in each of three servers
        78: [3, 13, 2, 0],  # of 26 servers, 13 in each of two racks
        128: [4, 16, 2, 0],
        144: [4, 18, 2, 0],
    }
    with pytest.raises(MachineError, match="chips: got 11, expected 1 to 4, 6, 8 to 10, 12, 14 to 16, 18, "):
        check_chips(machine, 11)


def test_chips_stay_whole_and_links_to_chips_left_out_are_idle() -> None:
    pairs = fake_machine(ranks_per_chip=4, tiers=(tier(8), tier()))
    assert [slice_of(pairs, 4 * chips).tiers[0].extents for chips in (1, 2, 3, 4)] == [(8,), (8,), (4,), (8,)]
    full = fake_machine(tiers=(tier(8, kind="full", bandwidth=7.0), tier()))
    part = slice_of(full, 12).tiers[0]
    assert (part.extents, part.bandwidth) == ((6,), (5.0,))
    seconds = [float(collective_seconds("all_gather", 1.0, 3, 1, machine)) for machine in (full, slice_of(full, 12))]
    assert seconds[0] == seconds[1] == (3 - 1) / 3 / 2  # over the links to two others


def test_a_torus_without_shapes_is_filled_one_dim_after_the_other() -> None:
    machine = fake_machine(tiers=(tier(6, kind="torus", dims=2), tier()))
    with pytest.raises(MachineError, match=r"chips: got 4, expected 1 to 3, 6, 12, 18, 36 or a multiple of 36 \("):
        check_chips(machine, 4)


def test_a_bounded_fabric_takes_no_more_chips_than_it_has() -> None:
    machine = fake_machine(tiers=(tier(2, kind="torus", dims=2),))
    assert check_chips(machine, 4) == 4
    with pytest.raises(MachineError, match=r"chips: got 8, expected 1, 2, 4 \("):
        check_chips(machine, 8)


# -- slices and lines -----------------------------------------------------------------------------------------------

SLICES: Mapping[str, Mapping[int, tuple[int, ...]]] = {
    "tpu-v5p": {
        4: (2, 2, 1),
        8: (2, 2, 2),
        16: (2, 2, 4),
        32: (2, 4, 4),
        64: (4, 4, 4),
        512: (8, 8, 8),
        6144: (16, 16, 24),
    },
    "tpu-v5e": {1: (1, 1), 4: (2, 2), 32: (4, 8), 256: (16, 16)},
    "tpu-v7": {4: (2, 2, 1), 64: (4, 4, 4), 9216: (16, 24, 24)},
    "inf2": {1: (1,), 6: (6,), 12: (12,)},
}


@pytest.mark.parametrize("name", SLICES)
def test_a_job_gets_a_slice_of_a_torus_and_no_other_number_of_chips(name: str) -> None:
    machine = load_machine(name)
    for chips, shape in SLICES[name].items():
        part = slice_of(machine, check_chips(machine, chips))
        assert next(tier.extents for tier in part.tiers if tier.kind == "torus") == shape
    largest = max(SLICES[name])
    assert slice_of(machine, check_chips(machine, 2 * largest)).tiers == machine.tiers
    for chips in (3, largest + 1, largest + largest // 2):
        with pytest.raises(MachineError, match=f"or a multiple of {largest} "):
            check_chips(machine, chips)


def test_of_slices_with_as_many_chips_a_job_gets_the_most_cubic_one(tmp_path: Path) -> None:
    shapes = (
        'shapes = { value = [[1, 4], [2, 2], [2, 4], [2, 8]], unit = "1", kind = "datasheet", source = "a leaflet" }'
    )
    mine = load_machine(write(tmp_path, changed(MACHINE, EXTENTS, f"{shapes}\n{EXTENTS}")))
    assert [slice_of(mine, ranks).tiers[0].extents for ranks in (4, 8)] == [(2, 2), (2, 4)]


def rings(name: str, chips: int) -> list[bool]:
    """Which dims of a slice are rings."""
    machine = load_machine(name)
    part = slice_of(machine, check_chips(machine, chips))
    torus = next(tier for tier in part.tiers if tier.kind == "torus")
    return [closes(torus, extent) for extent in torus.extents]


def test_slices_smaller_than_a_cube_have_no_rings_and_rows_of_sixteen_have() -> None:
    assert [rings("tpu-v5p", chips) for chips in (4, 16, 32)] == [[False] * 3] * 3
    assert [rings("tpu-v5p", chips) for chips in (64, 128, 6144)] == [[True] * 3] * 3
    assert [rings("tpu-v5e", chips) for chips in (16, 128, 256)] == [[False, False], [False, True], [True, True]]
    assert [rings("inf2", chips) for chips in (6, 12)] == [[False], [True]]


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter", "all_reduce", "all_to_all"])
def test_a_line_has_half_the_bandwidth_of_a_ring(kind: str) -> None:
    ring = tier(8, kind="torus", bandwidth=1e9)
    seconds = [
        float(collective_seconds(kind, 1e9, 8, 1, fake_machine(tiers=(each,))))
        for each in (ring, replace(ring, wrap=16))
    ]
    assert seconds[1] == pytest.approx(2 * seconds[0])
    assert collective_seconds(kind, 1e9, 8, 1, fake_machine(tiers=(replace(ring, wrap=8),))) == seconds[0]


def test_a_shift_along_a_line_comes_back_on_the_other_side_of_its_links() -> None:
    ring = tier(8, kind="torus", bandwidth=2.0)
    line = replace(ring, wrap=16)
    for stride, around, along in ((1, 1.0, 1.0), (2, 1.5, 2.0), (4, 2.0, 4.0)):
        seconds = [float(collective_seconds("permute", 1.0, 2, stride, fake_machine(tiers=(t,)))) for t in (ring, line)]
        assert seconds == pytest.approx([around, along])


def test_dims_that_wrap_together_are_lines_where_one_is_short() -> None:
    torus = replace(tier(4, kind="torus", dims=2), wrap=4, together=True)
    assert [closes(torus, 4), closes(replace(torus, extents=(2, 4)), 4)] == [True, False]
    assert closes(replace(torus, extents=(2, 4), together=False), 4)


def test_an_oversubscribed_tier_carries_so_much_less(tmp_path: Path) -> None:
    said = 'oversubscription = { value = 4, unit = "1", kind = "assumed", source = "a guess" }\nextents = { value = [0]'
    plain, shared = (
        load_machine(write(tmp_path)),
        load_machine(write(tmp_path, changed(MACHINE, "extents = { value = [0]", said))),
    )
    assert shared.tiers[1].bandwidth == (plain.tiers[1].bandwidth[0] / 4,)
    assert shared.tiers[0] == plain.tiers[0]
    assert check_machine(tmp_path / "mine.toml") == []


def test_a_rank_relays_no_more_than_an_oversubscribed_tier_carries(tmp_path: Path) -> None:
    said = 'oversubscription = { value = 4, unit = "1", kind = "assumed", source = "a guess" }\n' + EXTENTS
    assert check_machine(write(tmp_path, MACHINE, CALIBRATION)) == []
    (finding,) = check_machine(write(tmp_path, changed(MACHINE, EXTENTS, said), CALIBRATION))
    assert "tiers.board.relay: got more than the tier gives a rank, expected at most 2.50 GB/s" in finding


# -- extends --------------------------------------------------------------------------------------------------------

VARIANT = """
extends = "mine.toml"
name = "yours"
title = "Mine, changed"
"""


def vary(folder: Path, text: str = "", *, machine: str = MACHINE, calibration: str | None = None) -> Path:
    """Write `mine.toml`, and `yours.toml`, which extends it."""
    write(folder, machine, calibration)
    (folder / "yours.toml").write_text(VARIANT + text)
    return folder / "yours.toml"


def test_a_file_that_extends_another_says_only_what_differs(tmp_path: Path) -> None:
    yours = load_machine(
        vary(tmp_path, '[chip]\nmemory = { value = 8, unit = "GiB", kind = "measured", source = "a scale" }\n')
    )
    mine = load_machine(tmp_path / "mine.toml")
    assert (yours.name, yours.title, yours.memory_bytes) == ("yours", "Mine, changed", 4 * GIB)
    assert {f.name for f in fields(Machine) if getattr(mine, f.name) != getattr(yours, f.name)} == {
        *("name", "title", "memory_bytes", "facts", "assumptions", "sources")
    }
    assert yours.facts["chip.memory"] == Fact(value=8, unit="GiB", kind="measured", source="a scale")


def test_a_number_replaces_the_whole_number_below_and_not_its_keys(tmp_path: Path) -> None:
    below = changed(MACHINE, 'unit = "GiB", kind = "datasheet"', 'unit = "GiB", note = "old", kind = "datasheet"')
    above = '[chip]\nmemory = { value = 8, unit = "GiB", kind = "measured", source = "a scale" }\n'
    assert load_machine(vary(tmp_path, above, machine=below)).facts["chip.memory"].note == ""
    with pytest.raises(MachineError, match=r"chip\.memory\.unit: got nothing"):
        load_machine(vary(tmp_path, "[chip]\nmemory = { value = 8 }\n"))


def test_named_lists_keep_the_order_of_the_file_above_and_complete_its_items(tmp_path: Path) -> None:
    wire = '[[tiers]]\nname = "wire"\nlink = { value = 16, unit = "Gbit/s", kind = "assumed", source = "a guess" }\n'
    mine, alone = load_machine(write(tmp_path)), load_machine(vary(tmp_path, wire))
    assert [t.name for t in alone.tiers] == ["wire"]
    assert (alone.tiers[0].bandwidth, alone.tiers[0].latency) == ((2e9,), mine.tiers[1].latency)
    both = load_machine(vary(tmp_path, '[[tiers]]\nname = "board"\n' + wire))
    assert both.tiers[0] == mine.tiers[0]
    assert load_machine(vary(tmp_path)).tiers == mine.tiers


def test_offers_are_completed_replaced_or_taken_away(tmp_path: Path) -> None:
    price = 'price = { value = 32, unit = "USD/h", kind = "datasheet", source = "a price list" }\n'
    cheaper = load_machine(vary(tmp_path, f'[[offers]]\nname = "list"\n{price}'))
    assert [(o.name, o.region, o.usd_per_hour) for o in cheaper.offers] == [("list", "here", 32.0)]
    assert cheaper.usd_per_chip_hour == 4
    spot = load_machine(vary(tmp_path, f'[[offers]]\nname = "spot"\nregion = "there"\ndate = "2026"\n{price}'))
    assert [o.name for o in spot.offers] == ["spot"]
    assert load_machine(vary(tmp_path)).offers == load_machine(tmp_path / "mine.toml").offers
    free = load_machine(vary(tmp_path, "offers = []\n"))
    assert free.offers == ()
    assert math.isnan(free.usd_per_chip_hour)


def test_the_first_offer_is_the_one_that_costs_are_reckoned_with(tmp_path: Path) -> None:
    spot = '[[offers]]\nname = "spot"\nregion = "here"\ndate = "2026"\n'
    spot += 'price = { value = 8, unit = "USD/h", kind = "measured", source = "a look" }\n'
    last = load_machine(write(tmp_path, changed(MACHINE, "[power]", f"{spot}[power]")))
    first = load_machine(write(tmp_path, changed(MACHINE, "[[offers]]", f"{spot}[[offers]]")))
    assert [o.name for o in last.offers] == ["list", "spot"]
    assert (last.usd_per_chip_hour, first.usd_per_chip_hour) == (3, 1)


def test_a_check_of_numbers_that_the_file_above_changes_is_dropped_and_others_hold(tmp_path: Path) -> None:
    changing = '[chip]\nmemory = { value = 8, unit = "GiB", kind = "measured", source = "a scale" }\n'
    assert check_machine(vary(tmp_path, changing)) == []
    wrong = changed(MACHINE, "equals = { value = 512", "equals = { value = 500")
    assert len(check_machine(vary(tmp_path, machine=wrong))) == 1
    assert check_machine(vary(tmp_path, changing, machine=wrong)) == []
    own = (
        '[[checks]]\nof = "chip.ranks"\nequals = { value = 3, unit = "1", kind = "datasheet", source = "a leaflet" }\n'
    )
    assert len(check_machine(vary(tmp_path, own + "within = 0.0\n", machine=wrong))) == 2


def test_a_file_may_extend_one_that_extends_another_each_named_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    vary(tmp_path, '[power]\nchip = { value = 7, unit = "W", kind = "measured", source = "a meter" }\n')
    third = tmp_path / "deep" / "third.toml"
    third.write_text('extends = "../yours.toml"\nname = "third"\n')
    assert (load_machine(third).name, load_machine(third).title) == ("third", "Mine, changed")
    assert (load_machine(third).watts_per_chip, load_machine(third).usd_per_chip_hour) == (7, 3)


def test_a_file_may_extend_a_shipped_machine(tmp_path: Path) -> None:
    file = tmp_path / "half.toml"
    file.write_text(
        'extends = "trn2"\nname = "half"\ntitle = "half the network"\n[[tiers]]\nname = "chip"\n'
        '[[tiers]]\nname = "NeuronLink XY"\n[[tiers]]\nname = "EFA"\n'
        'oversubscription = { value = 2, unit = "1", kind = "assumed", source = "a guess" }\n'
    )
    trn2, half = load_machine("trn2"), load_machine(file)
    assert half.tiers[:2] == trn2.tiers[:2]
    assert half.tiers[2] == replace(trn2.tiers[2], bandwidth=(trn2.tiers[2].bandwidth[0] / 2,), oversubscription=2.0)
    assert half.efficiency == trn2.efficiency
    assert "half is priced with the calibration of trn2" in half.assumptions
    assert check_machine(file) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "mine.toml"', "mine.toml again, expected no circle: mend the file"),
        ('extends = "abacus"', "machine: got 'abacus', expected one of "),
        ('extends = "absent.toml"', "absent.toml: got a file that cannot be read"),
        ("extends = 3", "extends: got 3, expected the name or path of a machine: mend the file"),
    ],
)
def test_a_base_that_cannot_be_is_named(text: str, words: str, tmp_path: Path) -> None:
    assert words in complaint(write(tmp_path, f"{text}\n{MACHINE}"))


def test_a_circle_of_files_is_named(tmp_path: Path) -> None:
    file = vary(tmp_path, machine=f'extends = "yours.toml"\n{MACHINE}')
    assert complaint(file).endswith(f"{file} again, expected no circle: mend the file")


def test_a_fault_that_comes_from_below_is_told_of_the_file_that_was_asked_for(tmp_path: Path) -> None:
    file = vary(tmp_path, machine=changed(MACHINE, "value = 64", "value = 0"))
    assert complaint(file).startswith(f"{file}: chip.memory.value: got 0, expected a number greater")


# -- whose calibration ----------------------------------------------------------------------------------------------


def test_a_machine_without_calibration_has_that_of_the_machine_it_extends_and_says_so(tmp_path: Path) -> None:
    yours, mine = load_machine(vary(tmp_path, calibration=CALIBRATION)), load_machine(tmp_path / "mine.toml")
    assert (yours.efficiency, yours.overlap, yours.tiers) == (mine.efficiency, mine.overlap, mine.tiers)
    assert set(yours.assumptions) - set(mine.assumptions) == {"yours is priced with the calibration of mine"}


def test_its_own_calibration_comes_first(tmp_path: Path) -> None:
    file = vary(tmp_path, calibration=CALIBRATION)
    own = changed(changed(CALIBRATION, "value = 0.9", "value = 0.6"), '"mine"', '"yours"')
    (tmp_path / "yours.calibration.toml").write_text(own)
    assert load_machine(file).efficiency["tensor"] == 0.6
    assert load_machine(file).assumptions == load_machine(tmp_path / "mine.toml").assumptions


def test_tiers_that_the_calibration_below_lacks_or_knows_too_many_of_are_no_fault(tmp_path: Path) -> None:
    fewer = load_machine(vary(tmp_path, '[[tiers]]\nname = "wire"\n', calibration=CALIBRATION))
    assert [(t.name, t.algorithms[0].efficiency["all_gather"]) for t in fewer.tiers] == [("wire", 0.5)]
    new = '[[tiers]]\nname = "board"\n[[tiers]]\nname = "wire"\n[[tiers]]\nname = "web"\n' + WEB
    more = load_machine(
        vary(tmp_path, new.replace("value = [0]", "value = [9]"), calibration=CALIBRATION, machine=BOUNDED)
    )
    assert set(more.tiers[2].algorithms[0].efficiency.values()) == {1.0}
    assert "tier web of yours is not calibrated: collectives reach its full bandwidth" in more.assumptions
    assert check_machine(tmp_path / "yours.toml") == []


WEB = MACHINE[MACHINE.index('kind = "switch"') : MACHINE.index("[groups]")]
BOUNDED = MACHINE.replace("value = [0]", "value = [3]")


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_a_file_of_another_name_is_a_roofline_however_little_it_changes(
    tmp_path: Path, calibration: str | None
) -> None:
    """A calibration belongs to a file by its place and to a variant by what that extends; a copy has none."""
    write(tmp_path, calibration=calibration)
    (tmp_path / "copy.toml").write_text(MACHINE)
    assert load_machine(tmp_path / "copy.toml").assumptions[-1] == "mine is not calibrated: a pure roofline, no overlap"


ROOFLINE = [name for name in SHIPPED if not any(map(has_calibration, (name, *BELOW.get(name, ()))))]


@pytest.mark.parametrize("name", ROOFLINE)
def test_a_shipped_machine_without_calibration_says_so(name: str) -> None:
    assert load_machine(name).assumptions[-1] == f"{name} is not calibrated: a pure roofline, no overlap"
    assert load_machine(name).efficiency == dict.fromkeys(ENGINES, 1.0)


@pytest.mark.parametrize("name", [name for name in BELOW if name not in ROOFLINE and not has_calibration(name)])
def test_a_shipped_machine_with_the_calibration_of_another_says_so(name: str) -> None:
    base = next(below for below in BELOW[name] if has_calibration(below))
    assert f"{name} is priced with the calibration of {base}" in load_machine(name).assumptions
    assert load_machine(name).efficiency == load_machine(base).efficiency


# -- findings -----------------------------------------------------------------------------------------------------

CURVE = '{ value = %s, unit = "B", kind = "measured", source = "a clock" }'

FINDINGS = {
    "sum": (
        "equals = { value = 512",
        "equals = { value = 500",
        "checks.0: got chip.memory x 8 = 512 GiB, expected 500 GiB",
    ),
    "name": (
        'of = "chip.memory"',
        'of = "chip.memry"',
        "checks.0: got 'chip.memry', expected the path of a number: did you mean chip.memory?",
    ),
    "unit": (
        '"GiB", kind = "datasheet", source = "another',
        '"W", kind = "datasheet", source = "another',
        "checks.0: got 'W'",
    ),
    "source": (
        'source = "a leaflet, page 1"',
        'source = "(?)"',
        "chip.ranks.source: got '(?)', expected where this datasheet number",
    ),
    "place in the source": (
        'source = "a leaflet, page 1"',
        'source = "a leaflet, its table of prices"',
        "chip.ranks.note: got nothing, expected how the number is meant, or its section or page in source",
    ),
    "note that says nothing": (
        'source = "a leaflet, page 1"',
        'source = "a leaflet", note = " "',
        "chip.ranks.note: got nothing, expected how the number is meant",
    ),
    "reserve": ("value = 1, unit", "value = 64, unit", "chip.memory_reserve: got as much as chip.memory"),
    "quoted": (
        "[power]",
        '[chip.quoted.f8]\nvalue = 1\nunit = "FLOP/s"\nkind = "assumed"\nsource = "a guess"\n[power]',
        "chip.quoted.f8: got a peak that chip.tensor lacks, expected one of bf16",
    ),
    "unit slip of a peak": (
        'value = 0.12, unit = "PFLOP/s"',
        'value = 0.12, unit = "TFLOP/s"',
        "chip.quoted.bf16: got 0.0012 x chip.tensor.bf16, expected about as much",
    ),
    "matrix below vector": (
        "vector = { value = 4,",
        "vector = { value = 101,",
        "chip.tensor.bf16: got less than chip.vector, expected the matrix engine to be faster",
    ),
    "links beyond the memory": (
        'value = 10, unit = "GB/s"',
        'value = 10, unit = "TB/s"',
        "tiers.board.link: got 10.0 TB/s per rank, expected no more than its memory gives",
    ),
    "instance in parts": (
        "chips = { value = 8,",
        "chips = { value = 16,",
        "instance.chips.value: got 16, expected a divisor of the 8 chips that the bounded tiers hold",
    ),
    "chip in parts": (
        "[2, 8]",
        "[4, 4]",
        "chip.ranks.value: got 2, expected what inner extents multiply to, one of 1, 4, 16: a tier cuts it",
    ),
    "shares of rows": (
        "[chip.tensor]",
        f"descriptors = {CURVE % '[[512, 0.5], [1024, 1.25]]'}\n[chip.tensor]",
        "chip.descriptors.value: got 1.25, expected shares of at most 1",
    ),
    "never a ring": (
        EXTENTS,
        f'wrap = {{ value = 9, unit = "1", kind = "measured", source = "a look" }}\n{EXTENTS}',
        "tiers.board.wrap.value: got 9, expected at most 8, or no dim is ever a ring",
    ),
    "nothing to fold": (
        EXTENTS,
        f"folded = true\n{EXTENTS}",
        "tiers.board.folded: got true with extents [2, 8], expected a ring of 4",
    ),
    **{
        f"{key} of a switch": (
            'per = "rank"',
            f'per = "rank"\n{key} = {value}',
            f"tiers.wire.{key}: got it on a switch, expected it on a torus: leave it out",
        )
        for key, value in {
            "wrap": '{ value = 4, unit = "1", kind = "measured", source = "a look" }',
            "folded": "true",
            "together": "true",
        }.items()
    },
    "price of no date": ('"2026-11"', '"lately"', "offers.list.date: got 'lately', expected the year"),
    "power of no confidence": (
        'unit = "W", kind = "datasheet"',
        'unit = "W", kind = "assumed"',
        "power.chip.confidence: got nothing, expected high, medium or low",
    ),
    "derived of nothing": (
        'latency = { value = 7, unit = "us", kind = "measured"',
        'latency = { value = 7, unit = "us", kind = "derived"',
        "tiers.wire.latency: got a derived number, expected one of the checks to show what it follows from",
    ),
    "unit of a product": (
        'of = "chip.memory"\ntimes = 8\nequals = { value = 512, unit = "GiB"',
        'of = ["chip.memory", "instance.chips"]\nequals = { value = 512, unit = "GB/h"',
        "checks.0: got 'GB/h', expected a unit: one of FLOP/s",
    ),
    "number elsewhere": (
        'equals = { value = 512, unit = "GiB", kind = "datasheet", source = "another leaflet" }',
        'equals = "chip.memory_bandwidth"',
        "checks.0: got chip.memory x 8 = 5.49756e+11, expected 2e+12 within 0 % (chip.memory_bandwidth)",
    ),
    "quotient": (
        'of = "chip.memory"\ntimes = 8\n',
        'of = ["chip.memory", "instance.chips"]\nper = ["chip.ranks"]\n',
        "checks.0: got chip.memory x instance.chips / chip.ranks = 256 GiB, expected 512 GiB within 0 % (another",
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
    "curve above 1": (
        ALGORITHM,
        f"{ALGORITHM}curve = {CURVE % '[[512, 0.6], [1024, 1.01]]'}\n",
        "tiers.board.algorithms.ring.curve.value: got 1.01, expected shares of at most 1",
    ),
    "curve that falls": (
        ALGORITHM,
        f"{ALGORITHM}curve = {CURVE % '[[512, 0.5], [1024, 0.4], [2048, 0.6]]'}\n",
        "tiers.board.algorithms.ring.curve.value: got 0.4 after 0.5, expected shares that do not fall as sizes rise",
    ),
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
    "place in the source": (
        'kind = "measured"',
        'kind = "datasheet"',
        "efficiency.tensor.note: got nothing, expected how the number is meant, or its section or page in source",
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


PLACES = (
    'source = "a leaflet, section Memory"',
    'source = "a leaflet, Table 4"',
    'source = "a leaflet, p. 7"',
    'source = "a.leaflet/page#memory"',
    'source = "a leaflet", note = "per chip"',
)


@pytest.mark.parametrize("said", PLACES)
def test_a_published_number_is_found_by_its_place_or_told_by_a_note(said: str, tmp_path: Path) -> None:
    assert check_machine(write(tmp_path, changed(MACHINE, 'source = "a leaflet, page 1"', said))) == []


CHECKS = {
    "a product": ('["chip.memory", "instance.chips"]', "", '{ value = 512, unit = "GiB"'),
    "a quotient": (
        '["instance.chips", "chip.memory"]',
        'per = ["chip.ranks"]\ntimes = 2',
        '{ value = 512, unit = "GiB"',
    ),
    "one number": ('["power.chip"]', "", '{ value = 300, unit = "W"'),
    "a rate": ('"tiers.board.link"', "times = 4", '{ value = 320, unit = "Gbit/s"'),
}


@pytest.mark.parametrize("case", CHECKS)
def test_what_a_check_says_is_reckoned_in_units(case: str, tmp_path: Path) -> None:
    of, more, equals = CHECKS[case]
    check = f'of = {of}\n{more}\nequals = {equals}, kind = "datasheet", source = "another leaflet" }}'
    text = MACHINE[: MACHINE.index("[[checks]]")] + f"[[checks]]\n{check}\nwithin = 0.0\n"
    assert check_machine(write(tmp_path, text)) == []
    wrong = check.replace("equals = { value = ", "equals = { value = 1")
    assert len(check_machine(write(tmp_path, text.replace(check, wrong)))) == 1


def test_a_derived_number_is_shown_by_a_check_of_it_or_one_that_it_equals(tmp_path: Path) -> None:
    derived = changed(
        MACHINE,
        'latency = { value = 7, unit = "us", kind = "measured"',
        'latency = { value = 7, unit = "us", kind = "derived"',
    )
    for check in (
        'of = "tiers.wire.latency"\nequals = { value = 7000, unit = "ns", kind = "datasheet", source = "a leaflet" }',
        'of = "tiers.board.latency"\ntimes = 7\nequals = "tiers.wire.latency"',
        'of = "tiers.board.latency"\nper = ["tiers.wire.latency"]\n'
        'equals = { value = 0.14285714, unit = "1", kind = "datasheet", source = "a leaflet" }',
    ):
        assert check_machine(write(tmp_path, f"{derived}\n[[checks]]\n{check}\nwithin = 1e-7\n")) == []


def test_a_check_holds_up_to_its_tolerance(tmp_path: Path) -> None:
    for times, within, count in ((8.08, 0.011, 0), (8.08, 0.009, 1), (7.92, 0.011, 0), (7.92, 0.009, 1)):
        text = changed(MACHINE, "times = 8", f"times = {times}").replace("within = 0.0", f"within = {within}")
        assert len(check_machine(write(tmp_path, text))) == count


def test_what_does_not_load_is_an_error_of_the_check_too(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"chip\.memory\.value: got 0, expected a number greater than 0"):
        check_machine(write(tmp_path, changed(MACHINE, "value = 64", "value = 0")))


# -- on paper -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_the_drawing_of_a_fabric_fits_the_page_and_names_every_tier(name: str) -> None:
    machine = load_machine(name)
    lines = list(fabric(machine))
    assert max(map(len, lines)) <= 80
    starts = [line.split(":")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert starts == [tier.name for tier in machine.tiers]


TORUS = replace(tier(4, kind="torus", dims=2), extents=(2, 3))
DRAWINGS = {
    "plane of rings": (TORUS, [" ~  ~  ~", "~o--o--o~", " |  |  |", "~o--o--o~", " ~  ~  ~"]),
    "rows of rings": (replace(TORUS, wrap=3), ["~o--o--o~", " |  |  |", "~o--o--o~"]),
    "grid": (replace(TORUS, wrap=3, together=True), [" o--o--o", " |  |  |", " o--o--o"]),
    "tall grid": (replace(TORUS, extents=(9, 2), wrap=10), [*[" o--o", " |  |"] * 2, " o--o", " :  :", " o--o"]),
    "ring": (tier(5, kind="torus"), ["~o--o--o--o--o~"]),
    "line": (replace(tier(5, kind="torus"), wrap=9), [" o--o--o--o--o"]),
    "long line": (replace(tier(99, kind="torus"), wrap=100), [f" {'o--' * 14}..--o"]),
    "bus": (tier(3), ["[=======]", " |  |  |", " o  o  o"]),
    "endless bus": (tier(0), ["[===========]", " |  |  |", " o  o  o  .."]),
    "pair": (tier(2, kind="full"), ["o", "|", "o"]),
    "mesh": (tier(4, kind="full"), ["o---o", "| X |", "o---o"]),
    "odd mesh": (tier(5, kind="full"), ["o---o---o", "| X |", "o---o"]),
    "cube": (replace(tier(2, kind="torus", dims=3), wrap=4), ["  o--o    o--o", "  |  | == |  |", "  o--o    o--o"]),
    "four dims": (tier(2, kind="torus", dims=4), ["2x2x2x2: more dims than a page has"]),
}


@pytest.mark.parametrize("case", DRAWINGS)
def test_a_torus_is_drawn_as_a_grid_a_switch_as_a_bus_and_all_to_all_as_a_mesh(case: str) -> None:
    drawn, lines = DRAWINGS[case]
    assert [line.rstrip() for line in drawing(drawn)] == lines


def test_a_ring_of_planes_is_drawn_as_planes() -> None:
    plane = replace(tier(2, kind="torus", dims=2), wrap=4)
    assert drawing(tier(2, kind="torus"), plane) == ["  o--o    o--o  ", "~ |  | == |  | ~", "  o--o    o--o  "]
    assert drawing(tier(2, kind="torus"), tier(2)) == ["~o--o~"]


def test_what_has_no_price_says_so_and_offers_confidence_and_limits_are_shown() -> None:
    unknown = printed("mi300x")
    assert "unknown: none is published" in unknown
    assert "offer" not in unknown
    known = printed("trn2")
    assert "capacity block" in known
    assert "500 W per chip, confidence low" in known
    assert "5,000,000 instructions, 16 communicators" in known
    assert json.dumps(machine_json(load_machine("trn2")))


def printed(name: str) -> str:
    """What `hardware show` prints."""
    page = io.StringIO()
    Console(file=page, width=200).print(*machine_report(load_machine(name)), sep="\n")
    return page.getvalue()


def test_the_list_of_machines_fits_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert max(map(len, lines)) <= 100
    assert set(SHIPPED) < rows.keys()
    assert rows["mi300x"][-1] == "unknown"
    assert rows["h100"][-5:] == ["989", "79.65", "3.35", "1", "6.88"]


# -- units --------------------------------------------------------------------------------------------------------

SI = {
    "rate of FLOPs": "FLOP/s",
    "bandwidth": "byte/s",
    "size": "byte",
    "time": "s",
    "count": "dimensionless",
    "price": "USD/hour",
    "power": "W",
    "frequency": "Hz",
}
"""Dimension -> what its numbers are reckoned in."""


def test_every_unit_that_a_file_may_say_is_what_pint_makes_of_it() -> None:
    registry: Any = pint.UnitRegistry()
    registry.define("FLOP = [work]")
    registry.define("USD = [money]")
    assert SI.keys() == DIMENSIONS.keys()
    for dimension, units in DIMENSIONS.items():
        for unit, factor in units.items():
            quantity = registry(unit.replace("/h", "/hour")) if unit != "1" else registry.Quantity(1.0)
            assert quantity.check(registry(SI[dimension]).dimensionality), unit
            assert quantity.to(SI[dimension]).magnitude == pytest.approx(factor, rel=1e-12), unit


# -- where physical numbers live ----------------------------------------------------------------------------------

NOT_PHYSICAL = {
    ("predict.py", 1e6): "a million tokens, of which the price is given",
    ("report/timeline.py", 1e6): "microseconds, in which traces are written",
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
