"""`perfmodel hardware list|show|check`: machine files and where their numbers come from."""

from __future__ import annotations

import argparse
from typing import Any

from perfmodel.cli.options import MACHINE
from perfmodel.cli.output import Output

SUMMARY = "list, show or check machine files"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("action", choices=("list", "show", "check"), help="what to do")
    parser.add_argument(
        "machines", nargs="*", default=[], metavar="MACHINE", help=f"{MACHINE}; check takes all by default"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Dispatch on the action."""
    if arguments.action == "list":
        return _list(arguments.machines, output)
    return _show(arguments.machines, output) if arguments.action == "show" else _check(arguments.machines, output)


def _list(names: list[str], output: Output) -> int:
    from perfmodel.catalog import machine_names, read_machine
    from perfmodel.errors import MachineError
    from perfmodel.report.layout import table

    if names:
        raise MachineError(f"hardware list: got {' '.join(names)}, expected no machine: see perfmodel hardware show")
    files = {name: read_machine(name)[1] for name in machine_names()}
    rows = [(name, str(data["title"]), *_headline(data)) for name, data in files.items()]
    columns = ("name", "machine", ">TFLOP/s", ">GiB", ">TB/s", ">ranks", ">USD/h")
    title = "Per chip: bf16 peak, memory, its bandwidth, JAX devices, and the price by the first offer"
    document = {"machines": {name: data["title"] for name, data in files.items()}}
    output.result(lambda: document, table(columns, rows, title=title))
    return 0


def _headline(data: dict[str, Any]) -> tuple[str, ...]:
    """The numbers per chip that people compare first."""
    from perfmodel.units import to_si

    chip, offers = data["chip"], data.get("offers", [])
    wanted = (
        (chip["quoted"]["bf16"], "rate of FLOPs", "TFLOP/s"),
        (chip["memory"], "size", "GiB"),
        (chip["memory_bandwidth"], "bandwidth", "TB/s"),
    )
    shown = (f"{to_si(fact['value'], fact['unit'], kind) / to_si(1, unit, kind):.4g}" for fact, kind, unit in wanted)
    usd = f"{offers[0]['price']['value'] / data['instance']['chips']['value']:.2f}" if offers else "unknown"
    return (*shown, str(chip["ranks"]["value"]), usd)


def _show(names: list[str], output: Output) -> int:
    from perfmodel import MachineError, load_machine
    from perfmodel.report.machine import machine_json, machine_report

    if len(names) != 1:
        raise MachineError(f"hardware show: got {len(names)} machines, expected one: see perfmodel hardware list")
    machine = load_machine(names[0])
    output.result(lambda: machine_json(machine), *machine_report(machine))
    return 0


def _check(names: list[str], output: Output) -> int:
    from rich.text import Text

    from perfmodel.catalog import machine_names
    from perfmodel.check import check_machine

    findings = {name: check_machine(name) for name in names or machine_names()}
    lines = [f"{name}: ok" for name, found in findings.items() if not found]
    lines += [line for found in findings.values() for line in found]
    output.result(lambda: {"findings": findings}, Text("\n".join(lines)))
    return 1 if any(findings.values()) else 0
