r"""Sums Adam's steps, and thresholds the sum in Adam's own metric.

.. math::

  \begin{align*}
    v_n &= (1 - \gamma_n \lambda)\, v_{n-1}
      - \gamma_n \frac{\hat m_n}{\sqrt{\hat\nu_n} + \epsilon}, & v_0 &= w_0, \\
    d_n &= \frac{c_n}{\sqrt{\hat\nu_n} + \epsilon}, &
    \textstyle \frac{1}{N} \sum_j d_{n,j} &= 1, \\
    w_n &= P(v_n, L_n d_n)
  \end{align*}

with Adam's moments m and nu, and P(v, L) = sign(v) (\|v\|^p - L^p)_+^(1/p) entry by
entry: the step of Adam and the threshold are scaled alike, so that an entry whose
gradients are small needs a larger weight to stay. L_n is the quantile of \|v\| / d that
makes the wanted fraction zero, which rises along a cubic ramp in half of the steps.

Idea: proximal steps in the metric of the preconditioner, as in RAMDA (Huang and Lee,
"Regularized Adaptive Momentum Dual Averaging with an Efficient Inexact Subproblem
Solver for Training Structured Neural Network", NeurIPS 2024, arXiv 2403.14398).

Changed here:

- The average is not RAMDA's: the steps are summed as they come, as in gRDA, with each
  step's own preconditioner, and nothing is divided by a sum of weights.
- The penalty has no strength that is tuned: the threshold is steered.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._magnitude import quantile
from experiments.rivals._reparametrised import cubic_ramp
from experiments.rivals._task import Task

PyTree = Any

RAMP = 0.5  # of the steps
B2, EPS = 0.999, 1e-8  # Optax's defaults, as Task.descent has them


class AdamMetricState(NamedTuple):
    """What `adam_metric` keeps between steps."""

    count: jax.Array  # steps taken. shape=(), dtype=jnp.int32
    threshold: jax.Array  # L_n. shape=(), dtype=jnp.float32
    accumulator: PyTree  # v_n. Shapes of params
    adam: optax.ScaleByAdamState


def adam_metric(task: Task, p: int = 1) -> optax.GradientTransformationExtraArgs:
    """The sum of Adam's steps, thresholded in its metric; uses task.sparsity."""
    adam = optax.scale_by_adam(b2=B2, eps=EPS)

    def init(params):
        accumulator = jax.tree.map(jnp.copy, params)
        return AdamMetricState(
            jnp.int32(0), jnp.float32(0), accumulator, adam.init(params)
        )

    def update(gradients, state, params, **_):
        gamma = task.rate(state.count)
        direction, moments = adam.update(gradients, state.adam)
        accumulator = jax.tree.map(
            lambda v, step: (1 - gamma * task.weight_decay) * v - gamma * step,
            state.accumulator,
            direction,
        )
        relative = jax.tree.map(jnp.divide, accumulator, metric(moments))
        sparsity = task.sparsity * cubic_ramp(state.count, RAMP * task.steps)
        threshold = jnp.maximum(quantile(relative, sparsity), 0)
        weights = jax.tree.map(
            lambda v, u: v * share_left(u, threshold, p), accumulator, relative
        )
        updates = jax.tree.map(jnp.subtract, weights, params)
        return updates, AdamMetricState(
            state.count + 1, threshold, accumulator, moments
        )

    return optax.GradientTransformationExtraArgs(init, update)


def metric(moments: optax.ScaleByAdamState) -> PyTree:
    """d: 1 / (sqrt(nu) + eps), scaled to mean one over all entries."""
    correction = 1 - B2 ** jnp.float32(moments.count)
    inverse = jax.tree.map(lambda nu: 1 / (jnp.sqrt(nu / correction) + EPS), moments.nu)
    leaves = jax.tree.leaves(inverse)
    total = functools.reduce(jnp.add, [jnp.sum(x) for x in leaves])
    mean = total / sum(x.size for x in leaves)
    return jax.tree.map(lambda x: x / mean, inverse)


def share_left(relative: jax.Array, threshold: jax.Array, p: int) -> jax.Array:
    """(1 - (L / |u|)^p)_+^(1/p): P(v, L d) / v where u = v / d, without overflow."""
    kept = jnp.abs(relative) > threshold
    ratio = threshold / jnp.where(kept, jnp.abs(relative), 1)
    return jnp.where(kept, jnp.maximum(1 - ratio**p, 0) ** (1 / p), 0)
