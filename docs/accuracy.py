"""Writes the tables and the picture of docs/accuracy.md: `python docs/accuracy.py`, a few minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import jax

from perfmodel import __version__, validate
from perfmodel.report.scatter import draw
from perfmodel.report.validate import COLUMNS, Section, cells, percent, validate_sections
from perfmodel.validate import Prediction, Validation, errors_of
from perfmodel.validate.cross import crossed, framework_of

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- printed by python docs/accuracy.py -->", "<!-- end of what is printed -->"


def main() -> None:
    """Predict the published runs; replace what stands between the marks."""
    fitted = validate(runs=True)
    unseen = {name: crossed(fitted, name) for name in ("source", "model")}
    found = unseen["source"]
    draw(found, FOLDER / "accuracy.png")
    heading = f"Printed on {date.today()}, version {__version__}, JAX {jax.__version__}."
    parts = [BEGIN, heading, "![Predicted against measured steps](accuracy.png)"]
    rounds = {f"without the {name} of each run": each for name, each in unseen.items()} | {"fitted to all": fitted}
    sections = [_rounds(rounds), _frameworks(rounds), *validate_sections(found)]
    parts += [f"### {section.title}\n\n{markdown(section)}" for section in sections]
    page = FOLDER / "accuracy.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + "\n\n".join([*parts, END]) + rest.partition(END)[2])


def _rounds(rounds: Mapping[str, Validation]) -> Section:
    """Errors by what the frameworks' fits had seen."""
    columns = ("frameworks", *COLUMNS, ">Kendall's tau", ">pick cost")
    rows = [
        (name, *cells(found.errors), f"{found.ranking.kendall_tau:.2f}", percent(found.ranking.pick_cost))
        for name, found in rounds.items()
    ]
    return Section(title="Errors by what the fits had seen", columns=columns, rows=rows)


def _frameworks(rounds: Mapping[str, Validation]) -> Section:
    """Median errors by framework and machine."""
    keys = {name: found.by(_run_by) for name, found in rounds.items()}
    first = next(iter(keys.values()))
    rows = [
        (key, str(len(first[key])), *(percent(errors_of(groups[key]).median_ape) for groups in keys.values()))
        for key in first
    ]
    columns = ("run by, on", ">rows", *(f">{name}" for name in rounds))
    return Section(title="Median errors by framework and machine", columns=columns, rows=rows)


def _run_by(p: Prediction) -> str:
    return f"{framework_of(p)}, {p.case.machine.name}"


def markdown(section: Section) -> str:
    """A table of Markdown."""
    headings = [column.lstrip(">") for column in section.columns]
    rules = ["--:" if column.startswith(">") else "---" for column in section.columns]
    return "\n".join(_line(cells) for cells in (headings, rules, *section.rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    main()
