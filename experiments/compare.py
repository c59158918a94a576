"""Dense and sparse training from the same initial weights, over several seeds at once.

    python -m experiments.compare [--c 0.05] [--mu 0.6] [--output DIRECTORY]

Trains the digits MLP (64-128-64-10, ReLU) on scikit-learn's handwritten digits (1,437
training and 360 test images of 8x8 pixels, split as in experiments.training.data): by
SGD and by gRDA as in the paper, at a constant learning rate; and by momentum SGD and by
the recipe of the guide, which asks for a sparsity, at a rate that falls. Prints what
came of it and what the zeros are good for. Writes a run directory for every
network, as experiments.train does, into one that also holds weights.npz, figures/,
card/ and report.html. This is `make demo`.
"""

import dataclasses
from pathlib import Path

from experiments import analyses
from experiments.analyses.options import Card
from experiments.command_line import run_command
from experiments.training.config import Config, Grda, Target, dense_twin


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains the digits network densely and sparsely, and compares what came of it."""

    c: float = 0.05
    """Strength of gRDA's threshold: more means more zeros. 0 is SGD."""
    mu: float = 0.6
    """Growth of gRDA's threshold with the steps, in (0, 1]."""
    learning_rate: float = 0.1
    """Learning rate of all."""
    sparsity: float | None = 0.9
    """Fraction of weights that the recipe makes zero; None leaves the recipe out."""
    epochs: int = 60
    """Passes over the training images."""
    seeds: int = 5
    """Runs of each method, with seeds 0, 1, ..., trained at once."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; the last epoch is always saved."""
    output: Path | None = None
    """Run directory; by default a new one under runs/. Nothing is overwritten."""

    def __post_init__(self):
        for name in ("seeds", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        _ = self.configs  # raises where a run would

    @property
    def configs(self) -> list[Config]:
        """The configurations that are compared, of seed 0."""
        paper = Config(
            method=Grda(self.c, self.mu),
            learning_rate=self.learning_rate,
            epochs=self.epochs,
        )
        if self.sparsity is None:
            return [dense_twin(paper), paper]
        recipe = dataclasses.replace(
            paper,
            method=Target(
                self.sparsity,
                clip_norm=1.0,
                momentum=0.9,
                proximal="power3",
                weight_decay=5e-4,
            ),
            schedule="cosine",
        )
        return [dense_twin(paper), paper, dense_twin(recipe), recipe]


def main(options: Options) -> Path:
    """Runs the comparison and returns the run directory."""
    import jax
    import numpy as np
    from rich.console import Console

    from experiments import report
    from experiments.training import data
    from experiments.training.directory import new_directory
    from experiments.training.session import train_seeds

    def first_kernel(params) -> np.ndarray:
        """The kernel of the first seed that reads the pixels, (64, units)."""
        leaves = (np.asarray(leaf)[0] for leaf in jax.tree.leaves(params))
        return next(leaf for leaf in leaves if leaf.ndim == 2 and len(leaf) == 64)

    dataset = data.load("digits")
    directory = new_directory(options.output, "compare")
    console = Console()
    console.print(
        f"training {options.seeds} networks at once with each method, "
        f"{options.epochs} epochs; writing to {directory}"
    )
    kernels = {}
    for config in options.configs:
        output, seeds = directory / config.method.name, range(options.seeds)
        trained = train_seeds(config, dataset, seeds, output, options.checkpoint_every)
        kernels["initial"] = first_kernel(trained.initial)
        kernels[config.method.name] = first_kernel(trained.state.params)
    np.savez(directory / "weights.npz", **kernels)
    analyses.show("runs", analyses.read("runs", [directory]), directory)
    *_, dense, sparse = (f"{c.method.name}-0" for c in options.configs)
    card = Card(directory / sparse, directory / dense, output=directory / "card")
    places = directory, analyses.run(card)
    path = report.write_report(places, directory / "report.html")
    console.print(f"To look at them, open {path}", highlight=False)
    return directory


if __name__ == "__main__":
    run_command(main, Options, __doc__)
