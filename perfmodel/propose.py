"""Axis names for a program that nobody annotated: which factors are worth sharding follows from the work they carry.

The factor of the inputs that carries most work is the batch. Among the factors of parameters, tensor parallelism wants
a set that divides the matmuls, no two of them in one (the second would divide nothing), and that moves few bytes; what
is left of each parameter can be stored sharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from perfmodel.graph import Graph, Loop, Node, Op
from perfmodel.layout import assignment
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, Reshard
from perfmodel.state import LOCAL
from perfmodel.work import MESH, MICROBATCH, PER_RANK, TP, Evaluator

ENOUGH = 0.9
"""A set is a candidate if it divides this share of the work that the best set divides."""

TRIES = 4
"""How many of the factors that most parameters share are left out in turn, to find sets that avoid them."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a graph says about its factors.

    matmuls: per matmul, the factors that may be sharded there, and its FLOPs in a step
    carried: FLOPs of the matmuls that range over each factor
    shared:  parameters that have each factor
    """

    matmuls: tuple[tuple[frozenset[int], float], ...]
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
    found |= dict.fromkeys(_tensor_parallel(graph, facts, found), "mlp")
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
    return _Facts(matmuls=tuple(matmuls), carried=carried, shared=shared)


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


def _tensor_parallel(graph: Graph, facts: _Facts, found: Mapping[int, str]) -> Sequence[int]:
    """The set of factors that divides nearly as much work as any, and moves least."""
    factors = [f for f in facts.shared if f not in found and facts.carried.get(f)]
    by_sharing = sorted(factors, key=lambda f: -facts.shared[f])
    sets = {frozenset(_cover(facts, set(factors) - set(by_sharing[:n]))) for n in range(TRIES)}
    divided = {each: sum(flops for free, flops in facts.matmuls if free & each) for each in sets}
    enough = ENOUGH * max(divided.values())
    candidates = sorted((each for each in sets if each and divided[each] >= enough), key=sorted)
    return sorted(min(candidates, key=lambda each: _moved(graph, found, each), default=()))


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
    evaluate = Evaluator({**dict.fromkeys(MESH, 1.0), TP[0]: 2.0, **sizes})

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
    chosen = set()
    for parameter in graph.parameters:
        if parameter.role == "parameters":
            left = [f for f in _majors(graph, parameter.value) if f not in found]
            chosen.update(left and [max(left, key=lambda f: (facts.shared[f], graph.factors[f].size))])
    return chosen
