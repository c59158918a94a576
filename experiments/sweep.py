"""A grid of settings and seeds, trained at once in one compiled program.

    python -m experiments.sweep digits-mlp --c 0.02 0.05 --mu 0.5 0.6 --seeds 3
    python -m experiments.sweep digits-mlp --sparsity 0.8 0.9 0.95 --seeds 5

The first trains gRDA with every c and mu. The second asks for every fraction of zeros
(method:target), and says how close the runs came. For networks of which many fit on the
device side by side. (On a CPU, convolutions train slowly in this form, a loop of one
program over the epoch: there, use experiments.train.) Writes summary.json and the
picture of sparsity against accuracy to a directory, and prints a table.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import analyses
from experiments.command_line import did_you_mean, run_command
from experiments.training import config as configs
from experiments.training.config import Config, Grda, Method, Schedule, Target
from experiments.training.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a preset with every setting and every seed."""

    preset: Annotated[str, tyro.conf.Positional] = "digits-mlp"
    """A preset of gRDA, or of a sparsity, whose data fit in memory."""
    c: tuple[float, ...] = (0.02, 0.05, 0.1)
    """Strengths of the threshold."""
    mu: tuple[float, ...] = (0.6,)
    """Growths of the threshold."""
    sparsity: tuple[float, ...] = ()
    """Fractions of zeros to ask for, in place of c and mu."""
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
        known = [name for name in PRESETS if PRESETS[name].method.is_sparse]
        if self.preset not in known:
            raise ValueError(
                f"preset must be one of gRDA, got {self.preset!r}."
                f"{did_you_mean(self.preset, known)}"
            )
        if isinstance(PRESETS[self.preset].method, Target) and not self.sparsity:
            raise ValueError(f"sparsity must be given with {self.preset}, got none")
        if self.seeds < 1 or not self.methods:
            raise ValueError(
                "seeds must be >= 1, and c and mu must hold a value each: got "
                f"{self.seeds}, {self.c} and {self.mu}"
            )
        _ = self.config  # raises where a run would

    @property
    def methods(self) -> list[Method]:
        """A method a setting."""
        method = PRESETS[self.preset].method
        if isinstance(method, Target):
            return [dataclasses.replace(method, sparsity=s) for s in self.sparsity]
        if self.sparsity:
            return [
                Target(sparsity, groups=method.groups) for sparsity in self.sparsity
            ]
        grid = itertools.product(self.c, self.mu)
        return [Grda(c, mu, groups=method.groups) for c, mu in grid]

    @property
    def config(self) -> Config:
        """The configuration of the first run; the others differ in setting and seed."""
        config = PRESETS[self.preset]
        return dataclasses.replace(
            config,
            method=self.methods[0],
            epochs=config.epochs if self.epochs is None else self.epochs,
            schedule=self.schedule or config.schedule,
        )


def main(options: Options) -> Path:
    """Runs the sweep and returns the run directory."""
    import numpy as np

    from experiments.training import data
    from experiments.training.directory import environment, new_directory, write_json
    from experiments.training.loop import train_together

    config, methods, seeds = options.config, options.methods, range(options.seeds)
    dataset = data.load(config.dataset, options.data_dir)
    directory = new_directory(options.output, f"sweep-{options.preset}")
    runs = len(methods) * options.seeds
    trained = train_together(config, dataset, methods, seeds, f"{runs} runs")
    rows = summarize(
        methods,
        {
            name: np.reshape(values, (len(methods), options.seeds))
            for name, values in trained.row.items()
        },
    )
    summary = {
        "config": configs.to_dict(config),
        "seeds": options.seeds,
        "rows": rows,
        "seconds": trained.seconds,
        "environment": environment(),
    }
    write_json(directory / "summary.json", summary)
    shown = summary | {"runs": runs, "seeds": options.seeds}
    analyses.show("sweep", shown, directory)
    return directory


def summarize(methods: list[Method], found: dict[str, Any]) -> list[dict[str, float]]:
    """A row a method: means over the seeds, and deviations.

    Args:
      methods: of the sweep.
      found: test accuracy, test loss and sparsity, each of shape (methods, seeds).
    """
    rows = []
    for number, method in enumerate(methods):
        seeds = {
            name: found[name][number]
            for name in ("test_accuracy", "test_loss", "sparsity")
        }
        row = {name: float(values.mean()) for name, values in seeds.items()}
        row["test_accuracy_std"] = float(seeds["test_accuracy"].std())
        if isinstance(method, Target):
            asked = method.sparsity
            if method.thresholds == "all":  # else the zeros of others count as well
                row["worst_deviation"] = float(abs(seeds["sparsity"] - asked).max())
            rows.append({"asked": asked} | row)
        else:
            rows.append({"c": method.c, "mu": method.mu} | row)
    return rows


if __name__ == "__main__":
    run_command(main, Options, __doc__)
