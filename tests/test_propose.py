"""Proposed axis names leave room for ranks: every axis must divide all the factors that its name stands for."""

from __future__ import annotations

from collections import defaultdict

import pytest
import unannotated
from unannotated import CHANNELS, CLASSES, EMBED, HEADS, MLP

from perfmodel import Graph, Program, named, propose, trace


def sizes(program: Program) -> dict[str, set[int]]:
    """Sizes of the factors that each proposed name stands for."""
    graph = trace(program)
    by_origin = {factor.origin: factor.size for factor in graph.factors}
    found = defaultdict(set)
    for pattern, name in propose(graph).items():
        found[name].add(by_origin[pattern])
    return found


def test_colours_and_windows_of_convolutions_have_no_name() -> None:
    found = sizes(unannotated.convnet())
    assert found["mlp"] | found["embed"] <= {*CHANNELS, CLASSES}


def divided(graph: Graph, name: str) -> float:
    """The share of matmul FLOPs in ops over a factor of that name."""
    total = over = 0.0
    for times, op in graph.walk():
        flops = times * sum(work.flops for work in op.work if work.engine == "tensor")
        total += flops
        over += flops * any(graph.factors[factor].name == name for factor in op.local)
    return over / total


@pytest.mark.parametrize("name", ["batch", "mlp"])
def test_a_convnet_is_divided_all_the_same(name: str) -> None:
    program = unannotated.convnet()
    assert divided(trace(named(program, propose(trace(program)))), name) > 0.9


@pytest.mark.parametrize(
    ("vocab", "expected"),
    [
        (1001, {"mlp": {HEADS, MLP}, "vocab": {1001}}),  # 3 of padding in 1004
        (1004, {"mlp": {HEADS, MLP, 1004}}),
        (51, {"mlp": {HEADS, MLP}}),  # 1 in 52, more than it is worth
    ],
)
def test_an_odd_vocabulary_is_padded_if_that_is_little_and_left_whole_if_not(
    vocab: int, expected: dict[str, set[int]]
) -> None:
    found = sizes(unannotated.decoder(vocab=vocab))
    assert {name: found[name] for name in ("mlp", "vocab") if name in found} == expected
    assert EMBED in found["embed"]
