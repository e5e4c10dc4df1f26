"""From the hardware, network and precision columns of a row to a machine."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from perfmodel.catalog import machine_names
from perfmodel.framework_file import framework_names, read_framework
from perfmodel.framework_spec import FrameworkSpec
from perfmodel.machine import Machine
from perfmodel.machine_file import load_machine
from perfmodel.units import UNITS
from perfmodel.validate.rows import Row, RowError

MACHINES = (
    (r"\bH100\b", "h100"),
    (r"\bH200\b", "h200"),
    (r"\bGB200\b", "gb200-nvl72"),
    (r"\bB200\b", "b200"),
    (r"\bA100\b.*40 ?GB", "a100-40"),
    (r"\bA100\b", "a100-80"),
    (r"MI300X", "mi300x"),
    (r"TPU[ -]?v4", "tpu-v4"),
    (r"TPU[ -]?v5e", "tpu-v5e"),
    (r"TPU[ -]?v5p", "tpu-v5p"),
    (r"TPU[ -]?v6e|trillium", "tpu-v6e"),
    (r"TPU ?7x|ironwood", "tpu-v7"),
    (r"^trn1n", "trn1n"),
    (r"^trn1\b|trainium ?1", "trn1"),
    (r"^trn2\.3xlarge", "trn2-3xlarge"),
    (r"^trn2\b|trainium ?2", "trn2"),
)
"""Names that sources give to hardware, as regular expressions -> machine; the first that fits counts."""

INFINIBAND = {
    "a100-40": "dgx-a100-40",
    "a100-80": "dgx-a100",
    "h100": "dgx-h100",
    "h200": "dgx-h200",
    "b200": "dgx-b200",
    "gb200-nvl72": "dgx-gb200",
}
"""Machines of AWS, which EFA joins -> those with the same chips that InfiniBand joins, as most others have them."""
OF_AWS = r"\bEFA\b|\bAWS\b|\bp\d\w*[.-]\d*xlarge"
OF_NVIDIA = r"InfiniBand|\bIB\b"
"""What sources call either network, or what is rented with it, as regular expressions."""

PRECISIONS = (
    (r"fp4", "f4"),
    (r"fp8|f8", "f8"),
    (r"int8", "int8"),
    (r"bf16|fp16|f16|16-bit|amp", "bf16"),
    (r"fp32|f32", "f32"),
)
"""What runs call the precision of their matmuls, as regular expressions -> precision; the first that fits counts."""

GIGABIT = UNITS["Gbit/s"]


def machine_name(row: Row) -> str:
    """The machine that has the chips of a row, shipped or the path of a file; raises RowError where there is none."""
    text = row.text("hardware")
    if not text:
        raise RowError("no hardware")
    if text in machine_names() or text.endswith(".toml"):
        return text
    for pattern, name in MACHINES:
        if re.search(pattern, text, re.IGNORECASE):
            return name
    raise RowError(f"no machine file for {text}")


def networked(row: Row, name: str) -> tuple[str, list[str]]:
    """Of the machines with the chips of one, that with the network of a row, and what is different there.

    Where no network is stated, hardware by the name of a machine has that machine's, and other hardware what is usual.
    """
    stated, hardware = row.text("interconnect"), row.text("hardware")
    named = hardware == name and not stated
    if name not in INFINIBAND or named or re.search(OF_AWS, f"{hardware} {stated}", re.IGNORECASE):
        return name, []
    machine = INFINIBAND[name]
    one = row.need("n_devices") <= _loaded(machine, False).chips_per_instance
    if re.search(OF_NVIDIA, stated, re.IGNORECASE) or (one and not stated):
        return machine, []
    return machine, [f"{stated or 'network not stated,'} predicted as InfiniBand"]


def precision_of(row: Row) -> str | None:
    """bf16 for all 16-bit types, f8, int8, f4, f32; None where it is not stated."""
    text = row.text("precision").lower()
    if not text:
        return None
    for pattern, name in PRECISIONS:
        if re.search(pattern, text):
            return name
    raise RowError(f"precision {text!r} is not known")


def framework_name(row: Row, machine: Machine) -> str:
    """The framework that a row says ran it: of several that go by its words, or where none does, the machine's own."""
    text, own = row.text("framework"), machine.framework.name
    known = [name for name in framework_names() if re.search(_framework(name).runs, text, re.IGNORECASE)]
    return own if own in known or not known else known[0]


def machine_of(row: Row, *, calibrated: bool = True) -> tuple[Machine, list[str]]:
    """The machine of a row, with the network and at the precision that it states, and what is different there."""
    name, differs = networked(row, machine_name(row))
    machine = _loaded(name, calibrated)
    if calibrated:
        machine = _loaded(name, calibrated, framework_name(row, machine))
        if not re.search(_framework(machine.framework.name).runs, row.text("framework"), re.IGNORECASE):
            differs.append(f"{row.text('framework') or 'no framework'} predicted as run by {machine.framework.name}")
    if (gbps := row.number("network_gbps")) is not None:
        machine = with_network(machine, gbps * GIGABIT)
    precision = precision_of(row)
    if precision is None:
        differs.append("precision not stated, predicted in bf16")
    elif precision == "f32":
        raise RowError("matmuls in fp32, and the reference models compute in bf16")
    elif precision != "bf16":
        machine = eight_bit(machine)
        differs.append(f"{precision} matmuls predicted as bf16 ones at the f8 rate" if precision != "f8" else F8)
    return machine, differs


F8 = "fp8 predicted as bf16 at the f8 matmul rate"


@cache
def _loaded(name: str, calibrated: bool, framework: str | None = None) -> Machine:
    return load_machine(name, calibrated=calibrated, framework=framework)


@cache
def _framework(name: str) -> FrameworkSpec:
    return read_framework(name)


def with_network(machine: Machine, bandwidth: float) -> Machine:
    """The machine with so many bytes per second of each rank on its outermost tier, where that is a network.

    A rack of switched GPUs inside has links of its own there and is left as it is.
    """
    *inner, last = machine.tiers
    if last.extents != (0,) or not inner:
        return machine
    return replace(machine, tiers=(*inner, replace(last, bandwidth=(bandwidth,))))


def eight_bit(machine: Machine) -> Machine:
    """The machine with its 8-bit matmuls in the place of 16-bit ones; attention stays in 16 bits.

    Raises RowError where it has none.
    """
    peaks, quoted, matrix = machine.tensor_flops, machine.quoted_flops, machine.matrix
    if "f8" not in peaks:
        raise RowError(f"8-bit matmuls, which {machine.name} has no rate for")
    attention = machine.efficiency["attention"] * peaks["bf16"] / peaks["f8"]
    share = matrix.shares.get("f8", machine.efficiency["tensor"])
    return replace(
        machine,
        tensor_flops={**peaks, "bf16": peaks["f8"]},
        quoted_flops={**quoted, "bf16": quoted.get("f8", peaks["f8"])},
        efficiency={**machine.efficiency, "attention": attention},
        matrix=replace(matrix, shares={**matrix.shares, "bf16": share}),
    )
