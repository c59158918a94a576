"""The figures that the authors measured, to stand beside ours.

Where they come from: experiments/analyses/reference/README.md.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    dataset = Path(config.dataset).stem
    mu = config.method.mu if isinstance(config.method, Grda) else 0
    wanted = (dataset, config.model, config.method.name, mu, "all_converged")
    for line in _read("cifar_summary.csv"):
        names = (line[key].lower() for key in ("dataset", "model", "optimizer"))
        if (*names, float(line["mu"] or 0), line["seed_set"]) == wanted:
            return line
    return None


def tradeoff(config: Config) -> dict[str, list[tuple[float, float]]]:
    """Sparsity and top-1 accuracy, in percent, that others measured of a network.

    Returns:
      Points by method: for the CIFAR networks the authors' SGD and gRDA, for ResNet-50
      on ImageNet also those of Gale et al. (arXiv 1902.09574), which the authors plot.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    if config.dataset == "imagenet2012" and config.model == "resnet50":
        for line in _read("imagenet_tradeoff.csv"):
            point = 100 * float(line["sparsity"]), 100 * float(line["top1"])
            points.setdefault(line["method"].replace("_", " "), []).append(point)
    for line in _read("cifar_summary.csv"):
        names = line["dataset"].lower(), line["model"].lower()
        dataset = Path(config.dataset).stem
        if (*names, line["seed_set"]) == (dataset, config.model, "all_converged"):
            point = 100 * float(line["sparsity_mean"]), float(line["test_acc_pct_mean"])
            points.setdefault("the authors' runs", []).append(point)
    return points


def curves(results: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Loss and error along the authors' curves from gRDA to SGD.

    Args:
      results: of experiments.connect.

    Returns:
      t, train_loss and test_error (in percent) by label, of the results whose protocol
      and setting the authors have.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for label, line in _lines("connectivity_points.csv", results):
        curve = found.setdefault(label, {"t": [], "train_loss": [], "test_error": []})
        curve["t"].append(float(line["t"]))
        curve["train_loss"].append(float(line["train_loss"]))
        curve["test_error"].append(float(line["test_err_pct"]))
    return found


def curve_summary(result: dict[str, Any]) -> dict[str, str] | None:
    """The line of connectivity.csv of one result of experiments.connect, if any."""
    return next((line for _, line in _lines("connectivity.csv", [result])), None)


def projections(rows: list[dict[str, Any]]) -> dict[str, tuple[list, list]]:
    """Epochs, and the share of the displacement in the top 10 eigenspace, by label.

    The share of the squared length, not what the authors' figure shows: its square
    root over another sqrt(10). Nothing where ours is of another number of vectors.
    """
    if len(rows[0]["eigenvalues"]) != 10:
        return {}
    found: dict[str, tuple[list, list]] = {}
    for label, line in _lines("projection.csv", rows):
        epochs, shares = found.setdefault(label, ([], []))
        epochs.append(int(line["epoch"]))
        shares.append(float(line["frac_sqnorm_diff"]))
    return found


def norms(rows: list[dict[str, Any]]) -> dict[str, tuple[list, list]]:
    """Epochs and |w|_2 / |w|_1 of the authors' SGD and gRDA, of the rows' network."""
    settings = {"vgg16": "μ = 0.51", "wrn28x10": "μ = 0.501"}
    prefix = f"{rows[0]['dataset']}_{rows[0]['model']}"
    lines = _read("l2_over_l1.csv")
    if rows[0]["preset"] is None or f"{prefix}_sgd" not in lines[0]:
        return {}
    epochs = [int(line["epoch"]) for line in lines if line[f"{prefix}_sgd"]]
    return {
        label: (epochs, [float(line[key]) for line in lines if line[key]])
        for label, key in {
            "SGD": f"{prefix}_sgd",
            f"gRDA, {settings[rows[0]['model']]}": f"{prefix}_grda",
        }.items()
    }


def _lines(name: str, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict]]:
    """Label and line, for the lines of the rows that follow a preset's protocol."""
    labels = {
        (row["dataset"], row["model"], row["c"], row["mu"]): row["label"]
        for row in rows
        if row["preset"] is not None
    }
    for line in _read(name):
        names = line["dataset"].lower(), line["model"].lower()
        setting = (*names, float(line["c"]), float(line["mu"]))
        if setting in labels:
            yield labels[setting], line


def _read(name: str) -> list[dict[str, str]]:
    with (REFERENCE / name).open() as file:
        return list(csv.DictReader(file))
