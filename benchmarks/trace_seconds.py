"""Seconds to trace the Llama-3 training steps: `python benchmarks/trace_seconds.py`."""

from __future__ import annotations

import time

from perfmodel import load_program, trace

MODELS = ("llama3-8b", "llama3-70b", "llama3-405b")


def cpu_seconds(model: str) -> float:
    started = time.process_time()
    trace(load_program(model))
    return time.process_time() - started


def main() -> None:
    trace(load_program("llama3.2-1b"))  # the first trace pays for JAX's own start
    print("| model | first trace [CPU s] | again [CPU s] |\n|---|---|---|")
    for model in MODELS:
        print(f"| {model} | {cpu_seconds(model):.2f} | {cpu_seconds(model):.2f} |")


if __name__ == "__main__":
    main()
