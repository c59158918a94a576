"""Where an epoch's batches come from: arrays that lie on the devices, or a stream."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import models
from experiments.training import data
from experiments.training.config import Config
from experiments.training.devices import any_process, replicated
from experiments.training.trainer import Metrics, Trainer, TrainState


class Source(Protocol):
    """The data of a run, and how an epoch of training and an evaluation go over it."""

    trainer: Trainer

    def epoch(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """Trains up to the end of the epoch; returns the metrics of each step.

        A stream ends early where stopping() becomes true. The state is donated.
        """
        ...

    def evaluate(self, state: TrainState) -> Metrics:
        """Means over the test images."""
        ...

    def close(self) -> None:
        """Ends the processes that read data."""
        ...


def open_source(
    config: Config, data_dir: Path | None, mesh: Mesh, workers: int
) -> Source:
    """The data of a configuration.

    Args:
      config: the experiment.
      data_dir: as for experiments.data.load.
      mesh: of experiments.devices.data_mesh.
      workers: processes that decode a stream's images; 0 means a thread.

    Raises:
      FileNotFoundError: if the data are not there.
      ValueError: if they are unknown or damaged.
    """
    if config.dataset == "imagenet2012":
        return StreamSource(config, data_dir, mesh, workers)
    return MemorySource(config, data.load(config.dataset, data_dir), mesh)


class MemorySource:
    """Data that lie on every device; an epoch is one dispatch."""

    def __init__(self, config: Config, dataset: data.Dataset, mesh: Mesh):
        images = len(dataset.train_labels)
        self.trainer = Trainer(config, dataset.num_classes, images, mesh)
        everywhere = replicated(mesh)
        self.train = jax.device_put(
            (dataset.train_images, dataset.train_labels), everywhere
        )
        self.test = jax.device_put(
            (dataset.test_images, dataset.test_labels), everywhere
        )
        jit = functools.partial(jax.jit, out_shardings=everywhere)
        self._epoch = jit(self.trainer.train_epoch, donate_argnums=0)
        self._step = jit(self.trainer.train_step_at, donate_argnums=0)
        self._order = jit(self.trainer.order)
        self._evaluate = jit(self.trainer.evaluate)

    def epoch(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """See Source. An epoch is not interrupted: it is one call on the device.

        But where loops inside a program are slow, the loop is made here.
        """
        del stopping
        if not loops_are_slow(state):
            return self._epoch(state, *self.train)
        order, metrics = np.asarray(self._order(state)), []
        size = self.trainer.batch_size
        for start in range(0, len(order), size):
            index = order[start : start + size]
            state, step = self._step(state, *self.train, index)
            # Waiting keeps steps that several CPU devices take together from
            # overtaking each other, and blocking all threads.
            metrics.append(jax.device_get(step))
        return state, jax.tree.map(lambda *steps: np.stack(steps), *metrics)

    def evaluate(self, state: TrainState) -> Metrics:
        """See Source."""
        return self._evaluate(state.params, state.batch_stats, *self.test)

    def close(self) -> None:
        """See Source. There are none."""


class StreamSource:
    """ImageNet, read from disk while the devices work; a position is a step.

    Workers hand batches over in shared memory, about three each: in a container,
    /dev/shm must hold them (38 MB each at 256 images of 224 x 224).
    """

    def __init__(self, config: Config, data_dir: Path | None, mesh: Mesh, workers: int):
        from experiments import streaming  # needs Grain and TFDS, others do not

        train = streaming.imagenet("train", data_dir)
        test = streaming.imagenet("validation", data_dir)
        self.trainer = Trainer(
            config, train.dataset_info.features["label"].num_classes, len(train), mesh
        )
        size = self.trainer.batch_size
        # The stream leaves out what does not fill a batch.
        self.trainer = dataclasses.replace(
            self.trainer, num_examples=len(train) // size * size
        )
        options = {
            "batch_size": size,
            "image_size": models.spec(config.model).image_shape[0],
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "workers": workers,
        }
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        self._training = lambda start: streaming.prefetch_to_device(
            streaming.training_batches(train, seed=config.seed, start=start, **options),
            sharding,
        )
        self._testing = streaming.prefetch_to_device(
            streaming.evaluation_batches(test, **options), sharding
        )
        self._batches = None  # opened at the first step, and read on in the next epoch
        jit = functools.partial(jax.jit, out_shardings=replicated(mesh))
        self._step = jit(self.trainer.train_step, donate_argnums=0)
        self._sums = jit(self._weighted_sums)

    def epoch(
        self, state: TrainState, stopping: Callable[[], bool]
    ) -> tuple[TrainState, Metrics]:
        """See Source. All processes ask every 100 steps whether to stop."""
        done = int(state.step)
        if self._batches is None:
            self._batches = iter(self._training(done))
        metrics = []
        left = self.trainer.steps_per_epoch - done % self.trainer.steps_per_epoch
        for number in range(left):
            if number % 100 == 99 and any_process(stopping()):
                break
            batch = next(self._batches)
            state, step = self._step(state, batch["image"], batch["label"])
            metrics.append(step)
        return state, jax.tree.map(lambda *steps: np.stack(steps), *metrics)

    def evaluate(self, state: TrainState) -> Metrics:
        """See Source."""
        batches = iter(self._testing)
        sums = [self._sums(state.params, state.batch_stats, batch) for batch in batches]
        batches.close()
        loss, accuracy, images = np.sum(jax.device_get(sums), axis=0)
        return Metrics(loss / images, accuracy / images)

    def close(self) -> None:
        """See Source."""
        if self._batches is not None:
            self._batches.close()

    def _weighted_sums(self, params, batch_stats, batch) -> tuple[jax.Array, ...]:
        metrics = self.trainer.metrics(
            params, batch_stats, batch["image"], batch["label"]
        )
        weight = batch["weight"]
        return *(jnp.sum(m * weight) for m in metrics), jnp.sum(weight)


def loops_are_slow(state: TrainState) -> bool:
    """Whether the loop over batches is better made outside of a program.

    On a CPU, gradients of convolutions are 10 to 20 times slower in a loop inside (JAX
    issue 12868).
    """
    kernels = jax.tree.leaves(state.params)
    return jax.default_backend() == "cpu" and any(leaf.ndim == 4 for leaf in kernels)
