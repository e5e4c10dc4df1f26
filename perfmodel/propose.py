"""Axis names for a program that nobody annotated: which factors are worth sharding follows from the work they carry.

The factor of the inputs that carries most work is the batch. Among the factors of parameters, tensor parallelism wants
a set that divides the matmuls, no two of them in one (the second would divide nothing), and that moves few bytes; what
is left of each parameter can be stored sharded.

A name binds all its factors: an axis must divide every one. So a factor that ranks cannot share evenly (the colours of
a picture, the window of a convolution) is left out, unless so much of the work hangs on it that fewer ranks which
divide it too leave each less to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from perfmodel.graph import Graph, Loop, Node, Op
from perfmodel.layout import assignment
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, Reshard
from perfmodel.state import LOCAL
from perfmodel.work import MICROBATCH, PER_RANK, SYMBOLS, TP, Evaluator

ENOUGH = 0.9
"""A set is a candidate if it divides this share of the work that the best set divides."""

TENSOR_RANKS, SHARDS = (8, 4, 2), (64, 32, 16, 8, 4, 2)
"""Ranks that names are to allow: for tensor parallelism those of a server, for stored shards as many as a program may
well be spread over; what more of them divide, fewer do.
"""

PADDING = 0.01
"""Tensor parallelism also takes factors that it must pad, as a vocabulary, where this share of them is padding."""

TRIES = 4
"""How many of the factors that most parameters share are left out in turn, to find sets that avoid them."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a graph says about its factors.

    matmuls: per matmul, the factors that may be sharded there, and its FLOPs in a step
    flops:   of all matmuls
    carried: FLOPs of the matmuls that range over each factor
    shared:  parameters that have each factor
    """

    matmuls: tuple[tuple[frozenset[int], float], ...]
    flops: float
    carried: Mapping[int, float]
    shared: Mapping[int, int]


def propose(graph: Graph) -> dict[str, str]:
    """Names for the dims of arguments, by their path, as `perfmodel.named` takes them.

    Empty where the program has names already (then what is unnamed is meant to be whole), or no matmuls.
    """
    if graph.named():
        return {}
    facts = _facts(graph)
    if not facts.matmuls:
        return {}
    found = {**_inputs(graph, facts), **_layers(graph, facts)}
    found |= _tensor_parallel(graph, facts, found)
    found |= dict.fromkeys(_stored(graph, facts, found), "embed")
    return {graph.factors[factor].origin or "": name for factor, name in found.items()}


def _facts(graph: Graph) -> _Facts:
    matmuls = []
    carried: dict[int, float] = {}
    for times, op in graph.walk():
        flops = times * sum(work.flops for work in op.work if work.engine == "tensor")
        if flops:
            free = _free(op)
            matmuls.append((free, flops))
            for factor in free:
                carried[factor] = carried.get(factor, 0.0) + flops
    shared: dict[int, int] = {}
    for parameter in graph.parameters:
        if parameter.role == "parameters":
            for factor in _majors(graph, parameter.value):
                shared[factor] = shared.get(factor, 0) + 1
    total = sum(flops for _, flops in matmuls)
    return _Facts(matmuls=tuple(matmuls), flops=total, carried=carried, shared=shared)


def _majors(graph: Graph, value: int) -> list[int]:
    """Factors of a value that a name can be given to: of each dim the major one."""
    return list(dict.fromkeys(dim[0] for dim in graph.values[value].dims if dim))


def _free(op: Op) -> frozenset[int]:
    return frozenset(factor for i, factor in enumerate(op.local) if i not in (*op.blocked, *op.stepped))


def _inputs(graph: Graph, facts: _Facts) -> dict[int, str]:
    """The batch, and next to it the tokens: what inputs range over and parameters do not, by the work it carries."""
    trips = set(_trips(graph.nodes))
    inputs = {
        factor: None
        for parameter in graph.parameters
        if parameter.role in ("batch", "other")
        for factor in _majors(graph, parameter.value)
        if factor not in facts.shared and factor not in trips and facts.carried.get(factor)
    }
    ranked = sorted(inputs, key=lambda factor: -facts.carried[factor])
    return dict(zip(ranked, ("batch", "seq"), strict=False))


def _layers(graph: Graph, facts: _Facts) -> dict[int, str]:
    """Loops over stacked parameters."""
    return {trip: "layers" for trip in _trips(graph.nodes) if trip in facts.shared}


def _trips(nodes: Sequence[Node]) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, Loop):
            yield node.trip
            yield from _trips(node.body)


def _tensor_parallel(graph: Graph, facts: _Facts, found: Mapping[int, str]) -> dict[int, str]:
    """The set of factors that divides nearly as much work as any, and moves least, without those that keep more ranks
    from sharing the others; what must be padded is named as a vocabulary.
    """
    factors = [f for f in facts.shared if f not in found and facts.carried.get(f) and _is_shared(graph, f, 2)]
    by_sharing = sorted(factors, key=lambda f: -facts.shared[f])
    sets = {frozenset(_cover(facts, set(factors) - set(by_sharing[:n]))) for n in range(TRIES)}
    divided = {each: _divided(facts, each) for each in sets}
    enough = ENOUGH * max(divided.values())
    candidates = sorted((each for each in sets if each and divided[each] >= enough), key=sorted)
    chosen = sorted(min(candidates, key=lambda each: _moved(graph, found, each), default=()))
    by_ranks = {ranks: [f for f in chosen if _is_shared(graph, f, ranks)] for ranks in TENSOR_RANKS}
    best = min(by_ranks, key=lambda ranks: _remaining(_divided(facts, by_ranks[ranks]), ranks))
    return {factor: "vocab" if _padding(graph, factor, best) else "mlp" for factor in by_ranks[best]}


def _divided(facts: _Facts, factors: Iterable[int]) -> float:
    """The share of the work that a set of factors divides."""
    chosen = set(factors)
    return sum(flops for free, flops in facts.matmuls if free & chosen) / facts.flops


def _is_shared(graph: Graph, factor: int, ranks: int) -> bool:
    """Whether so many ranks can share a factor, with little padding."""
    return _padding(graph, factor, ranks) <= PADDING


def _padding(graph: Graph, factor: int, ranks: int) -> float:
    """Share that is added to a factor so that ranks divide it."""
    return -graph.factors[factor].size % ranks / graph.factors[factor].size


def _remaining(share: float, ranks: int) -> float:
    """What each rank is left with where ranks divide a share of the whole (Amdahl's law)."""
    return 1.0 - share + share / ranks


def _cover(facts: _Facts, factors: Iterable[int]) -> list[int]:
    """Factors that divide most work, largest first, no two in one matmul."""
    chosen: list[int] = []
    taken: set[int] = set()
    for factor in sorted(factors, key=lambda f: (-facts.carried[f], f)):
        if factor not in taken:
            chosen.append(factor)
            taken.update(other for free, _ in facts.matmuls if factor in free for other in free)
    return chosen


def _moved(graph: Graph, found: Mapping[int, str], chosen: Iterable[int]) -> float:
    """Bytes that two tensor-parallel ranks move in a step of the traced size."""
    names = {**found, **dict.fromkeys(chosen, "mlp")}
    factors = [replace(factor, name=names.get(i)) for i, factor in enumerate(graph.factors)]
    changed = replace(graph, factors=tuple(factors))
    sizes = {PER_RANK: float(changed.size("batch")), MICROBATCH: float(changed.size(MICROBATCH))}
    evaluate = Evaluator({**dict.fromkeys(SYMBOLS, 1.0), TP[0]: 2.0, **sizes})

    def visit(nodes: Sequence[LocalNode], times: float) -> float:
        total = 0.0
        for node in nodes:
            if isinstance(node, LocalLoop):
                total += visit(node.body, times * float(evaluate.term(node.trips)))
            elif isinstance(node, Reshard) and node.kind not in LOCAL and TP[0] in node.axes:
                total += times * float(evaluate.term(node.bytes))
        return total

    return visit(shard(changed, assignment(zero=0, sp=False)).nodes, 1.0)


def _stored(graph: Graph, facts: _Facts, found: Mapping[int, str]) -> set[int]:
    """Of each parameter the factor that it shares with most others, of those left; the larger one where two tie."""
    parameters = [parameter.value for parameter in graph.parameters if parameter.role == "parameters"]
    total = sum(map(graph.bytes, parameters)) or 1.0

    def chosen(ranks: int) -> dict[int, int]:
        """By parameter, the factor that so many ranks can share; others stay whole."""
        left = {
            v: [f for f in _majors(graph, v) if f not in found and not _padding(graph, f, ranks)] for v in parameters
        }
        return {v: max(fs, key=lambda f: (facts.shared[f], graph.factors[f].size)) for v, fs in left.items() if fs}

    best = min(SHARDS, key=lambda ranks: _remaining(sum(map(graph.bytes, chosen(ranks))) / total, ranks))
    return set(chosen(best).values())
