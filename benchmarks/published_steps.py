"""Predicted against published step times, none of them fitted: `python benchmarks/published_steps.py`.

The rows: dense models with a preset here, run on a machine of this release, whose layout, batch and recompute policy
are published and can be expressed or nearly so; of each source and model the smallest and the largest run.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from pathlib import Path

from perfmodel import Layout, check_chips, load_machine, load_program, predict, slice_of, trace


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published run: what ran where, how, and its step time [s]."""

    model: str
    machine: str
    chips: int
    layout: str
    seq_len: int
    global_batch: int
    seconds: float
    source: str
    differs: str


def rows() -> list[Row]:
    """The table beside this script."""
    numbers = {"chips": int, "seq_len": int, "global_batch": int, "seconds": float}
    with Path(__file__).with_suffix(".csv").open(newline="") as file:
        return [
            Row(**{key: numbers.get(key, str)(text) for key, text in line.items()}) for line in csv.DictReader(file)
        ]


def predicted(row: Row) -> tuple[float, float, float]:
    """Expected, lower and upper seconds of a row."""
    machine = load_machine(row.machine)
    ranks = check_chips(machine, row.chips)
    layout = Layout.parse(row.layout, ranks=ranks, global_batch=row.global_batch)
    graph = trace(load_program(row.model, seq_len=row.seq_len, recompute=layout.recompute))
    estimate = predict(graph, layout, slice_of(machine, ranks))
    return float(estimate.step_time_s), float(estimate.lower_s), float(estimate.upper_s)


def main() -> None:
    print("| model | machine | layout | measured [s] | predicted [s] | bounds [s] | error | source | differs |")
    print("|---|---|---|---|---|---|---|---|---|")
    errors = []
    for row in rows():
        expected, lower, upper = predicted(row)
        errors.append(expected / row.seconds - 1.0)
        print(
            f"| {row.model} | {row.chips} x {row.machine} | {row.layout} | {row.seconds:.4g} | {expected:.4g} | "
            f"{lower:.4g} to {upper:.4g} | {100 * errors[-1]:+.0f} % | {row.source} | {row.differs} |"
        )
    sizes = [abs(error) for error in errors]
    print(f"\nmedian error {100 * statistics.median(sizes):.0f} %, mean {100 * statistics.mean(sizes):.0f} %")


if __name__ == "__main__":
    main()
