"""Draws docs/tune.svg, the picture of the README: `python docs/picture.py`."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from perfmodel import check_chips, load_machine, load_program, trace
from tuner import Space, search
from tuner.space import POLICIES
from tuner.table import report

COMMAND = "perfmodel tune llama3-70b --machine trn2 --chips 64"


def main() -> None:
    """Search, print into a recording, keep the picture."""
    machine = load_machine("trn2")
    graphs = {policy: trace(load_program("llama3-70b", recompute=policy)) for policy in POLICIES}
    graph = graphs["full"]
    space = Space(ranks=check_chips(machine, 64), global_batches=(graph.global_batch,))
    result = search(graphs, space, machine, top=6)
    console = Console(record=True, width=112, force_terminal=True, file=io.StringIO(), highlight=False)
    heading = f"llama3-70b on 64 chips of {machine.title}, global batch {graph.global_batch} x {graph.size('seq')}"
    for part in report(result, heading):
        console.print(part)
    svg = console.export_svg(title=COMMAND)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # a picture should not fetch fonts
    (Path(__file__).parent / "tune.svg").write_text(svg)


if __name__ == "__main__":
    main()
