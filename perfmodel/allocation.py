"""Which part of a machine a job gets: how many chips it may have, and the tiers that they leave it."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

from perfmodel.errors import MachineError
from perfmodel.formulas import collectives as formulas
from perfmodel.machine import Machine
from perfmodel.spec_file import finite_ranks
from perfmodel.topology import Tier


def check_chips(machine: Machine, chips: int) -> int:
    """Ranks of `chips` accelerators; raises MachineError unless they fill the fabric evenly."""
    if chips < 1 or not _members(machine, chips):
        raise MachineError(f"chips: got {chips}, expected {_allowed(machine)} ({machine.title}): change --chips")
    return chips * machine.ranks_per_chip


def _members(machine: Machine, chips: int) -> tuple[int, ...] | None:
    return _in_use(machine.tiers, chips * machine.ranks_per_chip, machine.ranks_per_chip)


def _allowed(machine: Machine) -> str:
    """Numbers of chips that a job may have."""
    whole = max(finite_ranks(tier.extents for tier in machine.tiers) // machine.ranks_per_chip, 1)
    parts = [n for n in range(1, whole + 1) if _members(machine, n)]
    if 0 not in machine.tiers[-1].extents:
        return _ranges(parts)
    repeated = [n for n in parts if _repeats(machine, n)]
    return f"{_ranges(parts)} or a multiple of {'any of ' * (len(repeated) > 1)}{_ranges(repeated)}"


def _repeats(machine: Machine, chips: int) -> bool:
    """Whether a job may have so many chips of each of several whole fabrics."""
    members = _members(machine, chips) or ()
    return all(n >= _least_of_several(tier) for tier, n in zip(machine.tiers, members, strict=True))


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 4 to 8."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] + 1 == n:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def slice_of(machine: Machine, ranks: int) -> Machine:
    """The part of a machine that a job of so many ranks gets, as far as it matters to what a job costs: of a torus that
    is let in parts one of them, of switches that are each used in part the ports in use.
    """
    members = _in_use(machine.tiers, ranks, machine.ranks_per_chip)
    if not members:
        return machine
    beyond = list(accumulate(members, operator.floordiv, initial=ranks))[1:]
    tiers = (_cut(tier, n, several) for tier, n, several in zip(machine.tiers, members, beyond, strict=True))
    return replace(machine, tiers=tuple(tiers))


def let_in_parts(machine: Machine) -> bool:
    """Whether the number of a job's ranks may decide what tiers it gets: of a torus a shape, of switches and full
    meshes of several chips the ports in use.
    """
    held = accumulate((math.prod(tier.extents) for tier in machine.tiers), operator.mul)
    return any(
        tier.shapes or (tier.kind != "torus" and ranks > machine.ranks_per_chip)
        for tier, ranks in zip(machine.tiers, held, strict=True)
    )


def _slices(tier: Tier) -> Collection[int]:
    """Numbers of members that a job may have which needs no more than the tier: any of a switch, whose members are all
    alike; of a torus its shapes, or what fills its dims one after the other.
    """
    if tier.shapes:
        return {math.prod(shape) for shape in tier.shapes}
    if tier.kind != "torus":
        return range(1, math.prod(tier.extents) + 1)
    inner = accumulate(tier.extents[:-1], operator.mul, initial=1)
    return {n * part for n, extent in zip(inner, tier.extents, strict=True) for part in _divisors(extent)}


def _divisors(n: int) -> list[int]:
    return [part for part in range(1, n + 1) if n % part == 0]


def _least_of_several(tier: Tier) -> int:
    """Members that a job has at least in each of several such tiers: all of a torus, half of a switch, or fewer
    switches would do.
    """
    whole = math.prod(tier.extents)
    return whole if tier.kind == "torus" else -(-whole // 2)


def _shares(tier: Tier, members: int) -> Iterable[int]:
    """Members that a job of so many may have in a tier, or in each of several, most first."""
    whole = math.prod(tier.extents)
    if not whole or members in _slices(tier):
        return [members]
    return (n for n in range(whole, _least_of_several(tier) - 1, -1) if members % n == 0)


def _in_use(tiers: Sequence[Tier], ranks: int, share: int = 1) -> tuple[int, ...] | None:
    """Members of each tier that a job of so many ranks uses, as many in every tier of a kind: most of the innermost
    first. None where there is no such part of the fabric. Chips of `share` ranks stay whole.
    """
    if not tiers:
        return () if ranks == 1 else None
    tier, *outer = tiers
    whole = math.prod(tier.extents)
    inside = min(whole or share, share)
    for members in _shares(tier, ranks):
        if members % inside == 0 and (more := _in_use(outer, ranks // members, share // inside)) is not None:
            return (members, *more)
    return None


def _cut(tier: Tier, members: int, tiers: int) -> Tier:
    """A tier of which a job uses so many members in each of several: of a torus that is let in parts, the most cubic
    one; links of a full tier to the members left out are idle.
    """
    fitting = [shape for shape in tier.shapes if math.prod(shape) == members]
    if fitting and tiers == 1:
        return replace(tier, extents=min(fitting, key=lambda shape: (sum(shape), shape)))
    if tier.kind == "torus" or tiers == 1 or not tier.extents[0]:
        return tier
    (extent,), (bandwidth,) = tier.extents, tier.bandwidth
    if tier.kind == "full":
        bandwidth = float(formulas.full_mesh_bandwidth(members, extent, bandwidth))
    return replace(tier, extents=(members,), bandwidth=(bandwidth,))
