"""Adds the L1 norm to the loss, and prunes by magnitude at the end.

    minimise  loss(w) + strength ||w||_1,   then  w_j <- 0 for the smallest |w_j|

The subgradient is sign(w), 0 at 0. Descent on it makes weights small, not 0: hence the
threshold at the last step, one for all kernels, at task.sparsity.

Source: Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996; on
networks Han et al., "Learning both Weights and Connections for Efficient Neural
Networks", NeurIPS 2015 (arXiv 1506.02626).

Left open by the paper / changed here:

- task.strength is the factor of the norm, usually 1e-5 to 1e-3; no retraining.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._magnitude import largest
from experiments.rivals._reparametrised import reparametrised
from experiments.rivals._task import Task


def l1(task: Task) -> optax.GradientTransformationExtraArgs:
    """L1 in the loss; uses task.strength, and task.sparsity at the end."""

    def weights(variables, count):
        w = variables["weights"]
        kept = largest(w, jnp.where(count == task.steps, task.sparsity, 0))
        return jax.tree.map(lambda w, kept: jnp.where(kept, w, 0), w, kept)

    def penalty(variables, count):
        w = variables["weights"]
        sign = jax.lax.stop_gradient(jax.tree.map(jnp.sign, w))  # of 0 it is 0
        return task.strength * optax.tree.vdot(sign, w)

    return reparametrised(
        lambda params: {"weights": params},
        weights,
        {"weights": task.descent()},
        penalty,
    )
