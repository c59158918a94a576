"""What the figures of all analyses have in common: sizes, grids, bands and colors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analyses._files import Rows

COLORS = {"sgd": "#4C72B0", "grda": "#C44E52"}  # by the name of a method


def panels(number: int = 1, size: tuple[float, float] = (6.5, 4.3)) -> list[Axes]:
    """Axes with a grid, side by side in a new figure of that size."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, number, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
    return list(axes)


def figure_of(axes: Sequence[Axes], legend: int | None = 0) -> Figure:
    """The figure of panels, with a legend in one of them if something has a label."""
    if legend is not None and axes[legend].get_legend_handles_labels()[1]:
        axes[legend].legend(frameon=False, fontsize=8)
    figure = axes[0].figure
    assert isinstance(figure, Figure)
    return figure


def band(ax: Axes, x: Any, values: np.ndarray, color: str, label: str, style="-"):
    """Draws the mean of values, shape (runs, points), and the range between them."""
    marker = "o" if len(x) == 1 else None
    ax.plot(x, values.mean(0), style, color=color, label=label, marker=marker)
    low, high = values.min(0), values.max(0)
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def note(
    ax: Axes, text: str, point: Any, color: str = "0.3", left: bool = False
) -> None:
    """Writes a text beside a point, to its upper right or left."""
    ax.annotate(
        *(text, (float(point[0]), float(point[1]))),
        xytext=(-5 if left else 5, 5),
        textcoords="offset points",
        horizontalalignment="right" if left else "left",
        fontsize=8,
        color=color,
    )


def over_epochs(rows: Rows, name: str, run: str = "grda") -> tuple[list, np.ndarray]:
    """Epochs that all runs have, and a quantity of each, shape (runs, epochs).

    Args:
      rows: with "epoch".
      name: of the quantity.
      run: the field that tells runs apart.
    """
    runs: dict[Any, dict[int, float]] = {}
    for row in rows:
        runs.setdefault(row[run], {})[row["epoch"]] = row[name]
    epochs = sorted(set.intersection(*map(set, runs.values())))
    return epochs, np.array([[of[epoch] for epoch in epochs] for of in runs.values()])
