"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfmodel.trace import Program

MODEL = (
    "preset name, path of a Hugging Face config.json or of a StableHLO file, or package.module:function that returns a "
    "perfmodel.Program"
)
ASSIGN = (
    "axis name of the dims of arguments that a shell pattern matches, as in '*.kernel.1=mlp' (perfmodel trace lists "
    "them); whole for a dim to be left whole; auto for the names that the work suggests, which tune takes where no dim "
    "has one; may be repeated"
)
PRECISION = (
    "element types: bf16 (default), fp16, fp32, tf32, fp8, fp8-block, mxfp8 or nvfp4, and keys such as master=0, "
    "grads=bf16, reduce=bf16, moments=bf16 or int8, as in fp8,moments=int8"
)
MACHINE = "machine name (see `perfmodel hardware list`) or path of a .toml file"
FRAMEWORK = (
    "what runs the step: neuron, xla-gpu, xla-tpu, megatron, torch, or the path of a .toml file (default: what JAX "
    "programs run by on the machine)"
)
MESH_AXIS = "what an axis of the program's own mesh stands for, as in data=dp,fsdp; may be repeated"


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL and what it is traced with."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--seq-len", type="count", metavar="N", help="sequence length (default: the model's own, at most 8192)"
    )
    parser.add_argument(
        "--capacity-factor",
        type="number",
        metavar="X",
        help="rows of each expert, as a multiple of its fair share; tokens beyond are dropped (default: none is)",
    )
    parser.add_argument("--precision", metavar="P", help=PRECISION)
    parser.add_argument("--assign", action="append", default=[], metavar="PATTERN=NAME", help=ASSIGN)
    parser.add_argument("--mesh-axis", action="append", default=[], metavar="AXIS=AXES", help=MESH_AXIS)


def load(arguments: argparse.Namespace, *, recompute: str) -> Program:
    """The program that MODEL and its options name."""
    from perfmodel import load_program

    return load_program(
        arguments.model,
        seq_len=arguments.seq_len,
        recompute=recompute,
        capacity_factor=arguments.capacity_factor,
        precision=arguments.precision,
        assign=arguments.assign,
        mesh_axes=arguments.mesh_axis,
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The machine and how much of it."""
    parser.add_argument("--machine", required=True, metavar="MACHINE", help=MACHINE)
    parser.add_argument("--framework", metavar="F", help=FRAMEWORK)
    parser.add_argument("--chips", required=True, type="count", metavar="N", help="accelerators, as one buys them")


SHARED = {"model": add_model, "machine": add_machine}
"""Groups of options by the names under which a command `TAKES` them: one of another package need not import this."""
