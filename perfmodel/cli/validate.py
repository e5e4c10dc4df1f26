"""`perfmodel validate [FILE]`: predicted against measured training steps."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from perfmodel.cli.output import Output

if TYPE_CHECKING:
    from perfmodel.framework_spec import FrameworkSpec
    from perfmodel.validate import Validation

SUMMARY = "compare predicted with measured training steps"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "table", nargs="?", metavar="FILE", help="table of runs (default: the published ones that come along)"
    )
    parser.add_argument("--source", default="", metavar="REGEX", help="rows whose source matches")
    parser.add_argument("--hardware", default="", metavar="REGEX", help="rows whose hardware matches")
    parser.add_argument(
        "--max-mape", type="number", metavar="SHARE", help="exit 1 where the mean absolute error is above, as in 0.1"
    )
    parser.add_argument("--rows", action="store_true", help="list every row, not only the worst")
    parser.add_argument(
        "--cross", choices=("source", "model", "machine"), help="predict each row without those that share this with it"
    )
    parser.add_argument("--fit", metavar="FRAMEWORK", help="fit a framework to the rows that it ran; needs --out")
    parser.add_argument("--out", metavar="FILE.toml", help="the fitted framework")
    parser.add_argument("--plot", metavar="FILE.png", help="draw predicted against measured there")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Predict, report, and judge."""
    from perfmodel import validate
    from perfmodel.report.validate import validate_json, validate_report

    to_fit = _to_fit(arguments)
    with output.progress("predicting") as progress:
        found = validate(
            arguments.table,
            source=arguments.source,
            hardware=arguments.hardware,
            runs=bool(arguments.cross or to_fit),
            progress=progress,
        )
    if to_fit:
        _fit(found, to_fit, arguments, output)
    if arguments.cross:
        from perfmodel.validate.cross import crossed

        found = crossed(found, arguments.cross)
    if arguments.plot:
        from perfmodel.report.scatter import draw

        draw(found, arguments.plot)
        output.note(f"wrote {arguments.plot}")
    output.result(lambda: validate_json(found), *validate_report(found, every_row=arguments.rows))
    return 1 if arguments.max_mape is not None and not found.errors.mape <= arguments.max_mape else 0


def _to_fit(arguments: argparse.Namespace) -> FrameworkSpec | None:
    """The framework to fit, if one is asked for: a wrong request is told before anything is predicted."""
    from perfmodel.errors import MachineError
    from perfmodel.framework_file import read_framework

    if bool(arguments.fit) != bool(arguments.out):
        given, missing = ("--fit", "--out FILE.toml") if arguments.fit else ("--out", "--fit FRAMEWORK")
        raise MachineError(f"{given}: got it alone, expected {missing} too: add it")
    return read_framework(arguments.fit) if arguments.fit else None


def _fit(found: Validation, spec: FrameworkSpec, arguments: argparse.Namespace, output: Output) -> None:
    from datetime import date

    from perfmodel.catalog import written
    from perfmodel.framework_file import framework_text
    from perfmodel.validate.cross import runs_of
    from perfmodel.validate.framework_text import fitted_text

    text = fitted_text(framework_text(arguments.fit), spec, runs_of(found, spec.name), date=date.today().isoformat())
    written(arguments.out, text)
    output.note(f"wrote {arguments.out}")
