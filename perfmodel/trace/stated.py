"""The sharding rule that a marked kernel states itself, as a line of text.

    batch seq embed, batch seq k -> batch (experts=8 row) embed; whole: experts k; tied: row=seq

Every name is a factor; a dim that consists of several stands in brackets, major to minor; `1` is a dim of size 1.
Sizes follow from the shapes, that of one factor in a bracket by division; `name=8` gives one that does not. After the
dims: factors that cannot be sharded (`whole`), that a result without them is summed over (`summed`), and that lie
wherever another one lies (`tied: follower=leader`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfmodel.errors import TraceError
from perfmodel.trace.ops import Shape
from perfmodel.trace.stablehlo import Rule

Names = tuple[str, ...]

DIM = re.compile(r"\(([^()]*)\)|([^\s()]+)")
FACTOR = re.compile(r"([A-Za-z_]\w*)(?:=(\d+))?$")
CLAUSES = ("whole", "summed", "tied")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedRule:
    """What a line says: the rule, which factors each result is summed over, and (follower, leader) pairs."""

    rule: Rule
    summed: tuple[tuple[int, ...], ...]
    tied: tuple[tuple[int, int], ...]

    @property
    def spread(self) -> tuple[int, ...]:
        """The factors over which work is spread: all that may be sharded of themselves."""
        followers = [follower for follower, _ in self.tied]
        return tuple(f for f in range(len(self.rule.sizes)) if f not in self.rule.blocked and f not in followers)


def stated_rule(text: str, operands: Sequence[Shape], results: Sequence[Shape], where: str) -> StatedRule:
    """Read a line for a kernel with the given shapes.

    Raises TraceError where the line and the shapes do not fit.
    """
    return _Reader(text, where).read(operands, results)


class _Reader:
    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.where = where
        self.sizes: dict[str, int] = {}

    def read(self, operands: Sequence[Shape], results: Sequence[Shape]) -> StatedRule:
        dims, *clauses = self.text.split(";")
        sides = [[self._dims(value) for value in side.split(",")] for side in dims.split("->")]
        shapes = (operands, results)
        if len(sides) != len(shapes) or any(len(s) != len(v) for s, v in zip(sides, shapes, strict=True)):
            raise self._error(f"{len(operands)} operands and {len(results)} results", "as many before and after ->")
        pairs = [pair for side, values in zip(sides, shapes, strict=True) for pair in zip(side, values, strict=True)]
        self._measure(pairs)
        index = {name: i for i, name in enumerate(self.sizes)}
        told = self._clauses(clauses)
        tied = tuple((index[follower], index[leader]) for follower, leader in told["tied"])
        summed = [name for (name,) in told["summed"]]
        operand_dims, result_dims = (
            tuple(tuple(tuple(index[name] for name in dim) for dim in value) for value in side) for side in sides
        )
        return StatedRule(
            rule=Rule(
                tuple(self.sizes.values()),
                operand_dims,
                result_dims,
                blocked=tuple(index[name] for (name,) in told["whole"]),
            ),
            summed=tuple(
                tuple(index[name] for name in summed if not any(name in dim for dim in value)) for value in sides[1]
            ),
            tied=tied,
        )

    def _dims(self, text: str) -> list[Names]:
        """Factors of each dim of one value."""
        if stray := DIM.sub("", text).strip():
            raise self._error(f"{stray!r} in {text.strip()!r}", "brackets in pairs around a dim, as in (experts row)")
        return [self._dim(group or single) for group, single in DIM.findall(text)]

    def _dim(self, text: str) -> Names:
        return tuple(self._factor(word) for word in text.split() if word != "1")

    def _factor(self, word: str) -> str:
        match = FACTOR.match(word)
        if match is None:
            raise self._error(repr(word), "the name of a factor, as in batch or experts=8")
        if match[2] is not None:
            self._set(match[1], int(match[2]))
        return match[1]

    def _set(self, name: str, size: int) -> None:
        if self.sizes.setdefault(name, size) != size:
            raise self._error(f"{name} of size {self.sizes[name]} and of size {size}", "one size for each factor")

    def _measure(self, pairs: Sequence[tuple[list[Names], Shape]]) -> None:
        """Sizes of all factors: those that are a dim by themselves, then those that are missing from one."""
        for dims, shape in pairs:
            if len(dims) != len(shape):
                raise self._error(f"{len(dims)} dims", f"{len(shape)} for a value of shape {shape}")
        each = [pair for dims, shape in pairs for pair in zip(dims, shape, strict=True)]
        for dim, size in sorted(each, key=lambda pair: len(pair[0])):
            self._fit(dim, size)

    def _fit(self, dim: Names, size: int) -> None:
        known = math.prod(self.sizes[name] for name in dim if name in self.sizes)
        missing = [name for name in dim if name not in self.sizes]
        if len(missing) > 1:
            raise self._error(f"no sizes for {' and '.join(missing)}", "all but one known, as in experts=8")
        if (known == 0 or size % known) if missing else size != known:
            raise self._error(f"({' '.join(dim) or '1'}) = {known} for a dim of size {size}", "sizes that fit")
        for name in missing:
            self._set(name, size // known)

    def _clauses(self, clauses: Sequence[str]) -> Mapping[str, list[Names]]:
        """The factors that each clause names: one, or a follower and a leader."""
        told: dict[str, list[Names]] = {name: [] for name in CLAUSES}
        for clause in clauses:
            key, _, words = clause.partition(":")
            if key.strip() not in told:
                raise self._error(repr(clause.strip()), f"one of {', '.join(CLAUSES)}")
            entries = [tuple(word.split("=")) for word in words.split()]
            length = 2 if key.strip() == "tied" else 1
            for entry in entries:
                if len(entry) != length or not all(name in self.sizes for name in entry):
                    raise self._error(repr("=".join(entry)), f"factors of the dims: {', '.join(self.sizes)}")
            told[key.strip()] += entries
        return told

    def _error(self, got: str, expected: str) -> TraceError:
        return TraceError(f"{self.where}: rule {self.text!r}: got {got}, expected {expected}: correct the rule")
