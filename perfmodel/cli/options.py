"""Options that several commands share."""

from __future__ import annotations

import argparse

MODEL = "preset name, path of a Hugging Face config.json, or package.module:function that returns a perfmodel.Program"
MACHINE = "machine name (see `perfmodel hardware list`) or path of a .toml file"


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL and what it is traced with."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--seq-len", type="count", metavar="N", help="sequence length (default: the model's own, at most 8192)"
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The machine and how much of it."""
    parser.add_argument("--machine", required=True, metavar="MACHINE", help=MACHINE)
    parser.add_argument("--chips", required=True, type="count", metavar="N", help="accelerators, as one buys them")
