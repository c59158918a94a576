"""Learns soft thresholds, and lets gradients of pruned weights fade: AutoSparse.

    w = sign(v) (|v| - T)_+,   T = sigmoid(s_l)   for layer l
    dl/dv := h dl/dw,   dl/ds_l := -sigmoid'(s_l) sum_j sign(v_j) h_j dl/dw_j
    h_j = 1 where |v_j| > T,  alpha_n elsewhere
    alpha_n = alpha_0 max((1 + cos(pi t)) / 2, 1 - sigmoid(12 t - 6)),   t = n / steps

A larger alpha lets more pruned weights come back.

Source: Kundu et al., "AutoSparse: Towards Automated Sparse Training of Deep Neural
Networks", 2023 (arXiv 2304.06941), with its sigmoid-cosine decay.

Left open by the paper / changed here:

- They reach a sparsity by alpha_0 (0.75 for 80 % of ResNet-50), with one decay for v
  and s. Here alpha_0 is 0.75, and task.strength is the decay of s alone: see str_.
- s starts at -5.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._layer_thresholds import learned_by_layer
from experiments.rivals._reparametrised import straight_through
from experiments.rivals._task import Task

ALPHA = 0.75


def autosparse(task: Task) -> optax.GradientTransformationExtraArgs:
    """AutoSparse with a threshold by layer; uses task.strength: the decay of s."""

    def weight(v, above, count):
        alpha = ALPHA * annealed(count / task.steps)
        leaky = jnp.where(above > 0, above, alpha * above)
        sign = jnp.sign(v)
        return straight_through(sign * jax.nn.relu(above), sign * leaky)

    return learned_by_layer(task, weight)


def annealed(progress: jax.Array) -> jax.Array:
    """The sigmoid-cosine decay, from 1 to 0."""
    cosine = (1 + jnp.cos(jnp.pi * progress)) / 2
    return jnp.maximum(cosine, jax.nn.sigmoid(6 - 12 * progress))
