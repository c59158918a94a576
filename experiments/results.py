"""What runs ended with, read from the files of their directories."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import LABELS, Config
from experiments.logger import read_metrics


@dataclasses.dataclass(frozen=True)
class Result:
    """Runs of one configuration that differ in the seed alone."""

    config: Config  # of the first seed
    seeds: list[int]
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
        return self.config.label


def read_results(directories: Sequence[Path]) -> list[Result]:
    """The results of runs of experiments.train and experiments.compare.

    Args:
      directories: of finished runs; others, such as those of analyses, are passed over.

    Returns:
      One result a configuration, by sparsity, with SGD before all gRDA.
    """
    results = [r for directory in directories for r in _read(directory)]
    groups: dict[Config, list[Result]] = {}
    for result in results:
        groups.setdefault(_without_seed(result.config), []).append(result)
    merged = map(_merge, groups.values())
    return sorted(
        merged,
        key=lambda r: (r.config.is_sparse, np.mean(r.sparsity)),
    )


def headline(results: Sequence[Result]) -> str:
    """What was found, in one sentence."""
    sparsest = max(results, key=lambda r: np.mean(r.sparsity))
    text = (
        f"{sparsest.label} made {np.mean(sparsest.sparsity):.1%} of "
        f"{sparsest.parameters:,} weights exactly zero while it trained, at "
        f"{np.mean(sparsest.test_accuracy):.1%} test accuracy"
    )
    sgd = [result for result in results if result.config.optimizer == "sgd"]
    if sgd and sgd[0] is not sparsest:
        points = 100 * (np.mean(sparsest.test_accuracy) - np.mean(sgd[0].test_accuracy))
        text += f", {abs(points):.1f} points {'above' if points > 0 else 'below'} SGD"
    return text + "."


def _without_seed(config: Config) -> Config:
    """The same for all seeds, and for SGD whatever a threshold's settings would be."""
    if not config.is_sparse:
        config = dataclasses.replace(config, c=0, mu=0, sparsity=0, groups="none")
    return dataclasses.replace(config, seed=0)


def _read(directory: Path) -> list[Result]:
    if not (directory / "summary.json").exists():
        return []
    summary = json.loads((directory / "summary.json").read_text())
    config = json.loads((directory / "config.json").read_text())
    if "sparsity_report" in summary:
        return [_of_train(directory, summary, Config(**config))]
    return [
        _of_compare(directory, summary, config, name)
        for name in LABELS
        if name in summary
    ]


def _of_train(directory: Path, summary: dict, config: Config) -> Result:
    known = {"optimizer": config.optimizer, "seed": config.seed}
    report = summary["sparsity_report"]
    return Result(
        config=config,
        seeds=[config.seed],
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
        seeds=list(range(config["seeds"])),
        test_accuracy=outcome["test_accuracy"],
        sparsity=outcome["sparsity"],
        train_loss=outcome["train_loss"],
        parameters=outcome["total"],
        sparsity_by_layer=outcome["sparsity_by_layer_mean"],
        metrics=[row for row in rows if row["optimizer"] == name],
        environment=summary["environment"],
    )


def _merge(results: list[Result]) -> Result:
    seen: set[int] = set()
    for result in list(results):  # a comparison of each c trains SGD again
        if seen.issuperset(result.seeds):
            results.remove(result)
        seen.update(result.seeds)

    def join(name):
        return [value for result in results for value in getattr(result, name)]

    layers = results[0].sparsity_by_layer
    return dataclasses.replace(
        results[0],
        seeds=join("seeds"),
        test_accuracy=join("test_accuracy"),
        sparsity=join("sparsity"),
        train_loss=join("train_loss"),
        metrics=join("metrics"),
        sparsity_by_layer={
            path: float(np.mean([r.sparsity_by_layer[path] for r in results]))
            for path in layers
        },
    )
