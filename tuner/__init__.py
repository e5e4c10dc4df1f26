"""Search over parallel layouts and batch configurations.

    result = search(graphs, Space(ranks=256, global_batches=(512,)), machine)
    result.best.layout, result.best.estimate

Names are imported when first used, so that `import tuner` needs neither NumPy nor Optuna.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.objective import Objective
    from tuner.result import Candidate, Result
    from tuner.search import search
    from tuner.space import Space

_HOMES = {"Candidate": "result", "Objective": "objective", "Result": "result", "Space": "space", "search": "search"}

__all__ = ["Candidate", "Objective", "Result", "Space", "search"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    value = getattr(import_module(f"tuner.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
