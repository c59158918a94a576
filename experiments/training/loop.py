"""The loop over epochs, and how an epoch goes over data in memory or in a stream."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.training import data
from experiments.training.config import Config, Method
from experiments.training.data import Batch, Dataset
from experiments.training.devices import (
    any_process,
    loops_are_slow,
    replicated,
    split_batch,
)
from experiments.training.directory import progress_bar
from experiments.training.errors import UserError
from experiments.training.trainer import Metrics, Trainer, TrainState, make_trainer

STEPS_BETWEEN_QUESTIONS = 100  # whether to stop, where the host hands over batches
Row = dict[str, np.ndarray]  # what Trainer.report tells of an epoch, by name


class Epoch(NamedTuple):
    """What an epoch ended with. Of runs that train together, arrays have their axis."""

    number: int  # from 1
    state: TrainState  # valid until the next epoch begins, which takes it over
    steps: Metrics  # of each step, shape (steps,)
    row: Row | None  # None where the epoch ended early
    seconds: float  # of training, without evaluation


class Passes(Protocol):
    """How to go over data once: to train on them, and to evaluate."""

    trainer: Trainer

    def train(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """Trains to the end of the epoch; returns the metrics of each step.

        Where the host hands over batches, the epoch ends early once stopping() is true.
        The state is donated.
        """
        ...

    def evaluate(self, state: TrainState, split: str) -> Metrics:
        """Means over the images of a split, "train" or "test", in evaluation mode."""
        ...

    def report(self, state: TrainState, steps: Metrics) -> dict[str, jax.Array]:
        """Evaluates on the test images; returns what Trainer.report tells."""
        ...

    def close(self) -> None:
        """Ends the processes that read data."""
        ...


def run_epochs(
    passes: Passes,
    state: TrainState,
    numbers: range,
    name: str,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Epoch]:
    """Trains epoch by epoch, and yields what each ended with.

    Args:
      passes: how to go over the data.
      state: of the run or runs, at the start of the first of these epochs, or within.
      numbers: of the epochs, from 1.
      name: for the progress bar.
      stopping: whether to end an epoch early; see Passes.train.
    """
    shown = jax.process_index() == 0
    last, done = numbers.stop - 1, numbers.start - 1
    with progress_bar(last, name, done, shown=shown) as bar:
        for number in numbers:
            start = time.perf_counter()
            state, steps = passes.train(state, stopping)
            steps = jax.device_get(steps)
            seconds, row = time.perf_counter() - start, None
            if np.max(state.step) == number * passes.trainer.steps_per_epoch:
                row = jax.device_get(passes.report(state, steps))
                bar.set_postfix(
                    test=f"{np.mean(row['test_accuracy']):.2%}",
                    zero=f"{np.mean(row['sparsity']):.2%}",
                    refresh=False,
                )
                bar.update()
            yield Epoch(number, state, steps, row, seconds)


def open_passes(
    config: Config, mesh: Mesh, data_dir: Path | None = None, workers: int = 0
) -> Passes:
    """Opens the data of a configuration, and builds its trainer.

    Args:
      config: the experiment.
      mesh: of devices.data_mesh.
      data_dir: as for data.load.
      workers: processes that decode a stream's images; 0 means a thread.

    Raises:
      FileNotFoundError: if the data are not there.
      UserError: if they are unknown or damaged, or not what the network trains on.
    """
    if config.dataset == "imagenet2012":
        from experiments.training.streaming import ImageNet  # needs Grain and TFDS

        images = ImageNet(config, mesh, data_dir, workers)
    else:
        images = data.load(config.dataset, data_dir)
    trainer = make_trainer(config, images.num_classes, images.num_examples, mesh)
    try:
        trainer.check_images(images.image_shape)
    except ValueError as error:
        raise UserError(
            f"{config.model} cannot train on the {images.num_examples} images of "
            f"{config.dataset}, of shape {images.image_shape}, with batch_size "
            f"{config.batch_size} in {config.accumulation} parts: {error}"
        ) from error
    if isinstance(images, Dataset):
        return passes_in_memory(trainer, images)
    return FromHost(trainer, images.batches, images.evaluation)


def passes_in_memory(trainer: Trainer, dataset: Dataset) -> Passes:
    """Passes over data in memory, in the quickest way for the network."""
    if loops_are_slow(jax.eval_shape(trainer.init, 0).params):
        batches = functools.partial(shuffled, trainer, dataset)
        return FromHost(trainer, batches, dataset.evaluation)
    return OnDevice(trainer, dataset)


class OnDevice:
    """Passes of one run over data that lie on the devices, each one dispatch."""

    def __init__(self, trainer: Trainer, dataset: Dataset):
        self.trainer = trainer
        sharding = None if trainer.mesh is None else replicated(trainer.mesh)
        self.splits = jax.device_put(_splits(dataset), sharding)
        jit = functools.partial(jax.jit, out_shardings=sharding)
        self._train = jit(trainer.train_epoch, donate_argnums=0)
        self._evaluate = jit(trainer.evaluate)
        self._report = jit(functools.partial(_test_and_report, trainer))

    def train(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """See Passes. An epoch is not interrupted: it is one call on the device."""
        del stopping
        return self._train(state, *self.splits["train"])

    def report(self, state: TrainState, steps: Metrics) -> dict[str, jax.Array]:
        """See Passes."""
        return self._report(state, steps, *self.splits["test"])

    def evaluate(self, state: TrainState, split: str) -> Metrics:
        """See Passes."""
        return self._evaluate(state.params, state.batch_stats, *self.splits[split])

    def close(self) -> None:
        """See Passes. There are none."""


class Together:
    """Passes of several runs at once, over data on the device; states have their axis.

    (On a CPU, convolutions train slowly in this form: see devices.loops_are_slow.)
    """

    def __init__(
        self,
        make: Callable[..., Trainer],
        settings: dict[str, np.ndarray],
        seeds: np.ndarray,
        dataset: Dataset,
    ):
        """Compiles, so that the first epoch takes no longer than the others.

        Args:
          make: makes a trainer of traced settings.
          settings: those of each run by name, each of shape (runs,).
          seeds: those of each run, shape (runs,).
          dataset: what all train on.
        """
        self.trainer = make()
        self.splits = jax.device_put(_splits(dataset))
        self._init, self._seeds = jax.jit(jax.vmap(self.trainer.init)), seeds

        def epoch(state, setting, images, labels):
            return make(**setting).train_epoch(state, images, labels)

        over_runs = jax.jit(jax.vmap(epoch, (0, 0, None, None)), donate_argnums=0)
        data = self.splits["train"]
        program = over_runs.lower(self.initial(), settings, *data).compile()
        self._train = lambda state: program(state, settings, *data)
        each = (0, 0, None, None)
        self._evaluate = jax.jit(jax.vmap(self.trainer.evaluate, each))
        report = functools.partial(_test_and_report, self.trainer)
        self._report = jax.jit(jax.vmap(report, each))

    def initial(self) -> TrainState:
        """The states before the first step."""
        return self._init(self._seeds)

    def train(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """See Passes. An epoch is not interrupted: it is one call on the device."""
        del stopping
        return self._train(state)

    def report(self, state: TrainState, steps: Metrics) -> dict[str, jax.Array]:
        """See Passes."""
        return self._report(state, steps, *self.splits["test"])

    def evaluate(self, state: TrainState, split: str) -> Metrics:
        """See Passes."""
        return self._evaluate(state.params, state.batch_stats, *self.splits[split])

    def close(self) -> None:
        """See Passes. There are none."""


class FromHost:
    """Passes of one run in a dispatch a batch, which the host hands over."""

    def __init__(
        self,
        trainer: Trainer,
        batches: Callable[[TrainState], Iterator[Batch]],
        evaluation: Callable[[str], Iterator[Batch]],
    ):
        """Takes where batches come from.

        Args:
          trainer: what trains on them.
          batches: those from a state's step on, without end.
          evaluation: those of one pass over a split, with weights.
        """
        self.trainer = trainer
        self._batches, self._evaluation = batches, evaluation
        self._open = None  # at the first step, and read on in the next epoch
        sharding = None if trainer.mesh is None else replicated(trainer.mesh)
        jit = functools.partial(jax.jit, out_shardings=sharding)
        self._step = jit(trainer.train_step, donate_argnums=0)
        self._sums = jit(self._weighted_sums)
        self._report = jit(trainer.report)

    def train(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """See Passes. All processes ask together whether to stop, now and then."""
        if self._open is None:
            self._open = self._batches(state)
        metrics, steps_per_epoch = [], self.trainer.steps_per_epoch
        for number in range(steps_per_epoch - int(state.step) % steps_per_epoch):
            asks = number > 0 and number % STEPS_BETWEEN_QUESTIONS == 0
            if asks and any_process(stopping()):
                break
            batch = self._put(next(self._open))
            state, step = self._step(state, batch["image"], batch["label"])
            if jax.default_backend() == "cpu":
                # Steps that several CPU devices take together could overtake each
                # other, and block all threads.
                jax.block_until_ready(step)
            metrics.append(step)
        return state, jax.tree.map(lambda *steps: np.stack(steps), *metrics)

    def report(self, state: TrainState, steps: Metrics) -> dict[str, jax.Array]:
        """See Passes."""
        return self._report(state, steps, self.evaluate(state, "test"))

    def evaluate(self, state: TrainState, split: str) -> Metrics:
        """See Passes."""
        batches = self._evaluation(split)
        sums = [
            self._sums(state.params, state.batch_stats, self._put(batch))
            for batch in batches
        ]
        batches.close()
        loss, accuracy, images = np.sum(jax.device_get(sums), axis=0)
        return Metrics(loss / images, accuracy / images)

    def close(self) -> None:
        """See Passes."""
        if self._open is not None:
            self._open.close()

    def _put(self, batch: Batch) -> Batch:
        """The batch over the devices; that of a stream is there already."""
        if isinstance(batch["image"], jax.Array):
            return batch
        return split_batch(batch, self.trainer.mesh)

    def _weighted_sums(self, params, batch_stats, batch) -> tuple[jax.Array, ...]:
        metrics = self.trainer.metrics(
            params, batch_stats, batch["image"], batch["label"]
        )
        weight = batch["weight"]
        return *(jnp.sum(m * weight) for m in metrics), jnp.sum(weight)


def shuffled(trainer: Trainer, dataset: Dataset, state: TrainState) -> Iterator[Batch]:
    """Batches from a state's step on, without end, as train_epoch would take them."""
    order, key = jax.jit(trainer.order), jax.random.clone(state.key)
    first, done = divmod(int(state.step), trainer.steps_per_epoch)
    for epoch in itertools.count(first):
        images = np.asarray(order(key, epoch))
        if epoch == first:
            images = images[done * trainer.batch_size :]
        yield from dataset.batches(images, trainer.batch_size)


class Trained(NamedTuple):
    """Runs that trained together, all with an axis of runs."""

    state: TrainState  # the last
    row: Row  # what Trainer.report told at the end
    seconds: float  # of training, over all runs, without compilation and evaluation
    passes: Together


def train_together(
    config: Config,
    dataset: Dataset,
    methods: Sequence[Method],
    seeds: Sequence[int],
    name: str = "training",
    after: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Trains one network with several methods and seeds, all at once in one program.

    Args:
      config: of all runs, but for method and seed.
      dataset: what they train on.
      methods: of one kind, differing in numbers alone, such as Grda's c and mu.
      seeds: each method trains with each of them.
      name: for the progress bar.
      after: called with every epoch; its arrays have an axis of runs.

    Returns:
      Arrays with a leading axis of runs: all seeds of the first method, all of the
      second, and so on.
    """
    config = dataclasses.replace(config, method=methods[0])
    values = {name: [vars(m)[name] for m in methods] for name in vars(methods[0])}
    settings = {
        name: np.repeat(np.float32(numbers), len(seeds))
        for name, numbers in values.items()
        if len(set(numbers)) > 1
    }
    make = functools.partial(
        make_trainer, config, dataset.num_classes, dataset.num_examples
    )
    passes = Together(make, settings, np.tile(seeds, len(methods)), dataset)
    seconds = 0.0
    epochs = range(1, config.epochs + 1)
    for epoch in run_epochs(passes, passes.initial(), epochs, name):
        seconds += epoch.seconds
        after(epoch)
    return Trained(epoch.state, epoch.row, seconds, passes)


def _test_and_report(
    trainer: Trainer,
    state: TrainState,
    steps: Metrics,
    images: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    tested = trainer.evaluate(state.params, state.batch_stats, images, labels)
    return trainer.report(state, steps, tested)


def _splits(dataset: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "train": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }
