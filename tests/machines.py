"""Machines with round numbers, on which times can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from perfmodel.calibration_spec import GATHERS
from perfmodel.machine import ELEMENTWISE, ENGINES, Machine, Matrix
from perfmodel.machine_file import load_machine
from perfmodel.topology import Algorithm, Tier


def tier(extent: int = 0, *, bandwidth: float = 1.0, latency: float = 0.0, kind: str = "switch", dims: int = 1) -> Tier:
    """A tier that every algorithm uses fully; extent 0 means any number of ranks."""
    ideal = Algorithm(name="recursive", latency=latency, efficiency=dict.fromkeys(GATHERS, 1.0))
    return Tier(
        name=f"{kind} of {extent or 'any'}",
        kind=kind,
        extents=(extent,) * dims,
        bandwidth=(bandwidth,) * dims,
        relay=0.0,
        latency=latency,
        algorithms=(ideal,),
    )


def fake_machine(**changes: Any) -> Machine:
    """1 FLOP/s on every engine, 1 B/s of memory and network, nothing else costs; `changes` replace fields."""
    machine = Machine(
        name="fake",
        title="a machine with round numbers",
        ranks_per_chip=1,
        tensor_flops={"bf16": 1.0, "f16": 1.0, "f32": 1.0},
        quoted_flops={"bf16": 1.0},
        matrix=Matrix(),
        elementwise=dict.fromkeys(ELEMENTWISE, 1.0),
        memory_bytes=1e30,
        memory_reserve_bytes=0.0,
        memory_bandwidth=1.0,
        host_link=0.0,
        descriptors=(),
        efficiency=dict.fromkeys(ENGINES, 1.0),
        overlap={},
        kernel_launch_seconds=0.0,
        step_overhead_seconds=0.0,
        barrier_seconds=0.0,
        tiers=(tier(),),
        pipeline_depth=1.0,
        group_sizes={},
        limits={},
        instance="fake",
        chips_per_instance=1,
        offers=(),
        usd_per_chip_hour=3600.0,
        watts_per_chip=1.0,
        facts={},
        assumptions=(),
        sources=(),
    )
    return replace(machine, **changes)


def fat_tree(name: str, *, instances: int, oversubscription: float) -> Machine:
    """A shipped machine whose network is a leaf switch for so many instances, and a spine that carries less."""
    machine = load_machine(name)
    leaf = replace(machine.tiers[-1], extents=(instances,))
    (bandwidth,) = leaf.bandwidth
    spine = replace(
        machine.tiers[-1],
        name="spine",
        bandwidth=(bandwidth / oversubscription,),
        oversubscription=oversubscription,
        latency=leaf.latency + 5e-6,
        uplink=True,
    )
    return replace(machine, tiers=(*machine.tiers[:-1], leaf, spine))


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
