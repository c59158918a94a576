"""Finished runs, read back from their directories to be analysed."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.training import config as configs
from experiments.training import data
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config, are_twins
from experiments.training.presets import preset_of
from experiments.training.trainer import Trainer, TrainState

PyTree = Any


class Task(NamedTuple):
    """A network, and data that lie on the device."""

    trainer: Trainer
    train: tuple[jax.Array, jax.Array]  # images, labels
    test: tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Run:
    """A directory that experiments.train or experiments.compare wrote.

    Raises:
      FileNotFoundError: if there is no config.json.
      ValueError: if it is damaged, or there is no checkpoint.
    """

    directory: Path
    data_dir: Path | None = None

    def __post_init__(self):
        if not self.epochs:
            raise ValueError(f"{self.directory} must hold a checkpoint, and has none")

    @functools.cached_property
    def config(self) -> Config:
        """The configuration."""
        return configs.load(self.directory / "config.json")

    @functools.cached_property
    def task(self) -> Task:
        """Network and data; the same object for runs of the same ones."""
        # The seed and the optimizer do not change what is compiled for an analysis.
        config = self.config
        batch_size = config.batch_size // config.accumulation
        return _load_task(config.model, config.dataset, batch_size, self.data_dir)

    @functools.cached_property
    def epochs(self) -> dict[int, int]:
        """The epochs after which there is a checkpoint, and their steps."""
        trainer = self._trainer
        return {
            step // trainer.steps_per_epoch: step
            for step in self._checkpoints.steps
            if step % trainer.steps_per_epoch == 0
        }

    def state(self, epoch: int | None = None) -> TrainState:
        """The training state after an epoch, by default the last that was saved."""
        epoch = max(self.epochs) if epoch is None else epoch
        shapes = jax.eval_shape(self._trainer.init, 0)._replace(key=None)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        template = zeros._replace(key=jax.random.key(0))
        return self._checkpoints.read(self.epochs[epoch], template)

    def describe(self) -> dict[str, Any]:
        """What tells this run of SGD from others, for a row of results."""
        return {
            "model": self.config.model,
            "dataset": Path(self.config.dataset).stem,
            "seed": self.config.seed,
            "sgd": str(self.directory),
        }

    @functools.cached_property
    def _trainer(self) -> Trainer:
        return dataclasses.replace(self.task.trainer, config=self.config)

    @functools.cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.directory, self.config, read_only=True)


class Pair(NamedTuple):
    """SGD and gRDA from the same initial weights, on the same batches."""

    sgd: Run
    grda: Run

    @property
    def epochs(self) -> list[int]:
        """The epochs after which both were saved."""
        return sorted(self.sgd.epochs.keys() & self.grda.epochs.keys())

    def states(self, epoch: int) -> tuple[TrainState, TrainState]:
        """Those of SGD and of gRDA after an epoch."""
        return self.sgd.state(epoch), self.grda.state(epoch)

    def describe(self) -> dict[str, Any]:
        """What tells this pair from others, for a row of results."""
        config = self.grda.config
        return self.sgd.describe() | {
            "label": config.label,
            "preset": preset_of(config),
            "c": config.c,
            "mu": config.mu,
            "grda": str(self.grda.directory),
        }


def find_pairs(directories: Sequence[Path], data_dir: Path | None = None) -> list[Pair]:
    """Every run of gRDA, with the run of SGD that differs from it in the method alone.

    Runs whose threshold was steered to a sparsity count among those of gRDA.

    Args:
      directories: run directories, or directories that hold some, such as the one that
        `make demo` names.
      data_dir: where TFDS keeps its data sets; by default TFDS's own choice.

    Raises:
      ValueError: if there is no run of gRDA, or none of SGD to compare one with; if
        runs are of several networks or data sets, or two have one configuration.
      FileNotFoundError: if a directory or the data are not there.
    """
    runs = [Run(path, data_dir) for path in _run_directories(directories)]
    pairs = []
    for grda in runs:
        if not grda.config.is_sparse:
            continue
        twins = [run for run in runs if are_twins(run.config, grda.config)]
        if not twins:
            raise ValueError(
                f"directories must hold a run of SGD with the configuration of "
                f"{grda.directory}, seed {grda.config.seed} included: got "
                f"{[str(run.directory) for run in runs]}"
            )
        pair = Pair(twins[0], grda)
        if not pair.epochs:
            raise ValueError(
                f"{pair.sgd.directory} and {grda.directory} must have a checkpoint of "
                f"the same epoch: got {list(pair.sgd.epochs)} and {list(grda.epochs)}"
            )
        pairs.append(pair)
    by_config: dict[Config, Pair] = {}
    for pair in pairs:
        twin = by_config.setdefault(pair.grda.config, pair)
        if twin is not pair:
            raise ValueError(
                "directories must not hold two runs of one configuration: "
                f"{twin.grda.directory} and {pair.grda.directory}"
            )
    tasks = {(config.model, config.dataset) for config in by_config}
    if len(tasks) > 1:
        raise ValueError(
            "directories must hold runs of one network on one data set, got "
            f"{sorted(tasks)}"
        )
    if not pairs:
        raise ValueError(
            "directories must hold a run of gRDA, got "
            f"{[str(run.directory) for run in runs]}"
        )
    return pairs


def displacement(pair: Pair, sgd: PyTree, grda: PyTree) -> PyTree:
    """w_gRDA - w_SGD.

    Raises:
      ValueError: if it is 0: with c = 0, gRDA is SGD.
    """
    delta = jax.tree.map(jnp.subtract, grda, sgd)
    if not optax.tree.norm(delta):
        raise ValueError(
            f"{pair.grda.directory} must have other weights than {pair.sgd.directory}, "
            f"to be compared with it: got the same, at {pair.grda.config.label}"
        )
    return delta


def last_common_epoch(pairs: Sequence[Pair]) -> int:
    """The last epoch after which all runs of all pairs were saved.

    Raises:
      ValueError: if there is none.
    """
    common = set.intersection(*(set(pair.epochs) for pair in pairs))
    if not common:
        raise ValueError(
            "runs must have a checkpoint of the same epoch, got "
            f"{[(str(pair.grda.directory), pair.epochs) for pair in pairs]}"
        )
    return max(common)


def by_sgd_epoch(pairs: Sequence[Pair]) -> list[tuple[Run, int, list[Pair]]]:
    """Every run of SGD after every epoch, and the pairs in which both were saved then.

    What is known of SGD's weights after an epoch serves all runs of gRDA beside it.
    """
    twins: dict[Run, list[Pair]] = {}
    for pair in pairs:
        twins.setdefault(pair.sgd, []).append(pair)
    return [
        (sgd, epoch, [pair for pair in mine if epoch in pair.epochs])
        for sgd, mine in twins.items()
        for epoch in sorted({epoch for pair in mine for epoch in pair.epochs})
    ]


def _run_directories(directories: Sequence[Path]) -> Iterator[Path]:
    for directory in {path.resolve(): path for path in directories}.values():
        if not directory.is_dir():
            raise FileNotFoundError(f"there is no run directory {directory}")
        inner = sorted(path.parent for path in directory.glob("*/checkpoints"))
        if not inner and not (directory / "checkpoints").is_dir():
            raise ValueError(f"{directory} holds no checkpoints, nor do its folders")
        yield from inner or [directory]


@functools.cache
def _load_task(
    model: str, dataset: str, batch_size: int, data_dir: Path | None
) -> Task:
    loaded = data.load(dataset, data_dir)
    # In float32, whatever the run computed in: eigenvectors ask for it.
    config = Config(model=model, dataset=dataset, batch_size=batch_size)
    trainer = Trainer(config, loaded.num_classes, len(loaded.train_labels))
    train = jax.device_put((loaded.train_images, loaded.train_labels))
    return Task(
        trainer, train, jax.device_put((loaded.test_images, loaded.test_labels))
    )
