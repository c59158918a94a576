"""SGD and gRDA from the same initial weights, side by side, over several seeds at once.

    python -m experiments.compare [--c 0.05] [--mu 0.6] [--output DIRECTORY]

Trains the digits MLP (64-128-64-10, ReLU) on scikit-learn's handwritten digits (1,437
training and 360 test images of 8x8 pixels, split as in experiments.data), prints what
came of it and what the zeros are good for, and writes it to a run directory:
config.json, metrics.jsonl, summary.json, weights.npz, figures/, card/, report.html, and
for every network a run directory of its own, config.json and checkpoints, for
experiments.connect and the like. This is `make demo`.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import report
from experiments.analyses import _training_plots as figures
from experiments.analyses import card
from experiments.training import config as configs
from experiments.training import data, logger
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import LABELS, Config
from experiments.training.optimizer import learning_rates, make_optimizer
from experiments.training.results import headline, read_results
from experiments.training.trainer import Trainer, TrainState
from optax_grda import SparsityReport, sparsity_report

METHODS = ("sgd", "grda")


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains the digits network with SGD and with gRDA, and compares them."""

    c: float = 0.05
    """Strength of gRDA's threshold: more means more zeros. 0 is SGD."""
    mu: float = 0.6
    """Growth of gRDA's threshold with the steps, in (0, 1]."""
    learning_rate: float = 0.1
    """Learning rate of both."""
    epochs: int = 60
    """Passes over the training images."""
    seeds: int = 5
    """Runs of each optimizer, with seeds 0, 1, ..., trained at once."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; the last epoch is always saved."""
    output: Path | None = None
    """Run directory; by default a new one under runs/. Nothing is overwritten."""

    def __post_init__(self):
        for name in ("seeds", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def config(self, optimizer: str) -> Config:
        """The configuration of the runs of one optimizer."""
        return Config(
            optimizer=optimizer,
            c=self.c,
            mu=self.mu,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the runs of one optimizer ended with; arrays over the seeds."""

    test_accuracy: np.ndarray
    train_loss: np.ndarray
    reports: list[SparsityReport]
    seconds: float  # of training and evaluation, without compilation, over all seeds

    @property
    def sparsity(self) -> np.ndarray:
        """Fraction of weights that are exactly zero."""
        return np.array([report.sparsity for report in self.reports])

    @property
    def nonzero(self) -> float:
        """Weights that are not zero, mean."""
        return float(np.mean([report.nonzero for report in self.reports]))

    @property
    def layers(self) -> list[dict[str, float]]:
        """Sparsity of each leaf by its path, a dict a seed."""
        return [
            {leaf.path: leaf.sparsity for leaf in report.leaves}
            for report in self.reports
        ]

    def to_dict(self) -> dict:
        """For summary.json: a value a seed where there is one."""
        return {
            "test_accuracy": self.test_accuracy.tolist(),
            "train_loss": self.train_loss.tolist(),
            "sparsity": self.sparsity.tolist(),
            "nonzero_mean": self.nonzero,
            "total": self.reports[0].total,
            "sparsity_by_layer": self.layers,
            "seconds_all_seeds": self.seconds,
        }


def run(
    options: Options, optimizer: str, dataset: data.Dataset, metrics: logger.MetricsFile
) -> tuple[list[TrainState], Outcome]:
    """Trains all seeds of one optimizer.

    Returns:
      The first state, those to save, of which the last is the final one, and the
      outcome. States are of all seeds.
    """
    config = options.config(optimizer)
    trainer = Trainer(config, dataset.num_classes, len(dataset.train_labels))
    rates = learning_rates(config)
    train = jax.device_put((dataset.train_images, dataset.train_labels))
    test = jax.device_put((dataset.test_images, dataset.test_labels))

    def epoch(state, train, test):
        state, steps = trainer.train_epoch(state, *train)
        tested = trainer.evaluate(state.params, state.batch_stats, *test)
        return state, trainer.report(state, steps, tested)

    initial = jax.jit(jax.vmap(trainer.init))(np.arange(options.seeds))
    compiled = (
        jax.jit(jax.vmap(epoch, in_axes=(0, None, None)))
        .lower(initial, train, test)
        .compile()
    )
    state, states, start = initial, [initial], time.perf_counter()
    with logger.progress_bar(options.epochs, f"{LABELS[optimizer]:4}") as bar:
        for number, rate in enumerate(rates, start=1):
            state, rows = compiled(state, train, test)
            rows = {name: np.asarray(values) for name, values in rows.items()}
            metrics.append(
                {"optimizer": optimizer, "seed": seed, "epoch": number}
                | {"learning_rate": float(rate)}
                | {name: values[seed].item() for name, values in rows.items()}
                for seed in range(options.seeds)
            )
            bar.set_postfix(
                test=f"{rows['test_accuracy'].mean():.1%}",
                zero=f"{rows['sparsity'].mean():.1%}",
            )
            bar.update()
            if number % options.checkpoint_every == 0 or number == options.epochs:
                states.append(state)
    seconds = time.perf_counter() - start
    evaluate = jax.jit(jax.vmap(trainer.evaluate, in_axes=(0, 0, None, None)))
    final = evaluate(state.params, state.batch_stats, *train)
    params = jax.device_get(state.params)
    outcome = Outcome(
        test_accuracy=rows["test_accuracy"],
        train_loss=np.asarray(final.loss),
        reports=[
            sparsity_report(jax.tree.map(lambda leaf, seed=seed: leaf[seed], params))
            for seed in range(options.seeds)
        ],
        seconds=seconds,
    )
    return states, outcome


def tables(outcomes: dict[str, Outcome]) -> list[Table]:
    """The comparison, and sparsity by layer."""
    seeds = len(outcomes["sgd"].reports)
    results = Table(title=f"Digits, mean of {seeds} seeds (± standard deviation)")
    for header in ("", *(LABELS[name] for name in outcomes)):
        results.add_column(header, justify="right" if header else "left")

    def spread(x, digits):
        return f"{x.mean():.{digits}f} ± {x.std():.{digits}f}"

    rows = {
        "test accuracy": lambda o: f"{spread(100 * o.test_accuracy, 2)} %",
        "training loss": lambda o: (
            f"{o.train_loss.mean():.4f} ± {o.train_loss.std():.4f}"
        ),
        "sparsity": lambda o: f"{spread(100 * o.sparsity, 2)} %",
        "nonzero weights": lambda o: f"{o.nonzero:,.0f} of {o.reports[0].total:,}",
        "seconds a run": lambda o: f"{o.seconds / seeds:.2f}",
    }
    for name, cell in rows.items():
        results.add_row(name, *(cell(outcome) for outcome in outcomes.values()))
    layers = Table(title="Sparsity by layer")
    for header in ("leaf", "size", *(LABELS[name] for name in outcomes)):
        layers.add_column(header, justify="left" if header == "leaf" else "right")
    for leaf in outcomes["sgd"].reports[0].leaves:
        cells = (
            f"{np.mean([layer[leaf.path] for layer in outcome.layers]):.1%}"
            for outcome in outcomes.values()
        )
        layers.add_row(leaf.path, f"{leaf.size:,}", *cells)
    return [results, layers]


def first_kernel(params, seed: int = 0) -> np.ndarray:
    """The kernel that reads the pixels, (64, units), of one seed."""
    leaves = (np.asarray(leaf[seed]) for leaf in jax.tree.leaves(params))
    return next(leaf for leaf in leaves if leaf.ndim == 2 and leaf.shape[0] == 64)


def save_run(directory: Path, config: Config, states: list[TrainState]) -> None:
    """Writes the network of the configuration's seed as experiments.train would."""
    directory.mkdir()
    configs.save(config, directory / "config.json")
    checkpoints = Checkpoints(directory, config)
    for of_all_seeds in states:
        checkpoints.save(jax.tree.map(lambda leaf: leaf[config.seed], of_all_seeds))


def main(options: Options) -> Path:
    """Runs the comparison and returns the run directory."""
    for optimizer in METHODS:  # invalid options fail before anything is written
        make_optimizer(options.config(optimizer), steps_per_epoch=1)
    dataset = data.load("digits")
    directory = logger.new_directory(options.output, "compare")
    logger.write_json(
        directory / "config.json",
        {name: dataclasses.asdict(options.config(name)) for name in METHODS}
        | {"seeds": options.seeds},
    )
    console = Console()
    console.print(
        f"training {options.seeds} networks at once with each optimizer, "
        f"{options.epochs} epochs; writing to {directory}"
    )
    metrics = logger.MetricsFile(directory)
    outcomes, kernels = {}, {}
    for optimizer in METHODS:
        (initial, *states), outcomes[optimizer] = run(
            options, optimizer, dataset, metrics
        )
        kernels |= {"initial": first_kernel(initial.params)}
        kernels |= {optimizer: first_kernel(states[-1].params)}
        for seed in range(options.seeds):
            config = dataclasses.replace(options.config(optimizer), seed=seed)
            save_run(directory / f"{optimizer}-{seed}", config, states)
    np.savez(directory / "weights.npz", **kernels)
    logger.write_json(
        directory / "summary.json",
        {name: outcome.to_dict() for name, outcome in outcomes.items()}
        | {"environment": logger.environment()},
    )
    figures.draw_comparison(directory)
    for table in tables(outcomes):
        console.print(table)
    console.print(headline(read_results([directory])), highlight=False)
    places = (
        directory,
        card.main(card.Options((directory,), output=directory / "card")),
    )
    path = report.write_report(places, directory / "report.html")
    console.print(f"Figures and numbers are in {directory}", highlight=False)
    console.print(f"To look at them, open {path}", highlight=False)
    return directory


if __name__ == "__main__":
    logger.run_command(main, Options, __doc__)
