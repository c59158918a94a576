"""Pictures of analyses, each drawn from the files of its directory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments import authors
from experiments.figures import COLORS, save
from experiments.results import Result

Rows = list[dict[str, Any]]


def draw_connect(directory: Path) -> list[Path]:
    """Draws connect.json: the curves, and the plane of the first pair."""
    results = json.loads((directory / "connect.json").read_text())
    figures = {"curve": loss_along_curves(results)}
    if "plane" in results[0]:
        figures["plane"] = plane(results[0]["plane"])
    return [save(figure, directory, name) for name, figure in figures.items()]


def draw_project(directory: Path) -> list[Path]:
    """Draws project.json."""
    rows = json.loads((directory / "project.json").read_text())
    figures = {"projection": projection(rows), "norms": norms(rows)}
    return [save(figure, directory, name) for name, figure in figures.items()]


def draw_prune(directory: Path) -> list[Path]:
    """Draws prune.json."""
    results = json.loads((directory / "prune.json").read_text())
    figures = {
        "pruning": pruning(results["pruning"]),
        "agreement": agreement(results["agreement"]),
    }
    return [save(figure, directory, name) for name, figure in figures.items()]


def tradeoff(results: list[Result]) -> Figure:
    """Test accuracy by sparsity: ours with deviations, and what others measured."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = figure.subplots()
    for number, (name, points) in enumerate(
        authors.tradeoff(results[0].config).items()
    ):
        x, y = zip(*points, strict=True)
        ax.plot(x, y, "x", color=f"C{number}", markersize=4, alpha=0.7, label=name)
    for result in results:
        x, y = 100 * np.array(result.sparsity), 100 * np.array(result.test_accuracy)
        color = COLORS.get(result.config.optimizer, "0.3")
        ax.errorbar(x.mean(), y.mean(), y.std(), x.std(), "o", color=color, capsize=2)
        ax.annotate(
            result.label,
            (x.mean(), y.mean()),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=8,
        )
    ax.set(xlabel="weights exactly zero, %", ylabel="test accuracy, %")
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=8)
    return figure


def loss_along_curves(results: Rows) -> Figure:
    """Training loss and test error along curve and line: mean and range over pairs."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = {
        "train_loss": ("training loss", 1),
        "test_error": ("test error, %", 100),
    }
    for ax, (name, (label, scale)) in zip(
        figure.subplots(1, 2), panels.items(), strict=True
    ):
        for path, color in {"line": "0.5", "curve": COLORS["grda"]}.items():
            values = scale * np.array([result[path][name] for result in results])
            _band(ax, results[0]["t"], values, color, path)
        ax.set(xlabel="t", title=label)
        ax.set_xticks([0, 0.5, 1], ["gRDA, t = 0", "0.5", "SGD, t = 1"])
        ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return figure


def plane(values: dict[str, Any]) -> Figure:
    """Training loss on the plane through both solutions and the bend of the curve."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    ax = figure.subplots()
    losses = np.maximum(values["train_loss"], 1e-8)
    # Most of a plane is a plateau: levels up to the 90th percentile show the valley.
    levels = np.geomspace(losses.min(), np.percentile(losses, 90), 15)
    filled = ax.contourf(
        *(values["x"], values["y"], losses, levels),
        cmap="viridis",
        norm=LogNorm(),
        extend="max",
    )
    bar = figure.colorbar(filled, ax=ax, location="bottom", ticks=levels[::2])
    bar.set_label("training loss")
    bar.ax.set_xticklabels([f"{level:.2g}" for level in levels[::2]])
    bar.ax.minorticks_off()
    ax.plot(values["curve_x"], values["curve_y"], color="white")
    (grda, sgd, bend) = values["corners"]
    ax.plot(*zip(grda, sgd, strict=True), "--", color="white", linewidth=1)
    for name, point, color in (
        ("gRDA", grda, COLORS["grda"]),
        ("SGD", sgd, COLORS["sgd"]),
        ("bend", bend, "0.7"),
    ):
        ax.plot(*point, "o", color=color, markeredgecolor="white", markersize=9)
        ax.annotate(
            name, point, xytext=(8, -14), textcoords="offset points", color="white"
        )
    ax.set(xlabel="distance towards SGD", ylabel="distance towards the bend")
    ax.set_aspect("equal")
    return figure


def projection(rows: Rows) -> Figure:
    """The share of gRDA's displacement in the top eigenspace, over training."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    ax = figure.subplots()
    for number, (setting, mine) in enumerate(by_setting(rows).items()):
        epochs, values = _over_epochs(mine, "difference_fraction")
        _band(ax, epochs, values, f"C{number}", f"w_gRDA − w_SGD, {setting}")
    ax.axhline(
        rows[0]["random_fraction"], color="0.5", linestyle=":", label="random direction"
    )
    k = len(rows[0]["eigenvalues"])
    ax.set(xlabel="epoch", yscale="log", title=f"share in SGD's top {k} eigenspace")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return figure


def norms(rows: Rows) -> Figure:
    """How concentrated the weights are, over training."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    ax = figure.subplots()
    for number, (setting, mine) in enumerate(by_setting(rows).items()):
        if number == 0:
            epochs, values = _over_epochs(mine, "sgd_l2_over_l1")
            _band(ax, epochs, values, "0.4", "SGD")
        epochs, values = _over_epochs(mine, "grda_l2_over_l1")
        _band(ax, epochs, values, f"C{number}", f"gRDA, {setting}")
    least = rows[0]["parameters"] ** -0.5
    ax.axhline(least, color="0.5", linestyle=":", label="$d^{-1/2}$: all moduli equal")
    ax.set(xlabel="epoch", title="|w|₂ / |w|₁", ylim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return figure


def pruning(rows: Rows) -> Figure:
    """Training loss and test accuracy by sparsity, one line a method."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = {
        "train_loss": ("training loss", 1),
        "test_accuracy": ("test accuracy, %", 100),
    }
    pairs = sum(row["method"] == "gRDA" for row in rows)
    for ax, (name, (label, scale)) in zip(
        figure.subplots(1, 2), panels.items(), strict=True
    ):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method]
            if method == "SGD":
                mean = scale * np.mean([row[name] for row in mine])
                ax.axhline(mean, color="0.5", linestyle=":", label="SGD, not pruned")
            elif method == "gRDA":
                x, y = (
                    [f * row[key] for row in mine]
                    for f, key in ((100, "sparsity"), (scale, name))
                )
                ax.plot(x, y, "*", color=COLORS["grda"], markersize=11, label="gRDA")
            else:
                by_level: dict[float, list[float]] = {}
                for row in mine:
                    if row["asked"] != "gRDA's":
                        by_level.setdefault(row["asked"], []).append(scale * row[name])
                # A mean over those pairs that get there would flatter the method.
                levels = [s for s in sorted(by_level) if len(by_level[s]) == pairs]
                x = [100 * level for level in levels]
                y = [np.mean(by_level[level]) for level in levels]
                ax.plot(x, y, "o-", markersize=3, label=method)
        ax.set(xlabel="weights exactly zero, %", title=label)
        ax.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def agreement(rows: Rows) -> Figure:
    """Cosine and overlap of zeros between gRDA and the definition, over training.

    A column of panels a setting of c and mu.
    """
    settings = by_setting(rows)
    figure = Figure(figsize=(1.5 + 3.4 * len(settings), 6.4), layout="constrained")
    panels = figure.subplots(2, len(settings), sharex=True, sharey="row", squeeze=False)
    names = {"cosine": "cosine", "overlap": "share of gRDA's zeros"}
    for column, (setting, here) in zip(panels.T, settings.items(), strict=True):
        for ax, name in zip(column, names, strict=True):
            for number, scores in enumerate(dict.fromkeys(r["scores"] for r in here)):
                mine = [row for row in here if row["scores"] == scores]
                epochs, values = _over_epochs(mine, name)
                _band(ax, epochs, values, f"C{number}", scores)
            ax.grid(alpha=0.3)
        column[0].set_title(setting)
        column[1].set_xlabel("epoch")
    for ax, label in zip(panels[:, 0], names.values(), strict=True):
        ax.set_ylabel(label)
    panels[0, 0].legend(frameon=False)
    return figure


def by_setting(rows: Rows) -> dict[str, Rows]:
    """The rows of each c and mu, by what to call them."""
    settings: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: (row["mu"], row["c"])):
        settings.setdefault(f"c = {row['c']:g}, μ = {row['mu']:g}", []).append(row)
    return settings


def _band(ax: Axes, x, values: np.ndarray, color: str, label: str) -> None:
    """The mean of values, shape (pairs, points), and the range between them."""
    marker = "o" if len(x) == 1 else None
    ax.plot(x, np.mean(values, 0), color=color, label=label, marker=marker)
    low, high = np.min(values, 0), np.max(values, 0)
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _over_epochs(rows: Rows, name: str) -> tuple[list[int], np.ndarray]:
    """Epochs that all pairs have, and a quantity of each, shape (pairs, epochs)."""
    pairs: dict[str, dict[int, float]] = {}
    for row in rows:
        pairs.setdefault(row["grda"], {})[row["epoch"]] = row[name]
    epochs = sorted(set.intersection(*map(set, pairs.values())))
    return epochs, np.array(
        [[pair[epoch] for epoch in epochs] for pair in pairs.values()]
    )
