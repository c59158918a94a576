"""What runs ended with, read from the files of their directories."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.training.config import LABELS, METHOD, Config, are_twins
from experiments.training.logger import read_metrics

UNSAID = {*METHOD, "seed"}  # what a label has already, or does not need


@dataclasses.dataclass(frozen=True)
class Result:
    """Runs of one configuration that differ in the seed alone."""

    config: Config  # of the first seed
    seeds: list[int]
    test_accuracy: list[float]  # a fraction a seed, as all that follow
    sparsity: list[float]
    train_loss: list[float]
    sparsity_by_layer: list[dict[str, float]]  # a dict a seed, by path
    parameters: int
    metrics: list[dict[str, Any]]  # rows of metrics.jsonl, with optimizer and seed
    environment: dict[str, Any]
    label: str = ""  # the method and its settings

    def layers(self) -> dict[str, float]:
        """Mean sparsity of each array over the seeds, by path."""
        return {
            path: float(np.mean([layers[path] for layers in self.sparsity_by_layer]))
            for path in self.sparsity_by_layer[0]
        }


def read_results(directories: Sequence[Path]) -> list[Result]:
    """The results of runs of experiments.train and experiments.compare.

    Args:
      directories: of finished runs; others, such as those of analyses, are passed over.

    Returns:
      One result a configuration, by sparsity, with SGD before all gRDA. Of several runs
      with one seed, the first counts.
    """
    groups: dict[Config, list[Result]] = {}
    for result in (r for directory in directories for r in _read(directory)):
        groups.setdefault(_without_seed(result.config), []).append(result)
    merged = _labelled([_merge(results) for results in groups.values()])
    return sorted(merged, key=lambda r: (r.config.is_sparse, np.mean(r.sparsity)))


def headline(results: Sequence[Result]) -> str:
    """What was found, in one sentence."""
    sparsest = max(results, key=lambda r: np.mean(r.sparsity))
    text = (
        f"{sparsest.label} made {np.mean(sparsest.sparsity):.1%} of "
        f"{sparsest.parameters:,} weights exactly zero while it trained, at "
        f"{np.mean(sparsest.test_accuracy):.1%} test accuracy"
    )
    config = _without_seed(sparsest.config)
    twins = [r for r in results if are_twins(_without_seed(r.config), config)]
    if twins and twins[0] is not sparsest:
        gain = np.mean(sparsest.test_accuracy) - np.mean(twins[0].test_accuracy)
        side = "above" if gain > 0 else "below"
        text += f", {100 * abs(gain):.1f} points {side} SGD"
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
    layers = {
        leaf["path"]: 1 - leaf["nonzero"] / leaf["size"] for leaf in report["leaves"]
    }
    return Result(
        config=config,
        seeds=[config.seed],
        test_accuracy=[summary["test_accuracy"]],
        sparsity=[summary["sparsity"]],
        train_loss=[summary["train_loss"]],
        sparsity_by_layer=[layers],
        parameters=report["total"],
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
        sparsity_by_layer=outcome["sparsity_by_layer"],
        parameters=outcome["total"],
        metrics=[row for row in rows if row["optimizer"] == name],
        environment=summary["environment"],
    )


def _merge(results: list[Result]) -> Result:
    """All seeds of results of one configuration, each once."""
    first: dict[int, tuple[Result, int]] = {}  # where a seed was seen first
    for result in results:
        for place, seed in enumerate(result.seeds):
            first.setdefault(seed, (result, place))

    def join(name):
        return [getattr(result, name)[place] for result, place in first.values()]

    per_seed = ("test_accuracy", "sparsity", "train_loss", "sparsity_by_layer")
    return dataclasses.replace(
        results[0],
        seeds=list(first),
        **{name: join(name) for name in per_seed},
        metrics=[
            row
            for seed, (result, _) in first.items()
            for row in result.metrics
            if row["seed"] == seed
        ],
    )


def _labelled(results: list[Result]) -> list[Result]:
    """With labels that tell results apart: of those alike, also what differs."""
    labelled = []
    for result in results:
        alike = [
            vars(r.config) for r in results if r.config.label == result.config.label
        ]
        names = (f.name for f in dataclasses.fields(Config) if f.name not in UNSAID)
        differing = [n for n in names if len({config[n] for config in alike}) > 1]
        about = "".join(f", {n} {getattr(result.config, n)}" for n in differing)
        label = result.config.label + about
        labelled.append(dataclasses.replace(result, label=label))
    return labelled
