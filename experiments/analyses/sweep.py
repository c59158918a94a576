"""A grid of settings: the accuracy at which each makes how many zeros."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from experiments.analyses._files import Found, Rows
from experiments.analyses._plots import figure_of, note, panels
from experiments.analyses._show import Cells, Section


def sentence(found: Found) -> str:
    """How long the runs took, and how close they came to what they were asked for."""
    text = f"{found['runs']} runs took {found['seconds']:.1f} s."
    rows = found["rows"]
    off = [row["worst_deviation"] for row in rows if "worst_deviation" in row]
    if off:
        text += f" The worst of them is {100 * max(off):.2f} points off what was asked."
    return text


def sections(found: Found) -> Iterator[Section]:
    """Sparsity against accuracy."""
    yield Section(
        "Sparsity against accuracy",
        "Means over the seeds; bars are their standard deviations.",
        accuracy_by_zeros(found["rows"]),
        "sparsity_accuracy",
        table(found["rows"]),
        f"Means of {found['seeds']} seeds",
    )


def table(rows: Rows) -> Cells:
    """A row a setting, by sparsity; what is a fraction in percent."""
    headers = {
        "c": "c",
        "mu": "mu",
        "asked": "asked, %",
        "sparsity": "zeros, %",
        "worst_deviation": "worst seed off, points",
        "test_accuracy": "test accuracy, %",
        "test_accuracy_std": "± std",
    }
    return [
        {
            headers[name]: (
                f"{row[name]:g}" if name in ("c", "mu") else f"{100 * row[name]:.2f}"
            )
            for name in headers
            if name in row
        }
        for row in sorted(rows, key=lambda row: row["sparsity"])
    ]


def accuracy_by_zeros(rows: Rows) -> Figure:
    """A point a setting, with the seeds' deviation; a line joins those of one mu.

    Sparsities that were asked for have one line, and stand beside its points.
    """
    number = "asked" if "asked" in rows[0] else "c"
    (ax,) = panels()
    for mu in sorted({row.get("mu", 0) for row in rows}):
        line = [row for row in rows if row.get("mu", 0) == mu]
        line.sort(key=lambda row: row[number])
        x, y, error = (
            100 * np.array([row[name] for row in line])
            for name in ("sparsity", "test_accuracy", "test_accuracy_std")
        )
        label = f"μ = {mu:g}" if number == "c" else "target sparsity"
        ax.errorbar(x, y, error, marker="o", markersize=4, capsize=2, label=label)
        for row, *point in zip(line, x, y, strict=True):
            note(ax, f"{row[number]:g}", point)
    ax.set(xlabel="weights exactly zero, %", ylabel="test accuracy, %")
    meaning = "c" if number == "c" else "the sparsity asked for"
    ax.set_title(f"numbers beside the points: {meaning}")
    return figure_of([ax])
