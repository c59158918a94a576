"""The loop over epochs, and how an epoch goes over data in memory or in a stream."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from experiments.training.objective import Metrics
from experiments.training.trainer import Report, Trainer, TrainState, make_trainer
from optax_grda.diagnostics import Health, health

STEPS_BETWEEN_QUESTIONS = 100  # whether to stop, where the host hands over batches


class Epoch(NamedTuple):
    """What an epoch ended with. Of runs that train together, arrays have their axis."""

    number: int  # from 1
    state: TrainState  # valid until the next epoch begins, which takes it over
    steps: Metrics  # of each step, shape (steps,)
    row: dict[str, np.ndarray] | None  # as of Trainer.report; None if it ended early
    health: Health  # of the weights
    seconds: float  # of training, without the report and its evaluation


def run_epochs(
    passes: "OnDevice | FromHost",
    state: TrainState,
    numbers: range,
    name: str,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Epoch]:
    """Trains epoch by epoch, and yields what each ended with.

    On a device an epoch is two dispatches: its steps, and its report, with which all
    that the host wants to know comes to it at once. They are not one, since a program
    does not tell when its steps end: evaluation would count as training.

    Args:
      passes: how to go over the data.
      state: of the run or runs, at the start of the first of these epochs, or within.
      numbers: of the epochs, from 1.
      name: for the progress bar.
      stopping: whether to end an epoch early, where that can be.
    """
    shown = jax.process_index() == 0
    last, done = numbers.stop - 1, numbers.start - 1
    with progress_bar(last, name, done, shown=shown) as bar:
        for number in numbers:
            start = time.perf_counter()
            state, steps = passes.train(state, stopping)
            step = np.asarray(state.step).max()  # waits for the steps
            seconds = time.perf_counter() - start
            if step == number * passes.trainer.steps_per_epoch:
                report = passes.report(state, steps)
            else:
                report = None, jax.jit(health)(state.params)
            steps, (row, record) = jax.device_get((steps, report))
            if row is not None:
                bar.set_postfix(
                    test=f"{np.mean(row['test_accuracy']):.2%}",
                    zero=f"{np.mean(row['sparsity']):.2%}",
                    refresh=False,
                )
                bar.update()
            yield Epoch(number, state, steps, row, record, seconds)


def open_passes(
    config: Config,
    mesh: Mesh,
    data_dir: Path | None = None,
    workers: int = 0,
    *,
    sharded: bool = False,
) -> "OnDevice | FromHost":
    """Opens the data of a configuration, and builds its trainer.

    Args:
      config: the experiment.
      mesh: of devices.data_mesh.
      data_dir: as for data.load.
      workers: processes that decode a stream's images; 0 means a thread.
      sharded: as for make_trainer.

    Raises:
      FileNotFoundError: if the data are not there.
      UserError: if they are unknown or damaged, or not what the network trains on.
    """
    if config.dataset == "imagenet2012":
        from experiments.training.streaming import ImageNet  # needs Grain and TFDS

        inputs = ImageNet(config, mesh, data_dir, workers)
    else:
        inputs = data.load(config.dataset, data_dir)
    trainer = make_trainer(
        config, inputs.num_classes, inputs.num_examples, mesh, sharded=sharded
    )
    try:
        trainer.check_inputs(inputs.input_shape, inputs.label_shape)
    except ValueError as error:
        raise UserError(
            f"{config.model} cannot train on the {inputs.num_examples} inputs of "
            f"{config.dataset}, of shape {inputs.input_shape}, with batch_size "
            f"{config.batch_size} in {config.accumulation} parts: {error}"
        ) from error
    if isinstance(inputs, Dataset):
        return passes_in_memory(trainer, inputs)
    return FromHost(trainer, inputs.batches, inputs.evaluation)


def passes_in_memory(trainer: Trainer, dataset: Dataset) -> "OnDevice | FromHost":
    """Passes over data in memory, in the quickest way for the network."""
    if loops_are_slow(jax.eval_shape(trainer.init, 0).params):
        return _batch_by_batch(trainer, dataset)
    return OnDevice(trainer, dataset)


def _batch_by_batch(trainer: Trainer, dataset: Dataset) -> "FromHost":
    """Passes over data in memory whose batches the host hands over."""
    batches = functools.partial(shuffled, trainer, dataset)
    return FromHost(trainer, batches, dataset.evaluation)


class OnDevice:
    """Passes over data that lie on the devices, each one dispatch."""

    def __init__(
        self,
        trainer: Trainer,
        dataset: Dataset,
        make: Callable[..., Trainer] | None = None,
        settings: dict[str, np.ndarray] | None = None,
    ):
        """Places the data.

        Args:
          trainer: of the run.
          dataset: what it trains on.
          make: for several runs at once, whose states have an axis of runs: makes the
            trainer of traced settings. (On a CPU, convolutions train slowly in this
            form: see devices.loops_are_slow.)
          settings: of these runs, by name, each of shape (runs,).
        """
        self.trainer = trainer
        self._rest_of_epoch = _batch_by_batch(trainer, dataset)
        sharding = None if trainer.mesh is None else replicated(trainer.mesh)
        self.splits = jax.device_put(
            {
                "train": (dataset.train_inputs, dataset.train_labels),
                "test": (dataset.test_inputs, dataset.test_labels),
            },
            sharding,
        )

        def train(state, settings, inputs, labels):
            trained = trainer if make is None else make(**settings)
            return trained.train_epoch(state, inputs, labels)

        def evaluate(state, inputs, labels):
            return trainer.evaluate(state.params, state.batch_stats, inputs, labels)

        def report(state, steps, inputs, labels):
            return trainer.report(state, steps, evaluate(state, inputs, labels))

        def over_runs(function, axes):
            return function if make is None else jax.vmap(function, axes)

        jit = functools.partial(jax.jit, out_shardings=sharding)
        self._settings = settings
        self._train = jax.jit(
            over_runs(train, (0, 0, None, None)),
            donate_argnums=0,
            out_shardings=(trainer.state_sharding(), sharding),
        )
        self._evaluate = jit(over_runs(evaluate, (0, None, None)))
        self._report = jit(over_runs(report, (0, 0, None, None)))

    def compile(self, state: TrainState) -> None:
        """Compiles, so that the first epoch takes no longer than the others."""
        arguments = state, self._settings, *self.splits["train"]
        self._train = self._train.lower(*arguments).compile()

    def train(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """Trains an epoch; returns the metrics of each step. The state is donated.

        It is not interrupted, being one call on the device; but for the rest of one in
        which a run was stopped where batches come from the host.
        """
        if np.asarray(state.step).max() % self.trainer.steps_per_epoch:
            return self._rest_of_epoch.train(state, stopping)
        return self._train(state, self._settings, *self.splits["train"])

    def evaluate(self, state: TrainState, split: str) -> Metrics:
        """Means over the inputs of a split, "train" or "test", in evaluation mode."""
        return self._evaluate(state, *self.splits[split])

    def report(self, state: TrainState, steps: Metrics) -> Report:
        """Evaluates on the test inputs; returns what Trainer.report tells."""
        return self._report(state, steps, *self.splits["test"])

    def close(self) -> None:
        """Does nothing: no process reads data."""


class FromHost:
    """Passes in a dispatch a batch, which the host hands over."""

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
        self._step = jax.jit(
            trainer.train_step,
            donate_argnums=0,
            out_shardings=(trainer.state_sharding(), sharding),
        )
        self._sums = jit(self._weighted_sums)
        self._report = jit(trainer.report)

    def train(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """See OnDevice. All processes ask together whether to stop, now and then."""
        if self._open is None:
            self._open = self._batches(state)
        metrics, steps_per_epoch = [], self.trainer.steps_per_epoch
        for number in range(steps_per_epoch - int(state.step) % steps_per_epoch):
            asks = number > 0 and number % STEPS_BETWEEN_QUESTIONS == 0
            if asks and any_process(stopping()):
                break
            batch = split_batch(next(self._open), self.trainer.mesh)
            state, step = self._step(state, batch["input"], batch["label"])
            if jax.default_backend() == "cpu":
                # Steps that several CPU devices take together could overtake each
                # other, and block all threads.
                jax.block_until_ready(step)
            metrics.append(step)
        return state, jax.tree.map(lambda *steps: np.stack(steps), *metrics)

    def evaluate(self, state: TrainState, split: str) -> Metrics:
        """See OnDevice."""
        batches = self._evaluation(split)
        sums = [
            self._sums(state, split_batch(batch, self.trainer.mesh))
            for batch in batches
        ]
        batches.close()
        loss, accuracy, inputs = np.sum(jax.device_get(sums), axis=0)
        return Metrics(loss / inputs, accuracy / inputs)

    def report(self, state: TrainState, steps: Metrics) -> Report:
        """See OnDevice."""
        return self._report(state, steps, self.evaluate(state, "test"))

    def close(self) -> None:
        """Ends the processes that read data."""
        if self._open is not None:
            self._open.close()

    def _weighted_sums(self, state: TrainState, batch: Batch) -> tuple[jax.Array, ...]:
        metrics = self.trainer.metrics(
            state.params, state.batch_stats, batch["input"], batch["label"]
        )
        weight = batch["weight"]
        return *(jnp.sum(m * weight) for m in metrics), jnp.sum(weight)


def shuffled(trainer: Trainer, dataset: Dataset, state: TrainState) -> Iterator[Batch]:
    """Batches from a state's step on, without end, as train_epoch would take them."""
    order, key = jax.jit(trainer.order), jax.random.clone(state.key)
    first, done = divmod(int(state.step), trainer.steps_per_epoch)
    for epoch in itertools.count(first):
        inputs = np.asarray(order(key, epoch))
        if epoch == first:
            inputs = inputs[done * trainer.batch_size :]
        yield from dataset.batches(inputs, trainer.batch_size)


class Trained(NamedTuple):
    """Runs that trained together: arrays have an axis of runs."""

    initial: Any  # the parameters before the first step, on the host
    state: TrainState  # the last
    row: dict[str, np.ndarray]  # what Trainer.report told at the end
    seconds: float  # of training, over all runs, without compilation and evaluation
    passes: OnDevice


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
    passes = OnDevice(make(), dataset, make, settings)
    init = jax.jit(jax.vmap(passes.trainer.init))
    state, seconds = init(np.tile(seeds, len(methods))), 0.0
    initial = jax.device_get(state.params)
    passes.compile(state)
    for epoch in run_epochs(passes, state, range(1, config.epochs + 1), name):
        seconds += epoch.seconds
        after(epoch)
    return Trained(initial, epoch.state, epoch.row, seconds, passes)
