"""What collectives cost on a machine's fabric, by message and group size, and how near they come to the optimum.

python examples/fabric_explorer.py h100 --chips 16
python examples/fabric_explorer.py trn2 --chips 64 --out plots

Prints a table, or with --out draws three pictures (which needs matplotlib): the bandwidth that a rank sees, the time,
and the share of the optimum that is reached. A permute has none: its optimum would detour over all links of the fabric.
A group of each size lies innermost on the fabric, and all groups of that size are at work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from perfmodel import Machine, MachineError, check_chips, load_machine
from perfmodel.allocation import slice_of
from perfmodel.collective import axis_cost
from perfmodel.work import Floats

TAKES_IN: dict[str, Callable[[int], float]] = {
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "permute": lambda n: 1.0,
}
"""Bytes that a rank must take in, of each byte of the buffer (of an all-reduce: in and out again)."""

BYTES = np.logspace(10, 34, 97, base=2)
"""1 KiB to 16 GiB."""

TICKS = {"1 KiB": 2.0**10, "32 KiB": 2.0**15, "1 MiB": 2.0**20, "32 MiB": 2.0**25, "1 GiB": 2.0**30}

Curve = Callable[[str, int], Floats]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures of the machine that the command line names."""
    options = parser().parse_args(arguments)
    if options.out and find_spec("matplotlib") is None:
        raise SystemExit("fabric_explorer: got no matplotlib, expected it: pip install 'rainier-perfmodel[plots]'")
    try:
        machine = load_machine(options.machine)
        chips = options.chips or default_chips(machine)
        ranks = check_chips(machine, chips)
    except MachineError as error:
        raise SystemExit(str(error)) from None
    if ranks == 1:
        raise SystemExit(f"chips: got {chips}, expected more than one rank: change --chips")
    machine = slice_of(machine, ranks)
    lines: Iterable[object] = draw(machine, ranks, options.out) if options.out else table(machine, ranks)
    for line in lines:
        print(line)


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("machine", nargs="?", default="trn2", help="a shipped machine, or the path of a machine file")
    options.add_argument("--chips", type=int, help="chips of the job (default: four instances, if there may be four)")
    options.add_argument("--out", type=Path, help="folder for pictures instead of a table")
    return options


def default_chips(machine: Machine) -> int:
    """Four instances, or one."""
    try:
        check_chips(machine, 4 * machine.chips_per_instance)
    except MachineError:
        return machine.chips_per_instance
    return 4 * machine.chips_per_instance


def group_sizes(machine: Machine, ranks: int) -> list[int]:
    """Sizes at which a group fills a dim of the fabric, and the whole job."""
    sizes, size = {2, ranks}, 1
    for extent in (extent for tier in machine.tiers for extent in tier.extents):
        size *= extent or 1
        sizes.add(size)
    return sorted(size for size in sizes if size > 1 and ranks % size == 0)


def seconds(kind: str, n: int, machine: Machine, bytes: Floats = BYTES) -> Floats:
    """Time of a collective over n ranks [s]."""
    return np.asarray(axis_cost(kind, n, 1, machine).seconds(bytes), dtype=np.float64)


def bandwidth(kind: str, n: int, machine: Machine, bytes: Floats = BYTES) -> Floats:
    """What a rank takes in, by the time of it [B/s]."""
    taken: Floats = bytes * TAKES_IN[kind](n)
    return taken / seconds(kind, n, machine, bytes)


def share(kind: str, n: int, machine: Machine, bytes: Floats = BYTES) -> Floats:
    """Share of the optimum that is reached; a permute has none [1]."""
    best = axis_cost(kind, n, 1, machine).optimum(bytes) if kind != "permute" else np.nan * bytes
    return np.asarray(best, dtype=np.float64) / seconds(kind, n, machine, bytes)


def table(machine: Machine, ranks: int) -> Iterator[str]:
    """Lines for each collective and group size: the least time, and what large messages reach."""
    yield f"{machine.title}, {ranks // machine.ranks_per_chip} chips"
    yield f"{'':16}{'ranks':>8}{'1 KiB [us]':>12}{'1 GiB [GB/s]':>14}{'of optimum':>12}"
    small, large = np.array([2.0**10]), np.array([2.0**30])
    for kind in TAKES_IN:
        for n in group_sizes(machine, ranks):
            (least,), (most,) = seconds(kind, n, machine, small), bandwidth(kind, n, machine, large)
            (reached,) = share(kind, n, machine, large)
            last = "" if np.isnan(reached) else f"{reached:12.0%}"
            yield f"{kind:16}{n:8}{least * 1e6:12.1f}{most / 1e9:14.1f}{last}"


def draw(machine: Machine, ranks: int, out: Path) -> list[Path]:
    """Write the pictures; their paths."""
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[str, Curve, str]] = {
        "bandwidth": ("bus bandwidth of a rank [GB/s]", lambda kind, n: bandwidth(kind, n, machine) / 1e9, "log"),
        "latency": ("time [us]", lambda kind, n: seconds(kind, n, machine) * 1e6, "log"),
        "optimum": ("optimum of the links / time", lambda kind, n: share(kind, n, machine), "linear"),
    }
    sizes = group_sizes(machine, ranks)
    job = f"{machine.title}, {ranks // machine.ranks_per_chip} chips"
    paths = []
    for name, (label, curve, scale) in pictures.items():
        figure = panels(label, curve, scale, sizes)
        figure.suptitle(f"{job}: {label}", fontsize=12)
        paths.append(out / f"{machine.name}-{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


def panels(label: str, curve: Curve, scale: str, sizes: Sequence[int]) -> Any:
    """One panel for each collective, one line in it for each group size."""
    from matplotlib import colormaps  # not needed to say that it is missing
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(sizes)))
    for panel, kind in zip(axes.flat, TAKES_IN, strict=True):
        panel.set_visible(scale == "log" or kind != "permute")
        for i, size in enumerate(sizes):
            style = ("-", "--", "-.")[i % 3]
            panel.plot(BYTES, curve(kind, size), style, label=f"{size} ranks", color=colours[i], linewidth=1.6)
        panel.set(title=kind.replace("_", "-"), xscale="log", yscale=scale)
        panel.set_xticks(list(TICKS.values()), labels=list(TICKS))
        panel.grid(visible=True, alpha=0.3)
        panel.minorticks_off()
    if scale == "linear":
        axes[0, 0].set_ylim(0.0, 1.05)
    figure.supxlabel("buffer of a rank", fontsize=10)
    figure.supylabel(label, fontsize=10)
    axes[0, 0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
