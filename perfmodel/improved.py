"""Machines that have more of one thing than a machine, of what an estimate on it could gain from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from perfmodel.estimate import ENGINES, LABELS, Estimate
from perfmodel.machine import ELEMENTWISE, Machine
from perfmodel.topology import Tier


@dataclass(frozen=True, slots=True)
class Improved:
    """A machine, the part of it that is better (a bound that it lessens is called the same), and how, in words."""

    part: str
    what: str
    machine: Machine


def improved(machine: Machine, estimate: Estimate) -> Iterator[Improved]:
    """Machines with an engine, the memory or a tier of the fabric twice as good, with a class of collectives hidden as
    far as there is compute, or without what launches or steps cost.
    """
    for engine in dict.fromkeys("tensor" if k.decides == "attention" else k.decides for k in estimate.kernels):
        name = ENGINES[engine]
        rate = name if engine == "memory" else f"rate of the {name.partition(' (')[0]}"
        yield Improved(name, f"twice the {rate}", _faster(machine, engine))
    exposed = [name for name in estimate.communication if float(estimate.breakdown[name]) > 0.0]
    for name in exposed:
        hidden = replace(machine, overlap={**machine.overlap, name: 1.0})
        yield Improved(LABELS[name], f"overlapping all {LABELS[name]} with compute", hidden)
    for i, tier in enumerate(machine.tiers if exposed else ()):
        for part, what, better in (("bandwidth", "twice", _wider(tier)), ("latency", "half", _prompter(tier))):
            tiers = (*machine.tiers[:i], better, *machine.tiers[i + 1 :])
            yield Improved(f"{tier.name} {part}", f"{what} the {part} of {tier.name}", replace(machine, tiers=tiers))
    launched = replace(machine.framework, host_seconds=0.0)
    at_once = replace(machine, kernel_launch_seconds=0.0, framework=launched)
    yield Improved(LABELS["host"], "kernels that launch in no time", at_once)
    prompt = replace(machine, step_overhead_seconds=0.0, barrier_seconds=0.0)
    yield Improved(LABELS["overhead"], "no fixed overhead of a step", prompt)


def _faster(machine: Machine, engine: str) -> Machine:
    """A machine with twice the rate of one engine, or of its memory."""
    if engine == "memory":
        return replace(machine, memory_bandwidth=2.0 * machine.memory_bandwidth)
    if engine in ELEMENTWISE:
        return replace(machine, elementwise={**machine.elementwise, engine: 2.0 * machine.elementwise[engine]})
    return replace(machine, tensor_flops={name: 2.0 * rate for name, rate in machine.tensor_flops.items()})


def _wider(tier: Tier) -> Tier:
    """A tier with twice the bandwidth."""
    return replace(tier, bandwidth=tuple(2.0 * x for x in tier.bandwidth), relay=2.0 * tier.relay)


def _prompter(tier: Tier) -> Tier:
    """A tier with half the latencies."""
    algorithms = (
        replace(each, latency=each.latency / 2.0, inner=each.inner / 2.0, base=each.base / 2.0)
        for each in tier.algorithms
    )
    return replace(tier, latency=tier.latency / 2.0, algorithms=tuple(algorithms))
