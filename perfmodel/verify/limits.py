"""Known limits of a comparison, and the question nearby that compilers can answer, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from perfmodel.verify.question import Question

RAGGED = "chlo.ragged_dot"
IN_BLOCKS = "perfmodel.quantise"
EIGHT_BITS = ("i8", "ui8")


def limits(asked: Question, unsaid: int) -> Iterator[str]:
    """Why compilers may differ from what was asked of them; `unsaid` activations have no sharding."""
    if unsaid:
        yield (
            f"{unsaid} activations lie where no sharding can say, in parts along a minor index of a dim: compilers "
            f"place them as they like: {_whole_sequences(asked)}"
        )
    if any(op.kind == RAGGED for _, op in asked.sharded.graph.walk()):
        yield (
            "compilers do not split ragged matmuls (experts that drop no token) along their groups: verify experts "
            "of a fixed size, with --capacity-factor 1.25 for a model by name"
        )
    if any(op.kind == IN_BLOCKS for _, op in asked.sharded.graph.walk()):
        yield (
            "compilers see matmuls of blocks with scales as products block by block, and spread the sum of these over "
            "ranks that hold parts of a weight, where a kernel takes all of it: verify with --precision fp8, which has "
            "one scale for each tensor"
        )
    if _in_eight_bits(asked):
        yield (
            "compilers sum gradients whole before moments in blocks of 8 bits, even where each rank keeps its part of "
            "the state: verify with --precision moments=bf16"
        )
    tokens, rows = _tokens(asked), _rows(asked)
    if tokens < rows:
        more = math.ceil(rows / tokens)
        yield (
            f"a microbatch has {tokens:,} tokens, fewer than weights have rows, {rows:,}: compilers move activations "
            f"in place of weights: verify with mb={more * int(asked.layout.mb)}, or sequences {more} times as long"
        )


def _whole_sequences(asked: Question) -> str:
    """What to do about the layout's keys that put sequences in parts."""
    layout = asked.layout.settled()
    changes = [key for key, splits in (("sp=0", layout.sp), ("cp=1", layout.cp > 1)) if splits]
    return f"verify with {' and '.join(changes)}" if changes else "verify another layout"


def _in_eight_bits(asked: Question) -> bool:
    """Whether the optimizer keeps numbers of 8 bits."""
    graph = asked.sharded.graph
    state = (each.value for each in graph.parameters if each.role == "optimizer")
    return any(graph.values[value].dtype in EIGHT_BITS for value in state)


def _tokens(asked: Question) -> int:
    """Tokens of a microbatch on all ranks."""
    return int(asked.sizes["batch"]) * asked.sharded.graph.size("seq")


def _rows(asked: Question) -> int:
    """Length of the weights' dims that are stored in parts and gathered where they are used, 0 if there are none."""
    assignment = asked.layout.assignment
    stored = {name: axes for name, axes in assignment.stored["parameters"] if name not in dict(assignment.compute)}
    gathered = [name for name, axes in stored.items() if any(asked.sizes[axis] > 1 for axis in axes)]
    return max((asked.sharded.graph.size(name) for name in gathered), default=0)
