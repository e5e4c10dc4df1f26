"""Layouts of the Llama-3-70B step priced per second of one core: `python benchmarks/layouts_per_second.py`."""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import math
import resource
import time
from collections.abc import Callable, Sequence

import numpy as np

from perfmodel import Graph, Layout, Machine, load_machine, load_program, predict, trace
from tuner import Space

REPEATS = 5
POWERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
GRID = {
    "dp": POWERS,
    "fsdp": POWERS,
    "tp": POWERS[:7],
    "cp": POWERS[:6],
    "pp": [1, 2, 4, 5, 8, 10, 16, 20, 40],
    "mb": POWERS[:7],
    "global_batch": [512, 1024, 2048, 4096],
}
"""Sizes that are combined in every way, whatever the number of ranks."""


def open_grid() -> tuple[list[Layout], int]:
    """All combinations, as one layout whose sizes are arrays along a dim each; how many they are."""
    sizes = dict(zip(GRID, np.ix_(*map(np.array, GRID.values())), strict=True))
    return [Layout(**sizes)], math.prod(map(len, GRID.values()))  # type: ignore[arg-type]


def table(ranks: int) -> tuple[list[Layout], int]:
    """What the tuner searches on so many ranks, as arrays of layouts."""
    rows = Space(ranks=ranks, global_batches=(512,), policies=("full",)).table()
    return [array for _, array in rows.chunks()], len(rows)


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of the fastest of some runs."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def report(name: str, graph: Graph, machine: Machine, layouts: Sequence[Layout], count: int) -> None:
    """Price layouts, once to analyse the structure of each assignment and then against the clock."""

    def price() -> None:
        for each in layouts:
            predict(graph, each, machine)

    price()
    seconds = cpu_seconds(price)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {name} | {count:,} | {seconds:.2g} | {count / seconds:,.0f} | {peak:.2f} |")


def main() -> None:
    """Print a table: one layout, the tuner's tables, an open grid; memory is that of the process, JAX included."""
    graph, machine = trace(load_program("llama3-70b")), load_machine("trn2")
    print("| layouts | number | CPU s | per second and core | peak memory so far [GB] |\n|---|---|---|---|---|")
    report("one", graph, machine, [Layout(fsdp=64, tp=8, pp=8, global_batch=512)], 1)
    for ranks in (4096, 65_536):
        report(f"table of {ranks} ranks", graph, machine, *table(ranks))
    report("open grid", graph, machine, *open_grid())


if __name__ == "__main__":
    main()
