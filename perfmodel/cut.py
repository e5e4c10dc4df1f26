"""How many layers each stage of a pipeline has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perfmodel.formulas import cut as formulas
from perfmodel.work import VIRTUAL, Number

STAGES = ("first", "middle", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Layers of the first stage, of the fullest between (`middle`) and of the last.

    layers:  of such a stage, by its name; without a name where no layers are spread over stages
    shares:  layers of a stage over those of a stage in an even cut; without a name where all stages have equally many
    between: stages between the ends, counted in stages as full as the fullest of them
    """

    layers: Mapping[str, Number] = field(default_factory=dict)
    shares: Mapping[str, Number] = field(default_factory=dict)
    between: Number

    def share(self, stage: str) -> Number:
        """Layers of a stage over those of a stage in an even cut [1]."""
        return self.shares.get(stage, 1.0)

    @property
    def is_even(self) -> bool:
        """Whether all stages have equally many layers, in all layouts of an array."""
        return not self.shares

    @property
    def fuller_between(self) -> Any:
        """Mask of the layouts where a stage between the ends has more layers than one of them."""
        first, middle, last = (self.layers[stage] for stage in STAGES)
        return middle > np.minimum(first, last)


def even_cut(layers: Number, sizes: Mapping[str, Number]) -> Cut:
    """Equally many layers on every stage, which need not be whole numbers."""
    counts = dict.fromkeys(STAGES, layers / sizes["pp"]) if np.any(layers) else {}
    return Cut(layers=counts, between=sizes["pp"] - 2.0)


def uneven(layers: Number, sizes: Mapping[str, Number], cut: str) -> Any:
    """Mask of the layouts whose cut is balanced, be it that pp*vpp does not divide the layers."""
    chunks = sizes["pp"] * sizes[VIRTUAL]
    balanced = np.asarray(np.mod(layers, chunks) != 0.0) | (cut == formulas.CUTS[1])
    return balanced & (np.asarray(sizes["pp"]) > 1.0) & (np.asarray(layers) > 0)


def balanced_cut(
    layers: Number, sizes: Mapping[str, Number], where: Any, *, layer: Number, first: Number, last: Number
) -> Cut:
    """The cut whose slowest stage takes least, `where` it is wanted, an even one elsewhere.

    layer, first, last: seconds of a layer, and of what the first and the last stage do beside layers
    """
    pp, layers = np.maximum(sizes["pp"], 2.0), np.maximum(layers, 1.0)  # where there are none, the cut stays even
    layer = np.maximum(layer, np.finfo(np.float64).tiny)
    found = formulas.balanced(layers, pp, sizes[VIRTUAL], first / layer, last / layer)
    counts = {stage: np.where(where, n, layers / sizes["pp"]) for stage, n in zip(STAGES, found, strict=True)}
    ends, middle = counts["first"] + counts["last"], np.maximum(counts["middle"], 1.0)
    return Cut(
        layers=counts,
        shares={stage: n * sizes["pp"] / layers for stage, n in counts.items()},
        between=np.where(where, (layers - ends) / middle, sizes["pp"] - 2.0),
    )
