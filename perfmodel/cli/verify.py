"""`perfmodel verify MODEL --layout L`: the derived collectives against those of the compilers' own partitioners."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from perfmodel.cli.estimate import LAYOUT
from perfmodel.cli.options import add_model, load
from perfmodel.cli.output import Output

if TYPE_CHECKING:
    from perfmodel.layout import Layout

SUMMARY = "check derived collectives against the compilers' own partitioners"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    add_model(parser)
    parser.add_argument("--layout", required=True, metavar="L", help=LAYOUT)
    parser.add_argument("--ranks", type="count", metavar="N", help="ranks (default: what the sizes multiply to)")
    parser.add_argument(
        "--global-batch", type="count", metavar="N", help="sequences per step over all ranks (default: the model's)"
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.01,
        metavar="X",
        help="relative difference that counts as equal (0.01)",
    )
    parser.add_argument("--xla", action="store_true", help="ask XLA's partitioner too, not only Shardy")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Compare and report; 1 where a kind of collective differs."""
    from perfmodel import Layout, trace, verify
    from perfmodel.report.verify import verify_report
    from perfmodel.verify.stated import step_of

    layout = _layout(arguments.layout, arguments.ranks)
    program = load(arguments, recompute=layout.recompute)
    step_of(program)  # before its batch is asked for, which a lowered step need not have
    graph = trace(program)
    layout = replace(layout, global_batch=arguments.global_batch or graph.global_batch)
    layout = layout.suited(graph, given=Layout.read_keys(arguments.layout))
    found = verify(program, layout, xla=arguments.xla, tolerance=arguments.tolerance)
    output.result(found.to_json, *verify_report(found))
    return 0 if found.ok else 1


def _tolerance(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < 1.0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a share from 0 to below 1, such as 0.01")
    return number


def _layout(notation: str, ranks: int | None) -> Layout:
    """The layout, on as many ranks as are given, or as its sizes multiply to."""
    from perfmodel import Layout, LayoutError
    from perfmodel.layout import AXES

    if not notation.strip(" ,"):
        raise LayoutError(f"--layout: got {notation!r}, expected at least one key: write it as fsdp=8,tp=4")
    given = Layout.read_keys(notation)
    return Layout.parse(notation, ranks=ranks or math.prod(given.get(axis, 1) for axis in AXES))
