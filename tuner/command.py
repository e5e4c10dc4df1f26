"""`perfmodel tune MODEL --machine M --chips N`: the best layouts, and a study to look into."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from perfmodel import Graph
    from tuner.result import Result
    from tuner.space import Space

SUMMARY = "find the best layouts of a training step on a machine"

OBJECTIVES = ("throughput", "step-time", "cost", "memory")
SAMPLERS = ("exhaustive", "tpe", "random", "nsga2")
MEASURES = ("none", "simulate", "device", "command")
FOLDER = "perfmodel-studies"
NO_STUDY = "none"


class Output(Protocol):
    """Where the command line lets a command print."""

    quiet: bool

    def result(self, document: Callable[[], Any], *renderables: Any) -> None:
        """Print a result, as JSON or as text."""

    def note(self, text: str) -> None:
        """A line for a person who watches."""

    def progress(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar, to be told how much is done."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="as for perfmodel estimate")
    add("--machine", required=True, metavar="MACHINE", help="machine name or path of a .toml file")
    add("--chips", required=True, type=_whole, metavar="N", help="accelerators, as one buys them")
    add("--seq-len", type=_whole, metavar="N", help="sequence length (default: the model's own, at most 8192)")
    add(
        "--global-batch",
        type=_wholes,
        metavar="N[,N...]",
        help="sequences per step over all ranks; several are compared (default: 4 Mi tokens, or the program's own)",
    )
    add("--fix", default="", metavar="KEYS", help="layout keys to keep, as in tp=8,recompute=full")
    add("--objective", choices=OBJECTIVES, default=OBJECTIVES[0], help=f"default: {OBJECTIVES[0]}")
    add("--top", type=_whole, default=10, metavar="N", help="layouts to show (default: 10)")
    add("--sampler", choices=SAMPLERS, default=SAMPLERS[0], help="exhaustive (default), or an Optuna sampler")
    add("--trials", type=_whole, default=200, metavar="N", help="trials of a sampler (default: 200)")
    add("--seed", type=int, default=0, metavar="N", help="seed of a sampler (default: 0)")
    add(
        "--storage",
        metavar="PATH|URL",
        help=f"journal file or database URL of the study; {NO_STUDY} keeps none (default: a journal in {FOLDER}/)",
    )
    add("--measure", choices=MEASURES, default=MEASURES[0], help="check the best layouts (only none so far)")
    add("--export", metavar="FORMAT", help="write the best layout for a launcher (not in this release yet)")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number above 0")
    return int(text)


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(_whole(part.strip()) for part in text.split(","))


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Search and report: 0 with layouts that fit, 1 where nothing does, 2 where the study failed, 130 after Ctrl-C."""
    _refuse_what_is_not_yet(arguments)
    from perfmodel import check_chips, load_machine
    from tuner.objective import OBJECTIVES as TABLE
    from tuner.search import search
    from tuner.table import report

    machine = load_machine(arguments.machine)
    ranks = check_chips(machine, arguments.chips)
    graphs, space = _programs(arguments, ranks)
    storage = _storage(arguments, next(iter(graphs.values())).name, machine.name)
    exhaustive = arguments.sampler == SAMPLERS[0]
    total = sum(len(rows) for _, rows in space.tables.values()) if exhaustive else arguments.trials
    with output.progress("pricing layouts", total) as progress:
        result = search(
            graphs,
            space,
            machine,
            objective=TABLE[arguments.objective],
            sampler=arguments.sampler,
            trials=arguments.trials,
            seed=arguments.seed,
            storage=storage,
            top=arguments.top,
            progress=progress,
        )
    batches = ", ".join(map(str, space.global_batches))
    heading = (
        f"{next(iter(graphs.values())).name} on {arguments.chips} chips of {machine.title} = {ranks} ranks, "
        f"global batch {batches} x {next(iter(graphs.values())).size('seq')}"
    )
    output.result(result.to_json, *report(result, heading))
    return _status(result, output)


def _status(result: Result, output: Output) -> int:
    if result.study_error:
        output.note(f"perfmodel: {result.study_error}")
        return 2
    if result.interrupted:
        output.note("perfmodel: interrupted: run the same command again to go on from here")
        return 130
    return 0 if result.best else 1


def _refuse_what_is_not_yet(arguments: argparse.Namespace) -> None:
    from perfmodel import LayoutError

    if arguments.measure != MEASURES[0]:
        raise LayoutError(
            f"--measure: got {arguments.measure}, but checking layouts is not in this release yet: use --measure none"
        )
    if arguments.export is not None:
        raise LayoutError(f"--export: got {arguments.export}, but exports are not in this release yet: leave it out")


def _programs(arguments: argparse.Namespace, ranks: int) -> tuple[Mapping[str, Graph], Space]:
    """The program under each recompute policy that it knows and the user allows, and the space to search."""
    from perfmodel import Layout, load_program, trace
    from tuner.space import POLICIES, Space

    fixed = Layout.read_keys(arguments.fix)
    wanted = (fixed["recompute"],) if "recompute" in fixed else POLICIES
    graphs: dict[str, Graph] = {}
    for policy in wanted:
        program = load_program(arguments.model, seq_len=arguments.seq_len, recompute=policy)
        if program.recompute not in graphs:
            graphs[program.recompute] = trace(program)
    batches = arguments.global_batch or (next(iter(graphs.values())).global_batch,)
    return graphs, Space(ranks=ranks, global_batches=batches, fixed=fixed, policies=tuple(graphs))


def _storage(arguments: argparse.Namespace, program: str, machine: str) -> str | None:
    if arguments.storage is None:
        name = re.sub(r"[^\w.-]+", "-", f"{program}-{machine}-{arguments.chips}chips")
        return os.path.join(FOLDER, f"{name}.journal")
    return None if arguments.storage == NO_STUDY else str(arguments.storage)
