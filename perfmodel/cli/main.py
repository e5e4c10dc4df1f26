"""Entry point: finds the command, runs it, and turns what goes wrong into one line and an exit status.

0 success; 1 the answer is "no" (nothing fits, a check failed); 2 the request was wrong; 3 a fault of our own;
130 interrupted. Commands are modules with `SUMMARY`, `configure(parser)` and `run(arguments, output)`, and with `TAKES`
where they share options with others; other packages add theirs through the entry-point group `perfmodel.commands`. None
of them may import anything slow before `run`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import NoReturn, Protocol

from perfmodel import __version__
from perfmodel.cli.options import SHARED
from perfmodel.cli.output import Output, OutputError, complain, silence, write
from perfmodel.errors import PerfModelError
from perfmodel.units import read_bytes

SUCCESS, NO, WRONG, FAULT, INTERRUPTED = 0, 1, 2, 3, 130
LARGEST = 2**31

OWN = {
    "trace": "perfmodel.cli.trace",
    "estimate": "perfmodel.cli.estimate",
    "verify": "perfmodel.cli.verify",
    "calibrate": "perfmodel.cli.calibrate",
    "validate": "perfmodel.cli.validate",
    "hardware": "perfmodel.cli.hardware",
}
ORDER = ("trace", "estimate", "tune", "verify", "calibrate", "validate", "hardware")
PLANNED = ("simulate", "compare", "measure")


class Command(Protocol):
    """What a module must have to be a command."""

    SUMMARY: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare arguments."""

    def run(self, arguments: argparse.Namespace, output: Output) -> int:
        """Do the work; returns the exit status."""


class RequestError(Exception):
    """The command line itself is wrong."""


class Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and exiting, so that every error is reported alike."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for any wrong argument."""
        raise RequestError(f"{message}: see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return _fail("interrupted", words, INTERRUPTED)
    except BrokenPipeError:
        silence()
        return SUCCESS
    except (PerfModelError, RequestError, OutputError) as error:
        return _fail(str(error), words, WRONG)
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"internal error: {text}: run again with --debug and report it", words, FAULT)


def _run(words: Sequence[str]) -> int:
    commands = _commands()
    if words and words[0] in PLANNED and words[0] not in commands:
        raise RequestError(f"{words[0]} is not in this release yet, expected one of {', '.join(commands)}: wait for it")
    arguments, rest = _parser(commands).parse_known_args(words)
    if rest:
        raise RequestError(f"got {' '.join(rest)!r}, which it does not take: see perfmodel {arguments.command} --help")
    return commands[arguments.command].run(arguments, Output(as_json=arguments.json, quiet=arguments.quiet))


def _fail(message: str, words: Sequence[str], status: int) -> int:
    if "--debug" in words:
        raise
    line = " ".join(message.split())
    complain(f"perfmodel: {line}")
    if "--json" in words:
        with suppress(OutputError, BrokenPipeError):
            write(json.dumps({"error": line}) + "\n")
    return status


def count(text: str) -> int:
    """A whole number from 1 to 2^31: arguments of `type="count"`."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= LARGEST):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 to {LARGEST}")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Such numbers with commas between, each once: arguments of `type="counts"`."""
    return tuple(dict.fromkeys(count(word.strip()) for word in text.split(",")))


def number(text: str) -> float:
    """A number: arguments of `type="number"`."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number such as 1.25") from None


def size(text: str) -> float:
    """Bytes, with a unit or without: arguments of `type="size"`."""
    try:
        return read_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _commands() -> Mapping[str, Command]:
    """Every command by name, in the order in which help lists them."""
    homes = dict(OWN) | {entry.name: entry.value for entry in metadata.entry_points(group="perfmodel.commands")}
    ranked = sorted(homes, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return {name: importlib.import_module(homes[name]) for name in ranked}


def _parser(commands: Mapping[str, Command]) -> Parser:
    parser = Parser(
        prog="perfmodel",
        description="Step time, memory and cost of JAX training steps on AWS Trainium2 and its rivals, and the best "
        "parallel layout.",
        epilog="perfmodel COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"perfmodel {__version__}")
    chooser = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in commands.items():
        own = chooser.add_parser(name, help=command.SUMMARY, description=command.SUMMARY)
        own.register("type", "count", count)
        own.register("type", "counts", counts)
        own.register("type", "number", number)
        own.register("type", "size", size)
        for group in getattr(command, "TAKES", ()):
            SHARED[group](own)
        command.configure(own)
        own.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        own.add_argument("--quiet", action="store_true", help="no notes and no progress on standard error")
        own.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser
