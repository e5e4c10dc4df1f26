"""What the TPU compiler expects of matmuls, as a table: `python benchmarks/tpu_matmuls.py > tpu-kernels.csv`.

Needs `pip install libtpu`, but no TPU: the compiler works ahead of time for a topology that it is told, and states with
each op how many cycles it expects. Nothing runs, so the table holds estimates of the compiler, not measurements.
Products of matrices with vectors are not in it: of such ops, the estimates may lie below what the memory takes. With
names of machines as arguments, the table is of these.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from perfmodel import Machine, load_machine
from perfmodel.calibrate.model import BYTES
from perfmodel.calibrate.rows import DTYPES as ROWS
from perfmodel.units import to_si

COLUMNS = ("hardware", "op", "dtype", "m", "n", "k", "batch", "time_us", "kind", "source", "exclude")
SETTINGS = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
"""Without these, libtpu asks the cloud which TPU it stands on."""

IN_MEMORY = {"xla_msa_enable": False}
"""Operands start in HBM: of a program of one matmul, the compiler would fetch one of them before the clock runs."""

MEMORY = 0.5
"""Share of an estimate from which on the memory, at its peak, decides a row."""

BY_MEMORY = "decided by the memory, of which the compiler's estimates are no measure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A TPU as the tables call it, as the compiler does, and its machine file; options choose cores joined as one."""

    hardware: str
    machine: str
    topology: str
    options: Mapping[str, Any] = field(default_factory=dict)


CHIPS = (
    Chip(hardware="TPU v4", machine="tpu-v4", topology="v4:2x2x1", options={"chip_config_name": "megacore"}),
    Chip(hardware="TPU v5e", machine="tpu-v5e", topology="v5e:2x2"),
    Chip(hardware="TPU v5p", machine="tpu-v5p", topology="v5p:2x2x1"),
    Chip(hardware="TPU v6e", machine="tpu-v6e", topology="v6e:2x2"),
    Chip(hardware="TPU7x (Ironwood), one JAX device = half chip", machine="tpu-v7", topology="tpu7x:2x2x1"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """`batch` products of an m x k by a k x n matrix."""

    m: int
    k: int
    n: int
    batch: int = 1


SQUARES = [Shape(size, size, size) for size in (256, 512, 1024, 2048, 4096, 8192, 16384)]
LAYERS = [  # tokens times the weights of a layer, whole or a part of them
    Shape(tokens, k, n)
    for tokens, k, n in (
        (1024, 4096, 4096),
        (2048, 2048, 8192),
        (2048, 8192, 2048),
        (2048, 5120, 640),
        (4096, 4096, 1024),
        (4096, 4096, 14336),
        (4096, 8192, 3584),
        (8192, 1024, 4096),
        (8192, 6144, 24576),
        (8192, 10240, 512),
        (8192, 10240, 2560),
        (8192, 512, 10240),
        (16384, 2048, 2048),
        (16384, 8192, 1024),
        (16384, 768, 3072),
        (4096, 4096, 32000),
    )
]
GRADIENTS = [Shape(4096, 8192, 4096), Shape(2560, 8192, 10240), Shape(4096, 16384, 14336), Shape(1024, 16384, 1024)]
SHORT = [Shape(8192, 128, 8192), Shape(4096, 256, 4096), Shape(4096, 512, 4096)]
THIN = [Shape(256, 8192, 8192), Shape(512, 4096, 16384), Shape(512, 8192, 1024), Shape(256, 4096, 4096)]
ODD = [Shape(3000, 3000, 3000), Shape(2048, 1000, 8192), Shape(4096, 5120, 13824), Shape(1500, 4096, 11008)]
BATCHED = [
    Shape(2048, 128, 2048, 32),
    Shape(2048, 2048, 128, 32),
    Shape(1024, 4096, 14336, 8),
    Shape(512, 2048, 768, 64),
]
SHAPES = [*SQUARES, *LAYERS, *GRADIENTS, *SHORT, *THIN, *ODD, *BATCHED]
F8 = [*SQUARES[3:6], *LAYERS[5:11], *GRADIENTS[:3], *THIN[:2]]

DTYPES = {"bf16": jnp.bfloat16, "fp8": jnp.float8_e4m3fn}


def main() -> None:
    os.environ.update(SETTINGS)
    jax.config.update("jax_platforms", "cpu")
    rows = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    rows.writeheader()
    wanted = sys.argv[1:] or [chip.machine for chip in CHIPS]
    for chip in CHIPS:
        if chip.machine in wanted:
            rows.writerows(estimates(chip))


def estimates(chip: Chip) -> Iterator[dict[str, object]]:
    """Rows of the table, of one chip."""
    machine = load_machine(chip.machine, calibrated=False)
    device = topologies.get_topology_desc(topology_name=chip.topology, platform="tpu", **chip.options).devices[0]
    cases = [("bf16", shape) for shape in SHAPES]
    cases += [("fp8", shape) for shape in F8 if "f8" in machine.tensor_flops]
    for dtype, shape in cases:
        seconds = cycles(shape, DTYPES[dtype], device) / clock(machine)
        yield {
            "hardware": chip.hardware,
            "op": "gemm",
            "dtype": dtype,
            "m": shape.m,
            "n": shape.n,
            "k": shape.k,
            "batch": shape.batch,
            "time_us": f"{seconds * 1e6:.6g}",
            "kind": "derived",
            "source": f"TPU compiler's cost estimate (libtpu {version('libtpu')})",
            "exclude": BY_MEMORY if memory_seconds(shape, dtype, machine) > MEMORY * seconds else "",
        }


def cycles(shape: Shape, dtype: Any, device: Any) -> int:
    """Cycles that the compiler expects of all ops of a program that is one matmul."""
    here = SingleDeviceSharding(device)
    stack = (shape.batch,) if shape.batch > 1 else ()
    operands = [jax.ShapeDtypeStruct((*stack, *dims), dtype) for dims in ((shape.m, shape.k), (shape.k, shape.n))]
    product = jax.jit(
        lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.bfloat16), in_shardings=here, out_shardings=here
    )
    lowered = product.trace(*operands).lower(lowering_platforms=("tpu",))
    text = lowered.compile(compiler_options=IN_MEMORY).as_text()
    return sum(int(found) for found in re.findall(r'"estimated_cycles":"(\d+)"', text))


def clock(machine: Machine) -> float:
    """Cycles per second [Hz]."""
    fact = machine.facts["chip.clock"]
    assert isinstance(fact.value, float | int)
    return to_si(fact.value, fact.unit, "frequency")


def memory_seconds(shape: Shape, dtype: str, machine: Machine) -> float:
    """To read the operands and to write the results, in bf16, each once at the peak of the memory [s]."""
    operands = shape.m * shape.k + shape.k * shape.n
    size = operands * BYTES[ROWS[dtype]] + shape.m * shape.n * BYTES["bf16"]
    return shape.batch * size / machine.memory_bandwidth


if __name__ == "__main__":
    main()
