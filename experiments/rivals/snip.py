r"""Prunes at initialization what matters least to the loss of the first batch: SNIP.

.. math::

  g_j = \left.\frac{\partial L(c \odot w)}{\partial c_j}\right|_{c = 1}
      = w_j \frac{\partial L}{\partial w_j}, \qquad
  s_j = \frac{|g_j|}{\sum_k |g_k|}, \qquad
  c_j = [\,s_j \text{ among the } \kappa \text{ largest}\,]

Source: Lee, Ajanthan and Torr, "SNIP: Single-shot Network Pruning based on Connection
Sensitivity", ICLR 2019 (arXiv 1810.02340).

Left open by the paper / changed here:

- The batch is the run's first, of its usual size (paper: 100 or 128 images).
- The initial weights are the arena's, as for all methods (paper: variance scaling).
- The sum in s_j does not change the order and is left out. The first step follows the
  same gradient, under the mask.
- Where more weights have no sensitivity than are to be pruned, all of them are.
"""

import jax
import optax

from experiments.rivals._magnitude import largest
from experiments.rivals._masked import masked
from experiments.rivals._task import Task


def snip(task: Task) -> optax.GradientTransformationExtraArgs:
    """SNIP to task.sparsity, all kernels ranked together."""

    def change(count, weights, gradients, mask):
        sensitivities = jax.tree.map(lambda w, g: w * g, weights, gradients)
        return largest(sensitivities, task.sparsity)

    return masked(task, lambda count: count == 0, change)
