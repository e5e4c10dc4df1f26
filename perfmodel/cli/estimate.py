"""`perfmodel estimate MODEL --machine M --chips N --layout L`: what one layout costs, and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perfmodel.cli.options import load
from perfmodel.cli.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from perfmodel import Estimate, Explanation, Graph, Layout, Machine

SUMMARY = "predict step time, memory and cost of one layout"
TAKES = ("model", "machine")

LAYOUT = (
    "sizes of mesh axes and execution choices, as in fsdp=32,tp=4,pp=2,mb=1,recompute=full; axes left out are 1, "
    "dp takes what is left when it is not given, mb the whole batch where a program has no loop over microbatches"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("--layout", required=True, metavar="L", help=LAYOUT)
    parser.add_argument(
        "--global-batch", type="count", metavar="N", help="sequences per step over all ranks (default: the model's)"
    )
    parser.add_argument("--by", choices=("kernel", "layer"), help="also list what the step spends in each of them")
    parser.add_argument(
        "--explain", action="store_true", help="say what bounds the step, and price what could be changed about it"
    )
    parser.add_argument(
        "--timeline",
        nargs="?",
        const="",
        metavar="FILE",
        help="draw when each pipeline stage runs which microbatch: here, or into FILE (.png, .svg, .pdf; .json for "
        "Perfetto); of many microbatches the first ones",
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Predict and report; 1 where the layout does not fit into memory."""
    from perfmodel import Layout, LayoutError, check_chips, load_machine, predict, trace
    from perfmodel.report.breakdown import breakdown_json, breakdown_report
    from perfmodel.report.estimate import estimate_report
    from perfmodel.report.explain import explain_json, explain_report
    from perfmodel.report.timeline import check
    from perfmodel.rules import OUT_OF_MEMORY

    if arguments.timeline:
        check(arguments.timeline)
    machine = load_machine(arguments.machine, framework=arguments.framework)
    ranks = check_chips(machine, arguments.chips)
    if not arguments.layout.strip(" ,"):
        raise LayoutError(f"--layout: got {arguments.layout!r}, expected at least one key: write it as fsdp=8,tp=4")
    layout = Layout.parse(arguments.layout, ranks=ranks)
    graph = trace(load(arguments, recompute=layout.recompute))
    layout = replace(layout, global_batch=arguments.global_batch or graph.global_batch)
    layout = layout.suited(graph, given=Layout.read_keys(arguments.layout))
    estimate = predict(graph, layout, machine)
    broken = [rule for rule, is_broken in estimate.violations.items() if is_broken and rule != OUT_OF_MEMORY]
    if broken:
        raise LayoutError(
            f"layout {layout.notation()}: got {'; '.join(broken)} (global batch {layout.global_batch}), expected a "
            f"layout that breaks no rule: {_remedy(graph, layout, broken)}"
        )
    output.note(
        f"{arguments.chips} x {machine.title} = {ranks} ranks, global batch {layout.global_batch}, {layout.notation()}"
    )
    explanation = _explained(arguments, graph, layout, machine, estimate)
    drawn, events = _drawn(graph, layout, machine, arguments.timeline)
    output.result(
        lambda: {
            "layout": layout.notation(),
            "global_batch": layout.global_batch,
            **estimate.to_json(),
            **(breakdown_json(estimate, arguments.by) if arguments.by else {}),
            **({"explanation": explain_json(explanation)} if explanation else {}),
            **events,
        },
        *estimate_report(estimate),
        *(breakdown_report(estimate, arguments.by) if arguments.by else ()),
        *(explain_report(explanation) if explanation else ()),
        *drawn,
    )
    return 0 if estimate.fits else 1


def _explained(
    arguments: argparse.Namespace, graph: Graph, layout: Layout, machine: Machine, estimate: Estimate
) -> Explanation | None:
    """What `--explain` asks for; with another recompute policy, where the program has one, it is traced again."""
    from perfmodel import explain, trace

    def retrace(policy: str) -> Graph | None:
        program = load(arguments, recompute=policy)
        return trace(program) if program.recompute == policy else None

    return explain(graph, layout, machine, estimate=estimate, retrace=retrace) if arguments.explain else None


def _drawn(
    graph: Graph, layout: Layout, machine: Machine, path: str | None
) -> tuple[tuple[RenderableType, ...], dict[str, Any]]:
    """The pipeline where it is asked for: in a file, of which a line tells, or in letters and as a part of the JSON
    document, which have room for few microbatches.
    """
    from perfmodel.report.timeline import Rows, caption, trace_events, write
    from perfmodel.timeline import MOST, timeline

    if path is None:
        return (), {}
    if not path:
        found = timeline(graph, layout, machine, min(max(2 * int(layout.pp), 8), MOST))
        return (Rows(found),), {"timeline": trace_events(found)}
    found = timeline(graph, layout, machine)
    write(found, path)
    return (f"{path}: {caption(found)}",), {}


def _remedy(graph: Graph, layout: Layout, broken: Sequence[str]) -> str:
    from perfmodel.rules import ONE_MICROBATCH

    if not graph.named():
        return "name dims (--assign auto does, as perfmodel trace lists)"
    if ONE_MICROBATCH in broken and layout.whole_batch:
        return f"leave mb out, or write mb={layout.whole_batch}, the only legal value"
    return "change it"
