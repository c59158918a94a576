"""Every picture, each drawn from the files of a run directory."""

import itertools
import json
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.training.runs import read_results

COLORS = {"sgd": "#4C72B0", "grda": "#C44E52"}


def draw_comparison(directory: Path) -> list[Path]:
    """Draws all figures of a comparison into DIRECTORY/figures and returns their paths.

    Reads the run directories in it, and weights.npz.
    """
    results = read_results([directory])
    (grda,) = (result for result in results if result.config.method.is_sparse)
    with np.load(directory / "weights.npz") as weights:
        figures = {
            "training_curves": training_curves({r.label: r.metrics for r in results}),
            "sparsity_by_layer": sparsity_by_layer(grda.layers()),
            "first_layer": first_layer(dict(weights)),
        }
    return [save(figure, directory, name) for name, figure in figures.items()]


def draw_sweep(directory: Path) -> Path:
    """Draws sparsity against accuracy from the summary.json of a sweep."""
    rows = json.loads((directory / "summary.json").read_text())["rows"]
    return save(sparsity_against_accuracy(rows), directory, "sparsity_accuracy")


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Writes DIRECTORY/figures/NAME as PNG and as SVG; returns the path of the PNG."""
    (directory / "figures").mkdir(exist_ok=True)
    path = directory / "figures" / f"{name}.png"
    figure.savefig(path, dpi=150, bbox_inches="tight")
    figure.savefig(path.with_suffix(".svg"), bbox_inches="tight")
    return path


def training_curves(runs: dict[str, list[dict]]) -> Figure:
    """Training loss, test accuracy and sparsity by epoch: mean and range over seeds.

    Args:
      runs: rows of metrics.jsonl, with "seed", by the label of their curve. One whose
        label starts with SGD or gRDA has the color of that method.
    """
    panels = {
        "train_loss_running": ("training loss, running mean", 1.0),
        "test_accuracy": ("test accuracy, %", 100.0),
        "sparsity": ("weights exactly zero, %", 100.0),
    }
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    colors = curve_colors(list(runs))
    for ax, (name, (label, scale)) in zip(axes, panels.items(), strict=True):
        for method, rows in runs.items():
            epochs, values = by_epoch(rows, name)
            color, mean = colors[method], scale * values.mean(0)
            ax.plot(epochs, mean, color=color, label=method)
            low, high = scale * values.min(0), scale * values.max(0)
            ax.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        ax.set(xlabel="epoch", title=label)
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    later = [
        100 * row["test_accuracy"]
        for rows in runs.values()
        for row in rows
        if row["epoch"] > 1
    ]
    if later:
        axes[1].set_ylim(np.percentile(later, 1) - 1, 100)
    axes[2].set_ylim(-3, 103)
    axes[0].legend(frameon=False)
    return figure


def curve_colors(labels: list[str]) -> dict[str, str]:
    """The colors of SGD and gRDA for the first of each, others for the rest."""
    free = dict(COLORS)
    others = (f"C{number}" for number in itertools.cycle((1, 2, 4, 5, 6, 8, 9)))
    return {
        label: free.pop("grda" if label.startswith("gRDA") else label.lower(), None)
        or next(others)
        for label in labels
    }


def by_epoch(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, shape (epochs,), and a metric, shape (seeds, epochs)."""
    seeds = sorted({row["seed"] for row in rows})
    series = [[row[name] for row in rows if row["seed"] == seed] for seed in seeds]
    epochs = [row["epoch"] for row in rows if row["seed"] == seeds[0]]
    return np.array(epochs), np.array(series)


def sparsity_against_accuracy(rows: list[dict]) -> Figure:
    """A point a setting, with the seeds' deviation; a line joins those of one mu.

    Sparsities that were asked for have one line, and stand beside its points.

    Args:
      rows: of a sweep's summary.json.
    """
    asked = "asked" in rows[0]
    number = "asked" if asked else "c"
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = figure.subplots()
    for mu in sorted({row.get("mu") for row in rows}):
        line = [row for row in rows if row.get("mu") == mu]
        line.sort(key=lambda row: row[number])
        x, y, error = (
            100 * np.array([row[name] for row in line])
            for name in ("sparsity", "test_accuracy", "test_accuracy_std")
        )
        label = "target sparsity" if asked else f"μ = {mu:g}"
        ax.errorbar(x, y, error, marker="o", markersize=4, capsize=2, label=label)
        for row, point in zip(line, zip(x, y, strict=True), strict=True):
            ax.annotate(
                f"{row[number]:g}",
                point,
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color="0.4",
            )
    ax.set(xlabel="weights exactly zero, %", ylabel="test accuracy, %")
    meaning = "the sparsity asked for" if asked else "c"
    ax.set_title(f"numbers beside the points: {meaning}")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return figure


def sparsity_by_layer(layers: dict[str, float]) -> Figure:
    """A bar a leaf, in the order of the network: the fraction of exact zeros.

    Args:
      layers: sparsity by path.
    """
    figure = Figure(figsize=(6, 0.6 + 0.35 * len(layers)), layout="constrained")
    ax = figure.subplots()
    bars = ax.barh(
        list(layers), [100 * s for s in layers.values()], color=COLORS["grda"]
    )
    ax.bar_label(bars, fmt="%.1f", padding=3)
    ax.invert_yaxis()
    ax.set(xlim=(0, 109), xlabel="weights exactly zero, %")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def first_layer(kernels: dict[str, np.ndarray]) -> Figure:
    """The kernel that reads 8x8 pixels, a tile a unit, and weights left by pixel.

    Args:
      kernels: (64, units) arrays by "initial", "sgd" and "grda".
    """
    titles = {"initial": "before training", "sgd": "after SGD", "grda": "after gRDA"}
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    limit = np.percentile(np.abs(kernels["sgd"]), 99)
    colors = colormaps["RdBu_r"].with_extremes(bad="0.8")
    for ax, (name, title) in zip(axes, titles.items(), strict=False):
        ax.imshow(tiles(kernels[name]), cmap=colors, vmin=-limit, vmax=limit)
        zeros = np.mean(kernels[name] == 0)
        ax.set_title(f"{title}: {zeros:.1%} exactly zero")
    left = np.count_nonzero(kernels["grda"], axis=1).reshape(8, 8)
    units = kernels["grda"].shape[1]
    image = axes[3].imshow(left, cmap="viridis", vmin=0)
    axes[3].set_title(f"gRDA: how many of {units} units still read a pixel")
    figure.colorbar(image, ax=axes[3], ticks=MaxNLocator(integer=True))
    for ax in axes:
        ax.set_axis_off()
    return figure


def tiles(kernel: np.ndarray, columns: int = 16) -> np.ndarray:
    """Units of a (64, units) kernel as 8x8 tiles, some a row, with NaN between them."""
    units = kernel.shape[1]
    rows = -(-units // columns)
    grid = np.full((rows * columns, 9, 9), np.nan)
    grid[:units, :8, :8] = kernel.T.reshape(units, 8, 8)
    grid = grid.reshape(rows, columns, 9, 9).transpose(0, 2, 1, 3)
    return grid.reshape(rows * 9, columns * 9)[:-1, :-1]
