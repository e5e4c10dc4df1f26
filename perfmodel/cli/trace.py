"""`perfmodel trace MODEL`: the computation graph in numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from perfmodel.cli.options import load
from perfmodel.cli.output import Output

SUMMARY = "trace a training step and count its operations, FLOPs, bytes and parameters"
TAKES = ("model",)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("--recompute", default="full", choices=("none", "selective", "full"), help="default: full")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the graph as JSON")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Trace, write and report."""
    from perfmodel import TraceError, propose, trace
    from perfmodel.report.graph import graph_json, graph_report, proposal

    graph = trace(load(arguments, recompute=arguments.recompute))
    if arguments.out is not None:
        try:
            graph.save(arguments.out)
        except OSError as error:
            raise TraceError(
                f"--out {arguments.out}: got {error.strerror}, expected a file that can be written: give another path"
            ) from None
        output.note(f"graph written to {arguments.out}")
    proposed = propose(graph)
    output.result(lambda: {**graph_json(graph), "proposed": proposed}, *graph_report(graph), *proposal(proposed))
    return 0
