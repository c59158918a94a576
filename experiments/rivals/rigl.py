r"""Trains within a sparse mask that grows where the gradient is large: RigL.

Every Delta T steps until T_end, each layer drops its k smallest active weights by
modulus and grows the k largest gradients among the others, from 0:

.. math::

  k = f(t)\, (1 - s_l) N_l, \qquad
  f(t) = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{T_\text{end}}\right), \qquad
  \text{drop} = \text{ArgTopK}(-|\theta_l|, k), \qquad
  \text{grow} = \text{ArgTopK}_{i \notin \theta_l \setminus \text{drop}}(|\nabla|, k)

with s_l by the Erdős–Rényi-Kernel rule, and a random mask at first.

Source: Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets
Winners", ICML 2020 (arXiv 1911.11134): alpha = 0.3, Delta T = 100, T_end = 3/4 of the
training.

Left open by the paper / changed here:

- Delta T is 100 steps, and a 25th of the run where that is less.
- An update of the mask does not take the place of a step: the step follows, with the
  new mask and the gradient that chose it.
- Momentum of a weight that grows starts at 0.
- Among gradients that are 0, as of an input that is always 0, later places come first.
"""

import math

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._evolving import evolving
from experiments.rivals._task import Task

ALPHA = 0.3  # fraction of a layer's weights that the first update replaces
TINY = 1e-30  # times an entry's number, below all gradients but 0


def rigl(task: Task) -> optax.GradientTransformationExtraArgs:
    """RigL to task.sparsity, over all kernels together; task.key draws the mask."""

    def fraction(time):
        return ALPHA / 2 * (1 + jnp.cos(math.pi * time))

    def scores(gradients, key):
        def leaf(g):
            places = jnp.arange(1.0, 1 + g.size).reshape(g.shape)
            return jnp.maximum(jnp.abs(g), TINY * places)

        return jax.tree.map(leaf, gradients)

    return evolving(task, fraction, scores)
