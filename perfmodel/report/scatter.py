"""Predicted against measured step times as a picture; the one door to Matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from perfmodel.errors import ModelError
from perfmodel.validate import Validation

BANDS = (1.1, 1.5)
"""Factors between which predicted and measured are shaded."""


def draw(found: Validation, path: str | Path) -> None:
    """Write a picture, one colour for each machine; raises ModelError where it cannot."""
    if find_spec("matplotlib") is None:
        raise ModelError("plot: got no matplotlib, expected it: pip install 'rainier-perfmodel[plots]'")
    from matplotlib import colormaps  # needed for nothing else
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab20"]
    seconds = [x for p in found.predictions for x in (p.seconds, p.case.seconds)]
    ends = [min(seconds, default=1.0), max(seconds, default=1.0)]
    for band in BANDS:
        axes.fill_between(ends, [x / band for x in ends], [x * band for x in ends], color="black", alpha=0.06)
    axes.plot(ends, ends, color="black", linewidth=0.8)
    for i, (name, predictions) in enumerate(found.by(lambda p: p.case.machine.name).items()):
        measured, predicted = [p.case.seconds for p in predictions], [p.seconds for p in predictions]
        axes.scatter(measured, predicted, s=8, alpha=0.7, color=colours(i % 20), label=name)
    axes.set(xscale="log", yscale="log", xlabel="measured step [s]", ylabel="predicted step [s]")
    axes.legend(fontsize="small", title=f"{len(found.predictions)} runs; shaded: factors of 1.1 and 1.5")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ModelError(f"plot: got {why} for {path}, expected a picture to write: change --plot") from None
