"""Pictures of analyses, each drawn from the files of its directory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.analyses import _authors as authors
from experiments.analyses._files import by_groups, by_level, by_setting
from experiments.analyses._training_plots import COLORS, save
from experiments.training.runs import Result

Rows = list[dict[str, Any]]


def draw_connect(directory: Path) -> list[Path]:
    """Draws connect.json: the curves, and the plane of the first pair."""
    pairs = json.loads((directory / "connect.json").read_text())["pairs"]
    figures = {"curve": loss_along_curves(pairs)}
    if "plane" in pairs[0]:
        figures["plane"] = plane(pairs[0]["plane"])
    return [save(figure, directory, name) for name, figure in figures.items()]


def draw_project(directory: Path) -> list[Path]:
    """Draws project.json."""
    rows = json.loads((directory / "project.json").read_text())["rows"]
    figures = {"projection": projection(rows), "norms": norms(rows)}
    return [save(figure, directory, name) for name, figure in figures.items()]


def draw_prune(directory: Path) -> list[Path]:
    """Draws prune.json."""
    found = json.loads((directory / "prune.json").read_text())
    figures = {
        "pruning": pruning(found["pruning"]),
        "agreement": agreement(found["agreement"]),
    }
    return [save(figure, directory, name) for name, figure in figures.items()]


def draw_units(directory: Path) -> list[Path]:
    """Draws units.json."""
    rows = json.loads((directory / "units.json").read_text())["rows"]
    return [save(units(rows), directory, "units")]


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
        color = COLORS.get(result.config.method.name, "0.3")
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
    """Training loss and test error along curve and line: mean and range over pairs.

    For the authors' networks, the curves that they found as well.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    theirs = authors.curves(results)
    panels = {
        "train_loss": ("training loss", 1),
        "test_error": ("test error, %", 100),
    }
    for ax, (name, (label, scale)) in zip(
        figure.subplots(1, 2), panels.items(), strict=True
    ):
        for number, (setting, mine) in enumerate(by_setting(results).items()):
            for path, style in {"line": "--", "curve": "-"}.items():
                values = scale * np.array([result[path][name] for result in mine])
                text = f"{path}, {setting}"
                _band(ax, results[0]["t"], values, f"C{number}", text, style)
            if curve := theirs.get(setting):
                text = f"the authors' curve, {setting}"
                ax.plot(curve["t"], curve[name], ":", color=f"C{number}", label=text)
        ax.set(xlabel="t", title=label)
        ax.set_xticks([0, 0.5, 1], ["gRDA, t = 0", "0.5", "SGD, t = 1"])
        ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def plane(values: dict[str, Any]) -> Figure:
    """Training loss on the plane through both solutions and the bend of the curve."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    ax = figure.subplots()
    losses = np.asarray(values["train_loss"], float)  # far away, they may overflow
    losses = np.ma.masked_invalid(np.maximum(losses, 1e-8))
    if not losses.count():
        ax.set_title("no loss on this plane is finite")
        return figure
    # Most of a plane is a plateau: levels up to the 90th percentile show the valley.
    high = np.percentile(losses.compressed(), 90)
    levels = np.geomspace(losses.min(), max(high, 1.001 * losses.min()), 15)
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
    theirs = authors.projections(rows)
    for number, (label, mine) in enumerate(by_setting(rows).items()):
        epochs, values = _over_epochs(mine, "difference_fraction")
        _band(ax, epochs, values, f"C{number}", label)
        if label in theirs:
            text = f"the authors', {label}"
            ax.plot(*theirs[label], ":", color=f"C{number}", label=text)
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
    for number, (label, mine) in enumerate(by_setting(rows).items()):
        if number == 0:
            epochs, values = _over_epochs(mine, "sgd_l2_over_l1")
            _band(ax, epochs, values, "0.4", "SGD")
        epochs, values = _over_epochs(mine, "grda_l2_over_l1")
        _band(ax, epochs, values, f"C{number}", label)
    for number, (label, theirs) in enumerate(authors.norms(rows).items()):
        ax.plot(*theirs, ":", color=f"C{number}", label=f"the authors', {label}")
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
    levels = by_level(rows)
    asked = sorted(level for level in levels if not isinstance(level, str))
    methods = dict.fromkeys(name for level in asked for name in levels[level])
    for ax, (name, (label, scale)) in zip(
        figure.subplots(1, 2), panels.items(), strict=True
    ):
        sgd = np.mean([row[name] for row in levels["none"]["SGD"]])
        ax.axhline(scale * sgd, color="0.5", linestyle=":", label="SGD, not pruned")
        grda = [row for row in rows if row["method"] == "gRDA"]
        x = [100 * row["sparsity"] for row in grda]
        y = [scale * row[name] for row in grda]
        ax.plot(x, y, "*", color=COLORS["grda"], markersize=11, label="gRDA")
        for method in methods:
            here = {s: levels[s][method] for s in asked if method in levels[s]}
            means = [scale * np.mean([r[name] for r in mine]) for mine in here.values()]
            ax.plot([100 * s for s in here], means, "o-", markersize=3, label=method)
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
    for column, (title, here) in zip(panels.T, settings.items(), strict=True):
        for ax, name in zip(column, names, strict=True):
            for number, scores in enumerate(dict.fromkeys(r["scores"] for r in here)):
                mine = [row for row in here if row["scores"] == scores]
                epochs, values = _over_epochs(mine, name)
                _band(ax, epochs, values, f"C{number}", scores)
            ax.grid(alpha=0.3)
        column[0].set_title(title)
        column[1].set_xlabel("epoch")
    for ax, label in zip(panels[:, 0], names.values(), strict=True):
        ax.set_ylabel(label)
    panels[0, 0].legend(frameon=False)
    return figure


def units(rows: Rows) -> Figure:
    """Test error by the parameters left once dead units are cut out."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = figure.subplots()
    for number, groups in enumerate(dict.fromkeys(row["groups"] for row in rows)):
        mine = [rs for (name, _), rs in by_groups(rows).items() if name == groups]
        x = [np.mean([row["parameters"] for row in rs]) for rs in mine]
        for name, style in (("test_accuracy", "o-"), ("from_scratch", "x:")):
            # Where no unit is left, there is nothing to train from scratch.
            values = np.array([[row[name] for row in rs] for rs in mine], float)
            label = groups if name == "test_accuracy" else f"{groups}, from scratch"
            errors = 100 * (1 - np.mean(values, axis=1))
            ax.plot(x, errors, style, color=f"C{number}", label=label)
        for rs, place in zip(mine, x, strict=True):
            error = 100 * (1 - np.mean([row["test_accuracy"] for row in rs]))
            ax.annotate(
                f"{rs[0]['c']:g}",
                (place, error),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color="0.4",
            )
    ax.set(xscale="log", xlabel="parameters left", yscale="log", ylabel="test error, %")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_title("numbers beside the points: c")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def _band(
    ax: Axes, x, values: np.ndarray, color: str, label: str, style: str = "-"
) -> None:
    """The mean of values, shape (pairs, points), and the range between them."""
    marker = "o" if len(x) == 1 else None
    ax.plot(x, np.mean(values, 0), style, color=color, label=label, marker=marker)
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
