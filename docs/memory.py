"""Writes the tables of docs/memory.md: `python docs/memory.py`, a few minutes; it needs the extras tpu and test."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import jax

from perfmodel import Layout, __version__, load_machine, predict, trace
from perfmodel.units import format_bytes
from perfmodel.verify.memory import MemoryVerification, verify_memory

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "tests"))  # the programs are those of the tests

import compiled  # noqa: E402
import plain_llama  # noqa: E402

BEGIN, END = "<!-- printed by python docs/memory.py -->", "<!-- end of what is printed -->"
COLUMNS = ("program", "layout", "arguments", "beyond, predicted", "beyond, compiler", "its gaps", "total")

LARGE = Layout(fsdp=8, tp=8, sp=False, mb=8, global_batch=64, recompute="full")
REFUSED = {"arguments": 1.41 * 2**30, "beyond them": 13.83 * 2**30}
"""What libtpu 0.0.42.1 said of it for 64 chips of v5e, where it does not fit; it takes minutes, and is not repeated."""


def main() -> None:
    """Ask the compiler; replace what stands between the marks."""
    found = verify_memory(compiled.questions())
    heading = f"Printed on {date.today()}, version {__version__}, JAX {jax.__version__}, libtpu {version('libtpu')}."
    parts = [BEGIN, heading, _table(COLUMNS, map(_row, found)), _large(), END]
    page = FOLDER / "memory.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + "\n\n".join(parts) + rest.partition(END)[2])


def _row(found: MemoryVerification) -> Sequence[str]:
    theirs = found.compiled
    assert found.arguments == theirs.arguments, found
    layout = Layout.parse(found.layout, ranks=found.ranks)
    used = [f"{key}={size:g}" for key in ("dp", "fsdp", "ep", "tp") if (size := getattr(layout, key)) > 1]
    return (
        found.program,
        ",".join([*used, f"zero={layout.zero}", f"recompute={layout.recompute}"]),
        format_bytes(found.arguments),
        format_bytes(found.total - found.arguments),
        format_bytes(theirs.results + theirs.temporaries),
        format_bytes(theirs.gaps),
        f"{100 * found.difference:+.1f} %",
    )


def _large() -> str:
    machine = load_machine("tpu-v5e")
    estimate = predict(trace(plain_llama.program()), LARGE, machine)
    parts = estimate.memory_parts
    arguments = sum(float(parts[name]) for name in ("parameters", "optimizer", "inputs"))
    beyond = float(estimate.memory_bytes) - arguments - float(parts["runtime"])
    rows = zip(REFUSED, (arguments, beyond), REFUSED.values(), strict=True)
    return _table(
        ("Llama-3-8B, fsdp=8,tp=8,sp=0, 64 chips", "predicted", "compiler", "difference"),
        (
            (name, format_bytes(ours), format_bytes(said), f"{100 * (ours / said - 1):+.1f} %")
            for name, ours, said in rows
        ),
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
