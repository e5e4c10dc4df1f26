"""Layouts of the Llama-3-70B step priced per second of one core: `python benchmarks/layouts_per_second.py`."""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import time

from perfmodel import load_machine, load_program, predict, trace
from tuner import Space

REPEATS = 5


def main() -> None:
    graph, machine = trace(load_program("llama3-70b")), load_machine("trn2")
    table = Space(ranks=4096, global_batches=(512,), policies=("full",)).table()
    layouts = [array for _, array in table.chunks()]
    count = len(table)
    for array in layouts:
        predict(graph, array, machine)  # structure is analysed once for each assignment
    best = float("inf")
    for _ in range(REPEATS):
        started = time.process_time()
        for array in layouts:
            predict(graph, array, machine)
        best = min(best, time.process_time() - started)
    started = time.process_time()
    for _ in range(20):
        predict(graph, layouts[0].at(0), machine)
    single = (time.process_time() - started) / 20
    print(f"arrays: {count:,} layouts in {best:.2f} CPU s, {count / best:,.0f} per second and core")
    print(f"one by one: {1000 * single:.1f} CPU ms each; an array is {single * count / best:,.0f} times as fast")


if __name__ == "__main__":
    main()
