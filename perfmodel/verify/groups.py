"""Groups of devices as HLO text spells them, and the mesh axes along which they vary."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Devices: TypeAlias = NDArray[np.int64]

GROUPS = re.compile(
    r"(?:replica_groups|source_target_pairs)="
    r"(?:(?P<iota>\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)|(?P<listed>\{\{[\d,{} ]*\}\})"
    r"|mesh\[(?P<mesh>[^\]]*)\](?:, ?device_ids=\((?P<order>\[[\d,]+\](?:T\([\d,]+\))?)\))? ?\{(?P<over>[^}]*)\})"
)
IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
SUB_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def device_groups(text: str) -> Devices:
    """The groups of devices of a collective, one a row, in any of the notations of HLO text."""
    match = GROUPS.search(text)
    assert match is not None, text
    if match["listed"]:
        return np.array([numbers(group) for group in re.findall(r"\{([\d, ]+)\}", match["listed"])])
    if match["mesh"]:
        return _mesh_groups(match["mesh"], match["order"], match["over"])
    shape, counted, order = IOTA.findall(match["iota"])[0]
    return _turned(numbers(counted), order).reshape(numbers(shape))


def numbers(text: str | None) -> list[int]:
    """Every whole number in a text."""
    return [int(number) for number in re.findall(r"\d+", text or "")]


def _turned(shape: Sequence[int], order: str) -> Devices:
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose(numbers(order)) if order else devices


def _mesh_groups(mesh: str, order: str | None, over: str) -> Devices:
    """Groups over axes, or over parts `'a':(before)size` of axes, of a mesh `'a'=2,'b'=4` of devices in some order."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts = [(name, int(before or 1), int(size or sizes[name])) for name, before, size in SUB_AXIS.findall(over)]
    shape: list[int] = []
    inside: list[bool] = []
    for name, size in sizes.items():
        mine = [(before, before * part) for owner, before, part in parts if owner == name]
        for low, high in itertools.pairwise(sorted({1, size, *itertools.chain(*mine)})):
            shape.append(high // low)
            inside.append(any(start <= low and high <= end for start, end in mine))
    devices = np.arange(math.prod(shape))
    if order is not None:
        counted, _, turned = IOTA.findall(order)[0]
        devices = _turned(numbers(counted), turned)
    axes = sorted(range(len(shape)), key=lambda i: inside[i])
    size = math.prod(length for length, is_inside in zip(shape, inside, strict=True) if is_inside)
    return devices.reshape(shape).transpose(axes).reshape(-1, size)


def axes_of(groups: Devices, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which groups of devices vary."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())))
    varies = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, along in zip(mesh, varies, strict=True) if along)
