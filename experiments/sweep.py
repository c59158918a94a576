"""A grid of settings and seeds, trained at once in one compiled program.

    python -m experiments.sweep digits-mlp --c 0.02 0.05 --mu 0.5 0.6 --seeds 3
    python -m experiments.sweep digits-mlp --sparsity 0.8 0.9 0.95 --seeds 5

The first trains gRDA with every c and mu. The second asks target-sparsity for every
fraction of zeros, and says how close the runs came. For networks of which many fit on
the device side by side. (On a CPU, convolutions train slowly in this form, a loop of
one program over the epoch: there, use experiments.train.) Writes config.json,
summary.json and the picture of sparsity against accuracy to a run directory, prints a
table, and says how its speed compares with one run after the other.
"""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from experiments.analyses import _training_plots as figures
from experiments.training import data, logger
from experiments.training.config import Config, Schedule
from experiments.training.optimizer import make_optimizer
from experiments.training.presets import PRESETS
from experiments.training.trainer import Trainer, TrainState
from optax_grda import sparsity

Setting = dict[str, float]  # fields of a configuration: c and mu, or sparsity


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a preset with every setting and every seed."""

    preset: Annotated[str, tyro.conf.Positional] = "digits-mlp"
    """A preset with optimizer gRDA whose data fit in memory."""
    c: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    """Strengths of the threshold."""
    mu: tuple[float, ...] = (0.5, 0.6, 0.7)
    """Growths of the threshold."""
    sparsity: tuple[float, ...] = ()
    """Fractions of zeros to ask for, by target-sparsity in place of c and mu."""
    seeds: int = 3
    """Runs of each, with seeds 0, 1, ..."""
    epochs: int | None = None
    """Epochs of each run; by default the preset's."""
    schedule: Schedule | None = None
    """Factor of the learning rate by epoch; by default the preset's."""
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
        for setting in self.settings:  # raises where a run would
            make_optimizer(dataclasses.replace(self.config, **setting), 1)

    @property
    def config(self) -> Config:
        """The configuration that all runs share, but for their setting and seed."""
        config = PRESETS[self.preset]
        return dataclasses.replace(
            config,
            optimizer="target-sparsity" if self.sparsity else "grda",
            epochs=config.epochs if self.epochs is None else self.epochs,
            schedule=self.schedule or config.schedule,
        )

    @property
    def varied(self) -> dict[str, tuple[float, ...]]:
        """The fields that a setting sets, and their values."""
        if self.sparsity:
            return {"sparsity": self.sparsity}
        return {"c": self.c, "mu": self.mu}

    @property
    def settings(self) -> list[Setting]:
        """All combinations of these values."""
        values = itertools.product(*self.varied.values())
        return [dict(zip(self.varied, setting, strict=True)) for setting in values]


@dataclasses.dataclass(frozen=True, eq=False)
class GridTrainer(Trainer):
    """A trainer with traced arrays in place of fields of the configuration."""

    setting: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer with this setting."""
        return make_optimizer(self.config, self.steps_per_epoch, **self.setting)


def train_runs(
    config: Config, dataset: data.Dataset, settings: list[Setting], seeds: int
) -> tuple[TrainState, float]:
    """Trains all seeds with all settings at once.

    Returns:
      The last state, with a leading axis of runs: all seeds of the first setting, all
      of the second, and so on; and the seconds of training, without compilation.
    """

    def trainer(setting):
        size = len(dataset.train_labels)
        return GridTrainer(config, dataset.num_classes, size, setting=setting)

    def init(setting, seed):
        return trainer(setting).init(seed)

    def epoch(state, setting, images, labels):
        return trainer(setting).train_epoch(state, images, labels)[0]

    setting = {
        name: np.repeat(np.float32([setting[name] for setting in settings]), seeds)
        for name in settings[0]
    }
    seed = np.tile(np.arange(seeds), len(settings))
    train = jax.device_put((dataset.train_images, dataset.train_labels))
    state = jax.jit(jax.vmap(init))(setting, seed)
    over_runs = jax.vmap(epoch, in_axes=(0, 0, None, None))
    step = jax.jit(over_runs, donate_argnums=0).lower(state, setting, *train).compile()
    start = time.perf_counter()
    with logger.progress_bar(config.epochs, f"{len(seed)} runs") as bar:
        for _ in range(config.epochs):
            state = jax.block_until_ready(step(state, setting, *train))
            bar.update()
    return state, time.perf_counter() - start


def evaluate_runs(
    config: Config, dataset: data.Dataset, state: TrainState
) -> dict[str, jax.Array]:
    """Test accuracy, test loss and sparsity, each of shape (runs,)."""
    trainer = Trainer(config, dataset.num_classes, len(dataset.train_labels))

    def evaluate(state, images, labels):
        tested = trainer.evaluate(state.params, state.batch_stats, images, labels)
        return {
            "test_accuracy": tested.accuracy,
            "test_loss": tested.loss,
            "sparsity": sparsity(state.params),
        }

    test = (dataset.test_images, dataset.test_labels)
    return jax.jit(jax.vmap(evaluate, in_axes=(0, None, None)))(state, *test)


def main(options: Options) -> Path:
    """Runs the sweep and returns the run directory."""
    config, settings, seeds = options.config, options.settings, options.seeds
    dataset = data.load(config.dataset, options.data_dir)
    directory = logger.new_directory(options.output, f"sweep-{options.preset}")
    logger.write_json(
        directory / "config.json",
        dataclasses.asdict(config) | options.varied | {"seed": seeds},
    )
    state, seconds = train_runs(config, dataset, settings, seeds)
    results = {
        name: np.reshape(values, (len(settings), seeds))
        for name, values in evaluate_runs(config, dataset, state).items()
    }
    rows = summarize(settings, results)
    summary = {"rows": rows, "seconds": seconds, "environment": logger.environment()}
    logger.write_json(directory / "summary.json", summary)
    _, alone = train_runs(config, dataset, settings[:1], seeds=1)
    runs = len(settings) * seeds
    summary |= {"seconds_of_one_run_alone": alone, "speedup": runs * alone / seconds}
    logger.write_json(directory / "summary.json", summary)
    figures.draw_sweep(directory)
    console = Console()
    console.print(make_table(rows, f"{options.preset}, mean of {seeds} seeds"))
    console.print(
        f"{runs} runs at once took {seconds:.1f} s, one alone {alone:.1f} s: "
        f"{runs * alone / seconds:.1f} times the speed of one by one. "
        f"Figures and numbers are in {directory}",
        highlight=False,
    )
    return directory


def summarize(settings: list[Setting], results: dict) -> list[dict]:
    """A row a setting: means over the seeds, and deviations."""
    rows = []
    for number, setting in enumerate(settings):
        seeds = {name: values[number] for name, values in results.items()}
        row = {name: float(values.mean()) for name, values in seeds.items()}
        row["test_accuracy_std"] = float(seeds["test_accuracy"].std())
        if "sparsity" in setting:
            asked = setting["sparsity"]
            row["worst_deviation"] = float(np.abs(seeds["sparsity"] - asked).max())
            setting = {"asked": asked}
        rows.append(setting | row)
    return rows


def make_table(rows: list[dict], title: str) -> Table:
    """The rows, by sparsity; what is a fraction in percent."""
    headers = {
        "c": "c",
        "mu": "mu",
        "asked": "asked, %",
        "sparsity": "zeros, %",
        "worst_deviation": "worst seed off, points",
        "test_accuracy": "test accuracy, %",
        "test_accuracy_std": "± std",
    }
    names = [name for name in headers if name in rows[0]]
    table = Table(title=title)
    for name in names:
        table.add_column(headers[name], justify="right")
    for row in sorted(rows, key=lambda row: row["sparsity"]):
        cells = {name: f"{100 * row[name]:.2f}" for name in names}
        cells |= {name: f"{row[name]:g}" for name in ("c", "mu") if name in row}
        table.add_row(*cells.values())
    return table


if __name__ == "__main__":
    logger.run_command(main, Options, __doc__)
