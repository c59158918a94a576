r"""Trains within a sparse mask that grows at random: SET.

Every now and then each layer drops the fraction zeta of its weights that are closest to
0, and as many grow at random among the others:

.. math::

  k = \zeta\, (1 - s_l) N_l, \qquad
  \text{drop} = \text{ArgTopK}(-|\theta_l|, k), \qquad
  \text{grow} = \text{Random}_{i \notin \theta_l \setminus \text{drop}}(k)

with s_l by the Erdős–Rényi-Kernel rule, and a random mask at first.

Source: Mocanu, Mocanu, Stone, Nguyen, Gibescu and Liotta, "Scalable training of
artificial neural networks with adaptive sparse connectivity inspired by network
science", Nature Communications 9, 2018 (arXiv 1707.04780): zeta = 0.3, after every
epoch.

Left open by the paper / changed here:

- Every 100 steps, or every 25th of the run where that is less.
- Until 3/4 of the steps, as RigL; the paper goes on to the last epoch, but under a
  learning rate that falls to 0 what grows late stays small.
- Kernels of convolutions too, hence the ERK form of its Erdős–Rényi rule.
- New weights start at 0, and the smallest are found by modulus, not among the positive
  and the negative ones apart.
- Momentum of a weight that grows starts at 0.
"""

import optax

from experiments.rivals._evolving import draw, evolving
from experiments.rivals._task import Task

ZETA = 0.3  # fraction of a layer's weights that an update replaces


def set_(task: Task) -> optax.GradientTransformationExtraArgs:
    """SET to task.sparsity, over all kernels together; task.key draws all masks."""
    return evolving(
        task, lambda time: ZETA, lambda gradients, key: draw(key, gradients)
    )
