r"""Trains dense weights through their largest alone, the next largest too: Top-KAST.

The network sees alpha, the fraction D of a layer's dense weights theta that is largest;
steps reach the larger set B, so that weights outside A can grow into it:

.. math::

  A = \text{TopK}(|\theta|, D), \quad B = \text{TopK}(|\theta|, D + M), \qquad
  \alpha_i = \theta_i [i \in A], \qquad
  \Delta\theta_i = -\eta\, [i \in B] \left(\nabla_{\alpha_i} L + \lambda\, r_i\right),
  \qquad r_i = \theta_i \cdot
    \begin{cases} 1 & i \in A \\ 1 / D & i \in B \setminus A \end{cases}

The last term is the gradient of an L2 exploration penalty: what is in A for its size
alone shrinks until others take its place, and what is out of A shrinks faster.

Source: Jayakumar, Pascanu, Rae, Osindero and Elsen, "Top-KAST: Top-K Always Sparse
Training", NeurIPS 2020 (arXiv 2106.03517).

Left open by the paper / changed here:

- Each kernel is ranked apart, as in the paper, at every step (paper: every 100 steps is
  as good). Their densities D follow the Erdős–Rényi-Kernel rule; the paper gives all
  layers the same, but leaves the first and the last dense. (All kernels ranked together
  cut digits' MLP in two at 98 % zeros; the same density for all did worse by far.)
- M = D: twice as many weights get steps as are seen; among the paper's settings is
  90 % zeros forward, 80 % backward.
- The paper writes the penalty with moduli and calls it an L2 loss: here it is
  lambda / 2 times the sum of squares. It takes the place of the task's weight decay,
  and lambda is that decay, at least 1e-4.
- Momentum is one buffer over all weights; outside B its gradients are 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._layers import erdos_renyi_kernel
from experiments.rivals._magnitude import largest_by_leaf
from experiments.rivals._masked import dense
from experiments.rivals._task import Task

PyTree = Any

BACKWARD = 2.0  # (D + M) / D
PENALTY = 1e-4  # lambda, at least


class TopKastState(NamedTuple):
    """What `top_kast` keeps between steps."""

    weights: PyTree  # theta. Shapes and dtypes of params
    forward: PyTree  # A, of which the gradient is taken. Shapes of params, dtype=bool
    descent: optax.OptState  # of `Task.descent`


def top_kast(task: Task) -> optax.GradientTransformationExtraArgs:
    """Top-KAST to task.sparsity, over all kernels together."""
    descent = task._replace(weight_decay=0.0).descent()
    penalty = jnp.maximum(task.weight_decay, PENALTY)

    def init(params):
        weights = jax.tree.map(jnp.copy, params)  # params may be donated
        return TopKastState(weights, dense(params), descent.init(params))

    def update(gradients, state, params, **extra_args):
        weights, forward, descended = state
        sparsities = erdos_renyi_kernel(weights, task.sparsity)
        wider = jax.tree.map(
            lambda s: jnp.maximum(0.0, 1 - BACKWARD * (1 - s)), sparsities
        )
        backward = largest_by_leaf(weights, wider)

        def penalized(g, x, in_a, in_b, s):
            decay = penalty * jnp.where(in_a, x, x / (1 - s))
            return jnp.where(in_b, g + decay, 0.0)

        gradients = jax.tree.map(
            penalized, gradients, weights, forward, backward, sparsities
        )
        steps, descended = descent.update(gradients, descended, weights)
        weights = jax.tree.map(
            lambda x, step, in_b: jnp.where(in_b, x + step, x), weights, steps, backward
        )
        forward = largest_by_leaf(weights, sparsities)
        updates = jax.tree.map(
            lambda x, in_a, old: jnp.where(in_a, x, 0.0) - old, weights, forward, params
        )
        return updates, TopKastState(weights, forward, descended)

    return optax.GradientTransformationExtraArgs(init, update)
