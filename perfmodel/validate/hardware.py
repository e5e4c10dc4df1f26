"""From the hardware, network and precision columns of a row to a machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Kind:
    """Precision of a run: the preset of `perfmodel.models.precision` that is nearest to it, the type of the peak that
    MFU is quoted against, and in words what differs.
    """

    preset: str
    peak: str
    differs: str = ""


KINDS = (
    (r"fp4", Kind("nvfp4", "f4")),
    (r"mx", Kind("mxfp8", "f8")),
    (r"sub-channel|block", Kind("fp8-block", "f8")),
    (r"(fp8|f8).*-cs", Kind("fp8", "f8", "current scaling predicted as delayed scaling")),
    (r"fp8|f8", Kind("fp8", "f8")),
    (r"int8", Kind("fp8", "int8", "int8 matmuls predicted as fp8 ones")),
    (r"bf16|16-bit|amp", Kind("bf16", "bf16")),
    (r"fp16|f16", Kind("fp16", "bf16")),
    (r"fp32|f32", Kind("fp32", "f32")),
)
"""What runs call the precision of their matmuls, as regular expressions -> its kind; the first that fits counts."""

NOT_STATED = Kind("bf16", "bf16", "precision not stated, predicted in bf16")

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


def kind_of(row: Row) -> Kind:
    """The precision that a row states; raises RowError for one that is not known."""
    text = row.text("precision").lower()
    if not text:
        return NOT_STATED
    for pattern, kind in KINDS:
        if re.search(pattern, text):
            return kind
    raise RowError(f"precision {text!r} is not known")


def framework_name(row: Row, machine: Machine) -> str:
    """The framework that a row says ran it: of several that go by its words, or where none does, the machine's own."""
    text, own = row.text("framework"), machine.framework.name
    known = [name for name in framework_names() if re.search(_framework(name).runs, text, re.IGNORECASE)]
    return own if own in known or not known else known[0]


def machine_of(row: Row, *, calibrated: bool = True) -> tuple[Machine, list[str]]:
    """The machine of a row, with the network that it states, and what is different there."""
    name, differs = networked(row, machine_name(row))
    machine = _loaded(name, calibrated)
    if calibrated:
        machine = _loaded(name, calibrated, framework_name(row, machine))
        if not re.search(_framework(machine.framework.name).runs, row.text("framework"), re.IGNORECASE):
            differs.append(f"{row.text('framework') or 'no framework'} predicted as run by {machine.framework.name}")
    if (gbps := row.number("network_gbps")) is not None:
        machine = with_network(machine, gbps * GIGABIT)
    return machine, differs


def quoted_peak(machine: Machine, kind: Kind) -> float:
    """FLOP/s of a rank that MFU is quoted against: that of bf16 where a type has none of its own.

    Raises RowError where the machine has no matmuls of the kind.
    """
    name = "f8" if kind.peak == "int8" else kind.peak
    if name not in machine.tensor_flops:
        raise RowError(f"matmuls in {name}, which {machine.name} has no rate for")
    return machine.quoted_flops.get(name, machine.quoted_flops["bf16"])


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
