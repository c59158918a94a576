"""The Hessian and the Gauss-Newton matrix of a run's training loss.

The loss is that of evaluation: all training images but for a remainder of a few, no
augmentation, no dropout, running statistics of BatchNorm. Batches are at most as large
as those of training, which fit in memory, or of a million pixels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.training.devices import loops_are_slow
from experiments.training.runs import Task
from experiments.training.trainer import Trainer, TrainState
from optax_grda.curvature import GaussNewton, Hessian

PyTree = Any


def hessian(task: Task, state: TrainState) -> Hessian:
    """Of the mean training loss at the state's parameters."""
    return Hessian(_functions(task.trainer)[0], state.params, _batches(task, state))


def gauss_newton(task: Task, state: TrainState) -> GaussNewton:
    """Of the mean training loss at the state's parameters."""
    _, logits, loss = _functions(task.trainer)
    return GaussNewton(logits, loss, state.params, _batches(task, state))


def gauss_newton_diagonal(task: Task, state: TrainState) -> PyTree:
    """The diagonal of that matrix, like the parameters."""
    _, logits, loss = _functions(task.trainer)
    batches = _batches(task, state, by_example=True)
    matrix = GaussNewton(logits, loss, state.params, batches)
    return matrix.diagonal(chunk=1 if loops_are_slow(state.params) else None)


@functools.cache  # one set of functions a network, so that they compile once
def _functions(trainer: Trainer):
    def loss_of_params(params, batch):
        return loss(logits(params, batch), batch)

    def logits(params, batch):
        images, _, repeated = batch
        batch_stats = jax.tree.map(lambda x: x[0], repeated)
        return trainer.logits(params, batch_stats, images)

    def loss(logits, batch):
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch[1]
        ).mean()

    return loss_of_params, logits, loss


def _batches(task: Task, state: TrainState, by_example: bool = False) -> PyTree:
    """Training images and labels as batches of one size, and the running statistics.

    The statistics are repeated for every batch, and if asked for, for every example.
    """
    images = len(task.train[1])
    most = max(task.trainer.batch_size, 2**20 // task.train[0][0].size)
    size = batch_size(images, most)
    number = images // size

    def stack(x):
        return x[: number * size].reshape(number, size, *x.shape[1:])

    def repeat(x):
        return jnp.broadcast_to(x, (number, size if by_example else 1, *x.shape))

    return *map(stack, task.train), jax.tree.map(repeat, state.batch_stats)


def batch_size(images: int, most: int) -> int:
    """The size, more than half of the most, that leaves the fewest images out."""
    sizes = range(min(images, most), min(images, most) // 2, -1)
    return min(sizes, key=lambda size: images % size)
