"""The collectives that perfmodel derives, and the same as a compiler runs them whose loops carry no partial sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from perfmodel.graph import DTYPE_BYTES
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import LOCAL
from perfmodel.verify.collective import Collective
from perfmodel.work import Evaluator, Number

EAGER = "sums reduced where they arise"
WHY_EAGER = (
    "compilers reduce a partial sum in the op that makes it: in its type there, and in every microbatch, since no loop "
    "carries a partial sum; perfmodel reduces what was accumulated, once per step, as trainers do"
)
KINDS = {"permute": "collective_permute"}
REDUCTIONS = ("all_reduce", "reduce_scatter")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a partial sum arose: its element type there, and how many of it were added up since."""

    dtype: str
    summands: float = 1.0


def derived(sharded: ShardedGraph, sizes: Mapping[str, Number], *, eager: bool = False) -> list[Collective]:
    """Derived collectives, labelled by phase; `eager` has every sum reduced where it arises."""
    walk = _Walk(sharded, sizes, eager)
    return [collective for collective in walk.nodes(sharded.nodes, 1.0) if collective.axes]


class _Walk:
    def __init__(self, sharded: ShardedGraph, sizes: Mapping[str, Number], eager: bool) -> None:
        self.sharded = sharded
        self.sizes = sizes
        self.evaluate = Evaluator(sizes)
        self.eager = eager
        self.origins: dict[int, Origin] = {}
        self.stacked: set[int] = set()  # copies into which each trip of a loop writes its own part

    def dtype(self, copy: int) -> str:
        return self.sharded.graph.values[self.sharded.copies[copy].value].dtype

    def nodes(self, nodes: Sequence[LocalNode], times: float) -> Iterator[Collective]:
        for node in nodes:
            if isinstance(node, LocalLoop):
                trips = float(self.evaluate.term(node.trips))
                yield from self.nodes(node.body, times * trips)
                self.leave(node, trips)
            elif isinstance(node, Reshard):
                self.pass_on(node.operands, node.results)
                if node.kind not in LOCAL:
                    yield self.collective(node, times)
            else:
                self.compute(node)

    def compute(self, node: LocalOp) -> None:
        sums = any(node.axes[i] for summed in node.op.summed for i in summed)
        self.pass_on(() if sums else node.operands, node.results)
        if node.op.kind == "dynamic_update_slice" and node.op.stepped:
            self.stacked.update(node.results)

    def pass_on(self, operands: Sequence[int], results: Sequence[int]) -> None:
        """Partial results are sums that arose where an operand's did, or else here."""
        known = [self.origins[copy] for copy in operands if copy in self.origins]
        for copy in results:
            if self.sharded.copies[copy].state.partial:
                self.origins[copy] = known[0] if known else Origin(self.dtype(copy))

    def leave(self, loop: LocalLoop, trips: float) -> None:
        """What a loop leaves is what its trips yielded: side by side, or added up."""
        for inside, result in zip(loop.yields, loop.results, strict=True):
            if inside in self.origins:
                origin = self.origins[inside]
                self.origins[result] = Origin(
                    origin.dtype, origin.summands * (1.0 if inside in self.stacked else trips)
                )

    def collective(self, node: Reshard, times: float) -> Collective:
        found = Collective(
            kind=KINDS.get(node.kind, node.kind),
            axes=tuple(axis for axis in node.axes if self.sizes[axis] > 1),
            dtype=self.dtype(node.operand),
            bytes=float(self.evaluate.term(node.bytes)),
            times=times,
            name=node.phase,
        )
        origin = self.origins.get(node.operand)
        return _early(found, origin) if self.eager and origin and node.kind in REDUCTIONS else found


def _early(late: Collective, origin: Origin) -> Collective:
    """A reduction run on each summand, in the type that it arose in."""
    narrower = DTYPE_BYTES[origin.dtype] / DTYPE_BYTES[late.dtype]
    return replace(late, dtype=origin.dtype, bytes=late.bytes * narrower, times=late.times * origin.summands)
