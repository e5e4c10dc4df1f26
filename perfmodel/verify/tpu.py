"""The one door to the TPU compiler, which the optional package libtpu brings along and which needs no TPU.

    python tpu.py TOPOLOGY MODULE...

compiles modules ahead of time for a topology that does not exist, in a child process: the compiler's set-up is global
to a process. Each MODULE is a file of MLIR bytecode; beside it goes MODULE.json, what the compiler says about memory,
or MODULE.error. Nothing here imports perfmodel.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import compiler
from jax._src.interpreters import mlir
from jax.experimental import topologies
from jaxlib import _jax
from jaxlib.mlir import ir

TOPOLOGIES: Mapping[int, str] = {
    1: "v5e:1x1",
    4: "v5e:2x2",
    8: "v5e:2x4",
    16: "v5e:4x4",
    32: "v5e:4x8",
    64: "v5e:8x8",
    128: "v5e:8x16",
    256: "v5e:16x16",
}
"""Topologies by number of chips, each of which is one device."""

ENVIRONMENT: Mapping[str, str] = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

OPTIONS: Mapping[str, str | bool] = {
    "xla_vf_vmem_memory_space_assignment": "false",
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    "xla_dump_hlo_as_text": True,
}
"""What only a TPU does is left out: small values kept in its vector memory, and matmuls that go round a ring. The
largest buffers are in a report among the dumps.
"""

LARGEST = re.compile(r"^ +[\d.]+\w+\( *\d+%\); +([\d.]+)(B|KiB|MiB|GiB); +\d+; +\d+; (.*)$", re.MULTILINE)
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def installed() -> bool:
    """Whether there is a TPU compiler."""
    return importlib.util.find_spec("libtpu") is not None


def run_child(topology: str, paths: Sequence[Path]) -> None:
    """Compile modules in a child, away from the user's folder and flags."""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    child = subprocess.run(
        [sys.executable, "-P", __file__, topology, *map(str, paths)],
        env={**environment, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"the TPU compiler's process ended with status {child.returncode}: {child.stderr[-1000:]}")


# -- In the child ------------------------------------------------------------------------------------------------------


def _compile(path: Path, devices: Sequence[Any]) -> dict[str, Any]:
    """What the compiler says about the memory of the module at `path` [B]."""
    module = ir.Module.parse(path.read_bytes(), context=mlir.make_ir_context())
    dump = path.with_suffix(".dump")
    overrides: dict[str, Any] = {**OPTIONS, "xla_dump_to": str(dump)}
    options = compiler.get_compile_options(
        num_replicas=1,
        num_partitions=len(devices),
        device_assignment=np.array([[device.id for device in devices]]),
        env_options_overrides=overrides,
    )
    options.executable_build_options.use_spmd_partitioning = True
    options.executable_build_options.use_shardy_partitioner = True
    executable = devices[0].client.compile(module, _jax.DeviceList(tuple(devices)), options)
    stats = executable.get_compiled_memory_stats()
    (report,) = dump.glob("*memory-usage-report.txt")
    return {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes,
        "replaced": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "peak": stats.peak_memory_in_bytes,
        "parameters": _parameters(executable.hlo_modules()[0].to_string()),
        "largest": largest(report.read_text()),
    }


def _parameters(module: str) -> str:
    """The shapes of a module's parameters on one device."""
    return module[module.index("entry_computation_layout={(") : module.index(")->")]


def largest(report: str) -> list[tuple[float, str]]:
    """The largest buffers of the heap: bytes, and the values that are in them by turns."""
    first = report.split("\n\n")[0]
    return [(float(size) * UNITS[unit], shapes) for size, unit, shapes in LARGEST.findall(first)]


def _main(topology: str, paths: Sequence[Path]) -> None:
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    for path in paths:
        try:
            path.with_suffix(".json").write_text(json.dumps(_compile(path, devices)))
        except jax.errors.JaxRuntimeError as error:
            path.with_suffix(".error").write_text(str(error))


if __name__ == "__main__":
    _main(sys.argv[1], [Path(path) for path in sys.argv[2:]])
