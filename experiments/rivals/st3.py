"""Trains through a soft threshold as if it were not there: ST-3.

    w = a_u sign(v) (|v| - L)_+,   dl/dv := dl/dw,   L the q_n-quantile of all |v|
    a_u = 1.01 / (r_u + 0.01),   r_u = (sum of kept |v|) / (sum of all |v|) into unit u
    q_n = sparsity (1 - (1 - n / ramp)^3)

Source: Vanderschueren and De Vleeschouwer, "Are Straight-Through gradients and
Soft-Thresholding all you need for Sparse Training?", WACV 2023 (arXiv 2212.01076).

Left open by the paper / changed here:

- The ramp takes half of the steps (theirs: a start and an end set by run).
- a_u is that of their public code, where it is a constant of the backward pass.
- Plain ST-3, not ST-3-sigma, whose threshold depends on a layer's width.
- No epochs of fine-tuning with a fixed mask, which their code adds after the end.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._magnitude import quantile
from experiments.rivals._reparametrised import (
    by_unit,
    cubic_ramp,
    reparametrised,
    straight_through,
)
from experiments.rivals._task import Task

RAMP = 0.5  # of the steps


def st3(task: Task) -> optax.GradientTransformationExtraArgs:
    """ST-3 with a global threshold; uses task.sparsity."""

    def weights(variables, count):
        v = variables["weights"]
        sparsity = task.sparsity * cubic_ramp(count, RAMP * task.steps)
        soft = functools.partial(soft_rescaled, threshold=quantile(v, sparsity))
        return jax.tree.map(lambda v: straight_through(soft(v), v), v)

    return reparametrised(
        lambda params: {"weights": params}, weights, {"weights": task.descent()}
    )


def soft_rescaled(v: jax.Array, threshold: jax.Array) -> jax.Array:
    """The soft threshold, each output unit rescaled by what it lost; none below 0."""
    size = jnp.abs(v)
    kept = size > threshold
    axes = by_unit(v)
    kept_mean = jnp.mean(jnp.where(kept, size, 0), axes, keepdims=True)
    share = (kept_mean + 1e-6) / (jnp.mean(size, axes, keepdims=True) + 1e-6)
    soft = jnp.where(kept, v - jnp.sign(v) * threshold, 0)
    return jnp.where(threshold > 0, soft * (1.01 / (share + 0.01)), v)
