"""The arena: what each way to train sparse reached, at which sparsity."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import models
from experiments.analyses._files import Found, Rows
from experiments.analyses._plots import panels
from experiments.analyses._show import Cells, Section
from experiments.arena.methods import METHODS, TWINS

KEYS = {"rows": ("network", "method", "phase", "pace", "sparsity", "strength", "seed")}

NEAR = 0.005  # a run whose zeros are farther from what was wanted says so
MARKERS = "v^<>sPXD*hd"


def sentence(found: Found) -> str:
    """Who is ahead at the highest sparsity of each network, and by how much."""
    texts = []
    for network, rows in _by(found["rows"], "network").items():
        for by_units, group in _tables(rows):
            sparse = [row for row in group if row["sparsity"] > 0]
            if not sparse:
                continue
            highest = max(row["sparsity"] for row in sparse)
            last = _by([r for r in sparse if r["sparsity"] == highest], "method")
            there = {  # those that have as many zeros
                method: runs
                for method, runs in last.items()
                if np.mean([row["zeros"] for row in runs]) > highest - NEAR
            }
            ranked = sorted(there.items(), key=lambda item: -_mean(item[1]))
            text = ", ".join(
                f"{METHODS[name].label} {_percent(of)}" for name, of in ranked[:3]
            )
            twin = [r for r in group if r["method"] in TWINS.values()]
            dense = f" (dense {_percent(twin)})" if twin else ""
            what = "zeros in whole units" if by_units else "zeros"
            texts.append(
                f"{network}, {100 * highest:g} % {what}: the best of {len(ranked)} "
                f"methods that reach it are {text}{dense}."
            )
    return " ".join(texts)


def sections(found: Found) -> Iterator[Section]:
    """A table and a figure of accuracy and of loss, a network each.

    Whole units stand apart from single weights.
    """
    for network, rows in _by(found["rows"], "network").items():
        for by_units, group in _tables(rows):
            what = f"{network}, {'whole units' if by_units else 'single weights'}"
            name = f"{network}_{'units' if by_units else 'weights'}"
            runs = len({row["seed"] for row in group})
            yield Section(
                f"Test accuracy: {what}",
                "Kernels have the same fraction of zeros under all methods, or it is "
                "said how many; biases and norms are dense. Means of the seeds; bands "
                "are their standard errors. Lines across: the dense twins.",
                figure(group, "test_accuracy", "test accuracy, %", 100),
                f"arena_accuracy_{name}",
                table(group, "test_accuracy", 100),
                f"{what}: test accuracy, %, mean ± std of {runs} seeds",
            )
            if models.spec(rows[0]["model"]).is_text:
                yield Section(
                    f"Test loss: {what}",
                    "A byte, in nats.",
                    figure(group, "test_loss", "test loss, nats"),
                    f"arena_test_loss_{name}",
                    table(group, "test_loss"),
                    f"{what}: test loss, nats a byte, mean ± std of {runs} seeds",
                )
            yield Section(
                f"Training loss: {what}",
                "Of the final weights on the training inputs, in evaluation mode.",
                figure(group, "train_loss", "training loss, nats"),
                f"arena_loss_{name}",
                table(group, "train_loss"),
                f"{what}: training loss, nats, mean ± std of {runs} seeds",
            )


def table(rows: Rows, name: str, scale: float = 1.0) -> Cells:
    """A row a method, a column a sparsity; methods in the order of the registry.

    Args:
      rows: runs of one network.
      name: of the quantity.
      scale: what it is multiplied by.
    """
    cells, digits = [], 2 if scale == 100 else 4
    sparsities = sorted({row["sparsity"] for row in rows})
    for method, mine in _by_method(rows).items():
        cell, points = {"method": METHODS[method].label}, _by(mine, "sparsity")
        for sparsity in sparsities:
            header = f"{100 * sparsity:g} %" if sparsity else "dense"
            cell[header] = ""
            if runs := points.get(sparsity):
                values = scale * np.array([row[name] for row in runs])
                text = f"{np.mean(values):.{digits}f}±{np.std(values):.{digits}f}"
                zeros = np.mean([row["zeros"] for row in runs])
                if abs(zeros - sparsity) > NEAR:
                    text += f" at {100 * zeros:.1f}"
                cell[header] = text
        cell["rate"] = f"{mine[0]['pace']:g}"
        cell["state"] = f"{mine[0]['state']:.1f}"
        seconds = np.mean([row["seconds"] for row in mine])
        cell["s a run"] = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
        cells.append(cell)
    return cells


def figure(rows: Rows, name: str, label: str, scale: float = 1.0) -> Figure:
    """A quantity by the zeros: a line a method, and one across for a dense twin."""
    (ax,) = panels(size=(9.5, 5.2))
    for number, (method, mine) in enumerate(_by_method(rows).items()):
        _draw(ax, method, mine, number, name, scale)
    # Equal steps where as many weights are left.
    ax.set_xscale("function", functions=(_to_axis, _from_axis))
    ticks = sorted({100 * row["sparsity"] for row in rows if row["sparsity"] > 0})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set(xlabel="zeros in kernels, %", ylabel=label)
    values = [scale * np.mean([row[name] for row in of]) for of in _points(rows)]
    if name.endswith("loss"):
        if max(values) > 10 * min(values):
            ax.set_yscale("log")
    else:  # where most of the lines are; those that fail are in the table
        best, low = max(values), np.quantile(values, 0.2)
        ax.set_ylim(low - 0.3 * (best - low), best + 0.1 * (best - low) + 0.1)
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def _draw(
    ax: Axes, method: str, rows: Rows, number: int, name: str, scale: float
) -> None:
    """The line of a method, with a band; that of a dense twin goes across."""
    family, label = METHODS[method].family, METHODS[method].label
    if family == "dense":
        style = "-" if method in TWINS.values() else "--"
        level = scale * np.mean([row[name] for row in rows])
        ax.axhline(level, color="black", linestyle=style, linewidth=1, label=label)
        return
    points = sorted(_by(rows, "sparsity").items())
    x = [100 * np.mean([row["zeros"] for row in runs]) for _, runs in points]
    values = [[scale * row[name] for row in runs] for _, runs in points]
    mean = np.array([np.mean(of) for of in values])  # of as many seeds as there are yet
    error = np.array([np.std(of) / len(of) ** 0.5 for of in values])
    style = {"marker": "o", "linewidth": 2.2}
    if family == "rival":
        marker = MARKERS[number % len(MARKERS)]
        style = {"marker": marker, "linewidth": 0.8, "linestyle": "--"}
    color = f"C{number % 10}"
    ax.plot(x, mean, color=color, markersize=4, label=label, **style)
    band = mean - error, mean + error
    ax.fill_between(x, *band, color=color, alpha=0.15, linewidth=0)


def _to_axis(zeros):
    return -np.log(np.maximum(100 - zeros, 1e-3))


def _from_axis(place):
    return 100 - np.exp(-place)


def _tables(rows: Rows) -> Iterator[tuple[bool, Rows]]:
    """The runs that count: those of single weights, and those of whole units."""
    rows = [row for row in rows if row["phase"] == "test"]
    dense = [row for row in rows if METHODS[row["method"]].family == "dense"]
    for by_units in False, True:
        sparse = [row for row in rows if row not in dense]
        sparse = [r for r in sparse if METHODS[r["method"]].by_units == by_units]
        if sparse or not by_units:
            yield by_units, dense + sparse


def _by_method(rows: Rows) -> dict[str, Rows]:
    """The runs of each method, in the order of the registry."""
    found = _by(rows, "method")
    return {method: found[method] for method in METHODS if method in found}


def _points(rows: Rows) -> list[Rows]:
    """The runs of each method at each sparsity."""
    return [
        runs
        for mine in _by_method(rows).values()
        for runs in _by(mine, "sparsity").values()
    ]


def _by(rows: Rows, name: str) -> dict[Any, Rows]:
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _mean(rows: Rows) -> float:
    return float(np.mean([row["test_accuracy"] for row in rows]))


def _percent(rows: Rows) -> str:
    values = [100 * row["test_accuracy"] for row in rows]
    return f"{np.mean(values):.2f} ± {np.std(values):.2f}"
