"""`perfmodel calibrate DATA.csv --machine M`: fit a machine to measured collectives and kernels."""

from __future__ import annotations

import argparse

from perfmodel.calibrate.groups import GROUPS
from perfmodel.cli.options import MACHINE
from perfmodel.cli.output import Output

SUMMARY = "fit a machine's efficiencies and collective constants to measurements"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("tables", nargs="+", metavar="DATA.csv", help="tables of measured collectives or kernels")
    parser.add_argument("--machine", required=True, metavar="MACHINE", help=MACHINE)
    parser.add_argument(
        "--hardware", metavar="REGEX", help="rows whose hardware matches (default: the machine's instance)"
    )
    parser.add_argument(
        "--smallest", type="size", default=0.0, metavar="SIZE", help="collectives of less are left out, as in 1MiB"
    )
    parser.add_argument(
        "--leave-out",
        choices=tuple(GROUPS),
        default="point",
        help="rows that are predicted together without having been seen (default: a point)",
    )
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="NUMBER", help="numbers that stay as they are, as efficiency.memory"
    )
    parser.add_argument("--out", metavar="FILE", help="write the calibration there, as NAME.calibration.toml")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Fit, report, and write the file."""
    from perfmodel import calibrate
    from perfmodel.report.calibrate import calibrate_json, calibrate_report

    found = calibrate(
        arguments.tables,
        arguments.machine,
        hardware=arguments.hardware,
        smallest=arguments.smallest,
        leave_out=arguments.leave_out,
        keep=arguments.keep,
    )
    if arguments.out:
        found.write(arguments.out)
        output.note(f"wrote {arguments.out}")
    output.result(lambda: calibrate_json(found), *calibrate_report(found))
    return 0
