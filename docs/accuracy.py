"""Writes the tables and the picture of docs/accuracy.md: `python docs/accuracy.py`, a few minutes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import jax

from perfmodel import __version__, validate
from perfmodel.report.scatter import draw
from perfmodel.report.validate import Section, validate_sections

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- printed by python docs/accuracy.py -->", "<!-- end of what is printed -->"


def main() -> None:
    """Predict the published runs; replace what stands between the marks."""
    found = validate()
    draw(found, FOLDER / "accuracy.png")
    heading = f"Printed on {date.today()}, version {__version__}, JAX {jax.__version__}."
    parts = [BEGIN, heading, "![Predicted against measured steps](accuracy.png)"]
    parts += [f"### {section.title}\n\n{markdown(section)}" for section in validate_sections(found)]
    page = FOLDER / "accuracy.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + "\n\n".join([*parts, END]) + rest.partition(END)[2])


def markdown(section: Section) -> str:
    """A table of Markdown."""
    headings = [column.lstrip(">") for column in section.columns]
    rules = ["--:" if column.startswith(">") else "---" for column in section.columns]
    return "\n".join(_line(cells) for cells in (headings, rules, *section.rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    main()
