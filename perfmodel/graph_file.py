"""Reading a graph back from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfmodel.errors import TraceError
from perfmodel.graph import FORMAT, Factor, Graph, Loop, Moved, Node, Op, Parameter, Value, Work


def from_json(data: Mapping[str, Any]) -> Graph:
    """The graph that `Graph.to_json` wrote.

    Raises TraceError for another format.
    """
    if data.get("format") != FORMAT:
        raise TraceError(f"graph: got format {data.get('format')!r}, expected {FORMAT}: trace the program again")
    return Graph(
        name=data["name"],
        recompute=data["recompute"],
        factors=tuple(Factor(**_tuples(f)) for f in data["factors"]),
        values=tuple(Value(**_tuples(v)) for v in data["values"]),
        parameters=tuple(Parameter(**p) for p in data["parameters"]),
        nodes=tuple(_node(n) for n in data["nodes"]),
        results=tuple(data["results"]),
        global_batch=data["global_batch"],
        notes=tuple(data["notes"]),
    )


def load_graph(path: Path) -> Graph:
    """The graph in a file that `Graph.save` wrote."""
    return from_json(json.loads(path.read_text()))


def _node(data: Mapping[str, Any]) -> Node:
    if "trip" in data:
        fields = {k: _tuple(v) for k, v in data.items() if k != "body"}
        return Loop(**fields, body=tuple(_node(n) for n in data["body"]))
    fields = {k: _tuple(v) for k, v in data.items() if k not in ("work", "moved")}
    moved = Moved(**_tuples(data["moved"])) if data.get("moved") else None
    return Op(**fields, work=tuple(Work(**_tuples(w)) for w in data["work"]), moved=moved)


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in data.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
