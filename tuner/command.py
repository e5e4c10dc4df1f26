"""`perfmodel tune MODEL --machine M --chips N`: the best layouts, and a study to look into."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from perfmodel import Graph, Machine
    from tuner.result import Result
    from tuner.space import Space

SUMMARY = "find the best layouts of a training step on a machine"
TAKES = ("model", "machine")

OBJECTIVES = ("throughput", "step-time", "cost", "memory")
EXHAUSTIVE, *SAMPLERS = ("exhaustive", "tpe", "random", "nsga2")
MEASURES = ("none", "simulate", "device", "command")
FOLDER = "perfmodel-studies"
NO_STUDY = "none"
TRIALS = 200


class Output(Protocol):
    """Where the command line lets a command print."""

    def result(self, document: Callable[[], Any], *renderables: Any) -> None:
        """Print a result, as JSON or as text."""

    def note(self, text: str) -> None:
        """A line for a person who watches."""

    def error(self, text: str) -> None:
        """What went wrong beside a result that is printed all the same."""

    def progress(self, description: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A progress bar, to be told how much of how much is done."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    add = parser.add_argument
    add(
        "--global-batch",
        type="counts",
        metavar="N[,N...]",
        help="sequences per step over all ranks; several are compared (default: 4 Mi tokens, or the program's own)",
    )
    add("--fix", default="", metavar="KEYS", help="layout keys to keep, as in tp=8,recompute=full")
    add("--objective", choices=OBJECTIVES, default=OBJECTIVES[0], help=f"default: {OBJECTIVES[0]}")
    add("--top", type="count", default=10, metavar="N", help="layouts to show (default: 10)")
    add(
        "--sampler",
        choices=(EXHAUSTIVE, *SAMPLERS),
        default=EXHAUSTIVE,
        help="exhaustive (default, exact), or an Optuna sampler that tries some of the layouts that fit",
    )
    add("--trials", type="count", metavar="N", help=f"different layouts for a sampler to try (default: {TRIALS})")
    add("--seed", type="count", metavar="N", help="seed of a sampler (default: 1)")
    add(
        "--storage",
        metavar="PATH|URL",
        help=f"journal file or database URL of the study; {NO_STUDY} keeps none (default: a journal in {FOLDER}/)",
    )
    add("--measure", choices=MEASURES, default=MEASURES[0], help="check the best layouts (only none so far)")
    add("--export", metavar="FORMAT", help="write the best layout for a launcher (not in this release yet)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Search and report: 0 with layouts that fit, 1 where nothing does, 2 where the study failed, 130 after Ctrl-C."""
    _refuse(arguments)
    from perfmodel import Layout, check_chips, load_machine
    from tuner.table import report

    machine = load_machine(arguments.machine, framework=arguments.framework)
    ranks = check_chips(machine, arguments.chips)
    fixed = Layout.read_keys(arguments.fix)
    graphs = _programs(arguments, fixed, output)
    space = _space(arguments, fixed, graphs, ranks, output)
    result = _search(arguments, graphs, space, machine, output)
    program = next(iter(graphs.values()))
    heading = (
        f"{program.name} on {arguments.chips} x {machine.title} = {ranks} ranks, global batch "
        f"{', '.join(map(str, space.global_batches))}{_each(program)}"
    )
    output.result(result.to_json, *report(result, heading))
    return _status(result, output)


def _each(program: Graph) -> str:
    """What a sequence of the batch holds."""
    tokens = program.tokens()
    return f" x {tokens} tokens" if tokens else " samples"


def _space(
    arguments: argparse.Namespace, fixed: dict[str, Any], graphs: dict[str, Graph], ranks: int, output: Output
) -> Space:
    """The layouts to search, of the batches that are given or of the program's own."""
    from tuner.space import Space

    own = next(iter(graphs.values())).global_batch
    if not arguments.global_batch and own < ranks:
        output.note(
            f"global batch {own} is the default, less than a sequence for each of {ranks} ranks: --global-batch sets it"
        )
    batches = arguments.global_batch or (own,)
    return Space(ranks=ranks, global_batches=batches, fixed=fixed, policies=tuple(graphs))


def _search(
    arguments: argparse.Namespace, graphs: dict[str, Graph], space: Space, machine: Machine, output: Output
) -> Result:
    from tuner.objective import OBJECTIVES as TABLE
    from tuner.search import search

    with output.progress("pricing layouts") as progress:
        return search(
            graphs,
            space,
            machine,
            objective=TABLE[arguments.objective],
            sampler=arguments.sampler,
            trials=arguments.trials or TRIALS,
            seed=arguments.seed or 1,
            storage=_storage(arguments, next(iter(graphs.values())).name, machine.name),
            top=arguments.top,
            progress=progress,
        )


def _status(result: Result, output: Output) -> int:
    if result.study_error:
        output.error(result.study_error)
        return 2
    if result.interrupted:
        output.error("interrupted: run the same command again to go on from here")
        return 130
    return 0 if result.best else 1


def _refuse(arguments: argparse.Namespace) -> None:
    """What this release cannot do, and options that would be ignored."""
    from perfmodel import LayoutError, StudyError

    if arguments.measure != MEASURES[0]:
        raise LayoutError(
            f"--measure: got {arguments.measure}, but checking layouts is not in this release yet: use --measure none"
        )
    if arguments.export is not None:
        raise LayoutError(f"--export: got {arguments.export}, but exports are not in this release yet: leave it out")
    for name in ("trials", "seed"):
        if arguments.sampler == EXHAUSTIVE and getattr(arguments, name) is not None:
            raise StudyError(
                f"--{name}: got {getattr(arguments, name)} for an exhaustive search, expected a sampler: add --sampler "
                f"{SAMPLERS[0]}, or leave it out"
            )


def _programs(arguments: argparse.Namespace, fixed: dict[str, Any], output: Output) -> dict[str, Graph]:
    """The program under each recompute policy that it knows and the user allows; with proposed axis names, if it has
    none and the user gives none.
    """
    from perfmodel import LayoutError, load_program, propose, trace
    from tuner.space import POLICIES

    graphs: dict[str, Graph] = {}
    assign = list(arguments.assign)
    for policy in (fixed["recompute"],) if "recompute" in fixed else POLICIES:
        load = partial(
            load_program,
            arguments.model,
            seq_len=arguments.seq_len,
            recompute=policy,
            capacity_factor=arguments.capacity_factor,
            precision=arguments.precision,
            mesh_axes=arguments.mesh_axis,
        )
        program = load(assign=assign)
        if program.recompute in graphs:
            continue
        graph = trace(program)
        if not assign and (proposed := propose(graph)):
            assign = [f"{pattern}={name}" for pattern, name in proposed.items()]
            output.note(f"no dim has an axis name: taking --assign {' --assign '.join(assign)}")
            graph = trace(load(assign=assign))
        graphs[graph.recompute] = graph
    if "recompute" in fixed and fixed["recompute"] not in graphs:
        raise LayoutError(
            f"layout: got recompute={fixed['recompute']}, expected {', '.join(graphs)}, the only policy that "
            f"{arguments.model} has: fix that, or leave recompute out"
        )
    return graphs


def _storage(arguments: argparse.Namespace, program: str, machine: str) -> str | None:
    if arguments.storage is None:
        name = re.sub(r"[^\w.-]+", "-", f"{program}-{machine}-{arguments.chips}chips")
        return os.path.join(FOLDER, f"{name}.journal")
    return None if arguments.storage.lower() == NO_STUDY else str(arguments.storage)
