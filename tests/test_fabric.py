"""The fabric as a graph against published adjacency, and against what is counted by hand."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import networkx as nx
import pytest
from machines import fake_machine, fat_tree, tier

from perfmodel.allocation import check_chips, slice_of
from perfmodel.catalog import machine_names
from perfmodel.collective import collective_seconds
from perfmodel.errors import MachineError
from perfmodel.fabric import fabric
from perfmodel.machine import Machine
from perfmodel.machine_file import load_machine

GB = 1e9

NEIGHBOURS = {
    0: (12, 3, 4, 1),
    1: (13, 0, 5, 2),
    2: (14, 1, 6, 3),
    3: (15, 2, 7, 0),
    4: (0, 7, 8, 5),
    5: (1, 4, 9, 6),
    6: (2, 5, 10, 7),
    7: (3, 6, 11, 4),
    8: (4, 11, 12, 9),
    9: (5, 8, 13, 10),
    10: (6, 9, 14, 11),
    11: (7, 10, 15, 8),
    12: (8, 15, 0, 13),
    13: (9, 12, 1, 14),
    14: (10, 13, 2, 15),
    15: (11, 14, 3, 12),
}
"""Of the devices of a trn2.48xlarge and a trn1.32xlarge; aws-neuron-sdk, runtime-performance-tips.rst (neuron-ls)."""


def chips_of(graph: nx.DiGraph) -> list[int]:
    return [node for node, data in graph.nodes(data=True) if data["kind"] == "chip"]


def injection(graph: nx.DiGraph, node: Any = 0) -> float:
    """Bandwidth of all links out of a node [B/s]."""
    return math.fsum(data["bandwidth"] for _, _, data in graph.out_edges(node, data=True))


def path_latency(graph: nx.DiGraph, *nodes: Any) -> float:
    return math.fsum(graph.edges[edge]["latency"] for edge in itertools.pairwise(nodes))


# -- Trainium -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trn1", "trn1n", "trn2"])
def test_devices_of_an_instance_have_the_published_neighbours(name: str) -> None:
    graph = fabric(load_machine(name), 16)
    assert {chip: set(graph[chip]) for chip in graph} == {chip: set(near) for chip, near in NEIGHBOURS.items()}
    assert graph.number_of_edges() == 2 * 32
    assert nx.diameter(graph) == 4


def test_a_chip_knows_where_it_is_and_which_ranks_it_has() -> None:
    graph = fabric(load_machine("trn2"), 16)
    assert graph.nodes[7] == {"kind": "chip", "coordinates": (3, 1, 0), "ranks": range(28, 32)}
    assert list(itertools.chain(*(graph.nodes[chip]["ranks"] for chip in graph))) == list(range(64))
    assert graph.edges[7, 3] == {
        "bandwidth": 128 * GB,
        "latency": 1.5e-6,
        "tier": "NeuronLink XY",
        "dim": 1,
        "step": -1,
    }


def test_an_ultraserver_joins_the_same_chips_of_four_instances_in_rings_at_half_the_speed() -> None:
    graph = fabric(load_machine("trn2-ultraserver"), 64)
    for chip, near in NEIGHBOURS.items():
        for instance in range(4):
            here = chip + 16 * instance
            z = {chip + 16 * ((instance + step) % 4) for step in (1, -1)}
            assert set(graph[here]) == {other + 16 * instance for other in near} | z
            assert {graph.edges[here, other]["bandwidth"] for other in z} == {64 * GB}
    assert injection(graph) == 640 * GB


def test_half_of_an_instance_has_no_links_around_its_columns() -> None:
    graph = fabric(load_machine("trn2"), 8)
    whole = fabric(load_machine("trn2"), 16)
    assert set(graph.edges) == {edge for edge in whole.edges if max(edge) < 8}


def test_each_chip_has_a_port_to_the_network_between_instances() -> None:
    graph = fabric(load_machine("trn2"), 32)
    (switch,) = set(graph) - set(chips_of(graph))
    assert graph.nodes[switch] == {"kind": "switch"}
    assert set(graph[switch]) == set(range(32))
    assert {graph.edges[chip, switch]["bandwidth"] for chip in range(32)} == {25 * GB}
    assert path_latency(graph, 0, switch, 31) == pytest.approx(15e-6)
    assert injection(graph) == (4 * 128 + 25) * GB


# -- other machines -------------------------------------------------------------------------------------------------


def test_eight_gpus_with_a_link_to_each_other() -> None:
    graph = fabric(load_machine("mi300x"), 8)
    assert set(graph.edges) == set(itertools.permutations(range(8), 2))
    assert {data["bandwidth"] for _, _, data in graph.edges(data=True)} == {64 * GB}


@pytest.mark.parametrize(("name", "domain", "port"), [("h100", 8, 450), ("gb200-nvl72", 72, 900)])
def test_gpus_of_a_domain_hang_on_one_switch_and_all_on_the_network(name: str, domain: int, port: int) -> None:
    graph = fabric(load_machine(name), 2 * domain)
    switches = set(graph) - set(chips_of(graph))
    assert sorted(len(graph[switch]) for switch in switches) == [domain, domain, 2 * domain]
    assert [graph.edges[0, switch]["bandwidth"] / GB for switch in graph[0]] == [port, 50]


def test_on_rails_gpus_reach_those_of_the_same_number() -> None:
    network = replace(tier(bandwidth=2.0), rails=True)
    graph = fabric(fake_machine(tiers=(tier(8, bandwidth=9.0), network)), 32)
    rails = [node for node in graph if isinstance(node, tuple) and node[0] == network.name]
    assert sorted(sorted(graph[rail]) for rail in rails) == [[gpu, gpu + 8, gpu + 16, gpu + 24] for gpu in range(8)]


@pytest.mark.parametrize(
    ("name", "chips", "ends"),
    [
        ("tpu-v5e", 16, {2: 4, 3: 8, 4: 4}),  # a 4x4 slice is a grid
        ("tpu-v5e", 128, {3: 32, 4: 96}),  # 8x16: rings along the 16, and lines of 8
        ("tpu-v5e", 256, {4: 256}),  # the pod is a torus
        ("tpu-v4", 8, {3: 8}),  # 2x2x2: a cube of lines
        ("tpu-v4", 32, {3: 8, 4: 16, 5: 8}),  # 2x4x4: the optical links close whole cubes only
        ("tpu-v4", 64, {6: 64}),
        ("tpu-v5p", 128, {6: 128}),
    ],
)
def test_slices_of_tpus_close_rings_where_they_are_long_enough(name: str, chips: int, ends: dict[int, int]) -> None:
    graph = fabric(load_machine(name), chips)
    assert Counter(degree for _, degree in graph.out_degree()) == ends


def test_a_ring_of_two_has_both_its_links() -> None:
    graph = fabric(fake_machine(tiers=(tier(2, kind="torus", bandwidth=6.0), tier())), 2)
    assert [data["bandwidth"] for _, _, data in graph.edges(data=True)] == [6.0, 6.0]


def test_two_racks_of_trainium3_have_links_from_chip_to_chip() -> None:
    graph = fabric(load_machine("trn3-gen2"), 144)
    assert graph.edges[5, 77]["bandwidth"] == 2 * 64 * GB
    assert sorted(len(graph[node]) for node in graph if isinstance(node, tuple)) == [4] * 36 + [72] * 2


@pytest.mark.parametrize("name", machine_names())
def test_every_chip_of_every_machine_reaches_every_other_the_same_way_back(name: str) -> None:
    machine = load_machine(name)
    sizes = [n for n in range(1, 130) if fits(machine, n)]
    for chips in (sizes[0], sizes[len(sizes) // 2], sizes[-1]):
        graph = fabric(machine, chips)
        assert len(chips_of(graph)) == chips
        assert nx.is_strongly_connected(graph)
        assert all(
            graph.edges[end, start]["bandwidth"] == data["bandwidth"] for start, end, data in graph.edges(data=True)
        )


def fits(machine: Machine, chips: int) -> bool:
    try:
        return bool(check_chips(machine, chips))
    except MachineError:
        return False


# -- fat trees ------------------------------------------------------------------------------------------------------


def test_a_leaf_switch_passes_on_half_of_what_its_ports_bring_in() -> None:
    efa = load_machine("trn2").tiers[-1]
    halved = replace(efa, bandwidth=(efa.bandwidth[0] / 2,), oversubscription=2.0)
    graph = fabric(replace(load_machine("trn2"), tiers=(*load_machine("trn2").tiers[:-1], halved)), 32)
    leaf, other, top = ("EFA leaf", 0), ("EFA leaf", 1), ("EFA", 0)
    assert sorted(node for node in graph if isinstance(node, tuple)) == [top, leaf, other]
    assert graph.edges[0, leaf]["bandwidth"] == 25 * GB
    assert graph.edges[leaf, top]["bandwidth"] == 16 * 25 * GB / 2
    assert path_latency(graph, 0, leaf, top, other, 16) == pytest.approx(15e-6)


def test_tiers_of_switches_stand_on_each_other() -> None:
    graph = fabric(fat_tree("trn2", instances=4, oversubscription=2.0), 128)
    leaves = [("EFA", 0), ("EFA", 1)]
    assert set(graph["EFA", 0]) == {*range(64), ("spine", 0)}
    assert set(graph["spine", 0]) == set(leaves)
    assert graph.edges[0, leaves[0]]["bandwidth"] == 25 * GB
    assert graph.edges[leaves[0], ("spine", 0)]["bandwidth"] == 64 * 25 * GB / 2
    assert path_latency(graph, 0, leaves[0], 63) == pytest.approx(15e-6)
    assert path_latency(graph, 0, leaves[0], ("spine", 0), leaves[1], 64) == pytest.approx(20e-6)


NUMBER = 'kind = "assumed", source = "a guess"'
TREE = f"""
extends = "trn2"
name = "tree"
title = "two tiers of switches"
[[tiers]]
name = "chip"
[[tiers]]
name = "NeuronLink XY"
[[tiers]]
name = "EFA"
extents = {{ value = [4], unit = "1", {NUMBER} }}
[[tiers]]
name = "spine"
kind = "switch"
per = "chip"
uplink = true
extents = {{ value = [0], unit = "1", {NUMBER} }}
link = {{ value = 25, unit = "GB/s", {NUMBER} }}
links = {{ value = 1, unit = "1", {NUMBER} }}
oversubscription = {{ value = 2, unit = "1", {NUMBER} }}
latency = {{ value = 20, unit = "us", {NUMBER} }}
"""


def test_a_fat_tree_is_said_in_a_machine_file(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text(TREE)
    meant = fat_tree("trn2", instances=4, oversubscription=2.0)
    assert nx.utils.graphs_equal(fabric(load_machine(file), 128), fabric(meant, 128))
    file.write_text(TREE.replace("uplink = true", "rails = true"))
    assert (load_machine(file).tiers[-1].rails, load_machine(file).tiers[-1].uplink) == (True, False)


@pytest.mark.parametrize(
    ("tier", "key", "expected"),
    [
        ("NeuronLink XY", "rails", "it on a switch"),
        ("NeuronLink XY", "uplink", "it on a switch above a switch"),
        ("chip", "uplink", "it on a switch above a switch"),
        ("EFA", "uplink", "it on a switch above a switch"),
    ],
)
def test_only_switches_have_rails_and_uplinks(tier: str, key: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text(TREE.replace(f'name = "{tier}"', f'name = "{tier}"\n{key} = true'))
    with pytest.raises(MachineError, match=f"tiers.{tier}.{key}: got true, expected {expected}: mend the file"):
        load_machine(file)


@pytest.mark.slow
def test_a_hundred_thousand_chips_are_a_graph_too() -> None:
    chips = 131_072
    graph = fabric(fat_tree("trn2", instances=64, oversubscription=2.0), chips)
    leaves = chips // (64 * 16)
    assert graph.number_of_nodes() == chips + leaves + 1
    assert graph.number_of_edges() == chips * (4 + 2) + 2 * leaves


# -- the example ----------------------------------------------------------------------------------------------------


def explorer() -> ModuleType:
    path = Path(__file__).parent.parent / "examples" / "fabric_explorer.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "chips", "sizes"),
    [("trn2", 64, [2, 4, 16, 64, 256]), ("trn2", 8, [2, 4, 16, 32]), ("tpu-v5e", None, [2, 4, 16])],
)
def test_the_explorer_draws_a_machine(
    name: str, chips: int | None, sizes: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    explorer().main([name, "--out", str(tmp_path / "plots"), *([f"--chips={chips}"] if chips else [])])
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == [f"{name}-{what}.png" for what in ("bandwidth", "latency", "optimum")]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 30_000 for path in paths)
    ranks = (chips or 16) * load_machine(name).ranks_per_chip
    assert explorer().group_sizes(slice_of(load_machine(name), ranks), ranks) == sizes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trn2", "--chips", "7"], "chips: got 7, expected"),
        (["abacus"], "machine: got 'abacus', expected one of"),
        (["h100", "--chips", "1"], "chips: got 1, expected more than one rank: change --chips"),
    ],
)
def test_the_explorer_says_on_one_line_what_it_cannot_show(arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=words) as caught:
        explorer().main(arguments)
    assert "\n" not in str(caught.value)


def test_the_explorer_prints_what_it_would_draw(capsys: pytest.CaptureFixture[str]) -> None:
    explorer().main(["mi300x", "--chips", "8"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], int(row[1])) for row in rows[:2]] == [("all_gather", 2), ("all_gather", 8)]
    machine = load_machine("mi300x")
    seconds = float(collective_seconds("all_gather", 2.0**30, 8, 1, machine))
    assert float(rows[1][3]) == pytest.approx(7 / 8 * 2.0**30 / seconds / 1e9, rel=1e-3)
    assert rows[1][4].endswith("%")
    assert len(rows[-1]) == 4  # a permute


def test_the_explorer_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = explorer()
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"got no matplotlib, expected it: pip install 'rainier-perfmodel\[plots\]'"):
        module.main(["trn2", "--out", str(tmp_path)])


# -- faults ---------------------------------------------------------------------------------------------------------


def test_chips_that_do_not_fill_the_fabric_are_refused() -> None:
    with pytest.raises(MachineError, match="chips: got 24, expected"):
        fabric(load_machine("trn2"), 24)


def test_a_tier_that_cuts_chips_apart_is_refused() -> None:
    with pytest.raises(MachineError, match="fake: got 4 ranks on a chip, expected the extents of inner tiers to mult"):
        fabric(fake_machine(ranks_per_chip=4, tiers=(tier(8), tier())), 2)
