"""The figures that the authors measured, to stand beside ours.

Where they come from: experiments/reference/README.md.
"""

import csv
import dataclasses
from pathlib import Path

from experiments.config import Config
from experiments.presets import PRESETS

REFERENCE = Path(__file__).parent / "reference"


def summary(config: Config) -> dict[str, str] | None:
    """What the authors' runs of a CIFAR row ended with, or None if it is not theirs.

    Returns:
      The line of cifar_summary.csv: test_acc_pct_mean, sparsity_std and so on. None if
      the protocol is not that of a preset.
    """
    # Where the images come from, the seed and the dtype may be others.
    dataset = Path(config.dataset).stem
    theirs = dataclasses.replace(config, dataset=dataset, seed=0, dtype="float32")
    if theirs not in PRESETS.values():
        return None
    mu = config.mu if config.optimizer == "grda" else 0
    wanted = (dataset, config.model, config.optimizer, mu, "all_converged")
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
        if (*names, line["seed_set"]) == (
            config.dataset,
            config.model,
            "all_converged",
        ):
            point = 100 * float(line["sparsity_mean"]), float(line["test_acc_pct_mean"])
            points.setdefault("the authors' runs", []).append(point)
    return points


def _read(name: str) -> list[dict[str, str]]:
    with (REFERENCE / name).open() as file:
        return list(csv.DictReader(file))
