"""Trains through a threshold between soft and hard, slower where pruned: Feather.

    w = sign(v) (|v|^p - L^p)_+^(1/p),   p = 3,   L the q_n-quantile of all |v|
    dl/dv := dl/dw where |v| > L,  theta dl/dw elsewhere
    q_n = sparsity (1 - (1 - n / ramp)^3)

Source: Glentis Georgoulakis, Retsinas and Maragos, "Feather: An Elegant Solution to
Effective DNN Sparsification", BMVC 2023 (arXiv 2310.02448): Feather-Global.

Left open by the paper / changed here:

- theta is 1/2 for a sparsity beyond 95 % and 1 up to there, all run long (their code).
- Gradients are not clipped (their code clips the norm at 3).
"""

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._magnitude import quantile
from experiments.rivals._reparametrised import (
    cubic_ramp,
    reparametrised,
    straight_through,
)
from experiments.rivals._task import Task

P = 3
RAMP = 0.5  # of the steps
HIGH = 0.95  # sparsity beyond which gradients of pruned weights are halved


def feather(task: Task) -> optax.GradientTransformationExtraArgs:
    """Feather with a global threshold; uses task.sparsity."""
    theta = jnp.where(task.sparsity > HIGH, 0.5, 1.0)

    def weights(variables, count):
        v = variables["weights"]
        sparsity = task.sparsity * cubic_ramp(count, RAMP * task.steps)
        threshold = jnp.maximum(quantile(v, sparsity), 0)

        def leaf(v):
            kept = jnp.abs(v) > threshold
            # |v| (1 - (L / |v|)^p)^(1/p), which does not underflow.
            ratio = threshold / jnp.where(kept, jnp.abs(v), 1)
            between = v * jnp.maximum(1 - ratio**P, 0) ** (1 / P)
            return straight_through(
                jnp.where(kept, between, 0), jnp.where(kept, v, theta * v)
            )

        return jax.tree.map(leaf, v)

    return reparametrised(
        lambda params: {"weights": params}, weights, {"weights": task.descent()}
    )
