"""Whole units: how many can be cut out, and what the rest would be worth untrained.

    python -m experiments.units [--c 0.02 0.05 0.08] [--output DIRECTORY]

Trains a multilayer perceptron with gRDA at several c, thresholding single weights,
whole units, or both (experiments.training.config.Groups), and cuts out of every network
the units that cannot matter. As a control, the same narrow architectures are trained
from scratch with SGD, for as many epochs, each with the seed of the network that it
came from (Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019). Writes
units.json and figures/ to a directory.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

import models
from experiments.analyses import _plots as analysis_figures
from experiments.analyses._files import analyse, by_groups, print_table
from experiments.training import data
from experiments.training.config import Config, Grda, Groups, Sgd
from experiments.training.loop import OnDevice, run_epochs, train_together
from experiments.training.presets import PRESETS
from experiments.training.trainer import make_trainer
from models.export.cost import cost
from models.export.shrink import shrink

Row = dict[str, Any]
GROUPS = get_args(Groups)


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains by single weights and by whole units, and cuts dead units out."""

    preset: Literal["digits-mlp", "mnist-mlp"] = "digits-mlp"
    """What to train: a multilayer perceptron."""
    c: tuple[float, ...] = (0.02, 0.05, 0.08)
    """Strengths of the threshold."""
    seeds: int = 5
    """Runs of each, with seeds 0, 1, ..."""
    epochs: int | None = None
    """Epochs of each run; by default the preset's."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Directory of the results; by default a new one under runs/."""

    def __post_init__(self):
        if self.seeds < 1 or not self.c or not all(c >= 0 for c in self.c):
            raise ValueError(
                "seeds must be >= 1, and c must hold values >= 0: got "
                f"{self.seeds} and {self.c}"
            )
        _ = self.config  # raises if epochs are none

    @property
    def config(self) -> Config:
        """The configuration of all runs, but for method and seed."""
        preset = PRESETS[self.preset]
        epochs = preset.epochs if self.epochs is None else self.epochs
        return dataclasses.replace(preset, epochs=epochs)

    def methods(self, groups: str) -> list[Grda]:
        """The methods of one kind of groups."""
        mu = PRESETS[self.preset].method.mu
        return [Grda(c, mu, groups) for c in self.c]


def measure(options: Options, groups: str, dataset: data.Dataset) -> Iterator[Row]:
    """A row a c and seed."""
    config, methods = options.config, options.methods(groups)
    seeds = range(options.seeds)
    trained = train_together(config, dataset, methods, seeds, groups)
    trainer = trained.passes.trainer
    for run in range(len(methods) * options.seeds):
        state = jax.tree.map(lambda leaf, run=run: leaf[run], trained.state)
        network = shrink(trainer.network(state.params, state.batch_stats))
        parameters, multiply_adds, widths = cost(network, dataset.test_images.shape[1:])
        *hidden, _ = widths.values()
        setting, seed = divmod(run, options.seeds)
        yield {
            "model": config.model,
            "dataset": Path(config.dataset).stem,
            "groups": "single weights" if groups == "none" else groups,
            "c": options.c[setting],
            "seed": seed,
            "test_accuracy": trained.row["test_accuracy"][run],
            "test_loss": trained.row["test_loss"][run],
            "sparsity": trained.row["sparsity"][run],
            "widths": hidden,
            "parameters": parameters,
            "multiply_adds": multiply_adds,
            "from_scratch": from_scratch(config, seed, tuple(hidden), dataset),
        }


def from_scratch(
    config: Config, seed: int, widths: tuple[int, ...], dataset: data.Dataset
) -> float | None:
    """Test accuracy of those widths after SGD; None where a layer has none left."""
    if 0 in widths:
        return None
    config = dataclasses.replace(config, method=Sgd())
    trainer = make_trainer(config, dataset.num_classes, dataset.num_examples)
    build = functools.partial(
        *(models.create, config.model),
        num_classes=dataset.num_classes,
        features=widths,
    )
    trainer = dataclasses.replace(trainer, build=lambda rngs: build(rngs=rngs))
    passes, state = OnDevice(trainer, dataset), jax.jit(trainer.init)(seed)
    epochs = range(1, config.epochs + 1)
    *_, last = run_epochs(passes, state, epochs, f"{widths}")
    return float(last.row["test_accuracy"])


def table(rows: list[Row]) -> list[dict[str, str]]:
    """A row a kind of groups and a c: means over the seeds.

    Zeros and test accuracy of the network; units in each hidden layer and parameters of
    what is left of it; test accuracy of that trained from scratch.
    """
    cells = []
    for (groups, c), mine in by_groups(rows).items():
        zeros, accuracy, parameters = (
            np.mean([row[name] for row in mine])
            for name in ("sparsity", "test_accuracy", "parameters")
        )
        widths = np.mean([row["widths"] for row in mine], axis=0)
        scratch = [row["from_scratch"] for row in mine]
        cells.append(
            {
                "made zero": groups,
                "c": f"{c:g}",
                "zeros, %": f"{100 * zeros:.1f}",
                "test, %": f"{100 * accuracy:.1f}",
                "units": " + ".join(f"{width:.0f}" for width in widths),
                "parameters": f"{parameters:,.0f}",
                "scratch, %": (
                    "" if None in scratch else f"{100 * np.mean(scratch):.1f}"
                ),
            }
        )
    return cells


def main(options: Options) -> Path:
    """Trains and measures, and returns the directory of the results."""
    dataset = data.load(options.config.dataset, options.data_dir)
    parts = (
        {"rows": [row]}
        for groups in GROUPS
        for row in measure(options, groups, dataset)
    )
    runs = len(GROUPS) * len(options.c) * options.seeds
    directory, found = analyse(
        "units", options, parts, runs, analysis_figures.draw_units
    )
    print_table("Units that cannot matter are cut out", table(found["rows"]), directory)
    return directory
