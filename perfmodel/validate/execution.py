"""From the layout columns of a row to a Layout, and in words what differs from what ran."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from perfmodel.layout import Layout
from perfmodel.validate.rows import Row, RowError

SIZES = ("dp", "fsdp", "tp", "pp", "cp")

POLICIES = (
    (r"^none|^minimal_with_context|^minimal_flash|linear outputs saved", "none"),
    (r"^selective$|^selective \(script", "selective"),
    (r"^minimal$|^dots_saveable|^save_dot_only", "selective"),
    (r"^full", "full"),
    (r"^save_|^custom|offloaded|^yes|^CoreAttention|^selective", "full"),
)
"""What runs call their recompute policy -> the nearest one here; the first that fits counts.

Policies that keep all matmul outputs recompute attention and elementwise kernels only; those that keep some, or move
them to the host, are nearest to keeping the inputs of layers.
"""
SAME = ("none", "selective", "full", "full (script default)", "selective (script default)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a run was laid out: the layout, and what differs from what ran."""

    layout: Layout
    differs: tuple[str, ...]


def execution_of(row: Row, ranks_per_chip: int) -> Execution:
    """The layout of a row; raises RowError where its sizes contradict each other or are not stated."""
    differs: list[str] = []
    sizes = mesh_sizes(row, ranks_per_chip)
    data = sizes["dp"] * sizes["fsdp"]
    batch = row.need("global_batch_seqs")
    zero = _zero(row, data, differs)
    if zero and sizes["fsdp"] == 1:  # a stage without a shard axis of its own shards over all data-parallel ranks
        sizes.update(dp=1, fsdp=data)
    layout = Layout(
        **_with_experts(row, sizes, differs),
        vpp=_virtual_stages(row, sizes["pp"]),
        mb=_microbatch(row, batch, data, differs),
        global_batch=batch,
        zero=zero,
        sp=_sequence_parallel(row, sizes["tp"], differs),
        recompute=_recompute(row, differs),
    ).settled()
    return Execution(layout=layout, differs=tuple(differs))


def mesh_sizes(row: Row, ranks_per_chip: int) -> dict[str, int]:
    """Sizes of the mesh axes, whose product is the number of ranks; one that is not stated is what the others leave.

    Sources count chips or ranks; whichever the sizes multiply to is what this one counted.
    """
    stated = {axis: row.count(axis) for axis in SIZES}
    if not any(stated.values()):
        raise RowError("no layout is stated")
    devices = row.need("n_devices")
    sizes = {axis: size or 1 for axis, size in stated.items()}
    used = math.prod(sizes.values())
    if used in (devices, devices * ranks_per_chip):
        return sizes
    if stated["dp"] is None and stated["fsdp"] is None and devices % used == 0:
        return {**sizes, "dp": devices // used}
    product = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "1"
    raise RowError(f"contradicts itself: {product} = {used}, on {devices} devices")


def _zero(row: Row, data: int, differs: list[str]) -> int:
    text = row.text("zero_stage")
    if text not in ("", "0", "1", "2", "3"):
        raise RowError(f"zero_stage is {text!r}")
    if not text and data > 1:
        differs.append("ZeRO stage not stated, predicted without")
    return int(text or 0)


def _with_experts(row: Row, sizes: dict[str, int], differs: list[str]) -> dict[str, Any]:
    """The sizes with the expert axis split off the data axes, within which it lies, and the other ranks that experts
    are spread over where those do not suffice.
    """
    ep = row.count("ep") or 1
    if row.count("n_experts") is None:
        return {**sizes, "ep": 1}
    data = sizes["dp"] * sizes["fsdp"]
    inside = math.gcd(ep, data)
    further = {sizes["tp"] * sizes["cp"]: "tp+cp+ep", sizes["cp"]: "cp+ep", 1: "ep"}
    experts = further.get(ep // inside)
    if experts is None:
        differs.append(f"experts over {ep} ranks, predicted over {inside}, those that share the batch")
    shard = math.gcd(inside, sizes["fsdp"])
    rest = math.gcd(inside // shard, sizes["dp"])
    split = {"ep": shard * rest, "fsdp": sizes["fsdp"] // shard, "dp": sizes["dp"] // rest}
    return {**sizes, **split, "experts": experts or "ep"}


def _microbatch(row: Row, batch: int, data: int, differs: list[str]) -> int:
    if batch % data:
        raise RowError(f"contradicts itself: {batch} sequences over {data} data-parallel ranks")
    share, size = batch // data, row.count("micro_batch")
    if size is None:
        differs.append("microbatch not stated, predicted with 1")
        return 1
    if share % size:
        raise RowError(f"contradicts itself: microbatches of {size} in {share} sequences of each rank")
    return size


def _sequence_parallel(row: Row, tp: int, differs: list[str]) -> bool:
    text = row.text("sp").lower()
    if not text and tp > 1:
        differs.append("sequence parallelism not stated, predicted with it")
    return text not in ("0", "1", "no", "false") if text else True


def _recompute(row: Row, differs: list[str]) -> str:
    text = row.text("recompute")
    if not text:
        differs.append("recompute policy not stated, predicted with none")
        return "none"
    for pattern, policy in POLICIES:
        if re.search(pattern, text, re.IGNORECASE):
            if text not in SAME:
                differs.append(f"recompute {text.partition(' (')[0]}, predicted with {policy}")
            return policy
    raise RowError(f"recompute policy {text!r} is not known")


def _virtual_stages(row: Row, pp: int) -> int:
    """Chunks of layers on each stage."""
    return (row.count("vpp") or 1) if pp > 1 else 1
