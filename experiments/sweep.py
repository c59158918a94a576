"""A grid of c, mu and seeds, trained at once in one compiled program.

    python -m experiments.sweep digits-mlp --c 0.02 0.05 --mu 0.5 0.6 --seeds 3

For networks of which many fit on the device side by side. (On a CPU, convolutions train
slowly in this form: a loop of one program over the epoch.) Writes config.json,
summary.json and the picture of sparsity against accuracy to a run directory, prints a
table, and says how its speed compares with one run after the other.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from experiments import data, figures, logger
from experiments.optimizer import make_optimizer
from experiments.presets import PRESETS
from experiments.training import Trainer
from optax_grda import sparsity


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a preset with every combination of c, mu and seed."""

    preset: Annotated[str, tyro.conf.Positional] = "digits-mlp"
    """A preset with optimizer gRDA whose data fit in memory."""
    c: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    """Strengths of the threshold."""
    mu: tuple[float, ...] = (0.5, 0.6, 0.7)
    """Growths of the threshold."""
    seeds: int = 3
    """Runs of each, with seeds 0, 1, ..."""
    epochs: int | None = None
    """Epochs of each run; by default the preset's."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Run directory; by default a new one under runs/. Nothing is overwritten."""

    def __post_init__(self):
        if self.preset not in PRESETS or PRESETS[self.preset].optimizer != "grda":
            known = [name for name in PRESETS if PRESETS[name].optimizer == "grda"]
            raise ValueError(
                f"preset must be one of {', '.join(known)}: got {self.preset!r}"
            )
        if self.seeds < 1 or not self.c or not self.mu:
            raise ValueError(
                "seeds must be >= 1, and c and mu must hold a value each: got "
                f"{self.seeds}, {self.c} and {self.mu}"
            )
        for c in self.c:
            for mu in self.mu:  # raises where grda would
                make_optimizer(dataclasses.replace(self.config, c=c, mu=mu), 1)

    @property
    def config(self):
        """The configuration that all runs share, but for c, mu and seed."""
        config = PRESETS[self.preset]
        return dataclasses.replace(config, epochs=self.epochs or config.epochs)


@dataclasses.dataclass(frozen=True, eq=False)
class GridTrainer(Trainer):
    """A trainer whose c and mu are traced arrays."""

    c: jax.Array | None = None
    mu: jax.Array | None = None

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """gRDA with this c and mu."""
        return make_optimizer(self.config, self.steps_per_epoch, self.c, self.mu)


def grid(options: Options) -> np.ndarray:
    """All combinations, shape (runs, 3): c, mu and seed."""
    axes = np.meshgrid(options.c, options.mu, np.arange(options.seeds), indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


def train_runs(options: Options, dataset: data.Dataset, runs: np.ndarray) -> dict:
    """Trains some runs at once.

    Returns:
      Arrays of shape (runs,): test_accuracy, test_loss and sparsity at the end; and
      seconds, a number: of training alone, without compilation.
    """

    def trainer(c, mu):
        return GridTrainer(
            options.config, dataset.num_classes, len(dataset.train_labels), c=c, mu=mu
        )

    def init(c, mu, seed):
        return trainer(c, mu).init(seed)

    def epoch(state, c, mu, images, labels):
        return trainer(c, mu).train_epoch(state, images, labels)[0]

    def evaluate(state, images, labels):
        tested = trainer(None, None).evaluate(
            state.params, state.batch_stats, images, labels
        )
        return {
            "test_accuracy": tested.accuracy,
            "test_loss": tested.loss,
            "sparsity": sparsity(state.params),
        }

    c, mu = jnp.asarray(runs[:, 0], jnp.float32), jnp.asarray(runs[:, 1], jnp.float32)
    train = jax.device_put((dataset.train_images, dataset.train_labels))
    state = jax.jit(jax.vmap(init))(c, mu, jnp.asarray(runs[:, 2], jnp.int32))
    over_runs = jax.vmap(epoch, in_axes=(0, 0, 0, None, None))
    step = jax.jit(over_runs, donate_argnums=0).lower(state, c, mu, *train).compile()
    start = time.perf_counter()
    with logger.progress_bar(options.config.epochs, f"{len(runs)} runs") as bar:
        for _ in range(options.config.epochs):
            state = jax.block_until_ready(step(state, c, mu, *train))
            bar.update()
    seconds = time.perf_counter() - start
    test = (dataset.test_images, dataset.test_labels)
    results = jax.jit(jax.vmap(evaluate, in_axes=(0, None, None)))(state, *test)
    return jax.device_get(results) | {"seconds": seconds}


def main(options: Options) -> Path:
    """Runs the sweep and returns the run directory."""
    dataset = data.load(options.config.dataset, options.data_dir)
    directory = logger.new_directory(options.output, f"sweep-{options.preset}")
    logger.write_json(
        directory / "config.json",
        dataclasses.asdict(options.config)
        | {"c": list(options.c), "mu": list(options.mu), "seed": options.seeds},
    )
    runs = grid(options)
    results = train_runs(options, dataset, runs)
    alone = train_runs(options, dataset, runs[:1])
    speedup = len(runs) * alone["seconds"] / results["seconds"]
    rows = summarize(options, results)
    logger.write_json(
        directory / "summary.json",
        {
            "rows": rows,
            "seconds": results["seconds"],
            "seconds_of_one_run_alone": alone["seconds"],
            "speedup": speedup,
            "environment": logger.environment(),
        },
    )
    figures.draw_sweep(directory)
    table = Table(title=f"{options.preset}, mean of {options.seeds} seeds")
    for header in ("c", "mu", "sparsity", "test accuracy", "± std"):
        table.add_column(header, justify="right")
    for row in sorted(rows, key=lambda row: row["sparsity"]):
        accuracy, std = (100 * row[f"test_accuracy{x}"] for x in ("", "_std"))
        table.add_row(
            *(f"{row['c']:g}", f"{row['mu']:g}", f"{row['sparsity']:.2%}"),
            *(f"{accuracy:.2f} %", f"{std:.2f}"),
        )
    console = Console()
    console.print(table)
    console.print(
        f"{len(runs)} runs at once took {results['seconds']:.1f} s, one alone "
        f"{alone['seconds']:.1f} s: {speedup:.1f} times the speed of one by one. "
        f"Figures and numbers are in {directory}",
        highlight=False,
    )
    return directory


def summarize(options: Options, results: dict) -> list[dict]:
    """A row for each c and mu: means over the seeds, and a deviation of accuracy."""
    shape = (len(options.c), len(options.mu), options.seeds)
    accuracy, loss, zeros = (
        results[name].reshape(shape)
        for name in ("test_accuracy", "test_loss", "sparsity")
    )
    return [
        {
            "c": c,
            "mu": mu,
            "sparsity": float(zeros[i, j].mean()),
            "test_accuracy": float(accuracy[i, j].mean()),
            "test_accuracy_std": float(accuracy[i, j].std()),
            "test_loss": float(loss[i, j].mean()),
        }
        for i, c in enumerate(options.c)
        for j, mu in enumerate(options.mu)
    ]


if __name__ == "__main__":
    logger.run_command(main, Options, __doc__)
