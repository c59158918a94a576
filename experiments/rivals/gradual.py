r"""Prunes the smallest weights little by little, along a cubic ramp, while training.

.. math::

  s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{n \Delta t}\right)^3, \qquad
  t \in \{t_0, t_0 + \Delta t, \dots, t_0 + n \Delta t\}

with s_i = 0 and t_0 = 0: at each of these steps the mask keeps the fraction 1 - s_t of
largest moduli, and afterwards it is fixed.

Source: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for
model compression", 2017 (arXiv 1710.01878). The units' form follows their ramp alone.

Left open by the paper / changed here:

- Three choices of what is compared: `gradual_uniform` ranks the weights of every kernel
  apart, all to the same sparsity, as the paper does (it spares some layers; here all
  kernels are pruned); `gradual_global` ranks all kernels' weights together;
  `gradual_units` ranks output units.
- Delta t is a 100th of the run (paper: 100 to 1,000 steps of much longer runs), and the
  ramp ends at 3/4 of it (their networks: at a half to nearly all).
- What is pruned is 0 for good: its steps and its momentum are 0. The paper's masked
  weights get no gradients either.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._magnitude import largest, quantile
from experiments.rivals._masked import masked
from experiments.rivals._task import Task

PyTree = Any

UPDATES = 100  # of the mask, were the ramp as long as the run
END = 3 / 4  # of the steps: end of the ramp


def gradual_global(task: Task) -> optax.GradientTransformationExtraArgs:
    """Gradual magnitude pruning to task.sparsity, all kernels ranked together."""
    return _gradual(task, largest)


def gradual_uniform(task: Task) -> optax.GradientTransformationExtraArgs:
    """Gradual magnitude pruning to task.sparsity, the same in every kernel."""

    def keep(weights, sparsity):
        return jax.tree.map(lambda x: largest(x, sparsity), weights)

    return _gradual(task, keep)


def gradual_units(task: Task) -> optax.GradientTransformationExtraArgs:
    """Gradual pruning of whole output units, as near to task.sparsity as they allow.

    A unit (index of the last axis) is worth the root mean square of its weights. The
    best of each kernel stays: a network is not cut in two.
    """
    return _gradual(task, largest_units)


def largest_units(weights: PyTree, sparsity: jax.typing.ArrayLike) -> PyTree:
    """True in whole units, those of largest root mean square.

    The number of False entries is the one nearest to the sparsity that whole units can
    give: a unit counts as much as it has weights.
    """

    def worth(kernel):
        rms = jnp.sqrt(
            jnp.mean(jnp.square(kernel), tuple(range(kernel.ndim - 1)), keepdims=True)
        )
        rms = jnp.where(rms == jnp.max(rms), jnp.inf, rms)
        return jnp.broadcast_to(rms, kernel.shape)

    worths = jax.tree.map(worth, weights)
    limit = quantile(worths, sparsity)
    fewer = jax.tree.map(lambda x: (x > limit) | jnp.isinf(x), worths)
    more = jax.tree.map(lambda x: x >= limit, worths)

    def error(mask):
        on = sum(jnp.sum(x, dtype=jnp.int32) for x in jax.tree.leaves(mask))
        return jnp.abs(on / sum(x.size for x in jax.tree.leaves(mask)) - 1 + sparsity)

    nearer = error(fewer) <= error(more)
    return jax.tree.map(lambda a, b: jnp.where(nearer, a, b), fewer, more)


def _gradual(
    task: Task, keep: Callable[[PyTree, jax.typing.ArrayLike], PyTree]
) -> optax.GradientTransformationExtraArgs:
    interval = max(1, task.steps // UPDATES)
    end = interval * max(1, int(END * task.steps) // interval)

    def when(count):
        return (count % interval == 0) & (count <= end)

    def change(count, weights, gradients, mask):
        return keep(weights, task.sparsity * (1 - (1 - count / end) ** 3))

    return masked(task, when, change)
