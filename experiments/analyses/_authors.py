"""The figures that the authors measured, to stand beside ours.

Where they come from: experiments/analyses/reference/README.md.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.analyses._files import Rows
from experiments.training.config import Config, Grda
from experiments.training.presets import preset_of

REFERENCE = Path(__file__).parent / "reference"


def summary(config: Config) -> dict[str, str] | None:
    """What the authors' runs of a CIFAR row ended with, or None if it is not theirs.

    Returns:
      The line of cifar_summary.csv: test_acc_pct_mean, sparsity_std and so on. None if
      the protocol is not that of a preset.
    """
    if preset_of(config) is None:
        return None
    method = config.method
    mu = method.mu if isinstance(method, Grda) else 0
    for line in _of_network("cifar_summary.csv", config.dataset, config.model):
        setting = line["optimizer"].lower(), float(line["mu"] or 0), line["seed_set"]
        if setting == (method.name, mu, "all_converged"):
            return line
    return None


def tradeoff(config: Config) -> dict[str, list[tuple[float, float]]]:
    """Sparsity and top-1 accuracy, in percent, that others measured of a network.

    Returns:
      Points by method: for the CIFAR networks the authors' SGD and gRDA, for ResNet-50
      on ImageNet also those of Gale et al. (arXiv 1902.09574), which the authors plot.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    if (config.dataset, config.model) == ("imagenet2012", "resnet50"):
        for line in _read("imagenet_tradeoff.csv"):
            point = 100 * float(line["sparsity"]), 100 * float(line["top1"])
            points.setdefault(line["method"].replace("_", " "), []).append(point)
    for line in _of_network("cifar_summary.csv", config.dataset, config.model):
        if line["seed_set"] == "all_converged":
            point = 100 * float(line["sparsity_mean"]), float(line["test_acc_pct_mean"])
            points.setdefault("the authors' runs", []).append(point)
    return points


def curves(pairs: Rows) -> dict[str, dict[str, list[float]]]:
    """Loss and error along the authors' curves from gRDA to SGD.

    Returns:
      t, train_loss and test_error (in percent) by label, of the pairs whose protocol
      and setting the authors have.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for label, line in _lines("connectivity_points.csv", pairs):
        curve = found.setdefault(label, {"t": [], "train_loss": [], "test_error": []})
        curve["t"].append(float(line["t"]))
        curve["train_loss"].append(float(line["train_loss"]))
        curve["test_error"].append(float(line["test_err_pct"]))
    return found


def curve_summary(pair: dict[str, Any]) -> dict[str, str]:
    """The line of connectivity.csv of one pair; empty if the authors have none."""
    return next((line for _, line in _lines("connectivity.csv", [pair])), {})


def projections(rows: Rows) -> dict[str, tuple[list, list]]:
    """Epochs, and the share of the displacement in the top 10 eigenspace, by label.

    The share of the squared length, not what the authors' figure shows: its square
    root over another sqrt(10). Nothing where ours is of another number of vectors.
    """
    found: dict[str, tuple[list, list]] = {}
    if len(rows[0]["eigenvalues"]) == 10:
        for label, line in _lines("projection.csv", rows):
            epochs, shares = found.setdefault(label, ([], []))
            epochs.append(int(line["epoch"]))
            shares.append(float(line["frac_sqnorm_diff"]))
    return found


def norms(rows: Rows) -> dict[str, tuple[list, list]]:
    """Epochs and |w|_2 / |w|_1 of the authors' SGD and gRDA, of the rows' network."""
    model, found = rows[0]["model"], {}
    settings = {"vgg16": "μ = 0.51", "wrn28x10": "μ = 0.501"}
    names = {"sgd": "SGD", "grda": f"gRDA, {settings.get(model)}"}
    lines = _read("l2_over_l1.csv")
    for method, label in names.items():
        column = f"{rows[0]['dataset']}_{model}_{method}"
        if rows[0]["preset"] is not None and column in lines[0]:
            mine = [line for line in lines if line[column]]
            epochs = [int(line["epoch"]) for line in mine]
            found[label] = epochs, [float(line[column]) for line in mine]
    return found


def _lines(name: str, rows: Rows) -> Iterator[tuple[str, dict[str, str]]]:
    """Label and line, for the lines of the rows that follow a preset's protocol."""
    labels = {
        (row["dataset"], row["model"], row["method"]["c"], row["method"]["mu"]): (
            row["label"]
        )
        for row in rows
        if row["preset"] is not None and row["method"]["name"] == Grda.name
    }
    for line in _read(name):
        names = line["dataset"].lower(), line["model"].lower()
        setting = (*names, float(line["c"]), float(line["mu"]))
        if setting in labels:
            yield labels[setting], line


def _of_network(name: str, dataset: str, model: str) -> list[dict[str, str]]:
    network = Path(dataset).stem, model
    return [
        line
        for line in _read(name)
        if (line["dataset"].lower(), line["model"].lower()) == network
    ]


def _read(name: str) -> list[dict[str, str]]:
    with (REFERENCE / name).open() as file:
        return list(csv.DictReader(file))
