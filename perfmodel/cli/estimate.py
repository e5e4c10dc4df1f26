"""`perfmodel estimate MODEL --machine M --chips N --layout L`: what one layout costs, and why."""

from __future__ import annotations

import argparse
from dataclasses import replace

from perfmodel.cli.options import add_machine, add_model, load
from perfmodel.cli.output import Output

SUMMARY = "predict step time, memory and cost of one layout"

LAYOUT = (
    "sizes of mesh axes and execution choices, as in fsdp=32,tp=4,pp=2,mb=1,recompute=full; axes left out are 1, "
    "dp takes what is left when it is not given"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    add_model(parser)
    add_machine(parser)
    parser.add_argument("--layout", required=True, metavar="L", help=LAYOUT)
    parser.add_argument(
        "--global-batch", type="count", metavar="N", help="sequences per step over all ranks (default: the model's)"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Predict and report; 1 where the layout does not fit into memory."""
    from perfmodel import Layout, LayoutError, check_chips, load_machine, predict, trace
    from perfmodel.report.estimate import estimate_report
    from perfmodel.rules import OUT_OF_MEMORY

    machine = load_machine(arguments.machine)
    ranks = check_chips(machine, arguments.chips)
    if not arguments.layout.strip(" ,"):
        raise LayoutError(f"--layout: got {arguments.layout!r}, expected at least one key: write it as fsdp=8,tp=4")
    layout = Layout.parse(arguments.layout, ranks=ranks)
    graph = trace(load(arguments, recompute=layout.recompute))
    if "recompute" not in Layout.read_keys(arguments.layout):
        layout = replace(layout, recompute=graph.recompute)  # a program of one's own may know one policy only
    layout = replace(layout, global_batch=arguments.global_batch or graph.global_batch)
    estimate = predict(graph, layout, machine)
    broken = [rule for rule, is_broken in estimate.violations.items() if is_broken and rule != OUT_OF_MEMORY]
    if broken:
        remedy = "change it" if graph.named() else "name dims (--assign auto does, as perfmodel trace lists)"
        raise LayoutError(
            f"layout {layout.notation()}: got {'; '.join(broken)} (global batch {layout.global_batch}), expected a "
            f"layout that breaks no rule: {remedy}"
        )
    output.note(
        f"{arguments.chips} x {machine.title} = {ranks} ranks, global batch {layout.global_batch}, {layout.notation()}"
    )
    output.result(
        lambda: {"layout": layout.notation(), "global_batch": layout.global_batch, **estimate.to_json()},
        *estimate_report(estimate),
    )
    return 0 if estimate.fits else 1
