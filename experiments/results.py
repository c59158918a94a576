"""What runs ended with, read from the files of their directories."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import Config
from experiments.logger import read_metrics

LABELS = {"sgd": "SGD", "momentum": "momentum SGD", "adam": "Adam", "grda": "gRDA"}


@dataclasses.dataclass(frozen=True)
class Result:
    """Runs of one configuration that differ in the seed alone."""

    config: Config  # of the first seed
    test_accuracy: list[float]  # a fraction a seed, as all that follow
    sparsity: list[float]
    train_loss: list[float]
    parameters: int
    sparsity_by_layer: dict[str, float]  # mean over the seeds
    metrics: list[dict[str, Any]]  # rows of metrics.jsonl, with optimizer and seed
    environment: dict[str, Any]

    @property
    def label(self) -> str:
        """The method and its settings."""
        config, name = self.config, LABELS[self.config.optimizer]
        if config.optimizer != "grda":
            return name
        return f"{name}, c = {config.c:g}, μ = {config.mu:g}"


def read_results(directories: Sequence[Path]) -> list[Result]:
    """The results of runs of experiments.train and experiments.compare.

    Args:
      directories: of finished runs; others, such as those of analyses, are passed over.

    Returns:
      One result a configuration, SGD first.
    """
    results = [r for directory in directories for r in _read(directory)]
    groups: dict[Config, list[Result]] = {}
    for result in results:
        groups.setdefault(dataclasses.replace(result.config, seed=0), []).append(result)
    merged = map(_merge, groups.values())
    return sorted(merged, key=lambda r: (r.config.optimizer == "grda", r.config.mu))


def _read(directory: Path) -> list[Result]:
    if not (directory / "summary.json").exists():
        return []
    summary = json.loads((directory / "summary.json").read_text())
    config = json.loads((directory / "config.json").read_text())
    if "sparsity_report" in summary:
        return [_of_train(directory, summary, Config(**config))]
    if "finding" in summary:
        return [
            _of_compare(directory, summary, config, name)
            for name in LABELS
            if name in summary
        ]
    return []


def _of_train(directory: Path, summary: dict, config: Config) -> Result:
    known = {"optimizer": config.optimizer, "seed": config.seed}
    report = summary["sparsity_report"]
    return Result(
        config=config,
        test_accuracy=[summary["test_accuracy"]],
        sparsity=[summary["sparsity"]],
        train_loss=[summary["train_loss"]],
        parameters=report["total"],
        sparsity_by_layer={
            leaf["path"]: 1 - leaf["nonzero"] / leaf["size"]
            for leaf in report["leaves"]
        },
        metrics=[row | known for row in read_metrics(directory)],
        environment=summary["environment"],
    )


def _of_compare(directory: Path, summary: dict, config: dict, name: str) -> Result:
    outcome = summary[name]
    rows = read_metrics(directory)
    return Result(
        config=Config(**config[name]),
        test_accuracy=outcome["test_accuracy"],
        sparsity=outcome["sparsity"],
        train_loss=outcome["train_loss"],
        parameters=outcome["total"],
        sparsity_by_layer=outcome["sparsity_by_layer_mean"],
        metrics=[row for row in rows if row["optimizer"] == name],
        environment=summary["environment"],
    )


def _merge(results: list[Result]) -> Result:
    def join(name):
        return [value for result in results for value in getattr(result, name)]

    layers = results[0].sparsity_by_layer
    return dataclasses.replace(
        results[0],
        test_accuracy=join("test_accuracy"),
        sparsity=join("sparsity"),
        train_loss=join("train_loss"),
        metrics=join("metrics"),
        sparsity_by_layer={
            path: float(np.mean([r.sparsity_by_layer[path] for r in results]))
            for path in layers
        },
    )
