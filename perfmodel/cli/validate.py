"""`perfmodel validate [FILE]`: predicted against measured training steps."""

from __future__ import annotations

import argparse

from perfmodel.cli.output import Output

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
    parser.add_argument("--plot", metavar="FILE.png", help="draw predicted against measured there")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Predict, report, and judge."""
    from perfmodel import validate
    from perfmodel.report.validate import validate_json, validate_report

    with output.progress("predicting") as progress:
        found = validate(arguments.table, source=arguments.source, hardware=arguments.hardware, progress=progress)
    if arguments.plot:
        from perfmodel.report.scatter import draw

        draw(found, arguments.plot)
        output.note(f"wrote {arguments.plot}")
    output.result(lambda: validate_json(found), *validate_report(found, every_row=arguments.rows))
    return 1 if arguments.max_mape is not None and not found.errors.mape <= arguments.max_mape else 0
