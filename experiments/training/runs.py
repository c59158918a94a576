"""Finished runs, read back from their directories: the one place that does."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training import config as configs
from experiments.training import data
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config, Sgd, are_twins
from experiments.training.directory import read_json, read_metrics
from experiments.training.errors import UserError
from experiments.training.presets import preset_of
from experiments.training.trainer import Trainer, TrainState, make_trainer

PyTree = Any


class Task(NamedTuple):
    """A network, and data that lie on the device."""

    trainer: Trainer
    train: tuple[jax.Array, jax.Array]  # inputs, labels
    test: tuple[jax.Array, jax.Array]
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Run:
    """A directory that experiments.train or experiments.compare wrote.

    Raises:
      FileNotFoundError: if there is no config.json.
      UserError: if it is damaged, or there is no checkpoint.
    """

    directory: Path
    data_dir: Path | None = None

    def __post_init__(self):
        if not self.epochs:
            raise UserError(f"{self.directory} must hold a checkpoint, and has none")

    @property
    def id(self) -> str:
        """What rows of results name the run by: its resolved path."""
        return str(self.directory.resolve())

    @functools.cached_property
    def config(self) -> Config:
        """The configuration."""
        return configs.load(self.directory / "config.json")

    @functools.cached_property
    def task(self) -> Task:
        """Network and data; the same object for runs of the same ones."""
        # The seed and the method do not change what is compiled for an analysis.
        config = self.config
        batch_size = config.batch_size // config.accumulation
        return _load_task(config.model, config.dataset, batch_size, self.data_dir)

    @functools.cached_property
    def epochs(self) -> dict[int, int]:
        """The epochs after which there is a checkpoint, and their steps."""
        steps_per_epoch = self._checkpoints.trainer.steps_per_epoch
        return {
            step // steps_per_epoch: step
            for step in self._checkpoints.steps
            if step % steps_per_epoch == 0
        }

    def state(self, epoch: int | None = None) -> TrainState:
        """The training state after an epoch, by default the last that was saved.

        Raises:
          UserError: if the checkpoint is damaged.
        """
        epoch = max(self.epochs) if epoch is None else epoch
        shapes = jax.eval_shape(self._checkpoints.trainer.init, 0)._replace(key=None)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        like = zeros._replace(key=jax.random.key(0))
        return self._checkpoints.read(self.epochs[epoch], like)

    def describe(self) -> dict[str, Any]:
        """What tells this run of SGD from others, for a row of results."""
        return {
            "model": self.config.model,
            "dataset": Path(self.config.dataset).stem,
            "seed": self.config.seed,
            "sgd": self.id,
        }

    @functools.cached_property
    def _checkpoints(self) -> Checkpoints:
        classes, examples = self.task.num_classes, len(self.task.train[1])
        trainer = make_trainer(self.config, classes, examples)
        return Checkpoints(self.directory, self.config, trainer)


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
            "label": config.method.label,
            "preset": preset_of(config),
            "method": configs.to_dict(config)["method"],
            "grda": self.grda.id,
        }


def find_pairs(directories: Sequence[Path], data_dir: Path | None = None) -> list[Pair]:
    """Every run of gRDA, with the run of SGD that differs from it in the method alone.

    Runs whose threshold was steered to a sparsity count among those of gRDA.

    Args:
      directories: run directories, or directories that hold some, such as the one that
        `make demo` names.
      data_dir: where TFDS keeps its data sets; by default TFDS's own choice.

    Raises:
      UserError: if there is no run of gRDA, or none of SGD to compare one with; if
        runs are of several networks or data sets, or two have one configuration.
      FileNotFoundError: if a directory or the data are not there.
    """
    runs = [Run(path, data_dir) for path in _run_directories(directories)]
    pairs = []
    for grda in runs:
        if not grda.config.method.is_sparse:
            continue
        twins = [run for run in runs if are_twins(run.config, grda.config)]
        if not twins:
            raise UserError(
                f"directories must hold a run of SGD with the configuration of "
                f"{grda.directory}, seed {grda.config.seed} included: got "
                f"{[str(run.directory) for run in runs]}"
            )
        pair = Pair(twins[0], grda)
        if not pair.epochs:
            raise UserError(
                f"{pair.sgd.directory} and {grda.directory} must have a checkpoint of "
                f"the same epoch: got {list(pair.sgd.epochs)} and {list(grda.epochs)}"
            )
        pairs.append(pair)
    by_config: dict[Config, Pair] = {}
    for pair in pairs:
        twin = by_config.setdefault(pair.grda.config, pair)
        if twin is not pair:
            raise UserError(
                "directories must not hold two runs of one configuration: "
                f"{twin.grda.directory} and {pair.grda.directory}"
            )
    tasks = {(config.model, config.dataset) for config in by_config}
    if len(tasks) > 1:
        raise UserError(
            "directories must hold runs of one network on one data set, got "
            f"{sorted(tasks)}"
        )
    if not pairs:
        raise UserError(
            "directories must hold a run of gRDA, got "
            f"{[str(run.directory) for run in runs]}"
        )
    return pairs


def displacement(pair: Pair, sgd: PyTree, grda: PyTree) -> PyTree:
    """w_gRDA - w_SGD.

    Raises:
      UserError: if it is 0: with c = 0, gRDA is SGD.
    """
    delta, length = _subtract(grda, sgd)
    if not length:
        raise UserError(
            f"{pair.grda.directory} must have other weights than {pair.sgd.directory}, "
            f"to be compared with it: got the same, at {pair.grda.config.method.label}"
        )
    return delta


@jax.jit
def _subtract(minuend: PyTree, subtrahend: PyTree) -> tuple[PyTree, jax.Array]:
    delta = jax.tree.map(jnp.subtract, minuend, subtrahend)
    return delta, optax.tree.norm(delta)


def last_common_epoch(pairs: Sequence[Pair]) -> int:
    """The last epoch after which all runs of all pairs were saved.

    Raises:
      UserError: if there is none.
    """
    common = set.intersection(*(set(pair.epochs) for pair in pairs))
    if not common:
        raise UserError(
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
            raise UserError(f"{directory} holds no checkpoints, nor do its folders")
        yield from inner or [directory]


@functools.cache
def _load_task(
    model: str, dataset: str, batch_size: int, data_dir: Path | None
) -> Task:
    loaded = data.load(dataset, data_dir)
    # In float32, whatever the run computed in: eigenvectors ask for it.
    config = Config(model=model, dataset=dataset, method=Sgd(), batch_size=batch_size)
    return Task(
        make_trainer(config, loaded.num_classes, loaded.num_examples),
        jax.device_put((loaded.train_inputs, loaded.train_labels)),
        jax.device_put((loaded.test_inputs, loaded.test_labels)),
        loaded.num_classes,
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """Runs of one configuration that differ in the seed alone."""

    config: Config  # of the first seed
    seeds: list[int]
    test_accuracy: list[float]  # a fraction a seed
    test_loss: list[float]  # nats
    sparsity: list[float]  # a fraction
    train_loss: list[float]  # of the final weights in evaluation mode
    seconds: list[float]  # that training took
    sparsity_by_layer: list[dict[str, float]]  # a dict a seed, by path
    sizes: dict[str, int]  # entries of each array, by path
    metrics: list[dict[str, Any]]  # rows of metrics.jsonl, with the seed
    environment: dict[str, Any]
    label: str = ""  # the method and its settings

    @property
    def parameters(self) -> int:
        """Entries of all arrays."""
        return sum(self.sizes.values())

    def layers(self) -> dict[str, float]:
        """Mean sparsity of each array over the seeds, by path."""
        return {
            path: float(np.mean([layers[path] for layers in self.sparsity_by_layer]))
            for path in self.sparsity_by_layer[0]
        }


def read_results(directories: Sequence[Path]) -> list[Result]:
    """The results of runs of experiments.train and experiments.compare.

    Args:
      directories: of finished runs, or that hold such, as those of compare; others,
        such as those of analyses, are passed over.

    Returns:
      One result a configuration, by sparsity, with SGD before all gRDA. Of several runs
      with one configuration and seed, the first counts.

    Raises:
      UserError: if a file is damaged; the error names it.
    """
    runs: dict[Config, Path] = {}
    for directory in directories:
        for path in sorted([directory, *directory.glob("*/")]):
            files = (path / "config.json", path / "summary.json")
            if all(file.exists() for file in files):
                runs.setdefault(configs.load(files[0]), path)
    groups: dict[Config, dict[Config, Path]] = {}
    for config, path in runs.items():
        groups.setdefault(dataclasses.replace(config, seed=0), {})[config] = path
    results = _labelled([_read_result(seeds) for seeds in groups.values()])
    return sorted(
        results, key=lambda r: (r.config.method.is_sparse, np.mean(r.sparsity))
    )


def headline(results: Sequence[Result]) -> str:
    """What was found: a clause a sparse setting, in one sentence."""
    sparse = [r for r in results if r.config.method.is_sparse] or results[-1:]
    clauses = []
    for result in sparse:
        clause = (
            f"{result.label} made {np.mean(result.sparsity):.1%} of "
            f"{result.parameters:,} weights exactly zero while it trained, at "
            f"{np.mean(result.test_accuracy):.1%} test accuracy"
        )
        config = dataclasses.replace(result.config, seed=0)
        for twin in results:
            if are_twins(dataclasses.replace(twin.config, seed=0), config):
                gain = np.mean(result.test_accuracy) - np.mean(twin.test_accuracy)
                points = f"{100 * abs(gain):.1f} points"
                side = f"{points} above" if gain > 0 else f"{points} below"
                side = "as accurate as" if points == "0.0 points" else side
                clause += f", {side} {twin.label}"
        clauses.append(clause)
    return "; ".join(clauses) + "."


def _read_result(runs: dict[Config, Path]) -> Result:
    """The result of runs that differ in the seed alone."""
    summaries = [read_json(path / "summary.json") for path in runs.values()]
    try:
        leaves = [summary["sparsity_report"]["leaves"] for summary in summaries]
        return Result(
            config=next(iter(runs)),
            seeds=[config.seed for config in runs],
            **{
                name: [summary[name] for summary in summaries]
                for name in (
                    *("test_accuracy", "test_loss", "sparsity"),
                    *("train_loss", "seconds"),
                )
            },
            sparsity_by_layer=[
                {leaf["path"]: 1 - leaf["nonzero"] / leaf["size"] for leaf in mine}
                for mine in leaves
            ],
            sizes={leaf["path"]: leaf["size"] for leaf in leaves[0]},
            metrics=[
                row | {"seed": config.seed}
                for config, path in runs.items()
                for row in read_metrics(path)
            ],
            environment=summaries[0]["environment"],
        )
    except KeyError as error:
        places = ", ".join(str(path / "summary.json") for path in runs.values())
        raise UserError(
            f"{places} must be of finished runs: there is no {error}"
        ) from None


def _labelled(results: list[Result]) -> list[Result]:
    """With labels that tell results apart: of those alike, also what differs."""
    labelled = []
    for result in results:
        about, mine = result.config.method.label, vars(result.config)
        alike = [vars(r.config) for r in results if r.config.method.label == about]
        for name in [n for n in mine if n not in ("method", "seed")]:
            if len({config[name] for config in alike}) > 1:
                about += f", {name} {mine[name]}"
        labelled.append(dataclasses.replace(result, label=about))
    return labelled
