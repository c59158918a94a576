r"""Trains densely for half of the steps, prunes once, and fine-tunes what is left.

.. math::

  m = [\,|w_T| \text{ among the } (1 - s) N \text{ largest of all kernels}\,], \qquad
  w_{n+1} = m \odot (w_n + \text{descent}(g_n)), \quad n \ge T

Source: Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient
Neural Networks", NIPS 2015 (arXiv 1506.02626): one round of theirs.

Left open by the paper / changed here:

- The time is divided in halves, and both share the run's one learning-rate schedule;
  the paper retrains with a lower rate for as long as it takes.
- One threshold for all kernels; the paper's is a multiple of each layer's deviation.
- Momentum of what is left goes on.
"""

import optax

from experiments.rivals._magnitude import largest
from experiments.rivals._masked import masked
from experiments.rivals._task import Task

PRUNE = 1 / 2  # of the steps: the one at which weights are pruned


def one_shot(task: Task) -> optax.GradientTransformationExtraArgs:
    """One-shot magnitude pruning to task.sparsity, all kernels ranked together."""

    def change(count, weights, gradients, mask):
        return largest(weights, task.sparsity)

    return masked(task, lambda count: count == int(PRUNE * task.steps), change)
