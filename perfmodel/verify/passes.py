"""The one door to JAX's private parts that run compiler passes: Shardy's here, XLA's in a child process.

    python passes.py RANKS MODULE...

is that child: it partitions modules with XLA and stops before code is generated. Each MODULE is a file of MLIR
bytecode; beside it goes MODULE.hlo, the serialised HloModuleProto, or MODULE.error. The hook that stops XLA is global
to a process, and devices are faked once per process. Nothing here imports perfmodel.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import compiler
from jax._src.interpreters import mlir
from jax.extend import xla
from jaxlib import _hlo, _jax  # type: ignore[attr-defined]
from jaxlib.mlir import ir, passmanager

RULES = "builtin.module(func.func(sdy-populate-op-sharding-rules))"
SHARDY = (
    "builtin.module(inline,symbol-dce,sdy-propagation-pipeline,func.func(sdy-sharding-constraint-to-reshard,"
    "sdy-insert-explicit-reshards{enable-full-version=true},canonicalize,cse,sdy-reshard-to-collectives,cse))"
)
XLA = (
    "sharding-propagation,flatten-call-graph,call-inliner,zero_sized_hlo_elimination,shardy-xla,spmd-partitioning,dce,"
    "cse,tuple-simplifier,while-loop-trip-count-annotator,apply-xla-transforms"
)


def run(pipeline: str, module: ir.Operation) -> None:
    """Run a pipeline of MLIR passes over a module, in place."""
    with module.context:
        passmanager.PassManager.parse(pipeline).run(module)


def bytecode(module: ir.Module) -> bytes:
    """A module as MLIR bytecode."""
    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer)
    return buffer.getvalue()


def copied(module: ir.Module) -> ir.Module:
    """A module of one's own to change: JAX keeps those that it has lowered, and hands them out again."""
    return ir.Module.parse(bytecode(module), context=module.context)


def hlo_module(proto: bytes) -> Any:
    """The module that a serialised HloModuleProto holds."""
    return _hlo.HloModule.from_serialized_hlo_module_proto(proto)


# -- In the child ------------------------------------------------------------------------------------------------------


def run_child(ranks: int, paths: Sequence[Path]) -> None:
    """Partition modules of at most `ranks` partitions in a child, away from the user's folder and flags."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    child = subprocess.run(
        [sys.executable, "-P", __file__, str(ranks), *map(str, paths)],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"XLA's process ended with status {child.returncode}: {child.stderr[-1000:]}")


def _partition(path: Path, devices: Sequence[Any], found: list[bytes]) -> None:
    """Partition the module at `path` over as many devices as it has partitions."""
    module = ir.Module.parse(path.read_bytes(), context=mlir.make_ir_context())
    ranks = ir.IntegerAttr(module.operation.attributes["mhlo.num_partitions"]).value
    options = compiler.get_compile_options(
        num_replicas=1,
        num_partitions=ranks,
        device_assignment=np.arange(ranks).reshape(1, ranks),
        env_options_overrides={"xla_enable_hlo_passes_only": XLA},
    )
    options.executable_build_options.use_spmd_partitioning = True
    options.executable_build_options.use_shardy_partitioner = True
    found.clear()
    try:
        devices[0].client.compile_and_load(module, _jax.DeviceList(tuple(devices[:ranks])), options)
    except Exception as error:
        if not found:
            path.with_suffix(".error").write_text(str(error))
            return
    path.with_suffix(".hlo").write_bytes(found[0])


def _main(ranks: int, paths: Sequence[Path]) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", ranks)
    found: list[bytes] = []

    def stop(proto: bytes) -> None:
        found.append(proto)
        raise RuntimeError("stopped before code generation")

    xla.register_hlo_module_transformation(stop, name="stop", stage=xla.PipelineStage.PRE_SCHEDULER, platforms="cpu")
    for path in paths:
        _partition(path, jax.devices(), found)


if __name__ == "__main__":
    _main(int(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
