"""The computation graph: ops over factors, loops kept rolled; pure data, free of JAX.

A *factor* is an index range that dims share: unification has already given one id to every dim that must be
sharded alike. A *dim* of a value is a tuple of factor ids, major to minor (empty for size 1). Inside one op the
same factor may stand twice (queries and keys both range over the sequence), so an op names its own *local*
indices, `Op.local[i]` being the factor behind local index i.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import networkx

FORMAT = 2

Dim: TypeAlias = tuple[int, ...]
Dims: TypeAlias = tuple[Dim, ...]

DTYPE_BYTES: Mapping[str, float] = {
    **dict.fromkeys(("i4", "ui4", "f4E2M1FN"), 0.5),
    **dict.fromkeys(("i1", "i8", "ui8", "f8E4M3FN", "f8E5M2", "f8E4M3FNUZ", "f8E5M2FNUZ", "f8E4M3", "f8E8M0FNU"), 1.0),
    **dict.fromkeys(("i16", "ui16", "bf16", "f16"), 2.0),
    **dict.fromkeys(("i32", "ui32", "f32"), 4.0),
    **dict.fromkeys(("i64", "ui64", "f64", "complex<f32>"), 8.0),
    "complex<f64>": 16.0,
    "none": 0.0,  # a token, which orders side effects
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """An index range of `size`; `name` is the axis name it inherited and `origin` where that came from.

    `bound` are mesh axes that the program itself spreads the range over (one part per rank, as in `shard_map`);
    `whole` is the size of the named range that it is the major part of, if it is not all of it.
    """

    size: int
    name: str | None = None
    origin: str | None = None
    bound: tuple[str, ...] = ()
    whole: int | None = None

    @property
    def named_size(self) -> int:
        """Size of the range that was given the name."""
        return self.whole or self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor: the factors of each dim, and an element type as StableHLO spells it."""

    dims: Dims
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """FLOPs of one engine at traced sizes, spread over the local indices `over`.

    `share` is the part of the FLOPs that is executed (a causal kernel skips masked blocks); `band`, the part of the
    scores that a window leaves, is in the FLOPs already; `dtype` is what the engine multiplies in.
    """

    engine: str
    flops: float
    dtype: str
    over: tuple[int, ...]
    share: float = 1.0
    band: float = 1.0


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes that a kernel reads and writes at traced sizes, spread over the local indices `over`."""

    bytes: float
    over: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation, or one kernel marked by the program.

    local:        factor behind each local index
    operand_dims: per operand, per dim, the local indices (major to minor), aligned with `Value.dims`
    result_dims:  the same for results
    summed:       per result, local indices summed over to make it (sharding one leaves a partial sum)
    blocked:      local indices that cannot be sharded here
    stepped:      local indices that the enclosing loop's counter walks over
    linear:       operands through which a partial sum may pass unreduced
    reducer:      what sums them; a sum of "add" may wait, one of "psum" (which the program writes, or which puts a
                  slice together) is reduced at once
    tied:         (follower, leader) local indices: the follower lies wherever the leader lies
    pinned:       (local index, mesh axes): where the program itself says that the index lies
    moved:        what it moves, where that is stated; else each operand once and each result once
    """

    kind: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    local: tuple[int, ...] = ()
    operand_dims: tuple[Dims, ...] = ()
    result_dims: tuple[Dims, ...] = ()
    summed: tuple[tuple[int, ...], ...] = ()
    reducer: str = "add"
    blocked: tuple[int, ...] = ()
    stepped: tuple[int, ...] = ()
    linear: tuple[int, ...] = ()
    tied: tuple[tuple[int, int], ...] = ()
    pinned: tuple[tuple[int, tuple[str, ...]], ...] = ()
    work: tuple[Work, ...] = ()
    moved: Moved | None = None
    phase: str = "update"
    scope: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A loop with a known trip count, the size of factor `trip`.

    operands[i] is the value that parameters[i] holds on the first trip; yields[i] is what it holds on the next;
    results[i] is what is left in the end.
    """

    trip: int
    operands: tuple[int, ...]
    parameters: tuple[int, ...]
    body: tuple[Op | Loop, ...]
    yields: tuple[int, ...]
    results: tuple[int, ...]
    phase: str = "update"
    scope: str = ""
    source: str = ""


Node: TypeAlias = Op | Loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """An argument of the program: its value, name, role, and the result that takes over its buffer (or None)."""

    value: int
    name: str
    role: str
    alias: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A traced program.

    `values` and `factors` are tables that ids index; `parameters` and `results` are the program's own; `global_batch`
    is how many sequences a step is meant to take where the user does not say; `notes` are choices that the trace made
    for the program.
    """

    name: str
    recompute: str
    factors: tuple[Factor, ...]
    values: tuple[Value, ...]
    parameters: tuple[Parameter, ...]
    nodes: tuple[Node, ...]
    results: tuple[int, ...]
    global_batch: int = 1
    notes: tuple[str, ...] = ()

    def shape(self, value: int) -> tuple[int, ...]:
        """Global shape of a value."""
        return tuple(math.prod(self.factors[f].size for f in dim) for dim in self.values[value].dims)

    def elements(self, value: int) -> float:
        """Number of elements of a value [1]."""
        return float(math.prod(self.shape(value)))

    def bytes(self, value: int) -> float:
        """Size of a value, unsharded [B]."""
        return self.elements(value) * DTYPE_BYTES[self.values[value].dtype]

    def traffic(self, op: Op) -> float:
        """Bytes that an op by itself reads and writes, unsharded; of what it slices or updates, only the slice [B]."""
        if op.moved is not None:
            return op.moved.bytes
        if op.kind in ("dynamic_slice", "gather"):
            once, twice = op.operands[1:], op.results
        elif op.kind in ("dynamic_update_slice", "scatter"):
            part = 1 if op.kind == "dynamic_update_slice" else 2
            once, twice = (*op.operands[1:part], *op.operands[part + 1 :]), (op.operands[part],)
        else:
            once, twice = (*op.operands, *op.results), ()
        return sum(self.bytes(v) for v in once) + 2.0 * sum(self.bytes(v) for v in twice)

    def walk(self) -> Iterator[tuple[float, Op]]:
        """Every op with how often it runs."""
        yield from _walk(self, self.nodes, 1.0)

    def named(self) -> dict[str, tuple[int, ...]]:
        """Factor ids by axis name."""
        found: dict[str, list[int]] = {}
        for i, factor in enumerate(self.factors):
            if factor.name is not None:
                found.setdefault(factor.name, []).append(i)
        return {name: tuple(ids) for name, ids in found.items()}

    def size(self, name: str, default: int = 1) -> int:
        """Size of the factor with axis name `name` (the largest if several), or `default` if there is none."""
        return max((self.factors[i].named_size for i in self.named().get(name, ())), default=default)

    def tokens(self) -> int | None:
        """Tokens of a sequence: the size of the dim named seq of what goes in; None for images and the like.

        An input of more than 3 dims beside that of the microbatches is no sequence of tokens, whatever its dims are
        called.
        """
        sequence = {i for i, factor in enumerate(self.factors) if factor.name == "seq"}
        inputs = [self.values[p.value].dims for p in self.parameters if p.role in ("batch", "other")]
        for dims in inputs:
            apart = [dim for dim in dims if not any(self.factors[f].name == "microbatch" for f in dim)]
            if len(apart) <= 3 and any(sequence.intersection(dim) for dim in dims):
                return self.size("seq")
        return None if inputs or not sequence else self.size("seq")

    def flops(self, engine: str = "tensor", phases: tuple[str, ...] | None = None) -> float:
        """FLOPs of one step at traced sizes on `engine`, optionally of some phases only."""
        return sum(
            times * work.flops
            for times, op in self.walk()
            if phases is None or op.phase in phases
            for work in op.work
            if work.engine == engine
        )

    def model_flops(self) -> float:
        """FLOPs that MFU counts at traced sizes: three times the forward matmuls of a training step.

        A program without a backward pass counts every matmul once. Causal attention counts in full, recomputation
        not at all (Chowdhery et al., PaLM, appendix B).
        """
        if any(op.phase == "backward" for _, op in self.walk()):
            return 3.0 * self.flops(phases=("forward",))
        return self.flops()

    def parameter_count(self) -> float:
        """Elements of the arguments with role `parameters`."""
        return sum(self.elements(p.value) for p in self.parameters if p.role == "parameters")

    def to_json(self) -> dict[str, Any]:
        """The graph as plain lists and dicts; `perfmodel.graph_file` reads it back."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the graph as JSON, whole or not at all; a device or a pipe is written to directly."""
        text = json.dumps(self.to_json(), separators=(",", ":"))
        if path.exists() and not path.is_file():
            path.write_text(text)
            return
        partial = path.with_name(f"{path.name}.partial")
        try:
            partial.write_text(text)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def to_networkx(self) -> networkx.DiGraph:
        """Ops as nodes, values as edges; a loop is a node whose `body` attribute is its own graph."""
        import networkx  # a slow import that only this view needs

        return _to_networkx(networkx.DiGraph(name=self.name), self.nodes)


def _walk(graph: Graph, nodes: tuple[Node, ...], times: float) -> Iterator[tuple[float, Op]]:
    for node in nodes:
        if isinstance(node, Loop):
            yield from _walk(graph, node.body, times * graph.factors[node.trip].size)
        else:
            yield times, node


def _to_networkx(digraph: networkx.DiGraph, nodes: tuple[Node, ...]) -> networkx.DiGraph:
    producer: dict[int, int] = {}
    for i, node in enumerate(nodes):
        if isinstance(node, Loop):
            body = _to_networkx(type(digraph)(), node.body)
            digraph.add_node(i, kind="loop", trip=node.trip, source=node.source, body=body)
        else:
            flops = sum(work.flops for work in node.work)
            digraph.add_node(i, kind=node.kind, flops=flops, phase=node.phase, source=node.source)
        for value in node.operands:
            if value in producer:
                digraph.add_edge(producer[value], i, value=value)
        producer.update(dict.fromkeys(node.results, i))
    return digraph
