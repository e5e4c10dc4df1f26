"""Predicted against published step times, none of them fitted: `python benchmarks/published_steps.py`.

The rows: dense models with a preset here, run on a machine of this release, whose layout, batch and recompute policy
are published and can be expressed or nearly so; of each source and model the smallest and the largest run.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from perfmodel import Layout, check_chips, load_machine, load_program, predict, trace


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
    differs: str = ""


DGXC = "NVIDIA/dgxc-benchmarking v24.11.1"
INTERLEAVED = "measured with {} virtual stages, predicted with 1F1B"
SLOWER = "measured over 800 Gbit/s between nodes, predicted over 3200"
SOME_BLOCKS = f"{SLOWER}; some blocks recomputed whole, predicted with attention cores recomputed"
IBM = "foundation-model-stack/fms-fsdp"

ROWS = (
    Row(
        model="llama3.1-8b",
        machine="h100",
        chips=8,
        layout="fsdp=4,cp=2,zero=1,recompute=none",
        seq_len=8192,
        global_batch=128,
        seconds=12.91,
        source=DGXC,
    ),
    Row(
        model="llama3.1-8b",
        machine="h100",
        chips=128,
        layout="fsdp=64,cp=2,zero=1,recompute=none",
        seq_len=8192,
        global_batch=2048,
        seconds=13.10,
        source=DGXC,
    ),
    Row(
        model="llama3.1-70b",
        machine="h100",
        chips=64,
        layout="fsdp=2,tp=4,cp=2,pp=4,zero=1,recompute=none",
        seq_len=8192,
        global_batch=128,
        seconds=14.72,
        source=DGXC,
        differs=INTERLEAVED.format(5),
    ),
    Row(
        model="llama3.1-70b",
        machine="h100",
        chips=2048,
        layout="fsdp=64,tp=4,cp=2,pp=4,zero=1,recompute=none",
        seq_len=8192,
        global_batch=4096,
        seconds=14.98,
        source=DGXC,
        differs=INTERLEAVED.format(5),
    ),
    Row(
        model="llama3-405b",
        machine="h100",
        chips=576,
        layout="fsdp=4,tp=8,cp=2,pp=9,zero=1,recompute=none",
        seq_len=8192,
        global_batch=252,
        seconds=17.20,
        source=DGXC,
        differs=f"{INTERLEAVED.format(7)}; 16 key/value heads measured, 8 predicted",
    ),
    Row(
        model="llama3-405b",
        machine="h100",
        chips=2304,
        layout="fsdp=16,tp=8,cp=2,pp=9,zero=1,recompute=none",
        seq_len=8192,
        global_batch=1008,
        seconds=17.62,
        source=DGXC,
        differs=f"{INTERLEAVED.format(7)}; 16 key/value heads measured, 8 predicted",
    ),
    Row(
        model="llama2-7b",
        machine="h100",
        chips=96,
        layout="dp=12,fsdp=8,mb=2,recompute=none",
        seq_len=4096,
        global_batch=192,
        seconds=0.853,
        source=IBM,
        differs=SLOWER,
    ),
    Row(
        model="llama2-13b",
        machine="h100",
        chips=96,
        layout="fsdp=96,mb=2,recompute=selective",
        seq_len=4096,
        global_batch=192,
        seconds=1.689,
        source=IBM,
        differs=SOME_BLOCKS,
    ),
    Row(
        model="llama2-70b",
        machine="h100",
        chips=96,
        layout="fsdp=96,mb=2,recompute=selective",
        seq_len=4096,
        global_batch=192,
        seconds=9.204,
        source=IBM,
        differs=SOME_BLOCKS,
    ),
    Row(
        model="llama2-70b",
        machine="trn2",
        chips=1024,
        layout="fsdp=1024,tp=4,recompute=full",
        seq_len=4096,
        global_batch=1024,
        seconds=11.2,
        source="AXLearn, arXiv 2507.05411 table 3",
        differs="measured with attention outputs saved, predicted with full recomputation",
    ),
)


def predicted(row: Row) -> tuple[float, float, float]:
    """Expected, lower and upper seconds of a row."""
    machine = load_machine(row.machine)
    ranks = check_chips(machine, row.chips)
    layout = Layout.parse(row.layout, ranks=ranks, global_batch=row.global_batch)
    graph = trace(load_program(row.model, seq_len=row.seq_len, recompute=layout.recompute))
    estimate = predict(graph, layout, machine)
    return float(estimate.step_time_s), float(estimate.lower_s), float(estimate.upper_s)


def main() -> None:
    print("| model | machine | layout | measured [s] | predicted [s] | bounds [s] | error | source | differs |")
    print("|---|---|---|---|---|---|---|---|---|")
    errors = []
    for row in ROWS:
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
