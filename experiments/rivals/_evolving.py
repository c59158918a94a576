"""Sparse training with a mask that evolves: small weights are dropped, others grow."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._layers import erdos_renyi_kernel
from experiments.rivals._magnitude import largest, largest_by_leaf
from experiments.rivals._masked import masked
from experiments.rivals._task import Task

PyTree = Any

INTERVAL = 100  # steps between updates of the mask (RigL's Delta T); in a short run
CHANGES = 25  # so many that its whole length would hold this many
END = (
    3 / 4
)  # of the steps: the mask is fixed from there (T_end of RigL, and of its SET)


def evolving(
    task: Task,
    fraction: Callable[[jax.Array], jax.typing.ArrayLike],
    scores: Callable[[PyTree, jax.Array], PyTree],
) -> optax.GradientTransformationExtraArgs:
    """Trains within a random mask of ERK densities that drops and grows weights.

    Args:
      task: what to do.
      fraction: which fraction of a layer's weights is dropped, by the share of the time
        until the mask is fixed that is over.
      scores: of gradients and a key, what is largest where weights shall grow.
    """
    interval = max(1, min(INTERVAL, task.steps // CHANGES))
    end = int(END * task.steps)

    def start(params):
        sparsities = erdos_renyi_kernel(params, task.sparsity)
        return largest_by_leaf(draw(task.key, params), sparsities)

    def when(count):
        return (count > 0) & (count % interval == 0) & (count < end)

    def change(count, weights, gradients, mask):
        return drop_and_grow(
            weights,
            mask,
            scores(gradients, jax.random.fold_in(task.key, count)),
            fraction(count / end),
            erdos_renyi_kernel(weights, task.sparsity),
        )

    return masked(task, when, change, start=start)


def draw(key: jax.Array, tree: PyTree) -> PyTree:
    """Uniform numbers in a pytree's shapes, drawn at once: that compiles faster."""
    leaves, structure = jax.tree.flatten(tree)
    ends = list(itertools.accumulate(x.size for x in leaves))
    numbers = jnp.split(jax.random.uniform(key, (ends[-1],)), ends[:-1])
    return structure.unflatten(
        [part.reshape(x.shape) for part, x in zip(numbers, leaves, strict=True)]
    )


def drop_and_grow(
    weights: PyTree,
    mask: PyTree,
    scores: PyTree,
    fraction: jax.typing.ArrayLike,
    sparsities: PyTree,
) -> PyTree:
    """A mask without that fraction of its smallest weights, filled up by the scores.

    Every layer keeps its number of weights. A weight just dropped may grow back: then
    it never was away.
    """

    def leaf(weights, mask, scores, sparsity):
        dropped = 1 - (1 - fraction) * (1 - sparsity)
        stays = largest(jnp.where(mask, weights, 0.0), dropped)
        return largest(jnp.where(stays, jnp.inf, scores), sparsity)

    return jax.tree.map(leaf, weights, mask, scores, sparsities)
