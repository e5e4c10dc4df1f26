"""Exact optima on the graph of a fabric, by linear programs: what no schedule of a collective beats."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import networkx as nx
import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

Node = Hashable


class _Program:
    """Constraints over the flows of several commodities on a graph's edges, and one rate that is as large as can be."""

    def __init__(self, graph: nx.DiGraph, commodities: int) -> None:
        self.edges = list(graph.edges)
        self.nodes = {node: i for i, node in enumerate(graph)}
        self.commodities = commodities
        self.rate = commodities * len(self.edges)
        ends = np.array([[self.nodes[u], self.nodes[v]] for u, v in self.edges]).T
        one = np.arange(len(self.edges))
        rows, columns, values = [], [], []
        for j in range(commodities):
            for side, sign in zip(ends, (1.0, -1.0), strict=True):
                rows.append(side + j * len(self.nodes))
                columns.append(one + j * len(self.edges))
                values.append(np.full(len(one), sign))
        self._balance = [np.concatenate(each) for each in (rows, columns, values)]
        self._supply: dict[tuple[int, Node], float] = {}

    def sends(self, commodity: int, source: Node, target: Node) -> None:
        """The commodity carries the rate from a node to another."""
        for node, amount in ((source, 1.0), (target, -1.0)):
            self._supply[commodity, node] = self._supply.get((commodity, node), 0.0) + amount

    def best(self, capacity: Sequence[float], shared: Callable[[int], int]) -> float:
        """The largest rate, edge i counting against capacity `shared(i)`."""
        rows, columns, values = map(list, self._balance)
        for (commodity, node), amount in self._supply.items():
            rows.append(commodity * len(self.nodes) + self.nodes[node])
            columns.append(self.rate)
            values.append(-amount)
        flows = [(i, j) for j in range(self.commodities) for i in range(len(self.edges))]
        loads = ([shared(i) for i, _ in flows], [j * len(self.edges) + i for i, j in flows])
        width = self.rate + 1
        balances = self.commodities * len(self.nodes)
        used: Any = coo_array((np.ones(len(flows)), loads), shape=(len(capacity), width))
        balance: Any = coo_array((values, (rows, columns)), shape=(balances, width))
        scale = max(capacity)  # the solver's tolerances are absolute
        result = linprog(
            c=[0.0] * self.rate + [-1.0],
            A_ub=used,
            b_ub=np.array(capacity) / scale,
            A_eq=balance,
            b_eq=np.zeros(balances),
            method="highs",
        )
        assert result.x is not None, result.message
        return float(result.x[-1]) * scale


def flow_rate(graph: nx.DiGraph, pairs: Iterable[tuple[Node, Node]]) -> float:
    """Largest rate at which all pairs can send at once over shared links; flows by source."""
    pairs = list(pairs)
    sources = list(dict.fromkeys(source for source, _ in pairs))
    program = _Program(graph, len(sources))
    for source, target in pairs:
        program.sends(sources.index(source), source, target)
    return program.best([graph.edges[edge]["bandwidth"] for edge in program.edges], lambda i: i)


def gather_rate(graph: nx.DiGraph, members: Sequence[Node], targets: Sequence[Node] = ()) -> float:
    """Largest rate at which every member's part reaches every member: each alone must be able to take in all parts at
    that rate (Edmonds; with switches, ForestColl). `targets`: the members to try, all unless they are alike.
    """
    rates = []
    for target in targets or members:
        program = _Program(graph, 1)
        for source in members:
            if source != target:
                program.sends(0, source, target)
        rates.append(program.best([graph.edges[edge]["bandwidth"] for edge in program.edges], lambda i: i))
    return min(rates)


def exchange_rate(graph: nx.DiGraph, members: Sequence[Node]) -> float:
    """Largest rate at which all members can send to all others at once."""
    return flow_rate(graph, itertools.permutations(members, 2))


def alike_exchange_rate(graph: nx.DiGraph, members: Sequence[Node]) -> float:
    """`exchange_rate` where every member sees the same fabric: flows of one, whose images under the symmetries add up
    on the links that look alike.
    """
    program = _Program(graph, 1)
    source = members[0]
    for target in members:
        if target != source:
            program.sends(0, source, target)
    looks = [_look(graph, edge) for edge in program.edges]
    kinds = list(dict.fromkeys(looks))
    capacity = [0.0] * len(kinds)
    for edge, look in zip(program.edges, looks, strict=True):
        capacity[kinds.index(look)] += graph.edges[edge]["bandwidth"] / len(members)
    return program.best(capacity, lambda i: kinds.index(looks[i]))


def _look(graph: nx.DiGraph, edge: tuple[Node, Node]) -> tuple[Any, ...]:
    data = graph.edges[edge]
    return data["tier"], data["dim"], data["step"], *(graph.nodes[end]["kind"] for end in edge)


def largest_flow(graph: nx.DiGraph, supply: float, members: Sequence[Node], target: Node) -> float:
    """What reaches a node from a source that feeds so much to every member, by augmenting paths."""
    fed = nx.DiGraph()
    fed.add_weighted_edges_from(((u, v, data["bandwidth"]) for u, v, data in graph.edges(data=True)), "capacity")
    fed.add_weighted_edges_from((("source", member, supply) for member in members), "capacity")
    return float(nx.maximum_flow_value(fed, "source", target))
