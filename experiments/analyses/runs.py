"""The runs themselves: what they ended with, how they got there, where zeros are."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import models
from experiments.analyses import _authors as authors
from experiments.analyses._files import Found
from experiments.analyses._plots import (
    COLORS,
    band,
    figure_of,
    note,
    over_epochs,
    panels,
)
from experiments.analyses._show import Cells, Section, filled
from experiments.training.config import to_dict
from experiments.training.runs import Result, headline, read_results


def read(directories: Sequence[Path]) -> Found | None:
    """Reads what runs ended with, and the kernels that experiments.compare kept.

    Returns:
      "results", and "kernels" by directory; None if no directory holds a finished run.
    """
    results, kernels = read_results(directories), {}
    if not results:
        return None
    for directory in directories:
        if (directory / "weights.npz").exists():
            with np.load(directory / "weights.npz") as weights:
                kernels[directory] = dict(weights)
    return {
        "results": results,
        "kernels": kernels,
        "networks": {(r.config.model, Path(r.config.dataset).stem) for r in results},
        "configurations": {result.label: configuration(result) for result in results},
        "environments": [result.environment for result in results],
    }


def configuration(result: Result) -> dict[str, Any]:
    """The fields of a result's configuration, those of its method among them."""
    fields = to_dict(result.config)
    method = fields.pop("method")
    return {"method": method.pop("name"), **method, **fields, "seed": result.seeds}


def sentence(found: Found) -> str:
    """How many weights became zero, and at which accuracy."""
    return headline(found["results"])


def sections(found: Found) -> Iterator[Section]:
    """What the runs ended with, and pictures of training."""
    results: list[Result] = found["results"]
    yield Section(
        "What the runs ended with",
        "Means over the seeds ± standard deviations. The training loss is that of the "
        "final weights, in evaluation mode.",
        table=table(results),
        about="What the runs ended with: means over the seeds, ± deviations",
    )
    yield Section(
        "Training",
        "Means over the seeds, and the range between them. The sparsity of gRDA "
        "should grow all the time, quickly at first, and its test accuracy stay beside "
        "that of SGD. Its training loss may stay above; it is the running one, the "
        "mean over an epoch's steps in training mode.",
        training_curves(results),
        "training_curves",
    )
    sparse = [result for result in results if result.config.method.is_sparse]
    if sparse:
        sparsest = max(sparse, key=lambda result: np.mean(result.sparsity))
        yield Section(
            f"Zeros by layer: {sparsest.label}",
            "The fraction of each array that is exactly zero. No layer was given a "
            "sparsity: one threshold serves all. A kernel at 100 % would mean that "
            "nothing passes it; biases and scales may well be zero.",
            zeros_by_layer(sparsest.layers()),
            "sparsity_by_layer",
            layers_table(results),
            "Zeros by layer",
        )
    others = authors.tradeoff(results[0].config)
    if len(sparse) > 1 or others:
        yield Section(
            "Sparsity against accuracy",
            "The further to the upper right, the better."
            + " Crosses: what others measured." * bool(others),
            tradeoff(results, others),
            "tradeoff",
        )
    for directory, kernels in found["kernels"].items():
        yield Section(
            f"The first layer: {directory}",
            "Every tile is a hidden unit, every pixel in it a weight. After gRDA most "
            "should be white, exactly zero, above all at the border of the image, "
            "where digits have no ink.",
            first_layer(kernels),
            "first_layer",
        )


def table(results: Sequence[Result]) -> Cells:
    """A row a configuration: ours, the authors', and the difference in deviations."""
    rows = []
    for result in results:
        accuracy, zeros = (
            100 * np.array(of) for of in (result.test_accuracy, result.sparsity)
        )
        left = result.parameters * (1 - np.mean(result.sparsity))
        row = {
            "method": result.label,
            "seeds": str(len(result.seeds)),
            "test accuracy, %": _spread(accuracy),
            **_perplexity(result),
            "weights exactly zero, %": _spread(zeros),
            "nonzero weights": f"{left:,.0f} of {result.parameters:,}",
            "training loss": _spread(np.array(result.train_loss), digits=4),
            "seconds a run": f"{np.mean(result.seconds):.1f}",
        }
        theirs = authors.summary(result.config)
        for what, name, scale, values in (
            ("accuracy", "test_acc_pct", 1, accuracy),
            ("zeros", "sparsity", 100, zeros),
        ):
            if theirs is not None:
                mean, deviation = (
                    scale * float(theirs[f"{name}_{x}"]) for x in ("mean", "std")
                )
                row[f"authors' {what}, %"] = f"{mean:.2f} ± {deviation:.2f}"
                if deviation:
                    sigmas = (values.mean() - mean) / deviation
                    row[f"{what}: difference"] = f"{sigmas:+.1f} σ"
        rows.append(row)
    return filled(rows)


def _perplexity(result: Result) -> dict[str, str]:
    """A cell for a network of text: e to the test loss, a byte."""
    if not models.spec(result.config.model).is_text:
        return {}
    return {"perplexity": _spread(np.exp(result.test_loss))}


def layers_table(results: Sequence[Result]) -> Cells:
    """A row an array of the network: its zeros, a column a configuration."""
    return [
        {"zeros of": path}
        | {result.label: f"{result.layers()[path]:.1%}" for result in results}
        for path in results[0].layers()
    ]


def training_curves(results: Sequence[Result]) -> Figure:
    """Running loss, test accuracy and sparsity by epoch: mean and range over seeds."""
    titles = {
        "train_loss_running": ("running training loss", 1),
        "test_accuracy": ("test accuracy, %", 100),
        "sparsity": ("weights exactly zero, %", 100),
    }
    loss, accuracy, zeros = axes = panels(3, size=(11, 3.2))
    free, others = dict(COLORS), itertools.cycle(f"C{n}" for n in (1, 2, 4, 5, 6, 8, 9))
    later = []
    for result in results:
        color = free.pop(result.config.method.name, None) or next(others)
        for ax, (name, (title, scale)) in zip(axes, titles.items(), strict=True):
            epochs, values = over_epochs(result.metrics, name, run="seed")
            band(ax, epochs, scale * values, color, result.label)
            ax.set(xlabel="epoch", title=title)
            if ax is accuracy:
                later.extend(scale * values[:, 1:].ravel())
    loss.set_yscale("log")
    if later:
        accuracy.set_ylim(np.percentile(later, 1) - 1, 100)
    zeros.set_ylim(-3, 103)
    return figure_of(axes)


def zeros_by_layer(layers: dict[str, float]) -> Figure:
    """A bar a leaf, in the order of the network, those of kernels in full color.

    Args:
      layers: sparsity by path.
    """
    (ax,) = panels(size=(6, 0.8 + 0.35 * len(layers)))
    ax.grid(visible=False)
    numbers = {path: number for number, path in enumerate(layers)}
    kernels = [path for path in layers if path.rpartition("/")[2] == "kernel"]
    others = [path for path in layers if path not in kernels]
    for paths, color, label in (
        (kernels, COLORS["grda"], "kernels"),
        (others, "0.75", "biases and scales"),
    ):
        places = [numbers[path] for path in paths]
        values = [100 * layers[path] for path in paths]
        ax.bar_label(
            ax.barh(places, values, color=color, label=label), fmt="%.1f", padding=3
        )
    ax.set_yticks(list(numbers.values()), list(numbers))
    ax.invert_yaxis()
    ax.set(xlim=(0, 109), xlabel="weights exactly zero, %")
    ax.spines[["top", "right"]].set_visible(False)
    figure = figure_of([ax], legend=None)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def tradeoff(
    results: Sequence[Result], others: dict[str, list[tuple[float, float]]]
) -> Figure:
    """Test accuracy by sparsity: ours with deviations, and what others measured."""
    (ax,) = panels()
    for number, (name, points) in enumerate(others.items()):
        x, y = zip(*points, strict=True)
        ax.plot(x, y, "x", color=f"C{number}", markersize=4, alpha=0.7, label=name)
    for result in results:
        x, y = 100 * np.array(result.sparsity), 100 * np.array(result.test_accuracy)
        color = COLORS.get(result.config.method.name, "0.3")
        ax.errorbar(x.mean(), y.mean(), y.std(), x.std(), "o", color=color, capsize=2)
        note(ax, result.label, (x.mean(), y.mean()), left=x.mean() > 50)
    ax.set(xlabel="weights exactly zero, %", ylabel="test accuracy, %")
    return figure_of([ax])


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
        ax.imshow(_tiles(kernels[name]), cmap=colors, vmin=-limit, vmax=limit)
        ax.set_title(f"{title}: {np.mean(kernels[name] == 0):.1%} exactly zero")
    left = np.count_nonzero(kernels["grda"], axis=1).reshape(8, 8)
    units = kernels["grda"].shape[1]
    image = axes[3].imshow(left, cmap="viridis", vmin=0)
    axes[3].set_title(f"gRDA: how many of {units} units still read a pixel")
    figure.colorbar(image, ax=axes[3], ticks=MaxNLocator(integer=True))
    for ax in axes:
        ax.set_axis_off()
    return figure


def _tiles(kernel: np.ndarray, columns: int = 16) -> np.ndarray:
    """Units of a (64, units) kernel as 8x8 tiles, some a row, with NaN between them."""
    units = kernel.shape[1]
    rows = -(-units // columns)
    grid = np.full((rows * columns, 9, 9), np.nan)
    grid[:units, :8, :8] = kernel.T.reshape(units, 8, 8)
    grid = grid.reshape(rows, columns, 9, 9).transpose(0, 2, 1, 3)
    return grid.reshape(rows * 9, columns * 9)[:-1, :-1]


def _spread(values: np.ndarray, digits: int = 2) -> str:
    text = f"{values.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {values.std():.{digits}f}"
